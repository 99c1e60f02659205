"""What was drafted and what of it was accepted: pure functions of steps (algorithms.md, section 6)."""

from collections import Counter
from typing import Any

import numpy as np

from .columns import Steps
from .estimates import Ratio


def counts(steps: Steps) -> dict[str, int]:
    """Sums over all steps. Those without a draft are counted: the ones over prompts, and where nothing was proposed."""
    return {
        "num_steps": len(steps.unit),
        "num_steps_without_draft": int((steps.nodes == 0).sum()),
        "num_drafted": int(steps.drafted.sum()),
        "num_accepted": int(steps.accepted.sum()),
        "num_nodes": int(steps.nodes.sum()),
        "num_wasted": int(steps.wasted.sum()),
    }


def ratios(steps: Steps) -> dict[str, Ratio | list[Ratio]]:
    """Numerators and denominators, by prompt, of every rate of acceptance."""
    has_draft = steps.nodes > 0
    num_steps = steps.per_unit(np.ones_like(steps.unit))
    num_with_draft = steps.per_unit(has_draft)
    emitted, accepted = steps.per_unit(steps.emitted), steps.per_unit(steps.accepted)
    nodes = steps.per_unit(steps.nodes)
    return {
        "tokens_per_step": (emitted, num_steps),
        "mean_acceptance_length": (num_with_draft + accepted, num_with_draft),
        "accepted_per_step": (accepted, num_steps),
        "draft_acceptance_rate": (accepted, steps.per_unit(steps.drafted)),
        "node_acceptance_rate": (accepted, nodes),
        "target_calls_per_token": (num_steps, emitted),
        "waste": (nodes + num_steps - emitted, nodes + num_steps),
        **by_position(steps),
    }


def by_position(steps: Steps) -> dict[str, Ratio | list[Ratio]]:
    """The three rates at each position of a draft, the first drafted token first."""
    num_with_draft = steps.per_unit(steps.nodes > 0)
    found: dict[str, Ratio | list[Ratio]] = {}
    at_pos, survival, conditional = [], [], []
    for position in range(1, int(steps.drafted.max(initial=0)) + 1):
        accepted = steps.per_unit(steps.accepted >= position)
        reached = (steps.accepted >= position - 1) & (steps.drafted >= position)
        at_pos.append((accepted, num_with_draft))
        survival.append((accepted, steps.per_unit(steps.drafted >= position)))
        conditional.append((accepted, steps.per_unit(reached)))
    found["acceptance_at_pos"] = at_pos
    found["survival_at_pos"] = survival
    found["conditional_acceptance_at_pos"] = conditional
    return found


def histograms(steps: Steps) -> dict[str, Any]:
    """How many steps with a draft accepted how much: in all, by the draft's depth, and by who drafted.

    Example:
        >>> from .columns import steps_of
        >>> told = {"emitted": [2, 1], "accepted": [1, 0], "drafted": [2, 2], "nodes": [2, 2], "wasted": [0, 0]}
        >>> found = histograms(steps_of([(0, {"steps": {**told, "source": ["ngram", "suffix"]}})], 1))
        >>> found["acceptance_histogram_by_draft_length"], found["by_source"]["ngram"]["num_accepted"]
        ({'2': {'0': 1, '1': 1}}, 1)
    """
    drafts = np.flatnonzero(steps.nodes > 0).tolist()
    by_depth: dict[int, Counter[int]] = {}
    by_source: dict[str, dict[str, int]] = {}
    for step in drafts:
        depth, accepted = int(steps.drafted[step]), int(steps.accepted[step])
        by_depth.setdefault(depth, Counter())[accepted] += 1
        sums = by_source.setdefault(steps.sources[step], {"num_steps": 0, "num_drafted": 0, "num_accepted": 0})
        sums["num_steps"] += 1
        sums["num_drafted"] += depth
        sums["num_accepted"] += accepted
    return {
        "accepted_histogram": _listed(Counter(steps.accepted[drafts].tolist())),
        "acceptance_histogram_by_draft_length": {str(depth): _listed(by_depth[depth]) for depth in sorted(by_depth)},
        "acceptance_by_depth_and_rank": by_depth_and_rank(steps),
        "by_source": {name: by_source[name] for name in sorted(by_source)},
    }


def by_depth_and_rank(steps: Steps) -> list[list[dict[str, int]]]:  # [depth][rank]
    """How often a node of this depth and rank among its siblings was offered below the emitted path, and was emitted.

    Only the children of nodes on the path are counted: what became of the others' children nobody asked.

    Example:
        >>> from .columns import steps_of
        >>> told = {"emitted": [2], "accepted": [1], "drafted": [2], "nodes": [5], "wasted": [0], "source": ["medusa"]}
        >>> tree = {**told, "ranks": [[1]], "offered": [[2, 1]]}  # the second of two children, whose child was refused
        >>> by_depth_and_rank(steps_of([(0, {"steps": tree})], 1))[0]
        [{'offered': 1, 'accepted': 0}, {'offered': 1, 'accepted': 1}]
    """
    table: list[list[dict[str, int]]] = []
    for offered, ranks in zip(steps.offered, steps.ranks, strict=True):
        for depth, num_children in enumerate(offered):
            if num_children and depth == len(table):
                table.append([])
            for rank in range(num_children):
                if rank == len(table[depth]):
                    table[depth].append({"offered": 0, "accepted": 0})
                table[depth][rank]["offered"] += 1
                table[depth][rank]["accepted"] += int(depth < len(ranks) and ranks[depth] == rank)
    return table


def _listed(histogram: Counter[int]) -> dict[str, int]:
    """With text for keys, as JSON has it, smallest first."""
    return {str(key): histogram[key] for key in sorted(histogram)}
