"""Every known way to get a rule subtly wrong, each caught by the enumeration that the real rules pass.

A mutant is production code with one thing changed: a rule, a drafter or the noise. It must move the law of what is
emitted on at least one of the tables; unchanged, the same rule and drafter must not on any (algorithms.md 7.3).
"""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from unittest.mock import patch

import pytest

from specdec.rules import without
from specdec.verifiers import block, rejection
from specdec.verifiers.block import Block
from specdec.verifiers.rejection import Rejection
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys import mutants
from tests.toys.tables import (
    EnumeratingNoise,
    TreeDrafter,
    deviation,
    generate,
    outcomes,
    pairs,
    round_law,
)

EXACT = 1e-12  # float64 sums of a few thousand products
CAUGHT = 1e-6  # far above rounding; on its worst table no mutant here moves less than 0.01
PROMPT = (0, 1)
S = (1, 0)  # one sampled child
SEEDS = range(8)


@dataclass(frozen=True)
class Case:
    """A rule and a drafter, and what the mutant changes of them."""

    name: str
    rule: object
    plan: tuple
    drafter: type = mutants.KeepsAll
    changed: dict = field(default_factory=dict)
    patched: tuple = ()  # (module, name, replacement)
    vocab: int = 3


def swapped(name, function, module=rejection):
    return (module, name, function)


CASES = [
    Case("p instead of the residual", Rejection(), (S, S), patched=swapped("residual", lambda p, q: p)),
    Case(
        "p instead of the residual, block",
        Block(),
        (S, S),
        patched=swapped("negligible", lambda p: float("inf"), block),
    ),
    Case("only the rejected token zeroed", Rejection(), (S, S), patched=swapped("_Tests", mutants.ZeroOnlyTheRejected)),
    Case(
        "bonus from the previous row",
        Rejection(),
        (S, S),
        changed={"rule": mutants.BonusFromThePreviousRow(Rejection())},
    ),
    Case(
        "bonus from the previous row, block",
        Block(),
        (S, S),
        changed={"rule": mutants.BonusFromThePreviousRow(Block())},
    ),
    Case(
        "bonus from the previous row, matched",
        SampleAndMatch(),
        ((0, 1),) * 2,
        changed={"rule": mutants.BonusFromThePreviousRow(SampleAndMatch())},
    ),
    Case("block stops at the first failure", Block(), (S, S), changed={"rule": mutants.StopAtTheFirstFailure()}),
    Case("block residual without w, k = 2", Block(), (S, S), changed={"rule": mutants.ResidualWithoutWeight()}),
    Case("block residual without w, k = 3", Block(), (S, S, S), changed={"rule": mutants.ResidualWithoutWeight()}),
    Case("last block test uncapped", Block(), (S, S), changed={"rule": mutants.LastTestUncapped()}),
    Case("a fresh draw on a mismatch", SampleAndMatch(), ((0, 1),) * 2, changed={"rule": mutants.Redraw()}),
    Case(
        "likeliest claimed as sampled",
        Rejection(),
        ((0, 2),),
        changed={"drafter": mutants.LikeliestClaimedAsSampled},
        vocab=4,
    ),
    Case(
        "likeliest claimed as independent draws",
        Rejection(),
        ((0, 2),),
        changed={"drafter": mutants.LikeliestClaimedAsSampled},
        patched=swapped("without", lambda probs, token: probs),
        vocab=4,
    ),
    Case(
        "independent draws merged, then tested as independent",
        Rejection(),
        ((2, 0),),
        drafter=mutants.IndependentDraws,
        patched=swapped("without", lambda probs, token: probs),
        vocab=4,
    ),
    Case(
        "q not renormalised without replacement",
        Rejection(),
        ((2, 0),),
        patched=swapped("without", lambda probs, token: without(probs, token) * (1 - probs[token])),
        vocab=4,
    ),
    Case("sampled siblings sorted by q", Rejection(), ((2, 0),), changed={"drafter": mutants.SortedByQ}, vocab=4),
    Case("sampled siblings pruned by q", Rejection(), ((2, 0),), changed={"drafter": mutants.PrunedByOwnQ}, vocab=4),
    Case("low confidence dropped", Rejection(), (S, S), changed={"drafter": mutants.LowConfidenceDropped}),
    Case("low confidence dropped, block", Block(), (S, S), changed={"drafter": mutants.LowConfidenceDropped}),
    Case("another q reported", Rejection(), (S, S), changed={"drafter": mutants.WrongTemperature}),
    Case("another q reported, block", Block(), (S, S), changed={"drafter": mutants.WrongTemperature}),
    Case(
        "part of the vocabulary, not renormalised",
        Rejection(),
        (S, S),
        drafter=mutants.PartOfTheVocabulary,
        changed={"drafter": mutants.PartNotRenormalised},
    ),
]


def worst_deviation(case):
    deviations = []
    for seed in SEEDS:
        target, draft = pairs(case.vocab, seed)["random"]
        law, _ = round_law(target, case.drafter(draft, case.plan), case.rule, PROMPT)
        deviations.append(deviation(target, law, PROMPT, len(case.plan) + 1))
    return max(deviations)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_mutant_is_caught_and_the_real_thing_passes(case):
    assert worst_deviation(case) <= EXACT
    with patch.object(*case.patched) if case.patched else nullcontext():
        assert worst_deviation(replace(case, **case.changed)) > CAUGHT


class KeepsLowConfidenceAndStops(TreeDrafter):
    """Stopping after a token that is unlikely, and keeping it, depends on nothing but the past."""

    def children(self, context, start, node, depth, noise):
        if node > 0 and self.last < 0.4:
            return [], self.table.row(context)
        found, row = super().children(context, start, node, depth, noise)
        self.last = float(row[found[0][0]])
        return found, row


@pytest.mark.parametrize("rule", [Rejection(), Block()], ids=lambda rule: rule.name)
def test_stopping_after_an_unlikely_token_is_no_mutant(rule):
    for seed in SEEDS:
        target, draft = pairs(3, seed)["random"]
        law, _ = round_law(target, KeepsLowConfidenceAndStops(draft, (S, S, S)), rule, PROMPT)
        assert deviation(target, law, PROMPT, 4) <= EXACT


def rounds_deviation(rule, make_noise, length, vocab=3):
    """The worst deviation of the text of several rounds that share one noise."""
    worst = 0.0
    for seed in SEEDS:
        target, draft = pairs(vocab, seed)["random"]
        drafter, law = TreeDrafter(draft, (S, S)), {}
        for text, weight in outcomes(
            lambda noise, t=target, d=drafter: generate(t, d, rule, PROMPT, length, noise), make_noise
        ):
            law[text] = law.get(text, 0.0) + weight
        worst = max(worst, deviation(target, law, PROMPT, length))
    return worst


@pytest.mark.parametrize("rule", [Rejection(), Block()], ids=lambda rule: rule.name)
def test_the_residual_must_not_reuse_the_noise_of_the_draft(rule):
    assert rounds_deviation(rule, EnumeratingNoise, 2) <= EXACT
    assert rounds_deviation(rule, mutants.ResidualReusesDraft, 2) > CAUGHT


def test_block_must_not_reuse_the_noise_of_the_last_rounds_draft():
    """Keyed by position alone, rejected draws come again; a rule that tests token by token does not mind."""
    assert rounds_deviation(Block(), EnumeratingNoise, 3, vocab=2) <= EXACT
    assert rounds_deviation(Block(), mutants.NextRoundReusesDraft, 3, vocab=2) > CAUGHT
    assert rounds_deviation(Rejection(), mutants.NextRoundReusesDraft, 3, vocab=2) <= EXACT
