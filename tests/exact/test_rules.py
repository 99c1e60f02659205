"""Every rule emits exactly what the target samples: laws by enumeration, and identities of the same laws.

No statistics: a law is a sum over every way the draws can fall, and must agree to rounding.
"""

import itertools
import random

import pytest
import torch

from specdec.noise import PhiloxNoise
from specdec.tree import TokenTree
from specdec.types import Draft, TargetRows
from specdec.verifiers.block import Block
from specdec.verifiers.greedy import Greedy
from specdec.verifiers.rejection import Rejection
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys.tables import (
    EnumeratingNoise,
    LazyTokens,
    Table,
    TreeDrafter,
    deviation,
    emitted,
    generate,
    outcomes,
    pairs,
    plain_law,
    round_law,
    score,
    shared_uniform,
)

EXACT = 1e-12  # float64 sums of a few thousand products
PROMPT = (0, 1)
RULES = (SampleAndMatch(), Rejection(), Block())
SEEDS = range(6)

S, C = (1, 0), (0, 1)  # one sampled child, one chosen child
CHAINS = {
    "empty": (),
    **{f"sampled {k}": (S,) * k for k in (1, 2, 3)},
    **{f"chosen {k}": (C,) * k for k in (1, 2, 3)},
    "sampled chosen sampled": (S, C, S),
    "chosen sampled sampled": (C, S, S),
    "sampled sampled chosen": (S, S, C),
}
TREES = {
    "sampled [2]": ((2, 0),),
    "sampled [3]": ((3, 0),),
    "sampled [2,2]": ((2, 0), (2, 0)),
    "sampled [1,2]": (S, (2, 0)),
    "sampled [2,1,1]": ((2, 0), S, S),
    "chosen [2]": ((0, 2),),
    "chosen [3]": ((0, 3),),
    "chosen [2,2]": ((0, 2), (0, 2)),
    "chosen [1,2]": (C, (0, 2)),
    "chosen [2,1,1]": ((0, 2), C, C),
    "mixed [2]": ((1, 1),),
    "mixed [3]": ((2, 1),),
    "mixed [2,2]": ((1, 1), (1, 1)),
    "mixed [1,2]": (S, (0, 2)),
    "mixed [2,1,1]": ((1, 1), C, S),
}
LARGE = {"sampled [2,2]", "sampled [2,1,1]"}  # with four tokens these would visit 100,000 outcomes
CASES = [
    pytest.param(
        rule, plan, flip, 3 if name in LARGE or name in CHAINS else 4, id=f"{rule.name}, {name}{', flipped' * flip}"
    )
    for rule in RULES
    for name, plan in (CHAINS if rule.chain_only else CHAINS | TREES).items()
    for flip in {False, any(sampled and chosen for sampled, chosen in plan)}
]


@pytest.mark.parametrize(("rule", "plan", "flip", "vocab"), CASES)
def test_one_round_has_the_law_of_plain_sampling(rule, plan, flip, vocab):
    for seed in SEEDS[:2] if len(plan) == 3 else SEEDS:
        for target, draft in pairs(vocab, seed).values():
            law, _ = round_law(target, TreeDrafter(draft, plan, flip), rule, PROMPT)
            assert deviation(target, law, PROMPT, len(plan) + 1) <= EXACT


class RepeatingDrafter(TreeDrafter):
    """Proposes the same tokens twice: the chosen ones again, and those that are sampled as chosen ones too."""

    def children(self, context, start, node, depth, noise):
        found, row = super().children(context, start, node, depth, noise)
        return found + [(token, False) for token, _ in found], row


@pytest.mark.parametrize("plan", [((2, 0),), ((0, 2),), ((1, 1), (1, 0)), ((0, 1), (0, 1))])
@pytest.mark.parametrize("rule", RULES[:2], ids=lambda rule: rule.name)
def test_repeated_siblings_change_nothing(rule, plan):
    for target, draft in pairs(3, 1).values():
        law, _ = round_law(target, RepeatingDrafter(draft, plan), rule, PROMPT)
        assert deviation(target, law, PROMPT, len(plan) + 1) <= EXACT
        if rule.name == "sample_and_match":
            assert law == pytest.approx(round_law(target, TreeDrafter(draft, plan), rule, PROMPT)[0], abs=EXACT)


def fitting(rules, plans):
    """Each rule with the plans it takes."""
    return [
        pytest.param(rule, plan, id=f"{rule.name}, {plan}")
        for rule, plan in itertools.product(rules, plans)
        if not rule.chain_only or all(sum(children) == 1 for children in plan)
    ]


@pytest.mark.parametrize(("rule", "plan"), fitting(RULES, [(), (S, S), (C, C), (S, C, S), ((1, 1), S), ((2, 0), C)]))
def test_several_rounds_have_the_law_of_plain_sampling(rule, plan):
    """Four tokens through the loop: pending token, budgets, and no key of the noise used twice."""
    for seed in (0, 1):
        target, draft = pairs(2, seed)["random"]
        law = {}
        for text, weight in outcomes(
            lambda n, t=target, d=draft: generate(t, TreeDrafter(d, plan), rule, PROMPT, 4, n)
        ):
            law[text] = law.get(text, 0.0) + weight
        assert deviation(target, law, PROMPT, 4) <= EXACT


class SharedNoise(EnumeratingNoise):
    """Noise whose coupled draws share their uniform with the target's draw of the position."""

    def __init__(self, plan=()):
        super().__init__(plan)
        self.coupled = {}

    def coupled_tokens(self, scores, position, count):
        probs = scores.softmax(-1)
        token = self.choose(probs.tolist(), ("coupled", position))
        self.coupled[position] = (probs, token)
        return [token]

    def target_tokens(self, scores, positions):
        def draw(row):
            probs = scores[row].softmax(-1)
            if positions[row] in self.coupled:
                return self.choose(shared_uniform(*self.coupled[positions[row]], probs), ("target", positions[row]))
            return self.choose(probs.tolist(), ("target", positions[row]))

        return LazyTokens(draw)


class CoupledDrafter(TreeDrafter):
    def children(self, context, start, node, depth, noise):
        row = self.table.row(context)
        return [(token, False) for token in noise.coupled_tokens(row.log(), start + depth, 1)], row


@pytest.mark.parametrize("length", [1, 2])
def test_a_draft_that_shares_the_targets_noise_is_accepted_more_and_changes_nothing(length):
    for seed in SEEDS:
        target, draft = pairs(3, seed)["random"]
        law, accepted, coupled = {}, 0.0, CoupledDrafter(draft, (C,) * length)

        def run(noise, target=target, drafter=coupled):
            proposal = drafter.propose(PROMPT, noise)
            return proposal, SampleAndMatch().verify(proposal, score(target, PROMPT, proposal), noise)

        for (proposal, verdict), weight in outcomes(run, SharedNoise):
            tokens = emitted(proposal, verdict)
            law[tokens] = law.get(tokens, 0.0) + weight
            accepted += weight * verdict.num_accepted
        assert deviation(target, law, PROMPT, length + 1) <= EXACT
        assert accepted >= round_law(target, TreeDrafter(draft, (S,) * length), SampleAndMatch(), PROMPT)[1] - EXACT


def random_draft(tokens, rng, vocab, truth):
    """A tree of up to 12 nodes: all wrong, all right, repeated or random, by turns."""
    kind = rng.choice(["wrong", "right", "repeated", "random", "empty"])
    size = 1 if kind == "empty" else rng.randint(2, 12)
    parents = [-1, *(rng.randrange(max(0, node - 3), node) for node in range(1, size))]
    depths = TokenTree([0] * size, parents).depths
    drafted = [tokens[-1]]
    for depth in depths[1:]:
        right = truth[min(len(tokens) + depth, len(truth)) - 1]
        wrong = (right + rng.randrange(1, vocab)) % vocab
        picked = {"wrong": wrong, "right": right, "repeated": right if depth < 3 else 0, "random": rng.randrange(vocab)}
        drafted.append(picked[kind])
    return Draft.chosen(TokenTree(drafted, parents))


class RandomDrafter:
    def __init__(self, seed, vocab, truth):
        self.rng, self.vocab, self.truth = random.Random(seed), vocab, truth

    def propose(self, tokens, noise, budget):
        draft = random_draft(tokens, self.rng, self.vocab, self.truth)
        fits = [node for node, depth in enumerate(draft.tree.depths) if depth <= budget]
        number = {node: index for index, node in enumerate(fits)} | {-1: -1}
        parents = [number[draft.tree.parents[node]] for node in fits]
        return Draft.chosen(TokenTree(draft.tree.tokens_at(fits), parents))


@pytest.mark.parametrize("seed", range(8))
def test_the_same_seed_gives_the_same_text_whatever_is_drafted(seed):
    target, empty = Table(7, seed), TreeDrafter(Table(7, 0), ())
    text = generate(target, empty, SampleAndMatch(), PROMPT, 30, PhiloxNoise(seed))
    drawn = list(PROMPT)
    for position in range(2, 32):
        drawn += PhiloxNoise(seed).target_tokens(target.row(drawn).log()[None], [position])
    assert text == tuple(drawn[2:]), "plain decoding is one draw per position"
    drafters = [RandomDrafter(turn, 7, drawn) for turn in range(6)]
    drafters += [TreeDrafter(Table(7, 50), plan) for plan in [(S,) * 5, ((2, 1), (1, 1)), ((0, 3), (0, 2))]]
    drafters += [CoupledDrafter(table, (C,) * 4) for table in (target, Table(7, 51))]
    for drafter in drafters:
        assert generate(target, drafter, SampleAndMatch(), PROMPT, 30, PhiloxNoise(seed)) == text


@pytest.mark.parametrize(
    ("rule", "plan"),
    fitting([*RULES, Greedy()], [(), (S, S, S), (C, C), (S, C), ((1, 1), S), ((2, 1), (0, 2))]),
)
def test_greedy_requests_get_the_greedy_text_and_it_is_the_limit_of_low_temperature(rule, plan):
    """A greedy request, and scores so sharp that sampling from them is greedy, with sampled and with chosen drafts."""
    for seed in SEEDS:
        target, noise = Table(4, seed), PhiloxNoise(seed)
        draft = TreeDrafter(Table(4, 70 + seed), plan).propose(PROMPT, noise)
        rows = score(target, PROMPT, draft, is_greedy=True)
        untied = rows.scores - torch.arange(4) * 1e-9  # the lowest id wins ties
        sharp = TargetRows(untied * 1e12, rows.start, rows.depths, is_greedy=rule.name == "greedy")
        text = list(PROMPT)
        for token in emitted(draft, rule.verify(draft, rows, noise)):
            assert token == int(target.row(text).argmax())
            text.append(token)
        assert tuple(text[2:]) == emitted(draft, rule.verify(draft, sharp, noise))


def test_the_order_of_chosen_siblings_is_nothing():
    target = Table(5, 3)
    for seed, order in itertools.product(range(20), itertools.permutations([1, 2, 3])):
        draft = Draft.chosen(TokenTree([1, *order], [-1, 0, 0, 0]))
        rows = score(target, PROMPT, draft)
        plain = PhiloxNoise(seed).target_tokens(rows.scores[:1], [rows.start])
        for rule in (SampleAndMatch(), Rejection()):
            token = emitted(draft, rule.verify(draft, rows, PhiloxNoise(seed)))[0]
            same = plain[0] if rule.name == "sample_and_match" else PhiloxNoise(seed).residual_token(rows.probs[0], 2)
            assert token == same


def test_the_empty_draft_is_one_draw_from_the_target():
    target = Table(5, 1)
    for rule in RULES:
        law, accepted = round_law(target, TreeDrafter(target, ()), rule, PROMPT)
        assert accepted == 0
        assert law == pytest.approx(plain_law(target, PROMPT, 1), abs=EXACT)


def test_bad_drafts_are_refused_with_a_remedy():
    rows = TargetRows(torch.zeros(3, 4), start=2, depths=[0, 1, 1], is_greedy=False)
    tree, sampled = TokenTree([1, 2, 2], [-1, 0, 0]), [False, True, True]
    with pytest.raises(ValueError, match="expected a chain, got a tree"):
        Block().verify(Draft.chosen(tree), rows, PhiloxNoise(0))
    with pytest.raises(ValueError, match="expected draft.probs .* got None"):
        Rejection().verify(Draft(tree, sampled), rows, PhiloxNoise(0))
    with pytest.raises(ValueError, match="expected node 1, marked as sampled, .* got 0.0"):
        Rejection().verify(Draft(tree, sampled, torch.eye(4)[[3, 3, 3]]), rows, PhiloxNoise(0))
    twice = TargetRows(torch.tensor([[0.0, 0.0, -torch.inf, 0.0]]).expand(3, 4), 2, [0, 1, 1], is_greedy=False)
    with pytest.raises(ValueError, match="expected node 2, marked as sampled, .* siblings are removed, got 0.0"):
        Rejection().verify(Draft(tree, sampled, torch.full((3, 4), 0.25)), twice, PhiloxNoise(0))
