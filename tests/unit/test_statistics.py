"""Speed-ups and their intervals."""

from itertools import product

import numpy as np
import pytest

from specdec.experiments.statistics import Speedup, Totals, median_index, speedup


def totals(tokens, seconds):
    return Totals(np.array(tokens, dtype=float), np.array(seconds, dtype=float))


@pytest.mark.parametrize(
    ("values", "index"), [([3.0], 0), ([2.0, 1.0], 1), ([1.0, 100.0, 2.0], 2), ([4.0, 1.0, 3.0, 2.0], 3)]
)
def test_median_is_a_run_that_happened(values, index):
    assert median_index(values) == index


def test_ratio_of_sums_not_mean_of_ratios():
    method = totals([10, 1000], [1, 10])
    assert method.tokens_per_second == pytest.approx(1010 / 11)


def test_interval_is_paired():
    """Prompts that differ a hundredfold in length do not widen the interval of a constant ratio."""
    tokens = [10, 100, 1000, 7, 70]
    slow = totals(tokens, [1, 12, 90, 3, 4])
    fast = totals(tokens, slow.seconds / 1.5)
    found = speedup(fast, slow)
    assert (found.ratio, found.low, found.high) == pytest.approx((1.5, 1.5, 1.5))


def test_different_lengths_are_compared_per_token():
    """A method that stops earlier is not thereby faster."""
    found = speedup(totals([10, 10, 10], [1, 1, 1]), totals([20, 20, 20], [2, 2, 2]))
    assert found == Speedup(1.0, 1.0, 1.0)


def test_quantiles_are_those_of_all_resamples():
    """Three prompts have 27 equally likely resamples: the quantiles can be counted."""
    base, fast = totals([1, 1, 1], [1, 1, 1]), totals([1, 1, 1], [0.5, 1.0, 0.25])
    ratios = sorted(3 / sum(fast.seconds[list(drawn)]) for drawn in product(range(3), repeat=3))
    found = speedup(fast, base)
    # the extremes have probability 1/27 > 2.5 %, so the quantiles lie on them
    assert (found.low, found.high) == pytest.approx((ratios[0], ratios[-1]))


def test_interval_covers():
    """95 % intervals of 40 prompts hold the true ratio in at least 52 of 60 seeded experiments."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(60):
        base = rng.uniform(1, 3, 40)
        noise = rng.normal(1.0, 0.1, 40)  # mean ratio 2
        found = speedup(totals(np.ones(40), base / 2 * noise), totals(np.ones(40), base))
        hits += found.low <= 2.0 <= found.high
    assert hits >= 52


def test_too_few_prompts_have_no_interval():
    found = speedup(totals([1, 1], [1, 1]), totals([1, 1], [2, 2]))
    assert found == Speedup(2.0, None, None)
    assert found.wins and not found.loses


@pytest.mark.parametrize(
    ("low", "high", "wins", "loses"), [(1.1, 1.4, True, False), (0.9, 1.2, False, False), (0.6, 0.9, False, True)]
)
def test_verdict_follows_the_interval(low, high, wins, loses):
    found = Speedup((low + high) / 2, low, high)
    assert (found.wins, found.loses) == (wins, loses)


def test_same_seed_same_interval():
    rng = np.random.default_rng(0)
    one, two = (totals(rng.integers(5, 90, 8), rng.uniform(1, 2, 8)) for _ in range(2))
    assert speedup(one, two) == speedup(one, two)


def test_refuses_other_prompts():
    with pytest.raises(ValueError, match="expected both methods on the same prompts, got 1 and 2"):
        speedup(totals([1], [1]), totals([1, 1], [1, 1]))
