"""The form in which imported figures are given: that of a benchmark's summary, with None for what nobody said."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .figures.estimates import solve

Figures = dict[str, Any]
MOST = 1 << 40  # of anything counted: more are damage, and may fit no float
DEEPEST = 1024  # no draft is longer: a number above it is damage, and not a list to be made
NAMES = (
    "num_prompts num_requests num_runs num_tokens num_steps num_steps_without_draft num_drafted num_accepted num_nodes "
    "num_wasted tokens_per_step mean_acceptance_length accepted_per_step draft_acceptance_rate node_acceptance_rate "
    "target_calls_per_token waste acceptance_at_pos survival_at_pos conditional_acceptance_at_pos accepted_histogram "
    "acceptance_histogram_by_draft_length acceptance_by_depth_and_rank by_source ttft_seconds tpot_seconds itl_seconds "
    "itl_per_token_seconds e2e_seconds tokens_per_second seconds speedup speedup_tpot memory text degeneracy"
).split()


@dataclass(frozen=True, slots=True)
class Found:
    """What one file says of one system."""

    label: str
    system: str
    figures: Mapping[str | None, Figures]  # by category; None: all together
    warnings: Sequence[str] = ()
    answers: Any = None  # to be held against those of other files
    num_speculative_tokens: int | None = None


def figures(**known: Any) -> Figures:
    """All figures by name, in the order of a summary.

    Raises:
        KeyError: a name that no summary has.

    Example:
        >>> found = figures(num_tokens=5)
        >>> found["num_tokens"], found["waste"]
        (5, None)
    """
    unknown = set(known) - set(NAMES)
    if unknown:
        raise KeyError(", ".join(sorted(unknown)))
    return {name: known.get(name) for name in NAMES}


def estimate(pairs: Iterable[tuple[float, float]]) -> dict[str, float | None] | None:
    """A ratio of sums over (numerator, denominator) of every request; None without a denominator.

    Example:
        >>> estimate([(6, 2), (4, 2), (2, 2)])
        {'value': 2.0, 'macro': 2.0, 'low': 1.0, 'high': 3.0}
    """
    counted = [pair for pair in pairs if pair[1] > 0]  # tokens without a step are of requests that did not draft
    above, below = np.array(counted, dtype=np.float64).reshape(-1, 2).T
    found: dict[str, float | None] | None = solve({"ratio": (above, below)})["ratio"]
    return found


def value(ratio: float | None) -> dict[str, float | None] | None:
    """A ratio of which nothing but itself is known."""
    return None if ratio is None else {"value": ratio, "macro": None, "low": None, "high": None}


def at_positions(accepted: Mapping[int, int], num_positions: int) -> list[dict[str, float | None] | None]:
    """How many of the steps accepted at least so many, from a histogram: accepted tokens -> steps.

    Example:
        >>> [found["value"] for found in at_positions({0: 1, 1: 1, 2: 2}, 3)]
        [0.75, 0.5, 0.0]
    """
    steps = sum(accepted.values())
    reached = [
        sum(count for number, count in accepted.items() if number >= depth) for depth in range(1, num_positions + 1)
    ]
    return [value(count / steps if steps else None) for count in reached]
