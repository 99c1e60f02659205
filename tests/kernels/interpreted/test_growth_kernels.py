"""The kernels that grow draft trees against their twins, bit for bit; memory that nobody wrote is poisoned."""

import random

import pytest
import torch

from specdec.kernels import ancestor_kernels, growth_kernels, reference_growth
from specdec.kernels.trees import GrowingTrees, PackedTrees
from tests.toys.levels import children, grown, random_growth
from tests.toys.packed import forest


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Whatever nobody writes is NaN, or a number that no result has."""
    empty = torch.empty

    def poisoned(*size, **options):
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 123456)

    monkeypatch.setattr(torch, "empty", poisoned)


def assert_same(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, PackedTrees):
            assert_same(one, other)
        elif torch.is_tensor(one):
            assert torch.equal(one.nan_to_num(7), other.nan_to_num(7)) and one.dtype == other.dtype
        else:
            assert one == other


@pytest.mark.parametrize("seed", range(40))
def test_trees_grow_as_by_the_twins(seed, monkeypatch):
    generator = random.Random(seed)
    monkeypatch.setattr(growth_kernels, "BLOCK", [8, 128][seed % 2])
    growth, _ = random_growth(generator)
    limits = torch.tensor([generator.randint(0, growth.depth) for _ in range(4)], dtype=torch.int32)
    levels, pending = list(children(generator, 4, growth)), torch.randint(0, 1000, (4,))
    found, wanted = (grown(ops, pending, growth, limits, levels) for ops in (growth_kernels, reference_growth))
    assert_same(found, wanted)
    kept, scores = growth_kernels.prune(found)
    assert_same((kept, scores), reference_growth.prune(wanted))
    for trees in (found.runs, kept):
        tables = [(torch.zeros(len(trees.tokens), 2).long(), torch.zeros(len(trees.tokens)).int()) for _ in range(2)]
        ancestor_kernels.write_ancestors(trees, *tables[0])
        reference_growth.write_ancestors(trees, *tables[1])
        assert_same(*tables)


def test_trees_are_planted_anew():
    generator = random.Random(5)
    growth, _ = random_growth(generator)
    trees = GrowingTrees.empty(3, growth, torch.device("cpu"))
    for pending in (torch.tensor([4, 5, 6]), torch.tensor([9, 8, 7], dtype=torch.int32)):
        growth_kernels.plant(trees, pending)
        assert trees.tokens[:, 0].tolist() == pending.tolist() and trees.counts.tolist() == [1, 1, 1]
        assert trees.runs.tokens.view(3, -1)[:, 0].tolist() == pending.tolist()
        for level, tokens, log_probs in children(generator, 3, growth):
            growth_kernels.grow(trees, tokens, log_probs, torch.tensor([9, 9, 9]), level)
        assert (trees.counts > 1).all()


@pytest.mark.parametrize("seed", range(12))
def test_ancestors(seed):
    generator = random.Random(seed)
    max_nodes = generator.choice([1, 5, 64, 65, 150])
    trees = forest(generator, 9, max_nodes, [generator.randrange(max_nodes + 1) for _ in range(4)])
    num_words = -(-max_nodes // 64) + seed % 2
    tables = [(torch.full((len(trees.tokens), num_words), -7), torch.full((len(trees.tokens),), -7)) for _ in range(2)]
    ancestor_kernels.write_ancestors(trees, *tables[0])
    reference_growth.write_ancestors(trees, *tables[1])
    assert_same(*tables)
