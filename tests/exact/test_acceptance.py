"""How much a rule accepts: the expected number by enumeration, against its closed form and the best there is."""

import itertools

import pytest
import torch

from specdec.types import Exactness
from specdec.verifiers.block import Block
from specdec.verifiers.greedy import Greedy
from specdec.verifiers.rejection import Rejection
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys.tables import TreeDrafter, outcomes, pairs, round_law

EXACT = 1e-12
PROMPT = (0, 1)
CASES = [pytest.param(*tables, id=f"{kind} {seed}") for seed in range(12) for kind, tables in pairs(3, seed).items()]


def expected(target, draft, plan, rule):
    return round_law(target, TreeDrafter(draft, plan), rule, PROMPT)[1]


def drafted_chains(target, draft, length):
    """(probability under q, p/q of each token) of every chain that can be drafted."""
    for chain in itertools.product(range(target.vocab), repeat=length):
        chance, ratios = 1.0, []
        for depth, token in enumerate(chain):
            context = (*PROMPT, *chain[:depth])
            q = float(draft.row(context)[token])
            chance *= q
            ratios.append(float(target.row(context)[token]) / q if q else 0.0)
        if chance:
            yield chance, ratios


def token_rule(ratios):
    kept = 1.0
    for ratio in ratios:
        kept *= min(1.0, ratio)
        yield kept


def block_rule(ratios):
    """w by its other formula, R[i] over the running maximum of R (algorithms.md 1.5)."""
    product, largest = 1.0, 1.0
    for ratio in ratios:
        product *= ratio
        largest = max(largest, product)
        yield product / largest


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize(("target", "draft"), CASES)
def test_expected_acceptance_of_sampled_chains_is_the_closed_form(target, draft, length):
    plan = ((1, 0),) * length
    token, block = (expected(target, draft, plan, rule) for rule in (Rejection(), Block()))
    chains = list(drafted_chains(target, draft, length))
    assert token == pytest.approx(sum(chance * sum(token_rule(ratios)) for chance, ratios in chains), abs=EXACT)
    assert block == pytest.approx(sum(chance * sum(block_rule(ratios)) for chance, ratios in chains), abs=EXACT)
    assert block >= token - EXACT
    if length == 1:
        overlap = float(torch.minimum(target.row(PROMPT), draft.row(PROMPT)).sum())
        assert token == pytest.approx(overlap, abs=EXACT), "1 - TV, the most for one token"
        assert block == pytest.approx(overlap, abs=EXACT)


def test_block_accepts_strictly_more_than_rejection_on_most_tables():
    gains = []
    for seed in range(12):
        target, draft = pairs(3, seed)["random"]
        gains.append(
            expected(target, draft, ((1, 0),) * 3, Block()) - expected(target, draft, ((1, 0),) * 3, Rejection())
        )
    assert sum(gain > 0.001 for gain in gains) >= 8
    assert max(gains) > 0.03


class Constant:
    """A table with the same row everywhere."""

    def __init__(self, *probs):
        self.vocab, self.probs = len(probs), torch.tensor(probs, dtype=torch.float64)

    def row(self, context):
        return self.probs


def test_the_worked_example_of_block_verification():
    """Sun et al. 2403.10444, section 2: p = (1/3, 2/3), q = (2/3, 1/3), two tokens: 10/9 against 11/9."""
    target, draft = Constant(1 / 3, 2 / 3), Constant(2 / 3, 1 / 3)
    assert expected(target, draft, ((1, 0),) * 2, Rejection()) == pytest.approx(10 / 9, abs=EXACT)
    assert expected(target, draft, ((1, 0),) * 2, Block()) == pytest.approx(11 / 9, abs=EXACT)


@pytest.mark.parametrize("rule", [Rejection(), Block()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("seed", range(6))
def test_equal_tables_accept_everything_and_disjoint_ones_nothing(rule, seed):
    tables = pairs(3, seed)
    for length in (1, 2, 3):
        plan = ((1, 0),) * length
        assert expected(*tables["equal"], plan, rule) == pytest.approx(length, abs=EXACT)
        assert expected(*tables["disjoint"], plan, rule) == 0


@pytest.mark.parametrize(
    ("rule", "plan"),
    [
        *itertools.product(
            [SampleAndMatch(), Rejection()],
            [((0, 2),), ((0, 3),), ((0, 2), (0, 2)), ((0, 2), (0, 1), (0, 1)), ((0, 1),) * 3],
        ),
        (Block(), ((0, 1),) * 3),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_chosen_trees_are_accepted_by_the_sum_of_their_paths(rule, plan):
    for seed in range(4):
        target, draft = pairs(4, seed)["random"]
        tree = TreeDrafter(draft, plan).propose(PROMPT, None).tree
        tokens = tree.tokens
        total = 0.0
        for node in range(1, len(tree)):
            context, chance = PROMPT, 1.0
            for step in tree.path_to(node):
                chance *= float(target.row(context)[tokens[step]])
                context = (*context, tokens[step])
            total += chance
        assert expected(target, draft, plan, rule) == pytest.approx(total, abs=EXACT)


def best_possible(target, draft, plan):
    """The most any rule can accept at one node: 1 + min over sets S of P(S) - Pr(children within S) (2410.18234)."""
    p = target.row(PROMPT).tolist()
    sets = {}
    for proposal, weight in outcomes(lambda noise: TreeDrafter(draft, plan).propose(PROMPT, noise)):
        children = frozenset(proposal.tree.tokens[1:])
        sets[children] = sets.get(children, 0.0) + weight
    subsets = itertools.chain.from_iterable(itertools.combinations(range(len(p)), size) for size in range(len(p) + 1))
    return 1 + min(
        sum(p[token] for token in subset) - sum(weight for children, weight in sets.items() if children <= set(subset))
        for subset in subsets
    )


@pytest.mark.parametrize("seed", range(12))
def test_no_rule_beats_the_best_possible_and_one_sampled_child_with_chosen_ones_reaches_it(seed):
    target, draft = pairs(4, seed)["random"]
    for plan in [((1, 0),), ((2, 0),), ((3, 0),), ((0, 2),), ((1, 1),), ((1, 2),), ((2, 1),)]:
        ceiling = best_possible(target, draft, plan)
        assert expected(target, draft, plan, SampleAndMatch()) <= ceiling + EXACT
        accepted = expected(target, draft, plan, Rejection())
        assert accepted <= ceiling + EXACT
        if plan[0][0] < 2:
            assert accepted == pytest.approx(ceiling, abs=EXACT)


@pytest.mark.parametrize("seed", range(6))
def test_acceptance_beside_a_chosen_child_is_the_formula(seed):
    """P(D) + the overlap of p with q restricted to the tokens outside D (algorithms.md 2.5)."""
    target, draft = pairs(4, seed)["random"]
    p, q = target.row(PROMPT), draft.row(PROMPT).clone()
    chosen = int(q.argsort(descending=True, stable=True)[0])
    q[chosen] = 0
    outside = torch.minimum(p, q / q.sum()) if q.sum() > 0 else torch.zeros(4)
    total = float(p[chosen] + outside.sum() - outside[chosen])
    assert expected(target, draft, ((1, 1),), Rejection()) == pytest.approx(total, abs=EXACT)


@pytest.mark.parametrize("rule", [Rejection(), Block()], ids=lambda rule: rule.name)
def test_a_certain_draft_is_accepted_as_sample_and_match_would(rule):
    """A token with all mass of q on it, sampled or chosen, and sample and match: one law of emitted runs."""
    for seed in range(6):
        target, draft = pairs(3, seed)["certain draft"]
        law, accepted = round_law(target, TreeDrafter(draft, ((0, 1),) * 3), SampleAndMatch(), PROMPT)
        for child in [(1, 0), (0, 1)]:
            same, same_accepted = round_law(target, TreeDrafter(draft, (child,) * 3), rule, PROMPT)
            assert same == pytest.approx(law, abs=EXACT)
            assert same_accepted == pytest.approx(accepted, abs=EXACT)


def test_each_rule_names_its_level():
    levels = {rule.name: rule.level for rule in (Greedy(), SampleAndMatch(), Rejection(), Block())}
    assert levels == {
        "greedy": Exactness.GREEDY_IDENTICAL,
        "sample_and_match": Exactness.PATHWISE,
        "rejection": Exactness.DISTRIBUTION,
        "block": Exactness.DISTRIBUTION,
    }
