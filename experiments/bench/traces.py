"""Traces beside the timed runs: what the drafter of an arm proposes at every position of the texts of a group."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..trace.schema import write_trace
from ..trace.tracing import Tracing, telling, trace_arm
from .arms import Arm, is_theirs, promises_same_text
from .run import Finished, Member, Runner
from .sweep import TREE_OPTIONS

FOLDER = "trace"  # of the result folder
CUT_BY_REPLAY = ("num_speculative_tokens", "num_tree_nodes")  # smaller ones follow from a trace of the largest


def traced_arms(arms: Iterable[Arm]) -> list[Arm]:
    """The arms that have to be traced: of those that differ in draft length or number of nodes alone, the largest.

    Of two of which one is longer and the other has more nodes neither is larger.

    Example:
        >>> arm = {"system": "specdec", "cell": "c", "verifier": "greedy", "sampling": {}}
        >>> drafters = [{"method": "ngram", "num_speculative_tokens": length} for length in (2, 6, 4)]
        >>> [arm["drafter"] for arm in traced_arms([{**arm, "drafter": each} for each in drafters])]
        [{'method': 'ngram', 'num_speculative_tokens': 6}]
        >>> sizes = ({"num_speculative_tokens": k, "num_tree_nodes": n} for k, n in ((4, 32), (6, 8), (4, 8)))
        >>> found = traced_arms([{**arm, "drafter": {"method": "eagle3", **each}} for each in sizes])
        >>> [arm["drafter"]["num_tree_nodes"] for arm in found]
        [32, 8]
    """
    alike: dict[str, list[Arm]] = {}
    for arm in arms:
        spec = arm["drafter"]
        if spec is None or is_theirs(arm) or _draws_trees(spec):
            continue
        rest = {name: value for name, value in spec.items() if name not in CUT_BY_REPLAY}
        is_tree = any(spec.get(name) is not None for name in TREE_OPTIONS)
        key = json.dumps([arm["cell"], arm["verifier"], is_tree, rest], sort_keys=True)
        alike.setdefault(key, []).append(arm)
    return [
        arm for members in alike.values() for arm in members if not any(_is_larger(other, arm) for other in members)
    ]


def trace_group(
    runner: Runner, arm: Arm, members: Sequence[Member], run: Finished, baseline: Finished, top_m: int
) -> Any:
    """The table of one arm over one group.

    A rule that promises the text of plain decoding is traced along the text of the run, any other along that of the
    baseline: its laws are given a text of plain sampling.
    """
    told = run if promises_same_text(arm) else baseline
    place = {member.prompt.id: index for index, member in enumerate(members)}
    requests = told.record["requests"]
    tracing = Tracing(
        runner.kwargs(arm),
        seeds=[told.choosing[each["prompt"]].seed for each in requests],
        top_m=top_m,
        places=[(place[each["prompt"]], each["turn"]) for each in requests],
    )
    return trace_arm(
        runner.bench.target,
        runner.bench.settled(telling(arm["drafter"])).drafter,
        arm["verifier"],
        tracing,
        [told.inputs[each["prompt"], each["turn"]] for each in requests],
        [each["tokens"] for each in requests],
    )


def write_group(folder: Path, arm: Arm, group: int, members: Sequence[Member], table: Any) -> int:
    """Writes that table into a result folder; returns its size in bytes."""
    path = folder / FOLDER / f"{arm['id']}-{group}.parquet"
    path.parent.mkdir(exist_ok=True)
    prompts = json.dumps([member.prompt.id for member in members])
    return write_trace(path, table, {"arm": arm["id"], "label": arm["label"], "cell": arm["cell"], "prompts": prompts})


def _is_larger(arm: Arm, other: Arm) -> bool:
    sizes = [(arm["drafter"].get(name) or 0, other["drafter"].get(name) or 0) for name in CUT_BY_REPLAY]
    return all(own >= its for own, its in sizes) and any(own > its for own, its in sizes)


def _draws_trees(spec: Mapping[str, Any]) -> bool:
    is_tree = any(spec.get(name) is not None for name in TREE_OPTIONS)
    return is_tree and spec.get("draft_sample_method") == "probabilistic"
