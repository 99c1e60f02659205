"""The arithmetic that rules and drafters share, where rounding could let a token pass that must not."""

import pytest
import torch

from specdec.noise import PhiloxNoise
from specdec.rules import likelihood_ratios, negligible, residual, walk, without
from specdec.tree import TokenTree
from specdec.types import Draft, TargetRows
from specdec.verifiers.block import Block
from specdec.verifiers.rejection import Rejection


def test_walk_takes_the_first_of_equal_siblings_and_reads_only_visited_rows():
    class Targets(list):
        def __getitem__(self, node):
            read.append(node)
            return super().__getitem__(node)

    read = []
    tree = TokenTree([9, 4, 5, 5, 4, 7], [-1, 0, 0, 0, 2, 3])
    verdict = walk(tree, Targets([5, 0, 4, 7, 8, 0]))
    assert (verdict.path, verdict.next_token, verdict.num_accepted) == ([2, 4], 8, 2)
    assert read == [0, 2, 4]


def test_a_residual_of_rounding_alone_falls_back_to_the_target():
    target = torch.tensor([0.5, 0.3, 0.2])
    for proposal in (target.clone(), target * (1 - 1e-8), target - torch.tensor([5e-8, -5e-8, 0.0])):
        assert torch.equal(residual(target, proposal), target)
    assert negligible(target) < 1e-6 and negligible(target.double()) < 1e-15


def test_siblings_are_removed_one_by_one_until_nothing_is_left():
    rest = torch.tensor([0.25, 0.25, 0.5, 0.0])
    for token, expected in [(2, [0.5, 0.5, 0, 0]), (0, [0, 1, 0, 0]), (1, [0, 0, 0, 0])]:
        before = rest.clone()
        left = without(rest, token)
        assert left.tolist() == expected and torch.equal(rest, before)
        rest = left


def test_likelihood_ratios_take_a_chosen_token_as_certain():
    target = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    tree = TokenTree.chain([0, 1, 0])
    mixed = Draft(tree, [False, True, False], torch.tensor([[0.75, 0.25], [torch.nan] * 2, [0, 0]]))
    assert likelihood_ratios(mixed, target) == [1, 2, 0.25]
    assert likelihood_ratios(Draft.chosen(tree), target) == [1, 0.5, 0.25]


@pytest.mark.parametrize("rule", [Rejection(), Block()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("distance", [0.0, 1e-7, 1e-3, 1.0, 30.0])
def test_in_float32_no_emitted_token_is_impossible(rule, distance):
    """Truncated target, drafts from nearly equal to nearly disjoint: only tokens that the target allows come out."""
    generator = torch.Generator().manual_seed(1)
    for seed in range(30):
        scores = torch.randn(6, 300, generator=generator) * 3
        probs = (scores + distance * torch.randn(6, 300, generator=generator)).softmax(-1)
        scores[scores < 1] = -torch.inf
        noise = PhiloxNoise(seed)
        tokens = [0, *(noise.draft_token(probs[node], 9, node, 0) for node in range(5))]
        draft = Draft(TokenTree.chain(tokens), torch.arange(6) > 0, probs)
        verdict = rule.verify(draft, TargetRows(scores, 9, list(range(6)), is_greedy=False), noise)
        run = [*(tokens[node] for node in verdict.path), verdict.next_token]
        assert all(scores[row, token] > -torch.inf for row, token in enumerate(run))


def test_equal_rows_in_float32_are_accepted_whole():
    probs = torch.randn(6, 1000, generator=torch.Generator().manual_seed(2)).softmax(-1)
    for seed in range(20):
        noise = PhiloxNoise(seed)
        tokens = [0, *(noise.draft_token(probs[node], 9, node, 0) for node in range(5))]
        draft = Draft(TokenTree.chain(tokens), torch.arange(6) > 0, probs)
        rows = TargetRows(probs.log(), 9, list(range(6)), is_greedy=False)
        assert Rejection().verify(draft, rows, noise).num_accepted == 5
        assert Block().verify(draft, rows, noise).num_accepted == 5
