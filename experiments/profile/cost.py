"""What a round of speculative decoding costs and yields, from measured parts.

    tokens of a round   E = 1 + sum over i <= k of a_1 a_2 ... a_i       a_i: conditional acceptance at position i
    seconds of a round  = draft(k, B) + slowdown x pass(k + 1, B, context) + overhead(k, B)
    tokens per second   = B E / seconds

A request without a draft (no match in the text, say) emits one token and takes one row of the pass. Each request of a
batch accepts its own, so a batch emits B E tokens a round on average.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .drafters import Setting

Grid = Mapping[tuple[int, int], Mapping[int, float]]  # (context, batch) -> width -> seconds
PRECISION = 1e-9  # of an acceptance rate that is searched for
NEGLIGIBLE = 1e-15  # a probability that changes no sum


def expected_tokens(conditional: Sequence[float], num_tokens: int) -> float:
    """E of a draft of so many tokens; behind the last position known the same acceptance goes on.

    Independent tokens have (1 - a^(k + 1)) / (1 - a) (Leviathan et al. 2023, equation 1).

    Example:
        >>> round(expected_tokens([0.8], 4), 4), expected_tokens([0.5, 0.0], 2), expected_tokens([], 3)
        (3.3616, 1.5, 1.0)
    """
    total, survival = 1.0, 1.0
    for position in range(num_tokens if conditional else 0):
        survival *= conditional[min(position, len(conditional) - 1)]
        total += survival
    return total


def even_acceptance(tokens: float, num_tokens: int, drafted_share: float = 1.0) -> float | None:
    """The rate of independent acceptance that yields so many tokens per step; None if none does, 0 if any is enough.

    Args:
        num_tokens: length of the draft, which `drafted_share` of the rounds have.

    Example:
        >>> round(even_acceptance(3.3616, 4), 4), even_acceptance(0.9, 3), even_acceptance(5.5, 4)
        (0.8, 0.0, None)
        >>> round(even_acceptance(1.25, 1, drafted_share=0.5), 4), even_acceptance(1.6, 1, drafted_share=0.5)
        (0.5, None)
    """
    if tokens > 1 + drafted_share * num_tokens:
        return None
    low, high = 0.0, 1.0
    while high - low > PRECISION:
        middle = (low + high) / 2
        found = 1 + drafted_share * (expected_tokens([middle], num_tokens) - 1)
        low, high = (middle, high) if found < tokens else (low, middle)
    return round(low, 8)


def interpolated(points: Mapping[int, float], at: float) -> float:
    """Linearly between the points around; below the first, its value.

    Above the last, along the line of the last two, but never down: more work does not take less time, and a line that
    noise has bent would go below zero.

    Example:
        >>> interpolated({1: 10.0, 3: 14.0}, 2), interpolated({1: 10.0, 3: 14.0}, 5), interpolated({4: 9.0}, 1)
        (12.0, 18.0, 9.0)
        >>> interpolated({1: 10.0, 3: 8.0}, 50)
        8.0
    """
    known = sorted(points)
    if at <= known[0] or len(known) == 1:
        return points[known[0]]
    index = next((index for index, place in enumerate(known) if place >= at), len(known) - 1)
    left, right = known[index - 1], known[index]
    if at > right and points[right] < points[left]:
        return points[right]
    return points[left] + (points[right] - points[left]) * (at - left) / (right - left)


@dataclass(frozen=True, slots=True)
class PassTable:
    """Seconds of the target's pass by width, batch size and context, and of what is measured along the same three.

    Example:
        >>> rows = [{"context_length": 64, "batch_size": b, "width": w, "pass_seconds": b + w} for b in (1, 3)
        ...         for w in (1, 5)]
        >>> PassTable.of(rows).seconds(width=3, batch=2, context=999)
        5.0
    """

    grid: Grid

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]], column: str = "pass_seconds") -> "PassTable":
        """Of the rows "verify" of a profile."""
        grid: dict[tuple[int, int], dict[int, float]] = {}
        for row in rows:
            grid.setdefault((row["context_length"], row["batch_size"]), {})[row["width"]] = row[column]
        return cls(grid)

    @property
    def batches(self) -> list[int]:
        """Batch sizes that were measured."""
        return sorted({batch for _, batch in self.grid})

    @property
    def contexts(self) -> list[int]:
        """Context lengths that were measured."""
        return sorted({context for context, _ in self.grid})

    def seconds(self, width: float, batch: int, context: float) -> float:
        """Between what was measured, linearly along each of the three."""
        by_context = {}
        for length in self.contexts:
            by_batch = {each: interpolated(self.grid[length, each], width) for each in self.batches}
            by_context[length] = interpolated(by_batch, batch)
        return interpolated(by_context, context)


@dataclass(frozen=True, slots=True)
class Costs:
    """The parts that a profile measured, in seconds. Settings between measured lengths are interpolated."""

    passes: PassTable
    plain: PassTable  # of a round of plain decoding, all of it
    drafts: Mapping[tuple[str, int | None], Mapping[str, Grid]]  # drafter, tree -> column -> (0, batch) -> length
    slowdowns: Mapping[tuple[str, int | None], float]  # drafter, tree -> median over lengths and batches

    @classmethod
    def of(cls, profile: Mapping[str, Any]) -> "Costs":
        """Of a profile."""
        drafts: dict[tuple[str, int | None], dict[str, dict[tuple[int, int], dict[int, float]]]] = {}
        slowdowns: dict[tuple[str, int | None], list[float]] = {}
        for row in profile["draft"]:
            columns = drafts.setdefault((row["drafter"], row["num_tree_nodes"]), {})
            for column in ("seconds", "seconds_low", "seconds_high", "overhead_seconds"):
                by_length = columns.setdefault(column, {}).setdefault((0, row["batch_size"]), {})
                by_length[row["num_speculative_tokens"]] = row[column]
            slowdowns.setdefault((row["drafter"], row["num_tree_nodes"]), []).append(row["slowdown"])
        pooled = {kind: statistics.median(values) for kind, values in slowdowns.items()}
        plain = [{**row, "width": 1} for row in profile["decode"]]
        return cls(PassTable.of(profile["verify"]), PassTable.of(plain, "seconds_per_round"), drafts, pooled)

    def settings(self) -> list[Setting]:
        """Every drafter at every length up to its longest measured, and its trees."""
        found = []
        for (drafter, nodes), columns in self.drafts.items():
            lengths = sorted(next(iter(columns["seconds"].values())))
            first = 1 if nodes is None else lengths[0]
            found += [Setting(drafter, length, nodes) for length in range(first, lengths[-1] + 1)]
        return found

    def draft(self, setting: Setting, batch: int, column: str = "seconds") -> float:
        """Of one call for the whole batch, or another column of the rows "draft"."""
        grid = self.drafts[setting.drafter, setting.num_tree_nodes][column]
        return PassTable(grid).seconds(setting.num_speculative_tokens, batch, 0)

    def verification(self, setting: Setting, batch: int, context: float, drafted_share: float) -> float:
        """Of the target's pass, if each request has a draft with probability `drafted_share`."""

        def seconds(count: int) -> float:  # with so many drafts
            return self.passes.seconds(1 + (setting.num_rows - 1) * count / batch, batch, context)

        slowdown = self.slowdowns[setting.drafter, setting.num_tree_nodes]
        return slowdown * binomial_mean(seconds, batch, drafted_share)


def binomial_mean(value: Callable[[int], float], count: int, share: float) -> float:
    """The expectation of value(N), N successes among `count` with this probability.

    Example:
        >>> round(binomial_mean(lambda successes: 10.0 * successes, 4000, 0.25), 6)
        10000.0
    """
    if not 0 < share < 1:
        return value(round(count * share))
    logs = [math.lgamma(n + 1) + math.lgamma(count - n + 1) for n in range(count + 1)]  # of n! (count - n)!
    ways = (math.lgamma(count + 1) - log for log in logs)
    chances = [math.exp(way + n * math.log(share) + (count - n) * math.log1p(-share)) for n, way in enumerate(ways)]
    return sum(chance * value(n) for n, chance in enumerate(chances) if chance > NEGLIGIBLE)


@dataclass(frozen=True, slots=True)
class Yield:
    """What a drafter's rounds emit, per request, without those over prompts."""

    tokens_per_step: float
    drafted_share: float = 1.0  # of the rounds that have a draft
    low: float | None = None  # tokens_per_step, 95 % interval
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """One way to decode a batch."""

    setting: Setting | None  # None: plain decoding
    batch_size: int
    yields: Yield
    draft: float  # seconds of a round, as the next two
    verify: float
    overhead: float
    plain: float  # seconds of a round of plain decoding

    @property
    def seconds(self) -> float:
        """Of a round."""
        return self.draft + self.verify + self.overhead

    @property
    def tokens_per_second(self) -> float:
        return self.batch_size * self.yields.tokens_per_step / self.seconds

    @property
    def speedup(self) -> float:
        """Over plain decoding of the same batch."""
        return self.yields.tokens_per_step * self.plain / self.seconds

    @property
    def break_even_tokens(self) -> float:
        """Tokens per step at which it is as fast as plain decoding."""
        return self.seconds / self.plain


def predict(costs: Costs, setting: Setting | None, batch: int, context: float, yields: Yield) -> Prediction:
    """The prediction for a batch of requests with about so much context."""
    plain = costs.plain.seconds(1, batch, context)
    if setting is None:
        return Prediction(None, batch, yields, 0.0, plain, 0.0, plain)
    verify = costs.verification(setting, batch, context, yields.drafted_share)
    overhead = costs.draft(setting, batch, "overhead_seconds")
    return Prediction(setting, batch, yields, costs.draft(setting, batch), verify, overhead, plain)
