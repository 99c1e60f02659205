"""Ratios of sums and their intervals. A prompt is one draw: tokens and times of a prompt stay together."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 10_000
CONFIDENCE = 0.95
MIN_PROMPTS = 3  # with fewer, the resamples are so few that their quantiles are just the extremes


@dataclass(frozen=True, slots=True)
class Totals:
    """What one method did on every prompt of a set, in the order of the prompts."""

    tokens: npt.NDArray[np.float64]  # [num_prompts] new tokens
    seconds: npt.NDArray[np.float64]  # [num_prompts] wall time

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
    num_prompts = len(method.tokens)
    if num_prompts < MIN_PROMPTS:
        return Speedup(ratio, None, None)
    drawn = np.random.default_rng(seed).integers(num_prompts, size=(RESAMPLES, num_prompts))
    sums = [totals[drawn].sum(axis=1) for totals in (method.tokens, method.seconds, baseline.tokens, baseline.seconds)]
    ratios = (sums[0] / sums[1]) / (sums[2] / sums[3])
    low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Speedup(ratio, float(low), float(high))


def median_index(values: Sequence[float]) -> int:
    """Where the median is; of an even number of values the lower of the two in the middle.

    Example:
        >>> median_index([5.0, 9.0, 1.0])
        0
    """
    return sorted(range(len(values)), key=values.__getitem__)[(len(values) - 1) // 2]
