"""The summary of a bench: what is in it, what it warns of, and that its intervals cover."""

import json
import random

import numpy as np
import pytest

from specdec.experiments.figures.definitions import DEFINITIONS
from specdec.experiments.figures.estimates import solve
from specdec.experiments.figures.summary import summarize
from tests.toys.bench_records import a_header, a_request, a_run, a_step, a_sweep, an_arm, plain_run

ALSO_DEFINED = {"estimate", "step", "repetition", "eos_rate", "cells"}
PLAIN = {"num_prompts", "num_requests", "num_runs"}  # say it themselves


def arm_of(summary, name):
    return next(arm for arm in summary["arms"] if arm["id"] == name)


def test_the_schema():
    header, records = a_sweep()
    summary = summarize(header, records, ["line 3 of records-0.jsonl is no record"])
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert (summary["kind"], summary["version"], summary["num_runs"]) == ("bench-summary", 1, 18)
    assert summary["warnings"][0].startswith("line 3")
    assert [arm["id"] for arm in summary["arms"]] == ["base", "k1", "k2"]
    found = arm_of(summary, "k2")
    assert found["num_speculative_tokens"] == 2 and list(found["by_category"]) == ["prose", "code"]
    for name in ("num_tokens", "num_steps", "num_accepted"):
        assert sum(part[name] for part in found["by_category"].values()) == found["overall"][name]
    assert arm_of(summary, "base")["overall"]["speedup"] is None


def test_every_figure_is_defined():
    header, records = a_sweep()
    found = arm_of(summarize(header, records), "k1")["overall"]
    assert set(found) - PLAIN == set(DEFINITIONS) - ALSO_DEFINED


def test_the_order_of_records_does_not_matter():
    header, records = a_sweep()
    shuffled = random.Random(1).sample(records, len(records))
    assert summarize(header, records) == summarize(header, shuffled)


def test_unknown_arms_are_left_out():
    header, records = a_sweep()
    assert summarize(header, [*records, records[0] | {"arm": "other"}]) == summarize(header, records)


def test_warnings():
    """Each sanity check speaks, with the arm's name."""
    prompts = ["p0", "p1"]
    wide = {"position": 3, "expected": 1, "got": 2, "margin": 2.0, "resolution": 0.01, "is_tie": False}
    header = a_header([an_arm("base"), an_arm("a"), an_arm("b"), an_arm("c", baseline="gone", cell="other")], prompts)
    records = [
        *(plain_run("base", group, prompt, 20) for group, prompt in enumerate(prompts)),
        a_run("a", 0, [a_request("p0", None, tokens=[5] * 40, difference=wide)], process="other"),
        a_run("b", 0, [a_request("p0", [a_step(1, 2)], difference=None)]),
        a_run("b", 1, [a_request("p1", [a_step(1, 2)], difference=None)], process="other"),
        *(plain_run("c", group, prompt, 20) for group, prompt in enumerate(prompts)),
    ]
    warnings = "\n".join(summarize(header, records)["warnings"])
    for expected in (
        "2 prompts: there are no intervals below 3",
        "other: the baseline was not run",
        "toy float32 greedy batch 1: draft_model a: ran on 1 of 2 prompts",
        "toy float32 greedy batch 1: draft_model a: no run has a baseline of the same group, repeat and process",
        "toy float32 greedy batch 1: draft_model a: degenerate texts on 1 of 1 prompts",
        "1 text other than the baseline's and no ties, first p0 at token 3, margin 2, resolution 0.01",
        "toy float32 greedy batch 1: draft_model b: 1 of 2 groups have no baseline of the same process",
    ):
        assert expected in warnings


def test_a_warning_of_many_arms_is_one():
    header, records = a_sweep(num_arms=3)
    for run in records:
        run["requests"][0]["tokens"] = [5] * 40
    warnings = summarize(header, records)["warnings"]
    expected = "toy float32 greedy batch 1: 4 arms: degenerate texts on 6 of 6 prompts: that favours drafters that copy"
    assert warnings == [expected]


def test_a_clean_bench_has_no_warnings():
    assert summarize(*a_sweep())["warnings"] == []


def test_cells_rank_by_speed_with_paired_margins():
    summary = summarize(*a_sweep(num_arms=4, num_prompts=12, num_steps=40))
    (cell,) = summary["cells"]
    speeds = [arm_of(summary, row["arm"])["overall"]["tokens_per_second"]["value"] for row in cell["arms"]]
    assert speeds == sorted(speeds, reverse=True) and cell["arms"][0]["over"] is None
    for row, speed in zip(cell["arms"][1:], speeds[1:], strict=True):
        over = row["over"]
        assert over["ratio"] == pytest.approx(speeds[0] / speed) and over["low"] <= over["ratio"] <= over["high"]
        assert over["p_value"] <= over["p_holm"] <= 1
    assert cell["arms"][-1]["arm"] == "base" and cell["arms"][-1]["over"]["p_holm"] < 0.01


def test_intervals_cover():
    """A ratio of sums over 40 prompts: of 300 seeded experiments, 95 % intervals hold the truth in 90 to 98 %.

    The percentile interval is a little short on few prompts: 94 % would be usual here.
    """
    source = np.random.default_rng(11)
    hits = 0
    for _ in range(10):
        ratios = {}
        for index in range(30):
            drafted = source.integers(20, 200, size=40)
            rate = source.beta(6, 4, size=40)  # mean 0.6, and prompts differ
            ratios[str(index)] = (source.binomial(drafted, rate).astype(float), drafted.astype(float))
        hits += sum(found["low"] <= 0.6 <= found["high"] for found in solve(ratios).values())
    assert 270 <= hits <= 294


def test_prompts_with_nothing_to_count_leave_the_interval_finite():
    """Resamples without any draft are no number, and are left out."""
    above, below = np.array([1.0, 2.0, 3.0, 0.0, 0.0]), np.array([2.0, 4.0, 4.0, 0.0, 0.0])
    found = solve({"rate": (above, below)})
    assert found["rate"]["value"] == 0.6 and found["rate"]["macro"] == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert found["rate"]["low"] == 0.5 and found["rate"]["high"] == 0.75
