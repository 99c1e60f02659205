"""The arms of a sweep: which configurations there are, which cannot be and why, which are the same."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from specdec.draft_models.draft_options import tree_choices
from specdec.methods import Method, method_of
from specdec.types import Exactness

from ..contenders import ASSISTED, BASELINE, LOOKUP, OURS
from ..loading import EMBEDDED
from .sweep import AUTO, NAMED, TREE_OPTIONS, Sweep, samplings_of, specs_of
from .workbench import THEIRS, Settled, Workbench, short_name

PLAIN = "plain"
Arm = dict[str, Any]  # as in the header, see `DEFINITIONS`
GREEDY_MEANS_NOTHING = ("draft_sample_method", "draft_temperature")  # to a drafter for a greedy request
SHORT = {"num_speculative_tokens": "k", "num_tree_nodes": "nodes", "speculative_token_tree": "tree"}
DEFINITIONS = {
    "arm": "one configuration; its id is made of all that can change its text or its time",
    "cell": "the arms that share target, dtype, way of sampling and batch size; they are run in turns",
    "baseline": "the arm of the cell that decodes plainly, by the same engine; speed-ups are against it",
    "level": "what the rule promises about the text",
    "group": "the prompts of one batch, the same for all arms of a batch size",
    "repeat": "every arm runs on every group so many times",
    "process": "one start of the program; an arm is held against the baseline that ran in the same one",
    "difference": "where a text leaves the baseline's: margin, by how much a logit would have to rise there for the "
    "other token to be chosen; resolution of the target's dtype; is_tie: rounding may have decided",
    "seconds": "wall time of the generate calls of all turns, the device waited for",
    "memory": "bytes of the most K/V pages in use at once, by pool; device_peak_bytes as the GPU's allocator counts",
}


@dataclass(slots=True)
class Plan:
    """What will be measured, and what not."""

    arms: list[Arm] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def cells(self) -> dict[str, list[Arm]]:
        """The arms by cell, the baseline of each first."""
        found: dict[str, list[Arm]] = {}
        for arm in self.arms:
            found.setdefault(arm["cell"], []).append(arm)
        return found


def planned(sweep: Sweep, bench_of: Callable[[str | None], Workbench]) -> Plan:
    """The arms of a sweep over these targets.

    Raises:
        ValueError: a name or option is unknown, or nothing but baselines is left.

    Example:
        >>> from specdec.experiments.bench.sweep import sweep_of
        >>> from specdec.experiments.bench.workbench import workbench
        >>> sweep = sweep_of({"drafter": ["ngram"], "num_speculative_tokens": [3], "verifier": ["auto", "block"]})
        >>> plan = planned(sweep, lambda target: workbench(sweep, target, None))
        >>> [arm["label"] for arm in plan.arms]
        ['plain', 'ngram k=3']
        >>> plan.left_out
        ["ngram k=3 rule=block, greedy: expected a temperature above 0 with the rule 'block', got 0"]
    """
    plan = Plan()
    for target in sweep.target:
        bench = bench_of(target)
        kinds = [_dtype_of(dtype, bench, sweep) for dtype in sweep.dtype]
        cells = product(dict.fromkeys(kinds), samplings_of(sweep), sweep.batch_size)
        for dtype, sampling, batch_size in cells:
            shared = {
                "sampling": sampling,
                "batch_size": batch_size,
                "dtype": dtype,
                "target": target or EMBEDDED,
                "max_new_tokens": sweep.max_new_tokens,
                "seed": sweep.seed,
            }
            _plan_cell(plan, sweep, bench, shared)
    if all(arm["id"] == arm["baseline"] for arm in plan.arms):
        why = f": {plan.left_out[0]}" if plan.left_out else ""
        raise ValueError(f"expected at least one drafter that can be measured, got none{why}; name another")
    return plan


def is_theirs(arm: Arm) -> bool:
    """Whether transformers runs it."""
    return bool(arm["system"] == BASELINE)


def promises_same_text(arm: Arm) -> bool:
    """Whether its text must be the baseline's, token for token."""
    return arm["level"] in (Exactness.GREEDY_IDENTICAL.value, Exactness.PATHWISE.value)


def _dtype_of(dtype: str | None, bench: Workbench, sweep: Sweep) -> str:
    """The name of a dtype; a checkpoint's own is known once it is loaded."""
    if dtype is not None:
        return dtype
    own = workbench_dtype(bench)
    if sweep.dtype[0] is not None:  # it was loaded in the first one
        raise ValueError(f"expected dtypes by name, got one and the checkpoint's own; add {own!r}, say")
    return own


def workbench_dtype(bench: Workbench) -> str:
    """What its target computes in."""
    return str(bench.models.target.dtype).removeprefix("torch.")


def _plan_cell(plan: Plan, sweep: Sweep, bench: Workbench, shared: dict[str, Any]) -> None:
    do_sample = shared["sampling"]["temperature"] > 0
    baseline = _arm(Settled(PLAIN, {}), method_of(None, AUTO, bench.target, do_sample), shared, AUTO)
    baseline["baseline"] = baseline["id"]
    present = {baseline["id"]: baseline["label"]}
    plan.arms.append(baseline)
    for spec in _specs(sweep, bench):
        wanted = spec.get("verifier", AUTO)
        unheard = ("verifier", *(() if do_sample else GREEDY_MEANS_NOTHING))
        spec = {name: value for name, value in spec.items() if name not in unheard}
        asked = label_of(short_name(spec[NAMED]), spec, wanted)
        where = f"{asked}, {sampling_label(shared['sampling'])}"
        reason = _misfit(spec, wanted, shared)
        if reason is None:
            settled = bench.settled(spec)
            try:
                method = None if spec[NAMED] in THEIRS else method_of(settled.drafter, wanted, bench.target, do_sample)
            except ValueError as error:
                reason = str(error).split(";")[0]
        if reason is not None:
            _add(plan.left_out, f"{where}: {reason}")
            continue
        if settled.note is not None:
            _add(plan.notes, settled.note)
        arm = _arm(settled, method, shared, wanted)
        if arm["id"] in present:
            if settled.note is None:
                _add(plan.notes, f"{where}: the same as {present[arm['id']]}, measured once")
            continue
        present[arm["id"]] = arm["label"]
        plan.arms.append(arm | {"baseline": baseline["id"]})


def _specs(sweep: Sweep, bench: Workbench) -> list[dict[str, Any]]:
    """The mappings of all drafters, each once."""
    names = bench.names()
    if sweep.drafter is None:
        trees = [name for name, spec in names.items() if set(spec) - {NAMED}]
        tables: list[Mapping[str, Any]] = [spec for name, spec in names.items() if name not in trees]
    else:
        tables = [{**names.get(short_name(table[NAMED]), {}), **_resolved(table, names)} for table in sweep.drafter]
    found: list[dict[str, Any]] = []
    for table in tables:
        for spec in specs_of(table, sweep):
            if spec[NAMED] == BASELINE:
                spec = {name: value for name, value in spec.items() if name in table}
            if spec[NAMED] in THEIRS:
                spec = {name: value for name, value in spec.items() if name != "verifier" or name in table}
            if "speculative_token_tree" in spec and "num_tree_nodes" not in table:
                spec.pop("num_tree_nodes", None)
            if spec not in found:
                found.append(spec)
    return found


def _resolved(table: Mapping[str, Any], names: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found = names.get(short_name(table[NAMED]), {NAMED: table[NAMED]})
    return {**table, NAMED: found[NAMED]}


def _misfit(spec: Mapping[str, Any], verifier: str, shared: Mapping[str, Any]) -> str | None:
    """Why a combination of known things cannot be."""
    method, do_sample = spec[NAMED], shared["sampling"]["temperature"] > 0
    if method == "replay":
        return "it drafts texts that are known beforehand, which a benchmark has not"
    if method in (ASSISTED, LOOKUP) and shared["batch_size"] > 1:
        return f"transformers drafts for a batch of 1, got {shared['batch_size']}"
    if not do_sample and verifier not in (AUTO, "greedy"):
        return f"expected a temperature above 0 with the rule {verifier!r}, got 0"
    tree = next((name for name in TREE_OPTIONS if spec.get(name) is not None), None)
    if tree is not None and (method in THEIRS or method == "ngram"):
        return f"it drafts chains, and has no {tree}"
    return None


def _arm(settled: Settled, method: Method | None, shared: Mapping[str, Any], wanted: str) -> Arm:
    """An arm, as in the header, but for its baseline."""
    do_sample = shared["sampling"]["temperature"] > 0
    theirs = Exactness.DISTRIBUTION if do_sample else Exactness.GREEDY_IDENTICAL
    level = theirs if method is None else method.level
    rule = None if method is None else method.verifier.name
    spec = settled.spec
    drafts = set(spec) - {NAMED}
    config = {
        "system": BASELINE if method is None else OURS,
        "drafter": spec if drafts else None,
        "drafter_name": None if settled.name in (PLAIN, BASELINE) else short_name(settled.name),
        "num_speculative_tokens": spec.get("num_speculative_tokens"),
        "num_tree_nodes": _num_nodes(spec),
        "verifier": rule,
        "level": level.value,
        "is_lossless": level is not Exactness.LOSSY,
        **shared,
    }
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    name = settled.name if settled.name in (PLAIN, *THEIRS) else short_name(settled.name)
    return {
        "id": hashlib.sha256(canonical.encode()).hexdigest()[:8],
        "label": label_of(name, spec, wanted),
        "cell": cell_label(shared),
        "baseline": "",
        **config,
    }


def _num_nodes(spec: Mapping[str, Any]) -> int | None:
    shape = spec.get("speculative_token_tree")
    nodes: int | None = spec.get("num_tree_nodes")
    return nodes if shape is None else len(tree_choices(shape))


def label_of(name: str, spec: Mapping[str, Any], verifier: str = AUTO) -> str:
    """What an arm is called.

    Example:
        >>> label_of("eagle3", {"method": "eagle3", "model": "x", "num_speculative_tokens": 5, "num_tree_nodes": 12})
        'eagle3 k=5 nodes=12'
    """
    parts = [f"{SHORT.get(key, key)}={spec[key]}" for key in [*SHORT, *spec] if key in spec]
    shown = [part for part in dict.fromkeys(parts) if not part.startswith((f"{NAMED}=", "model="))]
    return " ".join([name, *shown, *([] if verifier == AUTO else [f"rule={verifier}"])])


def sampling_label(sampling: Mapping[str, Any]) -> str:
    """A way to sample in words.

    Example:
        >>> sampling_label({"temperature": 0.8, "top_p": 0.9, "top_k": None}), sampling_label({"temperature": 0.0})
        ('temperature 0.8 top_p 0.9', 'greedy')
    """
    parts = [f"{name} {value:g}" for name, value in sampling.items() if value is not None and name != "temperature"]
    first = f"temperature {sampling['temperature']:g}" if sampling["temperature"] else "greedy"
    return " ".join([first, *parts])


def cell_label(shared: Mapping[str, Any]) -> str:
    """What a cell is called."""
    how = sampling_label(shared["sampling"])
    return f"{shared['target']} {shared['dtype']} {how} batch {shared['batch_size']}"


def _add(lines: list[str], line: str) -> None:
    if line not in lines:
        lines.append(line)
