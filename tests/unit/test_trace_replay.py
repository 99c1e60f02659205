"""Parts of a replay: cuts of drafts, bounds of what was truncated, oracles, questions and their answers."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from specdec.experiments.trace.acceptance import analytic_acceptance, matching, overlap
from specdec.experiments.trace.cuts import Cut, Setting, cut, obstacle
from specdec.experiments.trace.laws import exactness
from specdec.experiments.trace.oracle import DRAFTER, LENGTH, Candidate, least_cost, oracles
from specdec.experiments.trace.replay import Costs, Replayed, replayed, totals
from specdec.experiments.trace.schema import table_of, trace_of
from specdec.experiments.trace.sweep import Questions, sweep
from specdec.experiments.trace.texts import TracedDraft, TracedText
from specdec.experiments.trace.tracing import Recorder
from specdec.noise import PhiloxNoise
from specdec.tree import TokenTree
from specdec.types import Draft, TargetRows
from tests.toys.tables import Table

CHAINS = {"drafter_name": "draft_model", "is_tree": False, "settings": {"num_speculative_tokens": 3}}
TREES = {"drafter_name": "draft_model", "is_tree": True, "settings": {"num_tree_nodes": 4}}
VOCAB, PROMPT, LENGTH_OF_TEXT = 6, (1, 0), 8


def chain(tokens, scores=None, position=2):
    size = len(tokens)
    return TracedDraft(
        position, list(tokens), list(range(-1, size - 1)), list(range(size)), [False] * size, scores, [0.1] * size, []
    )


def tree(parents, scores):
    depths = TokenTree([0] * len(parents), list(parents)).depths
    size = len(parents)
    return TracedDraft(2, list(range(size)), list(parents), depths, [False] * size, list(scores), [0.1] * size, [])


def test_a_chain_is_cut_by_length_budget_and_threshold():
    draft = chain([9, 5, 6, 7], scores=[0.0, -0.1, -2.1, -2.2])  # own probabilities 0.90, 0.14, 0.90
    assert cut(draft, Setting(2), CHAINS).nodes == (0, 1, 2)
    assert cut(draft, Setting(0), CHAINS).nodes == (0,)
    assert cut(draft, Setting(budget=1), CHAINS).nodes == (0, 1)
    assert cut(draft, Setting(confidence_threshold=0.5), CHAINS).nodes == (0, 1, 2), "the unsure token stays"
    assert cut(draft, Setting(confidence_threshold=0.1), CHAINS).nodes == (0, 1, 2, 3)
    assert cut(draft, Setting(2), CHAINS).is_same
    assert not cut(draft, Setting(2), {**CHAINS, "drafter_name": "dflash"}).is_same, "another block is another pass"
    with pytest.raises(ValueError, match="got a trace without scores; trace the drafter with confidence_threshold"):
        cut(chain([9, 5, 6]), Setting(confidence_threshold=0.5), CHAINS)


def test_a_tree_is_cut_by_nodes_depth_and_width():
    draft = tree([-1, 0, 0, 1, 1], [0.0, -0.1, -3.0, -0.2, -1.0])
    assert cut(draft, Setting(num_tree_nodes=2), TREES).nodes == (0, 1, 3)
    assert cut(draft, Setting(num_tree_nodes=2), TREES).is_same
    assert cut(draft, Setting(1), TREES).nodes == (0, 1, 2)
    assert not cut(draft, Setting(1), TREES).is_same, "two others of depth 1 would have had room"
    assert cut(draft, Setting(1, num_tree_nodes=2), TREES).is_same
    assert cut(draft, Setting(1), {**TREES, "settings": {"num_tree_nodes": 9}}).is_same, "the tree was not full"
    narrow = cut(draft, Setting(tree_width=1), TREES)
    assert (narrow.nodes, narrow.is_same) == ((0, 1, 3), False)
    assert cut(draft, Setting(confidence_threshold=0.95), TREES).nodes == (0, 1, 2)
    fixed = {**TREES, "settings": {"speculative_token_tree": [[0], [1], [0, 0], [0, 1]]}}
    assert cut(draft, Setting(1), fixed).is_same
    assert not cut(draft, Setting(budget=2), fixed).is_same


@pytest.mark.parametrize(
    ("header", "setting", "why"),
    [
        (CHAINS, Setting(4), "made with num_speculative_tokens 3"),
        (CHAINS, Setting(tree_width=2), "chains, which have no tree_width"),
        (TREES, Setting(num_tree_nodes=5), "made with num_tree_nodes 4"),
        ({**CHAINS, "drafter_name": "dflash"}, Setting(confidence_threshold=0.5), "not one of single tokens"),
        ({**TREES, "settings": {"speculative_token_tree": [[0]]}}, Setting(num_tree_nodes=1), "of fixed shape"),
        ({**CHAINS, "settings": {"confidence_threshold": 0.5}}, Setting(confidence_threshold=0.4), "again with less"),
    ],
)
def test_what_a_trace_cannot_tell_is_said(header, setting, why):
    assert why in obstacle(header, setting)


def test_rules_that_a_trace_tells_nothing_about():
    coupled = {"do_sample": True, "settings": {"draft_sample_method": "coupled"}}
    assert exactness(coupled, "sample_and_match") == "path"
    for header, rule, what in (
        (coupled, "rejection", "coupled ones"),
        (coupled, "greedy", "greedy trace"),
        ({"is_tree": True}, "block", "got one of trees"),
        ({}, "typical", "expected a rule of greedy"),
    ):
        with pytest.raises(ValueError, match=what):
            exactness(header, rule)
    with pytest.raises(ValueError, match="expected budget of at least 0, got -1"):
        Setting(budget=-1)


def tops(probs, count):
    """The likeliest of these, and the rest."""
    best = dict(sorted(enumerate(probs), key=lambda pair: -pair[1])[:count])
    return best, 1 - sum(best.values()) if count < len(probs) else 0.0


def test_truncated_sums_are_between_their_bounds():
    rng = random.Random(0)
    for _ in range(300):
        p, q = ([rng.random() ** 4 for _ in range(8)] for _ in range(2))
        p, q = [value / sum(p) for value in p], [value / sum(q) for value in q]
        least, product = sum(map(min, p, q)), sum(a * b for a, b in zip(p, q, strict=True))
        for count in range(1, 9):
            given = *tops(p, count), *tops(q, count)
            for bounds, exact in ((overlap(*given), least), (matching(*given), product)):
                assert bounds.low - 1e-12 <= exact <= bounds.high + 1e-12
                assert count < 8 or bounds.high - bounds.low < 1e-12


def test_the_tail_may_lie_anywhere():
    """Both bounds of the overlap are taken on by some completion of what was kept."""
    kept = {0: 0.4, 1: 0.3}, 0.3, {1: 0.5, 2: 0.4}, 0.1
    found = []
    for a, b in itertools.product((0.0, 0.1, 0.2, 0.3), (0.0, 0.05, 0.1)):
        p, q = [0.4, 0.3, a, 0.3 - a], [b, 0.5, 0.4, 0.1 - b]
        found.append(sum(map(min, p, q)))
    assert overlap(*kept).high == pytest.approx(max(found))
    assert overlap(*kept).low <= min(found)


def table_trace(top_m, seed=0, drafter="draft_model"):
    """A trace of drawn chains of two, along a sampled text of tables."""
    target, draft_table = Table(VOCAB, seed), Table(VOCAB, 50 + seed)
    rng = random.Random(seed)
    text = []
    for _ in range(LENGTH_OF_TEXT):
        text += rng.choices(range(VOCAB), target.row((*PROMPT, *text)).tolist())
    recorder = Recorder(len(PROMPT), text, top_m)
    for place in range(len(text)):
        drafted = text[place : min(place + 2, len(text) - 1)]
        contexts = [(*PROMPT, *text[: place + i]) for i in range(len(drafted) + 1)]
        probs = torch.stack([draft_table.row(context) for context in contexts])
        tokens = TokenTree.chain([contexts[0][-1], *drafted])
        draft = Draft(tokens, [False] + [True] * len(drafted), probs, source=drafter)
        scores = torch.stack([target.row(context) for context in contexts]).log()
        rows = TargetRows(scores, len(contexts[0]), list(range(len(contexts))), is_greedy=False)
        recorder.verify(draft, rows, PhiloxNoise(0))
    recorder.finish(text, 0, 0)
    about = {"drafter_name": drafter, "do_sample": True, "settings": {"draft_sample_method": "probabilistic"}}
    about |= {"verifier": "block", "top_m": top_m, "num_differences": 0}
    return target, draft_table, text, trace_of(table_of(recorder.columns, about), {**about}, Path("none"))


@pytest.mark.parametrize("rule", ["sample_and_match", "rejection", "block"])
def test_analytic_acceptance_is_the_sum_over_all_tokens(rule):
    step = {
        "sample_and_match": lambda before, weight, p, q: before * p * q,
        "rejection": lambda before, weight, p, q: before * min(p, q),
        "block": lambda before, weight, p, q: min(before * p, weight * q),
    }[rule]
    for seed in range(5):
        target, table, text, trace = table_trace(VOCAB, seed)
        first = []
        for place in range(LENGTH_OF_TEXT - 1):
            context = (*PROMPT, *text[:place])
            pairs = zip(target.row(context).tolist(), table.row(context).tolist(), strict=True)
            first.append(sum(step(1.0, 1.0, p, q) for p, q in pairs))
        exact = analytic_acceptance(trace, Setting(), rule)
        assert exact[0].low == pytest.approx(sum(first) / len(first), abs=1e-6)  # float32 in the file
        assert len(exact) == 2
        for top_m in (1, 2, 4):
            for bounds, known in zip(
                analytic_acceptance(table_trace(top_m, seed)[3], Setting(), rule), exact, strict=True
            ):
                assert bounds.low - 1e-6 <= known.low <= known.high <= bounds.high + 1e-6


def random_runs(rng, count, length):
    """Runs of several drafters on one text, each certain to accept some number of tokens."""
    runs = []
    for _ in range(count):
        drafts, alive = [], []
        for place in range(length):
            size = rng.randint(0, min(3, length - place))
            drafts.append(chain([0] * (size + 1), position=place))
            alive.append([1.0] * (rng.randint(0, size) + 1))
        cuts = tuple(Cut(draft, tuple(range(len(draft))), True) for draft in drafts)
        runs.append(Replayed(TracedText(0, 0, "a", (0,) * length, tuple(drafts)), cuts, tuple(alive)))
    return runs


def brute(runs, costs, has_choice, place=0):
    """The least cost over all choices, one by one."""
    if place >= len(runs[0].cuts):
        return 0.0
    found = []
    for run in runs:
        each, accepted = run.cuts[place], len(run.survivals[place]) - 1
        for depth in range(each.depth + 1) if has_choice else [each.depth]:
            left = brute(runs, costs, has_choice, place + min(depth, accepted) + 1)
            found.append(costs.of(each.at_most(depth), "draft_model") + left)
    return min(found)


@pytest.mark.parametrize("costs", [Costs(), Costs(draft=0.2, node=0.05)])
def test_oracles_are_the_best_of_all_choices(costs):
    rng = random.Random(1)
    for _ in range(30):
        runs = random_runs(rng, 2, 6)
        candidates = [Candidate(run, "draft_model", costs) for run in runs]
        alone = [totals(run, costs, "draft_model").cost for run in runs]
        for has_choice in (False, True):
            found = least_cost(candidates, has_choice)
            assert found == pytest.approx(brute(runs, costs, has_choice))
            assert found <= min(alone) + 1e-12
        assert least_cost(candidates[:1], False) == pytest.approx(alone[0])


def test_oracles_of_laws_bound_every_length():
    _, _, _, trace = table_trace(2)
    for rule in ("rejection", "block"):
        (best,) = oracles([(trace, rule)], Costs())
        assert best.name == LENGTH
        for length in (0, 1, 2):
            run = replayed(trace, trace.texts[0], Setting(length), rule)
            assert best.steps[0] <= totals(run, Costs(), "draft_model").num_steps + 1e-12
    both = oracles([(trace, "block"), (table_trace(2, drafter="other")[3], "rejection")], Costs())
    assert [oracle.name for oracle in both][2] == DRAFTER
    elsewhere = replace(trace, header={**trace.header, "cell": "batch 2"})
    assert len(oracles([(trace, "block"), (elsewhere, "block")], Costs())) == 2, "arms of two cells do not compete"
    assert oracles([(trace, "block"), (table_trace(2, seed=3)[3], "block")], Costs())[-1].name == LENGTH, "other texts"


def test_the_turns_of_a_prompt_are_drawn_together():
    """Four texts of two prompts are two draws: too few for an interval; of four prompts they are four."""
    _, _, _, trace = table_trace(2)
    (text,) = trace.texts
    for names, is_told in (("aabb", False), ("abcd", True)):
        texts = tuple(replace(text, prompt=name, turn=turn) for turn, name in enumerate(names))
        result = sweep([replace(trace, texts=texts)], Questions(), lambda *_: None)
        told = [each["low"] is not None for each in (*result["rows"], *result["oracles"])]
        assert told == [is_told] * len(told) and result["rows"][0]["num_texts"] == 4


def test_a_sweep_answers_what_it_can_and_says_what_not():
    _, _, _, trace = table_trace(2)
    questions = Questions({"num_speculative_tokens": [1, 2], "tree_width": []}, ["all"], Costs(node=0.1))
    result = sweep([trace], questions, lambda *_: None)
    assert [(row["verifier"], row["num_speculative_tokens"]) for row in result["rows"]] == [
        (rule, length) for rule in ("sample_and_match", "rejection", "block") for length in (1, 2)
    ]
    steps = {(row["verifier"], row["num_speculative_tokens"]): row["num_steps"] for row in result["rows"]}
    assert steps["rejection", 1] == pytest.approx(steps["block", 1]), "one token: the same rule"
    assert steps["block", 2] <= steps["rejection", 2] + 1e-12, "it accepts more given every text"
    assert all(row["is_exact"] and row["exactness"] == "law" for row in result["rows"])
    assert result["warnings"] == [
        "not replayed: draft_model: expected a greedy trace for the rule 'greedy', got a sampled one; use "
        "'sample_and_match'"
    ]
    with pytest.raises(ValueError, match="expected --verifier of greedy"):
        sweep([trace], Questions(verifiers=["best"]), lambda *_: None)
