"""Which runs count for what: the first of each key, the texts' own, the median in time, pairs of one process."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from ..statistics import Speedup, Totals, median_index, speedup
from .columns import Request, Run

Pair = tuple[Run, Run]  # of an arm and of what it is held against


def by_arm(records: Iterable[Run], baselines: frozenset[str]) -> dict[str, list[Run]]:
    """The runs of each arm that count: the first of each key.

    The key is (arm, group, repeat); a baseline may run once in each process.

    Example:
        >>> one = {"arm": "a", "group": 0, "repeat": 0, "process": "p"}
        >>> {arm: len(runs) for arm, runs in by_arm([one, one | {"process": "q"}], frozenset()).items()}
        {'a': 1}
        >>> {arm: len(runs) for arm, runs in by_arm([one, one | {"process": "q"}], frozenset("a")).items()}
        {'a': 2}
    """
    found: dict[tuple[object, ...], Run] = {}
    for run in records:
        process = run["process"] if run["arm"] in baselines else None
        found.setdefault((run["arm"], run["group"], run["repeat"], process), run)
    arms: dict[str, list[Run]] = {}
    for run in found.values():
        arms.setdefault(run["arm"], []).append(run)
    return arms


def by_group(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """The runs of each group of prompts, groups and repeats in order."""
    groups: dict[int, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (run["group"], run["repeat"])):
        groups.setdefault(run["group"], []).append(run)
    return groups


def counted(runs: Iterable[Run]) -> list[Run]:
    """The runs that acceptance is counted in: one of each group if all repeats wrote the same, else all of them.

    Example:
        >>> run = {"group": 0, "repeat": 0, "requests": [{"tokens": [5, 6]}]}
        >>> other = {"group": 0, "repeat": 2, "requests": [{"tokens": [5, 7]}]}
        >>> len(counted([run, run | {"repeat": 1}])), len(counted([run, run | {"repeat": 1}, other]))
        (1, 3)
    """
    kept: list[Run] = []
    for repeats in by_group(runs).values():
        texts = {tuple(tuple(request["tokens"]) for request in run["requests"]) for run in repeats}
        kept.extend(repeats[:1] if len(texts) == 1 else repeats)
    return kept


def timed(runs: Iterable[Run]) -> list[Run]:
    """The run of each group with the median time.

    Example:
        >>> [run["seconds"] for run in timed({"group": 0, "repeat": i, "seconds": s} for i, s in enumerate((3, 9, 4)))]
        [4]
    """
    return [repeats[median_index([run["seconds"] for run in repeats])] for repeats in by_group(runs).values()]


def pairs(runs: Iterable[Run], others: Iterable[Run]) -> dict[int, Pair]:
    """For each group the pair of runs of one process and repeat whose speed-up is the median of such pairs."""
    partners = {(run["group"], run["repeat"], run["process"]): run for run in others}
    found: dict[int, Pair] = {}
    for group, repeats in by_group(runs).items():
        keys = ((run, (group, run["repeat"], run["process"])) for run in repeats)
        both = [(run, partners[key]) for run, key in keys if key in partners]
        both = [pair for pair in both if all(num_tokens(run) and run["seconds"] > 0 for run in pair)]
        if both:
            found[group] = both[median_index([ratio(pair) for pair in both])]
    return found


def num_tokens(run: Run) -> int:
    """New tokens of all requests of the run.

    Example:
        >>> num_tokens({"requests": [{"tokens": [5, 6]}, {"tokens": [7]}]})
        3
    """
    return sum(len(request["tokens"]) for request in run["requests"])


def ratio(pair: Pair) -> float:
    """How many times the tokens per second of the second run the first has.

    Example:
        >>> run = {"requests": [{"tokens": [5, 6]}], "seconds": 2.0}
        >>> ratio((run, run | {"seconds": 3.0}))
        1.5
    """
    own, other = (num_tokens(run) / float(run["seconds"]) for run in pair)
    return own / other


def speedup_of(found: Sequence[Pair]) -> tuple[Speedup, float] | None:
    """The first ones' speed-up over the second ones, and the mean of the pairs' own; None without pairs."""
    if not found:
        return None
    own, other = (Totals.of((num_tokens(pair[i]), pair[i]["seconds"]) for pair in found) for i in (0, 1))
    return speedup(own, other), float(np.mean([ratio(pair) for pair in found]))


def requests_of(runs: Iterable[Run], units: Mapping[str, int]) -> list[tuple[int, Request]]:
    """The requests of the prompts that have an index, with that index."""
    return [
        (units[request["prompt"]], request) for run in runs for request in run["requests"] if request["prompt"] in units
    ]
