"""Ratios of sums and their intervals. A prompt is one draw: tokens and times of a prompt stay together."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Measure = Callable[[Vector], Vector]  # sums, one per last index -> a figure for each row of sums
RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_PROMPTS = 3  # with fewer, the resamples are so few that their quantiles are just the extremes
MAX_SWAPPED = 13  # prompts whose every exchange of labels is looked at: 2 ** 13 of them, about as many as RESAMPLES
ROUNDING = 1e-9  # two logarithms of ratios that differ by less are equal: sums in another order round otherwise
CHUNK = 1 << 22  # draws in memory at a time


@dataclass(frozen=True, slots=True)
class Totals:
    """What one method did on every prompt of a set, in the order of the prompts."""

    tokens: Vector  # [num_prompts] new tokens
    seconds: Vector  # [num_prompts] wall time

    @classmethod
    def of(cls, pairs: Iterable[tuple[float, float]]) -> "Totals":
        """The totals of (tokens, seconds) per prompt.

        Example:
            >>> Totals.of([(10, 1.0), (20, 3.0)]).tokens_per_second
            7.5
        """
        tokens, seconds = zip(*pairs, strict=True)
        return cls(np.array(tokens, dtype=np.float64), np.array(seconds, dtype=np.float64))

    @property
    def tokens_per_second(self) -> float:
        """A ratio of sums, so a long text weighs more than a short one."""
        return float(self.tokens.sum() / self.seconds.sum())


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times the tokens per second of a baseline, and where that figure lies with 95 % confidence."""

    ratio: float
    low: float | None  # None: too few prompts to say
    high: float | None

    @property
    def wins(self) -> bool:
        return self.ratio > 1 if self.low is None else self.low > 1

    @property
    def loses(self) -> bool:
        return self.ratio < 1 if self.high is None else self.high < 1


def speedup(method: Totals, baseline: Totals, seed: int = 0) -> Speedup:
    """The speed-up of a method over a baseline that ran on the same prompts.

    Prompts are drawn anew with replacement, for both methods the same ones, and the ratio of sums is taken of each
    resample; the interval lies between the quantiles of these ratios (paired percentile cluster bootstrap; Efron and
    Tibshirani, An Introduction to the Bootstrap, chapter 13).

    Example:
        >>> slow = Totals.of([(10, 1.0), (20, 2.1), (30, 3.2)])
        >>> fast = Totals.of([(10, 0.5), (20, 1.05), (30, 1.6)])  # twice as fast on every prompt
        >>> speedup(fast, slow)
        Speedup(ratio=2.0, low=2.0, high=2.0)
    """
    if method.tokens.shape != baseline.tokens.shape:
        raise ValueError(
            f"expected both methods on the same prompts, got {len(method.tokens)} and {len(baseline.tokens)} of them"
        )
    ratio = method.tokens_per_second / baseline.tokens_per_second
    if len(method.tokens) < MIN_PROMPTS:
        return Speedup(ratio, None, None)
    parts = (method.tokens, method.seconds, baseline.tokens, baseline.seconds)
    sums = resampled(np.stack(parts, axis=1), seed)
    low, high = interval((sums[:, 0] / sums[:, 1]) / (sums[:, 2] / sums[:, 3]))
    return Speedup(ratio, float(low), float(high))


def resampled(values: Vector, seed: int = 0) -> Vector:  # [num_prompts, n] -> [RESAMPLES, n]
    """The sums of each column over prompts drawn anew with replacement; equal prompts and seeds, equal draws.

    Figures whose columns stand side by side, or in calls with equally many prompts, are thus of the same resamples.

    Example:
        >>> resampled(np.ones((4, 2)))[:2]
        array([[4., 4.],
               [4., 4.]])
    """
    counts = _draws(len(values), seed)
    rows = max(1, CHUNK // len(values))
    return np.concatenate([counts[i : i + rows].astype(np.float64) @ values for i in range(0, RESAMPLES, rows)])


def interval(figures: Vector) -> tuple[Vector, Vector]:  # [RESAMPLES, ...] -> [...], [...]
    """Between which values the middle 95 % of the resampled figures lie; those that are no number are left out.

    Example:
        >>> low, high = interval(np.arange(1001.0))
        >>> round(float(low), 6), round(float(high), 6)
        (25.0, 975.0)
    """
    bounds = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    quantiles = np.nanquantile if np.isnan(figures).any() else np.quantile  # the first takes many times as long
    low, high = quantiles(np.ascontiguousarray(figures.T), bounds, axis=-1)
    return low, high


def swap_p_value(first: Vector, second: Vector, measure: Measure, seed: int = 0) -> float | None:
    """How probable so large a ratio of two figures is if it does not matter which set a prompt's values are from.

    The paired permutation test: under that hypothesis the values of each prompt, [num_prompts, n] sums in both sets,
    may be exchanged between the sets. Every exchange is looked at if there are few prompts, else 10 000 random ones
    (Phipson and Smyth 2010, equation 2: the one observed counts as well). None if the ratio is undefined.

    Example:
        >>> slow = np.array([[10, 1.0], [20, 2.0], [30, 3.1]])  # tokens, seconds
        >>> swap_p_value(slow, slow * [1, 0.5], lambda sums: sums[..., 0] / sums[..., 1])  # 2 of 8 exchanges
        0.25
    """
    num_prompts = len(first)
    if not num_prompts:
        return None
    is_exact = num_prompts <= MAX_SWAPPED
    if is_exact:
        swaps = np.array(list(product((0.0, 1.0), repeat=num_prompts)))
    else:
        swaps = np.random.default_rng(seed).integers(2, size=(RESAMPLES, num_prompts)).astype(np.float64)
    moved = swaps @ (second - first)  # [swaps, n] what the exchange brings into the first set
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = np.abs(np.log(measure(second.sum(0)) / measure(first.sum(0))))
        found = np.abs(np.log(measure(second.sum(0) - moved) / measure(first.sum(0) + moved)))
    if not np.isfinite(observed):
        return None
    extreme = int((~(found < observed - ROUNDING)).sum())  # what is no number does not speak against chance
    return extreme / len(swaps) if is_exact else (extreme + 1) / (len(swaps) + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, raised so that the chance of any false alarm keeps to the level (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def median_index(values: Sequence[float]) -> int:
    """Where the median is; of an even number of values the lower of the two in the middle.

    Example:
        >>> median_index([5.0, 9.0, 1.0])
        0
    """
    return sorted(range(len(values)), key=values.__getitem__)[(len(values) - 1) // 2]


@lru_cache(maxsize=8)
def _draws(num_prompts: int, seed: int) -> npt.NDArray[np.uint16]:  # [RESAMPLES, num_prompts]
    """How often each prompt is drawn in each resample."""
    source = np.random.default_rng(seed)
    rows = max(1, CHUNK // num_prompts)
    parts = []
    for start in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - start)
        drawn = source.integers(num_prompts, size=(size, num_prompts)) + num_prompts * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * num_prompts)
        parts.append(counts.reshape(size, num_prompts).astype(np.uint16))
    return np.concatenate(parts)
