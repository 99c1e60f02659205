"""Ratios of sums with their intervals: the one form in which figures are given."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..statistics import MIN_PROMPTS, Vector, interval, resampled

Ratio = tuple[Vector, Vector]  # numerators and denominators, one per prompt (or per group of prompts run together)
Estimate = dict[str, float | None]


def solve(ratios: Mapping[str, Ratio | Sequence[Ratio]]) -> dict[str, Any]:
    """The estimate of each ratio, or of each in a list, by the same names; None where nothing was counted.

    An estimate has `value`, the ratio of sums (micro); `macro`, the mean of the prompts' own ratios; `low` and `high`,
    the 95 % percentile cluster bootstrap over prompts, None if fewer than 3 prompts have the denominator.

    Example:
        >>> accepted, drafted = np.array([1.0, 0.0, 8.0]), np.array([4.0, 4.0, 8.0])
        >>> found = solve({"rate": (accepted, drafted), "nothing": (accepted, 0 * drafted)})
        >>> found["rate"]["value"], round(found["rate"]["macro"], 3), found["rate"]["low"], found["nothing"]
        (0.5625, 0.417, 0.0, None)
    """
    flat = [pair for given in ratios.values() for pair in ([given] if isinstance(given, tuple) else given)]
    solved = iter(_estimates(flat))
    return {
        name: next(solved) if isinstance(given, tuple) else [next(solved) for _ in given]
        for name, given in ratios.items()
    }


def _estimates(ratios: Sequence[Ratio]) -> list[Estimate | None]:
    """In the order of the ratios, all of them of the same resamples."""
    defined = [i for i, (_, below) in enumerate(ratios) if len(below) and below.sum() > 0]
    found: list[Estimate | None] = [None] * len(ratios)
    if not defined:
        return found
    above = np.stack([ratios[i][0] for i in defined], axis=1).astype(np.float64)  # [num_prompts, num_defined]
    below = np.stack([ratios[i][1] for i in defined], axis=1).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        own = np.where(below > 0, above / below, np.nan)
    counted = (below > 0).sum(axis=0)
    values, macros = above.sum(axis=0) / below.sum(axis=0), np.nanmean(own, axis=0)
    lows, highs = _bounds(above, below)
    for column, index in enumerate(defined):
        is_told = counted[column] >= MIN_PROMPTS
        found[index] = {
            "value": float(values[column]),
            "macro": float(macros[column]),
            "low": float(lows[column]) if is_told else None,
            "high": float(highs[column]) if is_told else None,
        }
    return found


def _bounds(above: Vector, below: Vector) -> tuple[Vector, Vector]:
    if len(above) < MIN_PROMPTS:
        return np.full(above.shape[1], np.nan), np.full(above.shape[1], np.nan)
    sums = resampled(np.concatenate([above, below], axis=1))
    num_ratios = above.shape[1]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = sums[:, :num_ratios] / sums[:, num_ratios:]
    ratios[~np.isfinite(ratios)] = np.nan  # a resample without any denominator
    return interval(ratios)
