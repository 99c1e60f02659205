"""The twins of the kernels that grow trees against the trees of `specdec.growth` and the tables of `tree_attention`."""

import random

import pytest
import torch

from specdec.kernels import reference_growth, tree_ops
from specdec.kernels.rows import PackedRows, RequestRows
from specdec.kernels.tree_tables import bounds_of, split, written
from specdec.kernels.trees import PADDING, GrowingTrees, Growth
from tests.toys.levels import best_first, children, grown, random_growth
from tests.toys.packed import forest


@pytest.mark.parametrize("seed", range(40))
def test_trees_grow_as_best_first_ones(seed):
    generator = random.Random(seed)
    growth, threshold = random_growth(generator)
    limits = torch.tensor([generator.randint(0, growth.depth) for _ in range(5)])
    levels, pending = list(children(generator, 5, growth)), torch.randint(0, 1000, (5,))
    trees = grown(tree_ops, pending, growth, limits, levels)
    kept, scores = tree_ops.prune(trees)
    width = growth.num_nodes + 1
    assert kept.cu_nodes.tolist() == [width * request for request in range(6)]
    assert (kept.max_nodes, kept.max_depth) == (width, growth.depth)
    for request, limit in enumerate(limits.tolist()):
        tree, runs = best_first(int(pending[request]), growth, limit, levels if limit else [], request, threshold)
        draft = tree.draft("test")
        count = len(draft)
        rows = slice(request * width, (request + 1) * width)
        padding = [0] * (width - count)
        assert kept.tokens[rows].tolist() == draft.tree.tokens + padding
        assert kept.parents[rows].tolist() == draft.tree.parents + [PADDING for _ in padding]
        assert kept.depths[rows].tolist() == draft.tree.depths + padding
        assert torch.equal(scores[rows], torch.cat((draft.scores, torch.full((width - count,), -torch.inf))))
        assert_run_as(trees, request, tree, runs)


def assert_run_as(trees, request, tree, runs):
    """The rows of a request that are run: the frontiers, each with the row of its parent."""
    growth, num_runs = trees.growth, trees.growth.max_runs
    tokens, parents, depths = (tensor.view(-1, num_runs)[request].tolist() for tensor in trees.runs[:3])
    nodes, row_of = trees.nodes[request].tolist(), {-1: -1}
    for level in range(growth.depth):
        frontier = runs[level] if level < len(runs) else [0][level:]
        rows = growth.rows(level)
        unused = rows.stop - rows.start - len(frontier)
        assert nodes[rows] == frontier + [-1] * unused
        assert tokens[rows] == [tree.tokens[node] for node in frontier] + [0] * unused
        assert parents[rows] == [row_of[tree.parents[node]] for node in frontier] + [PADDING] * unused
        assert depths[rows] == [level] * (rows.stop - rows.start)
        row_of.update({node: rows.start + place for place, node in enumerate(frontier)})


@pytest.mark.parametrize("seed", range(10))
def test_ancestors_are_those_of_the_tables(seed):
    generator = random.Random(seed)
    max_nodes = generator.choice([1, 5, 64, 65, 150])
    trees = forest(generator, 9, max_nodes, [generator.randint(1, max_nodes) for _ in range(4)])
    rows = []
    for first, stop in trees.cu_nodes.unfold(0, 2, 1).tolist():
        parents, depths = trees.parents[first:stop].tolist(), trees.depths[first:stop].tolist()
        rows.append(RequestRows(7, stop - first, 0, parents, depths, 100, None))
    packed = PackedRows(rows)
    bounds = bounds_of(packed, 16)
    wanted = split(written(packed, bounds, False), bounds)
    words, depths = (
        torch.full((bounds.num_nodes + 2, bounds.num_words + 1), -7),
        torch.full((bounds.num_nodes + 2,), -7),
    )
    tree_ops.write_ancestors(trees, words, depths)
    assert torch.equal(words[:-2, :-1], wanted.words) and torch.equal(depths[:-2], wanted.depths)
    assert not words[:-2, -1].any() and (words[-2:] == -7).all() and (depths[-2:] == -7).all()


def test_padding_sees_itself():
    trees = GrowingTrees.empty(1, Growth(2, 3, 4), torch.device("cpu"))
    tree_ops.plant(trees, torch.tensor([9]))
    words, depths = torch.zeros(5, 1, dtype=torch.int64), torch.zeros(5, dtype=torch.int32)
    tree_ops.write_ancestors(trees.runs, words, depths)
    assert words.flatten().tolist() == [1, 2, 4, 8, 16]


def test_wrong_arguments_are_refused():
    trees, limits = GrowingTrees.empty(2, Growth(3, 2, 4), torch.device("cpu")), torch.tensor([2, 2])
    for shape, level in (((2, 3, 3), 1), ((2, 1, 3), 2), ((2, 1, 4), 1), ((1, 1, 3), 1)):
        tokens = torch.zeros(shape, dtype=torch.int64)
        with pytest.raises(ValueError, match="rows of 1 to 3 children for level"):
            tree_ops.grow(trees, tokens, tokens.float(), limits, level)
    with pytest.raises(ValueError, match="expected a level from 1 to 2, got 3"):
        tree_ops.grow(trees, tokens, tokens.float(), limits, 3)
    with pytest.raises(ValueError, match="expected words for 70 nodes, got 1 of 64"):
        tree_ops.write_ancestors(trees.runs._replace(max_nodes=70), torch.zeros(70, 1), torch.zeros(70))


def test_the_reference_names_are_the_ops():
    names = [
        name
        for name, value in vars(reference_growth).items()
        if value.__class__.__name__ == "function" and name[0] != "_"
    ]
    assert set(names) <= set(vars(tree_ops))
