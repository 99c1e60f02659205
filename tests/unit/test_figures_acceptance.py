"""Acceptance from steps: known events, identities that hold whatever happened, and the formula of Leviathan et al."""

import random
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.events import Step
from specdec.experiments.figures import acceptance
from specdec.experiments.figures.columns import steps_of
from specdec.experiments.figures.estimates import solve
from specdec.experiments.figures.figures import ArmRuns, figures
from specdec.metrics import summarize_steps
from tests.toys.bench_records import a_request, a_run, a_step, drafted_steps

POSITIONS = ("acceptance_at_pos", "survival_at_pos", "conditional_acceptance_at_pos")


def figures_of(steps_by_prompt, **changes):
    """The figures of an arm that made these steps, each prompt a group of its own."""
    runs = [a_run("arm", i, [a_request(f"p{i}", steps, **changes)]) for i, steps in enumerate(steps_by_prompt)]
    return figures(ArmRuns.of(runs, ()), [f"p{i}" for i in range(len(steps_by_prompt))])


def values(estimates):
    return [None if estimate is None else estimate["value"] for estimate in estimates]


@st.composite
def chains(draw, max_depth=5):
    """A step of a chain, cut at the end of the text now and then."""
    drafted = draw(st.integers(0, max_depth))
    accepted = draw(st.integers(0, drafted))
    return a_step(accepted, drafted, emitted=max(1, accepted + draw(st.integers(0, 1))))


@st.composite
def trees(draw):
    """A step of a tree, known by the children of the nodes on its path."""
    accepted = draw(st.integers(0, 3))
    offered = [draw(st.integers(1, 3)) for _ in range(accepted)] + [draw(st.integers(0, 3))]
    ranks = [draw(st.integers(0, num_children - 1)) for num_children in offered[:-1]]
    depth = accepted + draw(st.integers(int(offered[-1] > 0), 2))
    nodes = sum(offered) + draw(st.integers(0, 4)) if depth else 0
    return a_step(accepted, depth, nodes=max(nodes, depth), ranks=ranks, offered=offered)


def test_known_steps():
    """Two steps over a prompt, one full acceptance of 2 of 2, one of 0 of 3, one of 1 of 3."""
    found = figures_of([[a_step(), a_step(2, 2), a_step(0, 3)], [a_step(), a_step(1, 3)]])
    assert (found["num_steps"], found["num_steps_without_draft"], found["num_tokens"]) == (5, 2, 8)
    assert (found["num_drafted"], found["num_accepted"], found["num_nodes"]) == (8, 3, 8)
    assert found["tokens_per_step"]["value"] == 8 / 5
    assert found["tokens_per_step"]["macro"] == pytest.approx((5 / 3 + 3 / 2) / 2)
    assert found["mean_acceptance_length"]["value"] == 1 + 3 / 3
    assert found["accepted_per_step"]["value"] == 3 / 5
    assert found["draft_acceptance_rate"]["value"] == 3 / 8
    assert found["target_calls_per_token"]["value"] == 5 / 8
    assert found["waste"]["value"] == 5 / 13
    assert values(found["acceptance_at_pos"]) == [2 / 3, 1 / 3, 0]
    assert values(found["survival_at_pos"]) == [2 / 3, 1 / 3, 0]
    assert values(found["conditional_acceptance_at_pos"]) == [2 / 3, 1 / 2, None]
    assert found["accepted_histogram"] == {"0": 1, "1": 1, "2": 1}
    assert found["acceptance_histogram_by_draft_length"] == {"2": {"2": 1}, "3": {"0": 1, "1": 1}}
    assert found["by_source"] == {"draft_model": {"num_steps": 3, "num_drafted": 8, "num_accepted": 3}}
    assert found["tokens_per_step"]["low"] is None  # two prompts


def test_position_rates_differ_where_drafts_are_shorter():
    """vLLM's rate counts a draft of 1 as refused at 2; the survival leaves it out."""
    found = figures_of([[a_step(1, 1), a_step(2, 2)]])
    assert values(found["acceptance_at_pos"]) == [1, 1 / 2]
    assert values(found["survival_at_pos"]) == values(found["conditional_acceptance_at_pos"]) == [1, 1]


def test_depth_and_rank_of_trees_and_chains_in_one_text():
    tree = a_step(2, 3, nodes=7, ranks=[1, 0], offered=[3, 2, 1], source="medusa")
    chain = a_step(1, 2, ranks=[0], offered=[1, 1])
    table = figures_of([[tree, chain]])["acceptance_by_depth_and_rank"]
    assert table == [
        [{"offered": 2, "accepted": 1}, {"offered": 1, "accepted": 1}, {"offered": 1, "accepted": 0}],
        [{"offered": 2, "accepted": 1}, {"offered": 1, "accepted": 0}],
        [{"offered": 1, "accepted": 0}],
    ]


def test_chains_need_no_ranks():
    table = figures_of([[a_step(1, 2), a_step(2, 2), a_step()]])["acceptance_by_depth_and_rank"]
    assert table == [[{"offered": 2, "accepted": 2}], [{"offered": 2, "accepted": 1}]]


@pytest.mark.parametrize(
    "steps",
    [[], [a_step()], [a_step(0, 4)], [a_step(emitted=0)], None],
    ids=["no step", "one token", "all refused", "nothing emitted", "no events"],
)
def test_what_is_undefined_is_none(steps):
    found = figures_of([steps])
    assert found["num_prompts"] == 1
    assert found["conditional_acceptance_at_pos"] in ([], None) or found["num_drafted"]
    if steps is None:
        absent = (
            "num_steps",
            "num_accepted",
            "tokens_per_step",
            "waste",
            "accepted_histogram",
            "by_source",
            *POSITIONS,
        )
        assert [found[name] for name in absent] == [None] * len(absent)
        assert found["num_tokens"] == 8
    elif not found["num_drafted"]:
        assert found["draft_acceptance_rate"] is found["mean_acceptance_length"] is None
        assert found["accepted_histogram"] == {} and found["acceptance_at_pos"] == []
    assert found["tpot_seconds"] is None and found["speedup"] is None


def test_no_prompt_ran():
    found = figures(ArmRuns.of([], ()), ["p0"])
    assert found["num_prompts"] == found["num_tokens"] == found["num_runs"] == 0
    assert found["tokens_per_second"] is None and found["seconds"]["total"] is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.one_of(chains(), trees()), max_size=8), min_size=1, max_size=4))
def test_identities(steps_by_prompt):
    """Of any steps: sums agree, the ratios follow from them, and rates lie in [0, 1] and fall with the position."""
    steps_by_prompt = [
        [step if "ranks" in step else {**step, **as_tree(step)} for step in steps] for steps in steps_by_prompt
    ]
    steps = steps_of(enumerate(a_request("p", steps) for steps in steps_by_prompt), len(steps_by_prompt))
    sums, found = acceptance.counts(steps), solve(acceptance.ratios(steps))
    shown = acceptance.histograms(steps)
    num_with_draft = sums["num_steps"] - sums["num_steps_without_draft"]
    assert sum(shown["accepted_histogram"].values()) == num_with_draft
    assert sum(int(key) * count for key, count in shown["accepted_histogram"].items()) == sums["num_accepted"]
    by_length = shown["acceptance_histogram_by_draft_length"]
    assert sum(int(key) * sum(row.values()) for key, row in by_length.items()) == sums["num_drafted"]
    for name in ("num_drafted", "num_accepted"):
        assert sum(source[name] for source in shown["by_source"].values()) == sums[name]
    table = shown["acceptance_by_depth_and_rank"]
    assert sum(cell["accepted"] for row in table for cell in row) == sums["num_accepted"]
    assert all(cell["accepted"] <= cell["offered"] for row in table for cell in row)
    if num_with_draft:
        assert found["mean_acceptance_length"]["value"] == pytest.approx(1 + sums["num_accepted"] / num_with_draft)
        at_pos = values(found["acceptance_at_pos"])
        assert at_pos == sorted(at_pos, reverse=True) and sum(at_pos) == pytest.approx(
            found["mean_acceptance_length"]["value"] - 1
        )
        for name in POSITIONS:
            assert all(value is None or 0 <= value <= 1 for value in values(found[name]))
    if found["tokens_per_step"] and found["target_calls_per_token"]:
        assert found["tokens_per_step"]["value"] * found["target_calls_per_token"]["value"] == pytest.approx(1)
    for estimate in (found[name] for name in ("tokens_per_step", "draft_acceptance_rate", "waste")):
        if estimate and estimate["low"] is not None:
            assert estimate["low"] - 1e-12 <= estimate["value"] <= estimate["high"] + 1e-12


def as_tree(step):
    """The ranks and offers of a chain."""
    offered = [int(depth < step["drafted"]) for depth in range(step["accepted"] + 1)]
    return {"ranks": [0] * step["accepted"], "offered": offered}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_fixed_depth(depth, shares):
    """If every draft is equally deep, the three rates are one: conditional ones multiply to the survival."""
    found = figures_of([[a_step(min(depth, int(share * (depth + 1))), depth) for share in shares]])
    survival, conditional = values(found["survival_at_pos"]), values(found["conditional_acceptance_at_pos"])
    assert values(found["acceptance_at_pos"]) == survival == sorted(survival, reverse=True)
    for position in range(1, depth + 1):
        if None not in conditional[:position]:
            assert prod(conditional[:position]) == pytest.approx(survival[position - 1])
    assert found["mean_acceptance_length"]["value"] == pytest.approx(found["tokens_per_step"]["value"])
    assert found["mean_acceptance_length"]["value"] == pytest.approx(1 + sum(survival))


@settings(max_examples=40, deadline=None)
@given(st.lists(chains(), min_size=1, max_size=12))
def test_figures_are_the_librarys_metrics(steps):
    """The same formulas, from the same events, as `output.speculation.metrics`."""
    found = figures_of([steps])
    events = [Step(0, tuple(range(s["emitted"])), s["accepted"], s["drafted"], s["nodes"], s["wasted"]) for s in steps]
    metrics = summarize_steps(events)
    for name in ("tokens_per_step", "node_acceptance_rate", "mean_acceptance_length", "draft_acceptance_rate"):
        assert (found[name]["value"] if found[name] else 0.0) == pytest.approx(getattr(metrics, name))
    assert found["accepted_histogram"] == metrics.as_dict()["accepted_histogram"]
    assert [value or 0.0 for value in values(found["acceptance_at_pos"])] == pytest.approx(metrics.acceptance_at_pos)
    survival = [metrics.acceptance_at(position) for position in range(1, len(found["survival_at_pos"]) + 1)]
    assert values(found["survival_at_pos"]) == pytest.approx(survival)


@pytest.mark.parametrize(("acceptance", "depth"), [(0.3, 4), (0.6, 3), (0.8, 5), (0.95, 8)])
def test_tokens_per_step_of_independent_acceptances(acceptance, depth):
    """(1 - a^(k+1)) / (1 - a), Leviathan et al. 2211.17192, equation 1, lies in the 95 % interval; so for this seed."""
    source = random.Random(5)
    found = figures_of([drafted_steps(source, acceptance, depth, 60) for _ in range(40)])
    expected = (1 - acceptance ** (depth + 1)) / (1 - acceptance)
    assert found["tokens_per_step"]["low"] <= expected <= found["tokens_per_step"]["high"]
    assert found["tokens_per_step"] == pytest.approx(found["mean_acceptance_length"])
    for estimate in found["conditional_acceptance_at_pos"]:
        assert abs(estimate["value"] - acceptance) < 0.1
