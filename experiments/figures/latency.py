"""Where the time went: to the first token, between tokens, in which part of the round (algorithms.md, section 6)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..statistics import Speedup, Totals, Vector, speedup
from .columns import Request, Run
from .estimates import Ratio
from .runs import Pair, num_tokens

LATENCIES = ("ttft_seconds", "tpot_seconds", "itl_seconds", "itl_per_token_seconds", "e2e_seconds")
PARTS = ("draft", "score", "rule", "cache", "host")
PERCENTILES = {"p50": 50, "p90": 90, "p99": 99}
MEMORY = ("target_kv_bytes", "drafter_kv_bytes", "device_peak_bytes")


@dataclass(slots=True)
class Samples:
    """The values of one latency: sums and weights by unit for the mean, and the values themselves."""

    sums: Vector  # [num_units]
    weights: Vector  # [num_units]
    values: list[float] = field(default_factory=list)

    @classmethod
    def empty(cls, num_units: int) -> "Samples":
        return cls(np.zeros(num_units), np.zeros(num_units))

    def add(self, unit: int, values: Sequence[float], weight: int = 1) -> None:
        """Notes values that are each the mean of so many things."""
        self.sums[unit] += weight * sum(values)
        self.weights[unit] += weight * len(values)
        self.values.extend(values)


def emissions(request: Request, call: Mapping[str, Any]) -> tuple[Vector, Vector] | None:
    """When tokens came out, in seconds since the call began, and how many; None without events.

    Example:
        >>> request = {"steps": {"round": [0, 2], "emitted": [1, 3]}}
        >>> emissions(request, {"rounds": {"ended": [0.5, 0.75, 1.0]}})
        (array([0.5, 1. ]), array([1., 3.]))
    """
    if request["steps"] is None or call["rounds"] is None:
        return None
    emitted = np.array(request["steps"]["emitted"], dtype=np.float64)
    index = np.array(request["steps"]["round"], dtype=np.int64)
    ended = np.array(call["rounds"]["ended"], dtype=np.float64)[index[emitted > 0]]
    return (ended, emitted[emitted > 0]) if len(ended) else None


def latencies(runs: Sequence[Run], units: Mapping[str, int], num_units: int) -> dict[str, Samples]:
    """The samples of each latency over the requests of the prompts that have an index.

    Runs that report no events have nothing but the time of the call, which ends with the last token of its batch.
    """
    found = {name: Samples.empty(num_units) for name in LATENCIES}
    for run in runs:
        for request in run["requests"]:
            unit, call = units.get(request["prompt"]), run["calls"][request["turn"]]
            if unit is None:
                continue
            told = emissions(request, call)
            if told is None:
                if request["steps"] is None and request["tokens"]:
                    found["e2e_seconds"].add(unit, [call["seconds"]])
                continue
            _add(found, unit, *told)
    return found


def _add(found: Mapping[str, Samples], unit: int, ended: Vector, emitted: Vector) -> None:
    found["ttft_seconds"].add(unit, [float(ended[0])])
    found["e2e_seconds"].add(unit, [float(ended[-1])])
    if len(ended) > 1:
        gaps, num_after_first = np.diff(ended), int(emitted.sum()) - 1
        found["tpot_seconds"].add(unit, [float(ended[-1] - ended[0]) / num_after_first], weight=num_after_first)
        found["itl_seconds"].add(unit, gaps.tolist())
        found["itl_per_token_seconds"].add(unit, (gaps / emitted[1:]).tolist())


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The named percentiles, interpolated.

    Example:
        >>> percentiles([1.0, 2.0, 3.0])["p50"]
        2.0
    """
    found = np.percentile(values, list(PERCENTILES.values()))
    return {name: float(value) for name, value in zip(PERCENTILES, found, strict=True)}


def speedup_tpot(pairs: Sequence[Pair], units: Mapping[str, int]) -> tuple[Speedup, float] | None:
    """How many times shorter the time per token after the first is; the mean of the pairs' own; None without events."""
    sides = [[_after_first(pair[i], units) for pair in pairs] for i in (0, 1)]
    kept = [(a, b) for a, b in zip(*sides, strict=True) if min(*a, *b) > 0]
    if not kept:
        return None
    own, other = Totals.of(a for a, _ in kept), Totals.of(b for _, b in kept)
    return speedup(own, other), float(np.mean([a[0] / a[1] / (b[0] / b[1]) for a, b in kept]))


def _after_first(run: Run, units: Mapping[str, int]) -> tuple[float, float]:
    """Tokens after the first, and the seconds they took."""
    samples = latencies([run], dict.fromkeys(units, 0), 1)["tpot_seconds"]
    return float(samples.weights[0]), float(samples.sums[0])


def throughput(runs: Iterable[Run]) -> Ratio:
    """New tokens and seconds of each run: a group of prompts that ran together is one draw.

    Example:
        >>> throughput([{"requests": [{"tokens": [5, 6]}, {"tokens": [7]}], "seconds": 0.5}])
        (array([3.]), array([0.5]))
    """
    listed = list(runs)
    tokens = np.array([num_tokens(run) for run in listed], dtype=np.float64)
    return tokens, np.array([run["seconds"] for run in listed], dtype=np.float64)


def split(runs: Iterable[Run]) -> dict[str, float | None]:
    """Seconds by part of the round, outside of the rounds, and in all; parts are None where runs report no rounds.

    Example:
        >>> rounds = {"draft": [1.0], "score": [2.0], "rule": [0.25], "cache": [0.25], "host": [0.5]}
        >>> found = split([{"seconds": 4.5, "calls": [{"rounds": rounds}]}])
        >>> found["outside"], found["total"]
        (0.5, 4.5)
    """
    listed = list(runs)
    total = float(sum(run["seconds"] for run in listed))
    rounds = [call["rounds"] for run in listed for call in run["calls"]]
    if not rounds or None in rounds:
        return dict.fromkeys((*PARTS, "outside")) | {"total": total if listed else None}
    parts = {name: float(sum(sum(each[name]) for each in rounds)) for name in PARTS}
    return {**parts, "outside": total - sum(parts.values()), "total": total}


def memory(runs: Iterable[Run]) -> dict[str, int | None]:
    """The largest peaks.

    Example:
        >>> memory([{"memory": {"target_kv_bytes": 8, "drafter_kv_bytes": 2, "device_peak_bytes": None}}])
        {'target_kv_bytes': 8, 'drafter_kv_bytes': 2, 'device_peak_bytes': None}
    """
    peaks = [run["memory"] for run in runs]
    values = {name: [peak[name] for peak in peaks if peak and peak.get(name) is not None] for name in MEMORY}
    return {name: max(found, default=None) for name, found in values.items()}
