"""The laws of replay against the rules themselves, by enumeration of all texts, drafts and draws (algorithms.md 7.1).

A live round on a table has a joint law of (how many drafted tokens are accepted, the text that follows). Replay knows
the text alone, and must say the law of the first given the second. Texts are long enough to hold the whole round.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specdec.experiments.trace import laws
from specdec.experiments.trace.acceptance import analytic_acceptance
from specdec.experiments.trace.cuts import Cut, Setting
from specdec.experiments.trace.replay import Costs, Replayed, totals
from specdec.experiments.trace.texts import Tops, Trace, TracedDraft, TracedText
from specdec.tree import TokenTree
from specdec.verifiers.block import Block
from specdec.verifiers.rejection import Rejection
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys.tables import EnumeratingNoise, Table, TreeDrafter, emitted, outcomes, pairs, plain_law, score

EXACT = 1e-12  # float64 sums of a few hundred products
PROMPT = (1, 0)
S, C = (1, 0), (0, 1)
RULES = {"sample_and_match": SampleAndMatch(), "rejection": Rejection(), "block": Block()}


def live_law(target, drafter, rule, length):
    """(accepted, text) -> probability, by the rule; behind the round the text is plainly sampled."""
    law = {}
    for draft, drawn in outcomes(lambda noise: drafter.propose(PROMPT, noise)):
        rows = score(target, PROMPT, draft)
        for verdict, decided in outcomes(lambda noise, d=draft, r=rows: rule.verify(d, r, noise), EnumeratingNoise):
            run = emitted(draft, verdict)
            for rest, chance in plain_law(target, (*PROMPT, *run), length - len(run)).items():
                key = verdict.num_accepted, (*run, *rest)
                law[key] = law.get(key, 0.0) + drawn * decided * chance
    return law


def forced(target, table, text, length):
    """The trace of a drawn chain: the text, with p and q along it."""
    p = [0.0, *(float(target.row((*PROMPT, *text[:i]))[text[i]]) for i in range(length))]
    q = [0.0, *(float(table.row((*PROMPT, *text[:i]))[text[i]]) for i in range(length))]
    size = length + 1
    tokens, sampled = [PROMPT[-1], *text[:length]], [False] + [True] * length
    return TracedDraft(2, tokens, list(range(-1, length)), list(range(size)), sampled, None, p, q)


def chosen(target, drafter):
    """The trace of a draft that nothing was drawn for."""
    draft = drafter.propose(PROMPT, None)
    tree, size = draft.tree, len(draft)
    return TracedDraft(2, tree.tokens, tree.parents, tree.depths, [False] * size, None, [0.0] * size, [0.0] * size)


def replay_law(target, rule, draft_of, length):
    law = {}
    for text, weight in plain_law(target, PROMPT, length).items():
        draft = draft_of(text)
        alive = laws.survival(Cut(draft, tuple(range(len(draft))), True), text, rule)
        for count, (here, behind) in enumerate(zip(alive, [*alive[1:], 0.0], strict=True)):
            law[count, text] = law.get((count, text), 0.0) + weight * (here - behind)
    return law


def distance(first, second):
    return sum(abs(first.get(key, 0.0) - second.get(key, 0.0)) for key in first.keys() | second.keys()) / 2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_drawn_chains_in_law(rule, length):
    for seed in range(4):
        for name, (target, table) in pairs(3, seed).items():
            wanted = live_law(target, TreeDrafter(table, (S,) * length), RULES[rule], length + 1)
            got = replay_law(target, rule, lambda text, t=target, d=table: forced(t, d, text, length), length + 1)
            assert distance(got, wanted) <= EXACT, name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("plan", [(C,) * 3, ((0, 2), (0, 2)), ((0, 3), C, C)], ids=["chain", "tree", "wide"])
def test_chosen_nodes_whatever_the_rule(rule, plan):
    for seed in range(4):
        for name, (target, table) in pairs(3, seed).items():
            drafter = TreeDrafter(table, plan)
            if rule == "block" and plan != (C,) * 3:
                continue
            wanted = live_law(target, drafter, RULES[rule], len(plan) + 1)
            got = replay_law(target, rule, lambda text, t=target, d=drafter: chosen(t, d), len(plan) + 1)
            assert distance(got, wanted) <= EXACT, name


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_a_chain_that_stops_where_its_drafter_is_unsure(rule):
    """The stop depends on the tokens up to it; the unsure token stays (algorithms.md, principle P2)."""

    class Unsure(TreeDrafter):
        def children(self, context, start, node, depth, noise):
            if depth and self.table.row(context[:-1])[context[-1]] < 0.4:
                return [], self.table.row(context) * float("nan")
            return super().children(context, start, node, depth, noise)

    def stopped(target, table, text):
        draft = forced(target, table, text, 3)
        kept = next((node for node in range(1, 3) if draft.q[node] < 0.4), 3)
        return forced(target, table, text, kept)

    for seed in range(6):
        target, table = pairs(3, seed)["random"]
        wanted = live_law(target, Unsure(table, (S,) * 3), RULES[rule], 4)
        got = replay_law(target, rule, lambda text, t=target, d=table: stopped(t, d, text), 4)
        assert distance(got, wanted) <= EXACT


@pytest.mark.parametrize("plan", [(C,) * 3, ((0, 2), (0, 2)), ((0, 3), C, C)], ids=["chain", "tree", "wide"])
def test_analytic_acceptance_of_chosen_nodes_is_the_mean_over_texts(plan):
    nothing = Tops(np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0), np.zeros(0))
    for seed in range(4):
        target, table = pairs(3, seed)["random"]
        draft = chosen(target, TreeDrafter(table, plan))
        tree = TokenTree(draft.tokens, draft.parents)
        ways = [(*PROMPT, *tree.tokens_at(tree.path_to(node))) for node in range(len(draft))]
        draft = replace(draft, p=[float(target.row(way[:-1])[way[-1]]) for way in ways])
        wanted = [0.0] * len(plan)
        for (count, _), weight in replay_law(target, "rejection", lambda _, d=draft: d, len(plan) + 1).items():
            wanted = [value + weight * (count > i) for i, value in enumerate(wanted)]
        text = TracedText(0, 0, "", (0,) * 9, (draft,))  # what it says does not matter, but how long it is
        trace = Trace(Path("none"), {"do_sample": True, "is_tree": True}, (text,), nothing, nothing, 0)
        found = analytic_acceptance(trace, Setting(), "sample_and_match")
        assert [bounds.low for bounds in found] == pytest.approx(wanted, abs=EXACT)


def wrong_ratio(before, weight, p, q):
    """p / q where q / p belongs: the law given the draft, not given the text."""
    return before * (min(1.0, p / q) if q else 0.0), weight


def no_running_minimum(before, weight, p, q):
    weight = weight * q / p
    return min(1.0, weight), weight


def capped_product(before, weight, p, q):
    """The product is cut at one on its way."""
    weight = min(1.0, weight * q / p)
    return min(before, weight), weight


def doubly_matched(before, weight, p, q):
    """The target's probability counted again, though its token is given."""
    return before * p * q, weight


@pytest.mark.parametrize(
    ("rule", "mutant"),
    [
        ("rejection", wrong_ratio),
        ("block", no_running_minimum),
        ("block", capped_product),
        ("block", laws.STEPS["rejection"]),
        ("sample_and_match", doubly_matched),
        ("sample_and_match", laws.STEPS["rejection"]),
    ],
)
def test_a_wrong_law_is_found(rule, mutant, monkeypatch):
    wanted, traces = {}, {}
    for seed in range(3):
        target, table = pairs(3, seed)["random"]
        wanted[seed] = live_law(target, TreeDrafter(table, (S,) * 3), RULES[rule], 4)
        traces[seed] = target, lambda text, t=target, d=table: forced(t, d, text, 3)
    monkeypatch.setitem(laws.STEPS, rule, mutant)
    assert max(distance(replay_law(t, rule, draft, 4), wanted[seed]) for seed, (t, draft) in traces.items()) > 1e-3


@pytest.mark.parametrize("rule", ["sample_and_match", "rejection", "block"])
def test_rounds_of_a_whole_text(rule):
    """Expected rounds of many, the last one cut by the budget, against all ways a live run can go."""
    length = 4
    for seed in range(3):
        target, table = Table(2, seed), Table(2, 50 + seed)

        def live(noise, target=target, table=table):
            text, rounds = list(PROMPT), 0
            while len(text) < 2 + length:
                budget = 2 + length - len(text) - 1
                draft = TreeDrafter(table, (S, S)).propose(text, noise, budget)
                text += emitted(draft, RULES[rule].verify(draft, score(target, text, draft), noise))
                rounds += 1
            return rounds

        wanted = sum(rounds * weight for rounds, weight in outcomes(live))
        got = 0.0
        for text, weight in plain_law(target, PROMPT, length).items():
            drafts = []
            for place in range(length):
                p, q = ([0.0] for _ in range(2))
                for i in range(place, min(place + 2, length - 1)):
                    context = (*PROMPT, *text[:i])
                    p.append(float(target.row(context)[text[i]]))
                    q.append(float(table.row(context)[text[i]]))
                size = len(p)
                tokens, sampled = [0, *text[place : place + size - 1]], [False] + [True] * (size - 1)
                shape = list(range(-1, size - 1)), list(range(size))
                drafts.append(TracedDraft(2 + place, tokens, *shape, sampled, None, p, q))
            cuts = tuple(Cut(draft, tuple(range(len(draft))), True) for draft in drafts)
            alive = tuple(laws.survival(each, text[place:], rule) for place, each in enumerate(cuts))
            found = Replayed(TracedText(0, 0, "", tuple(text), tuple(drafts)), cuts, alive)
            got += weight * totals(found, Costs(), "").num_steps
        assert got == pytest.approx(wanted, abs=EXACT)
