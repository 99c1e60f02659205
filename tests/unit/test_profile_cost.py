"""The cost model on costs that are made up: closed forms, break-even, mixtures, and what a plan says of them."""

import pytest

from specdec.experiments.profile.acceptance import Assumed, Known
from specdec.experiments.profile.cost import Costs, PassTable, Yield, even_acceptance, expected_tokens, predict
from specdec.experiments.profile.drafters import Setting
from specdec.experiments.profile.plan import PLAIN, plan

LONGEST = 60
STAMP: dict = {"environment": {}, "model": {}}


def verify_row(width, batch, seconds, overhead=0.0, context=64):
    place = {"context_length": context, "batch_size": batch, "width": width}
    return {**place, "pass_seconds": seconds, "overhead_seconds": overhead}


def plain_row(seconds, batch=1):
    return {"context_length": 64, "batch_size": batch, "seconds_per_round": seconds}


def draft_row(name, length, batch, seconds, nodes=None, **columns):
    setting = {"drafter": name, "num_speculative_tokens": length, "num_tree_nodes": nodes, "batch_size": batch}
    times = {"seconds": seconds, "seconds_low": seconds, "seconds_high": seconds}
    return {**setting, **times, "overhead_seconds": 0.0, "slowdown": 1.0, **columns}


def profile_of(draft_cost, width_cost=0.0, batches=(1,)):
    """A plain step takes a second, a further row `width_cost` for each request, a drafted token `draft_cost`."""
    widths = [1, LONGEST + 1]
    verify = [verify_row(w, b, 1.0 + width_cost * b * (w - 1)) for b in batches for w in widths]
    draft = [draft_row("small", k, b, draft_cost * k) for b in batches for k in (1, LONGEST)]
    return {**STAMP, "decode": [plain_row(1.0, b) for b in batches], "verify": verify, "draft": draft}


# Best length and speed-up by acceptance and cost of a drafted token: Leviathan et al. 2023, theorem 3.8.
BEST = {
    (0.8, 0.02): (11, 3.82), (0.8, 0.05): (8, 3.09), (0.8, 0.1): (6, 2.47), (0.8, 0.2): (4, 1.87),
    (0.7, 0.02): (None, 2.76), (0.7, 0.05): (None, 2.35), (0.7, 0.1): (None, 1.98), (0.7, 0.2): (None, 1.58),
    (0.9, 0.02): (None, 6.37), (0.9, 0.05): (None, 4.67), (0.9, 0.1): (None, 3.43), (0.9, 0.2): (None, 2.37),
}  # fmt: skip


@pytest.mark.parametrize("acceptance, cost", BEST)
def test_the_best_length_is_that_of_the_theorem(acceptance, cost):
    length, speedup = BEST[acceptance, cost]
    best = plan(profile_of(cost), Assumed(acceptance), None, 64)["best"][0]
    assert best["speedup"] == pytest.approx(speedup, abs=0.005)
    assert length in (None, best["num_speculative_tokens"])


def test_every_length_follows_the_closed_form():
    a, cost = 0.8, 0.1
    for row in plan(profile_of(cost), Assumed(a), None, 64)["rows"]:
        if row["label"] != PLAIN:
            k = row["num_speculative_tokens"]
            assert row["tokens_per_step"] == pytest.approx((1 - a ** (k + 1)) / (1 - a))
            assert row["speedup"] == pytest.approx((1 - a ** (k + 1)) / ((1 - a) * (k * cost + 1)))
            assert sum(row["seconds"][part] for part in ("draft", "verify", "overhead")) == row["seconds"]["total"]


@pytest.mark.parametrize("cost", [0.1, 0.3])
def test_a_single_token_pays_iff_acceptance_is_above_its_cost(cost):
    costs, setting = Costs.of(profile_of(cost)), Setting("small", 1)
    for rate in (cost - 0.01, cost, cost + 0.01):
        found = predict(costs, setting, 1, 64, Yield(1 + rate))
        assert found.speedup == pytest.approx((1 + rate) / (1 + cost))
        assert even_acceptance(found.break_even_tokens, 1) == pytest.approx(cost)


@pytest.mark.parametrize("length", [1, 4, 7])
def test_at_the_break_even_rate_the_speed_is_that_of_plain_decoding(length):
    costs, setting = Costs.of(profile_of(0.1, width_cost=0.02)), Setting("small", length)
    rate = even_acceptance(predict(costs, setting, 1, 64, Yield(1.0)).break_even_tokens, length)
    assert predict(costs, setting, 1, 64, Yield(expected_tokens([rate], length))).speedup == pytest.approx(1, abs=1e-6)


def test_rounds_without_a_draft_take_a_plain_step():
    rows = [verify_row(1, 1, 1.0, 0.1), verify_row(6, 1, 3.0, 0.2)]
    costs = Costs.of(
        {"decode": [plain_row(1.1)], "verify": rows, "draft": [draft_row("ngram", 5, 1, 0.5, overhead_seconds=0.25)]}
    )
    setting = Setting("ngram", 5)
    found = predict(costs, setting, 1, 64, Yield(2.0, drafted_share=0.25))
    assert (found.draft, found.overhead, found.plain) == (0.5, 0.25, 1.1)
    assert found.verify == pytest.approx(0.25 * 3.0 + 0.75 * 1.0)
    assert found.tokens_per_second == pytest.approx(2.0 / 2.25)
    everywhere = predict(costs, setting, 1, 64, Yield(2.0))
    assert everywhere.verify == 3.0


def test_a_pass_behind_a_draft_is_slower_by_the_median_over_lengths():
    rows = [draft_row("small", k, 1, 0.1, slowdown=slow) for k, slow in ((1, 1.1), (2, 1.2), (3, 9.0))]
    costs = Costs.of({"decode": [plain_row(1.0)], "verify": [verify_row(1, 1, 1.0)], "draft": rows})
    assert predict(costs, Setting("small", 3), 1, 64, Yield(2.0)).verify == 1.2


def test_tables_are_linear_between_what_was_measured():
    rows = [verify_row(w, b, w + 10 * b + c / 100, context=c) for w in (1, 5) for b in (1, 4) for c in (100, 300)]
    table = PassTable.of(rows)
    assert table.seconds(3, 2, 200) == pytest.approx(3 + 20 + 2)
    assert table.seconds(7, 6, 400) == pytest.approx(7 + 60 + 4)
    assert table.seconds(1, 1, 50) == pytest.approx(1 + 10 + 1)  # below the shortest, as there
    assert (table.batches, table.contexts) == ([1, 4], [100, 300])


def test_beyond_a_profile_times_do_not_fall_and_the_plan_says_so():
    """A line through two noisy times must not become a draft, or a pass, of less than no time."""
    profile = profile_of(0.1, batches=(1, 8))
    for row in profile["draft"]:
        row["overhead_seconds"] = 0.5 / row["batch_size"]
    profile["verify"] = [{**row, "pass_seconds": 1.0 - 0.01 * row["batch_size"]} for row in profile["verify"]]
    found = plan(profile, Assumed(0.5), [4, 5000], 640)
    assert all(0 < row["seconds"]["overhead"] < 1 for row in found["rows"] if row["drafter"])
    assert {row["seconds"]["verify"] for row in found["rows"] if row["drafter"] and row["batch_size"] > 8} == {0.92}
    batches, contexts = found["warnings"]
    assert batches.startswith("the profile has batch sizes from 1 to 8; what is said of 5000 follows")
    assert contexts.startswith("the profile has contexts from 64 to 64; what is said of 640 follows")
    assert plan(profile, Assumed(0.5), [1, 4], 20)["warnings"] == []


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_large_batch_of_which_some_have_drafts(share):
    """Costs that are linear in the number of drafts cost what the mean number does."""
    costs, setting, batch = Costs.of(profile_of(0.1, width_cost=1e-4)), Setting("small", 4), 3000
    found = predict(costs, setting, batch, 64, Yield(2.0, drafted_share=share))
    assert found.verify == pytest.approx(1 + 1e-4 * 4 * share)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_at_the_break_even_rate_drafts_of_some_rounds_pay_too(share):
    costs, setting = Costs.of(profile_of(0.02)), Setting("small", 4)
    found = plan(profile_of(0.02), Known("made up", {setting: Yield(1.5, share)}), [1], 64)["rows"][0]
    tokens = 1 + share * (expected_tokens([found["break_even_acceptance"]], 4) - 1)
    assert predict(costs, setting, 1, 64, Yield(tokens, share)).speedup == pytest.approx(1, abs=1e-6)


def test_a_draft_that_costs_nothing_needs_nothing():
    """Of noisy times a wider pass may be the faster one."""
    profile = profile_of(0.0)
    profile["verify"] = [{**row, "pass_seconds": 0.9} for row in profile["verify"]]
    found = plan(profile, Assumed(0.5), [1], 64)
    assert {row["break_even_acceptance"] for row in found["rows"] if row["drafter"]} == {0.0}
    assert "0.90 tokens per step (0 % of tokens accepted)" in found["advice"]


def test_large_batches_are_advised_against():
    found = plan(profile_of(0.05, width_cost=0.02, batches=(1, 64)), Assumed(0.6), None, 64)
    small, large = found["best"]
    assert small["drafter"] == "small" and small["speedup"] > 1
    assert large["drafter"] is None and large["label"] == PLAIN and large["margin"] > 1
    advice = found["advice_by_batch"]
    assert advice[0].startswith("Batch 1: draft with small k=") and "it pays from" in advice[0]
    assert advice[1].startswith("Batch 64: do not speculate; the best drafter, small k=1, would give 0.69 times")
    assert "a draft takes 50.00 ms" in advice[1] and "where a plain step takes 1000.00 ms" in advice[1]
    # (0.05 + 1 + 0.02 * 64) / 1 tokens per step are more than two
    assert "2.33 tokens per step (more than it drafts), and has 1.60" in advice[1]
    assert found["advice"] == " ".join(advice)


def test_intervals_and_margins():
    yields = {Setting("small", 1): Yield(1.5, low=1.2, high=1.8)}
    profile = profile_of(0.1)
    profile["draft"].append(draft_row("other", 1, 1, 0.2))
    yields[Setting("other", 1)] = Yield(1.5)
    found = plan(profile, Known("made up", yields), [1], 64)
    assert [row["label"] for row in found["rows"]] == ["small k=1", "other k=1", PLAIN]
    small, other, plain = found["rows"]
    assert (small["low"], small["high"]) == (pytest.approx(1.2 / 1.1), pytest.approx(1.8 / 1.1))
    assert (other["low"], plain["low"], plain["high"]) == (None, 1.0, 1.0)
    assert found["best"][0]["margin"] == pytest.approx(1.2 / 1.1) and found["best"][0]["runner_up"] == "other k=1"


@pytest.mark.parametrize("low, is_certain", [(1.05, False), (1.2, True), (None, True)])
def test_a_gain_that_the_interval_leaves_open_is_called_so(low, is_certain):
    """A round takes 1.1 plain steps."""
    yields = {Setting("small", 1): Yield(1.5, low=low, high=1.8)}
    advice = plan(profile_of(0.1), Known("made up", yields), [1], 64)["advice"]
    assert ("That is not certain: 1.05 are in its interval, too." in advice) is not is_certain


def test_unknown_drafters_are_refused():
    with pytest.raises(ValueError, match=r"expected acceptance of some drafter of the profile \(small\)"):
        plan(profile_of(0.1), Known("elsewhere", {Setting("large", 3): Yield(2.0)}), None, 64)


def test_trees_have_no_acceptance_rate():
    assert Assumed(0.5).of(Setting("small", 3, 12)) is None
    with pytest.raises(ValueError, match="expected --acceptance-rate from 0 to 1"):
        Assumed(1.5)
