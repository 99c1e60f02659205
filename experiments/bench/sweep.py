"""What is to be measured: axes, from flags or one TOML file, every name of which is known."""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from specdec.methods import VERIFIERS, known

from ..loading import DTYPES

AUTO = "auto"
TREE_OPTIONS = ("num_tree_nodes", "speculative_token_tree")
# Of drafters, unless one says it for itself.
DRAFT_AXES = ("num_speculative_tokens", *TREE_OPTIONS, "verifier")
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
NAMED = "method"  # of a drafter's table


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The settings of a benchmark. Tuples are axes: every combination that can be is measured.

    Example:
        >>> sweep = sweep_of({"drafter": ["ngram"], "num_speculative_tokens": [3, 5], "temperature": 0.8})
        >>> sweep.temperature, [spec["num_speculative_tokens"] for spec in specs_of(sweep.drafter[0], sweep)]
        ((0.8,), [3, 5])
    """

    drafter: tuple[Mapping[str, Any], ...] | None = None  # None: all that the models allow
    num_speculative_tokens: tuple[int, ...] = (2, 4, 6)
    num_tree_nodes: tuple[int | None, ...] = (None,)  # None: a chain
    speculative_token_tree: tuple[str | None, ...] = (None,)
    verifier: tuple[str, ...] = (AUTO,)
    temperature: tuple[float, ...] = (0.0,)  # 0: greedy
    top_p: tuple[float | None, ...] = (None,)  # None leaves an option to the target's generation config
    top_k: tuple[int | None, ...] = (None,)
    min_p: tuple[float | None, ...] = (None,)
    repetition_penalty: tuple[float | None, ...] = (None,)
    batch_size: tuple[int, ...] = (1,)
    dtype: tuple[str | None, ...] = (None,)
    target: tuple[str | None, ...] = (None,)
    draft: str | None = None
    head: tuple[str, ...] | None = None
    prompts: str | None = None
    num_prompts: int = 2  # per category
    category: tuple[str, ...] = ()
    use_chat_template: bool | None = None  # None: if the tokenizer has one
    max_new_tokens: int = 48
    repeats: int = 1
    seed: int = 0
    device: str | None = None
    device_map: str | None = None
    tp_plan: str | None = None
    graphs: bool | None = None
    threads: int | None = None
    trace: bool = False
    trace_top_m: int = 16  # likeliest tokens of each distribution that a trace keeps

    @property
    def spread(self) -> dict[str, str]:
        """How the target lies over several devices, as `load_model` takes it."""
        given = {"device_map": self.device_map, "tp_plan": self.tp_plan}
        return {name: value for name, value in given.items() if value is not None}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def read_sweep(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, as they are written there.

    Raises:
        ValueError: it is not there, or no TOML.
    """
    if not path.is_file():
        raise ValueError(f"expected a sweep in TOML, got {str(path)!r}; there is no such file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected a sweep in TOML, got {str(path)!r}: {error}; correct that line") from error


def sweep_of(settings: Mapping[str, Any]) -> Sweep:
    """The sweep that these settings describe; a single value is an axis of one.

    Raises:
        ValueError: an unknown name, or a value that is out of range or of another kind.

    Example:
        >>> sweep_of({"batchsize": 4})
        Traceback (most recent call last):
        ValueError: expected a known setting, got 'batchsize'; did you mean 'batch_size'?
    """
    values: dict[str, Any] = {}
    for name, given in settings.items():
        known(name, _CHECKS, "setting")
        check, is_axis = _CHECKS[name], name in _AXES
        if not is_axis:
            values[name] = check(name, given)
            continue
        listed = given if isinstance(given, list | tuple) else [given]
        if not listed:
            raise ValueError(f"expected at least one value for {name}, got none; drop it for the default")
        values[name] = tuple(dict.fromkeys(check(name, value) for value in listed))
    sweep = Sweep(**values)
    drawn = [name for name in ("top_p", "top_k", "min_p") if getattr(sweep, name) != (None,)]
    if drawn and not any(sweep.temperature):
        raise ValueError(f"expected a temperature above 0 with {drawn[0]}, got 0; add temperature 1")
    if len(sweep.spread) > 1:
        raise ValueError("expected device_map or tp_plan, got both; drop one")
    return sweep


def specs_of(drafter: Mapping[str, Any], sweep: Sweep) -> Iterator[dict[str, Any]]:
    """Every mapping that a drafter's table stands for: its lists are axes, and those of the sweep that it lacks."""
    has_tree = any(name in drafter for name in TREE_OPTIONS)
    axes = {name: getattr(sweep, name) for name in DRAFT_AXES if not (has_tree and name in TREE_OPTIONS)}
    for name, value in drafter.items():
        axes[name] = tuple(value) if isinstance(value, list | tuple) and not _is_tree(value) else (value,)
        if name in _CHECKS and name in DRAFT_AXES:
            axes[name] = tuple(_CHECKS[name](name, each) for each in axes[name])
    for values in product(*axes.values()):
        yield {name: value for name, value in zip(axes, values, strict=True) if value is not None}


def samplings_of(sweep: Sweep) -> list[dict[str, Any]]:
    """Every way to sample, greedy ones without what means nothing to them."""
    found = []
    for values in product(*(getattr(sweep, name) for name in SAMPLING)):
        sampling = dict(zip(SAMPLING, values, strict=True))
        if not sampling["temperature"]:
            sampling |= {"top_p": None, "top_k": None, "min_p": None}
        if sampling not in found:
            found.append(sampling)
    return found


def _is_tree(value: Sequence[Any]) -> bool:
    """Whether a list is the shape of one tree: rank paths."""
    return bool(value) and all(
        isinstance(path, list | tuple) and all(isinstance(rank, int) for rank in path) for path in value
    )


def _refuse(name: str, wanted: str, given: Any) -> ValueError:
    return ValueError(f"expected {wanted} for {name}, got {given!r}; correct it")


def _whole(low: int, has_none: bool = False) -> Callable[[str, Any], int | None]:
    def check(name: str, given: Any) -> int | None:
        if has_none and given in ((None, "none", 0, "0") if low else (None, "none")):
            return None
        try:
            value = int(given) if isinstance(given, str) else given
        except ValueError:
            value = None
        if type(value) is not int or value < low:
            raise _refuse(name, f"a whole number of at least {low}", given)
        return value

    return check


def _real(low: float, high: float, has_none: bool = True) -> Callable[[str, Any], float | None]:
    def check(name: str, given: Any) -> float | None:
        if has_none and given in (None, "none"):
            return None
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = float("nan")
        if isinstance(given, bool) or not low <= value <= high:
            raise _refuse(name, f"a number from {low:g} to {high:g}", given)
        return value

    return check


def _text(name: str, given: Any) -> str | None:
    if given is not None and (not isinstance(given, str) or not given):
        raise _refuse(name, "a string", given)
    return given


def _texts(name: str, given: Any) -> tuple[str, ...] | None:
    if given is None:
        return None
    listed = given if isinstance(given, list | tuple) else [given]
    if not all(isinstance(each, str) and each for each in listed):
        raise _refuse(name, "strings", given)
    return tuple(listed)


def _one_of(table: Mapping[str, Any] | Sequence[str], what: str) -> Callable[[str, Any], str]:
    def check(name: str, given: Any) -> str:
        return known(given, list(table), what)

    return check


def _dtype(name: str, given: Any) -> str | None:
    return None if given is None else known(given, DTYPES, "dtype")


def _tree(name: str, given: Any) -> str | None:
    return None if given in (None, "none") else str(given)


def _flag(name: str, given: Any) -> bool | None:
    if given is not None and not isinstance(given, bool):
        raise _refuse(name, "true or false", given)
    return given


def _target(name: str, given: Any) -> str | None:
    return None if given in (None, "embedded") else _text(name, given)


def _drafters(name: str, given: Any) -> tuple[Mapping[str, Any], ...] | None:
    if given is None:
        return None
    listed = given if isinstance(given, list | tuple) else [given]
    tables = [{NAMED: each} if isinstance(each, str) else each for each in listed]
    if not tables or not all(isinstance(table, Mapping) and isinstance(table.get(NAMED), str) for table in tables):
        raise _refuse(name, f"names or tables with a {NAMED!r}", given)
    for table in tables:
        _text("model", table.get("model"))
    return tuple(dict(table) for table in tables)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "drafter": _drafters,
    "num_speculative_tokens": _whole(1),
    "num_tree_nodes": _whole(1, has_none=True),
    "speculative_token_tree": _tree,
    "verifier": _one_of([AUTO, *VERIFIERS], "rule"),
    "temperature": _real(0, 100, has_none=False),
    "top_p": _real(0, 1),
    "top_k": _whole(0, has_none=True),
    "min_p": _real(0, 1),
    "repetition_penalty": _real(1e-3, 1e3),
    "batch_size": _whole(1),
    "dtype": _dtype,
    "target": _target,
    "draft": _text,
    "head": _texts,
    "prompts": _text,
    "num_prompts": _whole(1),
    "category": lambda name, given: _texts(name, given) or (),
    "use_chat_template": _flag,
    "max_new_tokens": _whole(1),
    "repeats": _whole(1),
    "seed": _whole(0),
    "device": _text,
    "device_map": _text,
    "tp_plan": lambda name, given: None if given is None else known(given, ["auto"], name),
    "graphs": _flag,
    "trace": lambda name, given: bool(_flag(name, given)),
    "trace_top_m": _whole(1),
    "threads": lambda name, given: None if given is None else _whole(1)(name, given),
}
_AXES = (*DRAFT_AXES, *SAMPLING, "batch_size", "dtype", "target")
