"""Which arm of a cell is fastest, and how sure that is: every other one against it, on the same groups of prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..statistics import Vector, holm, swap_p_value
from .columns import Run
from .runs import Pair, num_tokens, pairs, speedup_of


def rankings(arms: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """For each cell its arms that ran, fastest first, each with the fastest one's speed over it.

    Fastest is by the speed-up over the baseline, or by tokens per second where there is none.
    """
    cells: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        if runs.get(arm["id"]):
            cells.setdefault(arm["cell"], []).append(arm)
    return [_ranking(name, members, runs) for name, members in cells.items()]


def _ranking(cell: str, arms: Sequence[Mapping[str, Any]], runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    baseline = arms[0]["baseline"]
    speeds = {arm["id"]: _speed(runs[arm["id"]], runs.get(baseline, ())) for arm in arms}
    order = sorted(speeds, key=lambda arm: -speeds[arm])
    rows = [{"arm": arm, "over": _over(runs[order[0]], runs[arm]) if arm != order[0] else None} for arm in order]
    told = [row["over"] for row in rows if isinstance(row["over"], dict) and row["over"]["p_value"] is not None]
    for over, adjusted in zip(told, holm([over["p_value"] for over in told]), strict=True):
        over["p_holm"] = adjusted
    return {"cell": cell, "baseline": baseline, "arms": rows}


def _speed(runs: Sequence[Run], baseline: Sequence[Run]) -> float:
    found = speedup_of(list(pairs(runs, baseline).values()))
    if found is not None:
        return found[0].ratio
    seconds = sum(run["seconds"] for run in runs)
    return sum(map(num_tokens, runs)) / seconds if seconds else 0.0


def _over(best: Sequence[Run], other: Sequence[Run]) -> dict[str, Any] | None:
    found = list(pairs(best, other).values())
    estimate = speedup_of(found)
    if estimate is None:
        return None
    sides = [np.array([_sums(pair, i) for pair in found]) for i in (0, 1)]
    p_value = swap_p_value(sides[1], sides[0], tokens_per_second)
    speed = estimate[0]
    return {"ratio": speed.ratio, "low": speed.low, "high": speed.high, "p_value": p_value, "p_holm": None}


def _sums(pair: Pair, index: int) -> tuple[float, float]:
    return float(num_tokens(pair[index])), pair[index]["seconds"]


def tokens_per_second(sums: Vector) -> Vector:  # [..., 2] -> [...]
    """Tokens over seconds.

    Example:
        >>> tokens_per_second(np.array([[10.0, 2.0], [9.0, 3.0]])).tolist()
        [5.0, 3.0]
    """
    quotient: Vector = sums[..., 0] / sums[..., 1]
    return quotient
