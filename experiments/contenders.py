"""Who takes part in a comparison: transformers' own ways to generate, and every drafter of this toolkit."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.events import Round
from specdec.generation import speculate
from specdec.methods import DRAFTERS, HEADS, build_drafter, load_head, paged
from specdec.protocols import Drafter
from specdec.target import PagedModel

from .loading import Models

BASELINE = "transformers"
OURS = "specdec"
PLAIN = f"{OURS} plain"
ASSISTED = f"{BASELINE} assisted"
LOOKUP = f"{BASELINE} prompt lookup"
TREE = {"num_tree_nodes": 12}
# Drafters in another setting than their default.
VARIANTS: dict[str, dict[str, Any]] = {
    "draft_model tree": {"method": "draft_model", **TREE},
    "draft_model coupled": {"method": "draft_model", "draft_sample_method": "coupled"},
}
HEAD = "head"  # of a mapping: the path of a self-draft head, whose layout says what its method is
ONLY_SAMPLING = ("draft_model coupled",)  # the same as another contender when decoding greedily


@dataclass(frozen=True, slots=True)
class Decoding:
    """How every contender decodes. None leaves an option to the generation config of the target."""

    max_new_tokens: int = 64
    num_speculative_tokens: int = 3
    temperature: float = 0.0  # 0: greedy
    top_p: float | None = None
    top_k: int | None = None
    seed: int = 0
    graphs: bool = False  # forward passes of ours replay CUDA graphs

    def __post_init__(self) -> None:
        for option, value in (("--top-p", self.top_p), ("--top-k", self.top_k)):
            if value is not None and not self.do_sample:
                raise ValueError(f"expected --temperature above 0 with {option}, got 0; add --temperature 1")

    @property
    def do_sample(self) -> bool:
        return self.temperature > 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def generate_kwargs(self) -> dict[str, Any]:
        """What `model.generate` is called with."""
        kwargs: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": self.do_sample}
        if self.do_sample:
            kwargs |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}
        return {name: value for name, value in kwargs.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to generate: `run` returns token ids [1, length + new] for a prompt [1, length]."""

    name: str
    run: Callable[[Tensor], Tensor]
    rounds: Callable[[], tuple[Round, ...]] | None = None  # events of the latest run; None for transformers' own
    level: str | None = None  # what its rule promises about the text


def contenders(models: Models, decoding: Decoding, names: Sequence[str] | None = None) -> list[Contender]:
    """The contenders of these names, baseline first; all that the models allow if no names are given.

    Raises:
        ValueError: an unknown name, or one that needs a draft model when there is none.
    """
    wanted = list(available(models, decoding)) if names is None else [_known(name, models, decoding) for name in names]
    wanted = [BASELINE, *([PLAIN] if decoding.do_sample else []), *wanted]
    target = paged(models.target, graphs=decoding.graphs)
    return [_contender(name, models, decoding, target) for name in dict.fromkeys(wanted)]


def available(models: Models, decoding: Decoding) -> dict[str, dict[str, Any] | None]:
    """Name -> drafter mapping of every contender that the models allow; None for those without a drafter of ours."""
    table: dict[str, dict[str, Any] | None] = {BASELINE: None, ASSISTED: None, LOOKUP: None, PLAIN: None}
    if models.draft is None:
        del table[ASSISTED]
    given = set() if models.draft is None else {"model"}
    named = {name: {"method": name} for name in DRAFTERS if name not in HEADS}
    for name, spec in {**named, **VARIANTS}.items():
        if _required(spec["method"]) <= given and (decoding.do_sample or name not in ONLY_SAMPLING):
            table[f"{OURS} {name}"] = drafter_options(spec, models, decoding.num_speculative_tokens)
    for name, path in models.heads.items():
        head = head_options(path, decoding.num_speculative_tokens)
        table |= {f"{OURS} {name}": head, f"{OURS} {name} tree": {**head, **TREE}}
    return table


def drafter_of(spec: Mapping[str, Any] | None, target: PagedModel) -> Drafter | None:
    """The drafter of one of the mappings here. A head that cannot draft so many tokens drafts what it can."""
    if spec is None or HEAD not in spec:
        return build_drafter(spec, target)
    options = dict(spec)
    head = load_head(options.pop(HEAD), target)
    wanted = options.pop("num_speculative_tokens")
    depth = min(wanted, head.network.depth or wanted)
    return build_drafter(
        {"method": head.method, "model": head.network, "num_speculative_tokens": depth, **options}, target
    )


def head_options(path: str, num_speculative_tokens: int) -> dict[str, Any]:
    """The mapping for a self-draft head; `drafter_of` reads it."""
    return {HEAD: path, "num_speculative_tokens": num_speculative_tokens}


def drafter_options(spec: Mapping[str, Any], models: Models, num_speculative_tokens: int) -> dict[str, Any] | None:
    """The mapping `specdec.generate` takes for a drafter, with the models and length of an experiment; None for none.

    Raises:
        ValueError: it needs a draft model and there is none.
    """
    method = spec["method"]
    if method == "none":
        return None
    options: dict[str, Any] = dict(spec)
    if method in DRAFTERS:
        if "model" in _required(method):
            if models.draft is None:
                raise ValueError(f"expected a draft model for {method!r}, got none; pass --draft FOLDER")
            options["model"] = models.draft
        if "num_speculative_tokens" in inspect.signature(DRAFTERS[method]).parameters:
            options["num_speculative_tokens"] = num_speculative_tokens
    return options


def _required(method: str) -> set[str]:
    """Options that a drafter cannot do without."""
    parameters = inspect.signature(DRAFTERS[method]).parameters
    return {name for name, parameter in parameters.items() if parameter.default is parameter.empty}


@contextmanager
def assistant_settings(draft: PreTrainedModel | None, num_tokens: int) -> Iterator[None]:
    """Lets transformers' assisted generation draft so many tokens; it reads that from the assistant's config."""
    config = None if draft is None else draft.generation_config
    before = None if config is None else config.num_assistant_tokens
    try:
        if config is not None:
            config.num_assistant_tokens = num_tokens
        yield
    finally:
        if config is not None:
            config.num_assistant_tokens = before


def _known(name: str, models: Models, decoding: Decoding) -> str:
    table = available(models, decoding)
    full = next((form for form in (name, f"{OURS} {name}", f"{BASELINE} {name}") if form in table), None)
    if full is not None:
        return full
    near = difflib.get_close_matches(name, [*table, *(form.split(" ", 1)[-1] for form in table)], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"one of {', '.join(table)}"
    remedy = "; methods with a draft model need --draft" if models.draft is None else ""
    raise ValueError(f"expected a known method, got {name!r}; {hint}{remedy}")


def _contender(name: str, models: Models, decoding: Decoding, paged_target: PagedModel) -> Contender:
    kwargs = decoding.generate_kwargs()
    target = models.target
    if name.startswith(BASELINE):
        if name == ASSISTED:
            kwargs["assistant_model"] = models.draft
        if name == LOOKUP:
            kwargs["prompt_lookup_num_tokens"] = decoding.num_speculative_tokens
        return Contender(name, lambda ids: _generate(target, ids, kwargs))
    spec = available(models, decoding)[name]
    drafter = drafter_of(spec, paged_target)  # once, as its model is checked when built
    # Without graphs a `PagedModel` is made for every call, as for a user who has none.
    loop = speculate(drafter, seed=decoding.seed, target=paged_target if decoding.graphs else None)
    kwargs["custom_generate"] = loop
    return Contender(name, lambda ids: _generate(target, ids, kwargs), lambda: loop.last.rounds)


def _generate(model: Any, ids: Tensor, kwargs: Mapping[str, Any]) -> Tensor:
    output: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **kwargs)
    return output
