"""All figures of one arm over a set of prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..statistics import Speedup
from . import acceptance, latency, texts
from .columns import Request, Run, Steps, steps_of
from .estimates import solve
from .runs import Pair, counted, pairs, requests_of, speedup_of, timed


@dataclass(frozen=True, slots=True)
class ArmRuns:
    """What is known of an arm, each run in the part it plays."""

    all: Sequence[Run]
    counted: Sequence[Run]  # for acceptance and texts
    timed: Sequence[Run]  # for times: one per group
    pairs: Mapping[int, Pair]  # by group, with the baseline; empty for the baseline itself

    @classmethod
    def of(cls, runs: Sequence[Run], baseline: Sequence[Run]) -> "ArmRuns":
        return cls(runs, counted(runs), timed(runs), pairs(runs, baseline))


def figures(runs: ArmRuns, prompts: Sequence[str]) -> dict[str, Any]:
    """The figures of an arm on these prompts, undefined ones None.

    Wall times belong to groups of prompts that ran together. If some group has other prompts as well, as can happen
    to a category at batch sizes above 1, they are None; latencies of requests are not.
    """
    ran = {request["prompt"] for run in runs.counted for request in run["requests"]}
    units = {prompt: index for index, prompt in enumerate(p for p in prompts if p in ran)}
    requests = requests_of(runs.counted, units)
    steps = steps_of(requests, len(units))
    repetition, guard = texts.degeneracy(requests, len(units))
    samples = latency.latencies(runs.timed, units, len(units))
    solved = solve(
        {
            **acceptance.ratios(steps),
            **{name: (found.sums, found.weights) for name, found in samples.items()},
            "repetition": repetition,
        }
    )
    rates = {name: solved[name] for name in acceptance.ratios(steps)}
    times = {name: _distribution(solved[name], found.values) for name, found in samples.items()}
    return {
        **_counts(runs, units, requests, steps),
        **rates,
        **acceptance.histograms(steps),
        **_without_steps(requests),
        **times,
        **_wall(runs, units),
        "memory": latency.memory(_touching(runs.all, units)),
        "text": texts.equality(runs.all, units),
        "degeneracy": {"repetition": solved["repetition"], **guard},
    }


def _counts(
    runs: ArmRuns, units: Mapping[str, int], requests: Sequence[tuple[int, Request]], steps: Steps
) -> dict[str, Any]:
    return {
        "num_prompts": len(units),
        "num_requests": len({(request["prompt"], request["turn"]) for _, request in requests}),
        "num_runs": len(_touching(runs.all, units)),
        "num_tokens": sum(len(request["tokens"]) for _, request in requests),
        **acceptance.counts(steps),
    }


def _without_steps(requests: Sequence[tuple[int, Request]]) -> dict[str, None]:
    """What to overwrite with None if no request reports events: nothing is known of steps, not that there are none."""
    if any(request["steps"] is not None for _, request in requests):
        return {}
    empty = steps_of([], 0)
    return dict.fromkeys((*acceptance.counts(empty), *acceptance.ratios(empty), *acceptance.histograms(empty)))


def _distribution(mean: Mapping[str, Any] | None, values: Sequence[float]) -> dict[str, Any] | None:
    return None if mean is None else {"mean": mean, **latency.percentiles(values)}


def _touching(runs: Sequence[Run], units: Mapping[str, int]) -> list[Run]:
    return [run for run in runs if any(request["prompt"] in units for request in run["requests"])]


def _wall(runs: ArmRuns, units: Mapping[str, int]) -> dict[str, Any]:
    """What follows from the wall time of whole runs."""
    own = _touching(runs.timed, units)
    if not all(request["prompt"] in units for run in own for request in run["requests"]):
        own = []
    found = [runs.pairs[run["group"]] for run in own if run["group"] in runs.pairs]
    return {
        "tokens_per_second": solve({"all": latency.throughput(own)})["all"],
        "seconds": latency.split(own),
        "speedup": _as_dict(speedup_of(found)),
        "speedup_tpot": _as_dict(latency.speedup_tpot(found, units)),
    }


def _as_dict(found: tuple[Speedup, float] | None) -> dict[str, float | None] | None:
    if found is None:
        return None
    estimate, macro = found
    return {"ratio": estimate.ratio, "low": estimate.low, "high": estimate.high, "macro": macro}
