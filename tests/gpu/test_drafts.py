"""Draft trees that grow and are verified on a GPU, against the twins on the CPU; captured ones serve other drafts."""

import math
import random

import pytest
import torch

from specdec.kernels import reference_growth, reference_verify, sampling_ops, tree_ops
from specdec.kernels.trees import Growth, PackedTrees
from tests.toys.device import captured, poisoned, unwaited
from tests.toys.levels import children, grown, random_growth
from tests.toys.packed import drawn_trees

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
REQUESTS = 9


def tensors_of(value):
    """All tensors of nested tuples and lists."""
    if torch.is_tensor(value):
        return [value]
    return [tensor for each in value for tensor in tensors_of(each)] if isinstance(value, tuple | list) else []


def moved(value, device):
    """The same nested tuples and lists on a device, as lists."""
    if isinstance(value, tuple | list):
        return [moved(each, device) for each in value]
    return value.to(device) if torch.is_tensor(value) else value


def same(found, wanted):
    pairs = zip(tensors_of(found), tensors_of(wanted), strict=True)
    return all(torch.equal(one.cpu().nan_to_num(7), other.nan_to_num(7)) for one, other in pairs)


def inputs(seed, growth):
    """Pending tokens, limits and levels."""
    generator = random.Random(seed)
    limits = torch.tensor([generator.randint(0, growth.depth) for _ in range(REQUESTS)], dtype=torch.int32)
    pending = torch.tensor([generator.randrange(1000) for _ in limits])
    return pending, limits, list(children(generator, REQUESTS, growth, growth.width))


def drafted(ops, growth, pending, limits, levels):
    """The trees, those that were kept with their scores, and the tables of those."""
    trees = grown(ops, pending, growth, limits, levels)
    kept, scores = ops.prune(trees)
    words = torch.zeros(len(kept.tokens), -(-kept.max_nodes // 64), dtype=torch.int64, device=pending.device)
    depths = torch.zeros_like(kept.depths)
    ops.write_ancestors(kept, words, depths)
    return trees, (kept, scores, words, depths)


@pytest.mark.parametrize("seed", range(20))
def test_trees_grow_as_by_the_twins(seed):
    growth = Growth(10, 6, 60, math.log(0.01)) if seed % 4 == 0 else random_growth(random.Random(seed))[0]
    arguments = inputs(seed, growth)
    wanted, wanted_kept = drafted(reference_growth, growth, *arguments)
    with poisoned():
        trees, kept = drafted(tree_ops, growth, *moved(arguments, DEVICE))
    assert same(kept, wanted_kept) and same(trees[4:], wanted[4:])
    for request, count in enumerate(wanted.counts.tolist()):  # nobody writes behind them
        assert same([each[request, :count] for each in trees[:4]], [each[request, :count] for each in wanted[:4]])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_captured_growth_serves_other_trees():
    growth = Growth(4, 5, 24)
    fixed = moved(inputs(0, growth), DEVICE)
    drafted(tree_ops, growth, *fixed)
    with unwaited():
        drafted(tree_ops, growth, *fixed)
    replay, (_, kept) = captured(lambda: drafted(tree_ops, growth, *fixed))
    for seed in range(1, 6):
        arguments = inputs(seed, growth)
        for old, new in zip(tensors_of(fixed), tensors_of(arguments), strict=True):
            old.copy_(new)
        replay()
        assert same(kept, drafted(reference_growth, growth, *arguments)[1])


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_captured_rejection_serves_other_trees():
    def drafts(seed):
        generator = random.Random(seed)
        sizes = generator.sample([1, 9, 17, 0, 30], 5)
        parents = [[-1, *(generator.randrange(max(0, node - 4), node) for node in range(1, n))][:n] for n in sizes]
        scores, probs, trees, *keys = drawn_trees(generator, parents, 70, [True, True, False])
        return [scores + torch.randn_like(scores), probs, trees._replace(max_depth=30), *keys]

    def verified(scores, probs, trees, *keys):
        return sampling_ops.verify_rejection(scores, probs, PackedTrees(*trees), *keys)

    fixed, accepted = moved(drafts(0), DEVICE), 0
    verified(*fixed)
    with unwaited():
        verified(*fixed)
    replay, output = captured(lambda: verified(*fixed))
    for seed in range(1, 9):
        arguments = drafts(seed)
        for old, new in zip(tensors_of(fixed), tensors_of(arguments), strict=True):
            old.copy_(new)
        replay()
        wanted = reference_verify.verify_rejection(*arguments)
        assert same(output, wanted)
        accepted += int((wanted[1] >= 0).sum())
    assert accepted > 0
