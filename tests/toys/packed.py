"""Packed trees and padded rows for tests of kernels."""

import torch

from specdec.kernels.trees import PackedTrees


def inside(rows, extra):
    """The rows as a slice of wider ones whose other columns are NaN."""
    wide = torch.full((rows.shape[0], rows.shape[1] + extra), float("nan"), dtype=rows.dtype)
    wide[:, : rows.shape[1]] = rows
    return wide[:, : rows.shape[1]]


def forest(generator, vocab, max_nodes, sizes):
    """Random trees; siblings may have the same token."""
    return packed(
        generator,
        vocab,
        max_nodes,
        [[-1, *(generator.randrange(max(0, node - 3), node) for node in range(1, size))][:size] for size in sizes],
    )


def packed(generator, vocab, max_nodes, parents):
    """Trees with these lists of parents, in a bucket that is larger than they are."""
    depths, bounds = [], [0]
    for own in parents:
        depth = []
        for parent in own:
            depth.append(0 if parent < 0 else depth[parent] + 1)
        depths += depth
        bounds.append(len(depths))
    flat, padding = [parent for own in parents for parent in own], [-5] * 3
    tokens = [generator.randrange(vocab) for _ in flat]
    return PackedTrees(
        torch.tensor(tokens + [0, 0, 0]),
        torch.tensor(flat + padding, dtype=torch.int32),
        torch.tensor(depths + padding, dtype=torch.int32),
        torch.tensor(bounds, dtype=torch.int32),
        max_nodes,
        max(depths, default=0) + generator.randrange(2),
    )


def drawn_chains(generator, sizes, vocab, kinds):
    """As `drawn_trees`, with trees that are chains."""
    return drawn_trees(generator, [list(range(-1, size - 1)) for size in sizes], vocab, kinds)


def drawn_trees(generator, parents, vocab, kinds):
    """Scores, what tokens were drawn from, the trees, which tokens were drawn, seeds and starts; q is near p.

    Siblings are drawn without replacement, or chosen by the target's own row from what is no sibling's token yet.
    """
    torch.manual_seed(generator.randrange(1 << 32))
    trees = packed(generator, vocab, max(map(len, parents)) + 1, parents)
    num_rows, num_requests = len(trees.tokens), len(parents)
    scores = torch.randn(num_rows, vocab) * generator.choice([0.5, 3.0])
    probs = (scores + torch.randn(num_rows, vocab) * 0.5).softmax(-1)
    sampled = torch.tensor([generator.choice(kinds) for _ in range(num_rows)])
    scores[:, 0] = -torch.inf  # as warpers leave it
    for first, own in zip(trees.cu_nodes.tolist(), parents, strict=False):
        rows = slice(first, first + len(own))
        drawn_from, chosen_from = probs[rows].clone(), scores[rows].mul(2).softmax(-1)
        for node, parent in enumerate(own[1:], start=1):
            sampled[first + node] &= bool(drawn_from[parent].any())  # else all of them are children already
            likely = drawn_from[parent] if sampled[first + node] else chosen_from[parent]
            token = trees.tokens[first + node] = torch.multinomial(likely if likely.any() else probs[first], 1)
            chosen_from[parent, token] = 0
            if sampled[first + node]:
                drawn_from[parent, token] = 0
    seeds = torch.randint(-(1 << 62), 1 << 62, (num_requests,))
    return scores, probs, trees, sampled, seeds, torch.randint(1, 5000, (num_requests,), dtype=torch.int32)


def far_apart(generator, max_nodes, count, vocab, kinds):
    """As `drawn_trees`, but p is far enough from q that siblings fail one after the other."""
    scores, *rest = drawn_trees(generator, bushes(generator, max_nodes, count), vocab, kinds)
    return scores + torch.randn_like(scores) * generator.choice([0, 2, 4]), *rest


def bushes(generator, max_nodes, count):
    """Lists of parents: chains, stars, full trees of three children per node, random ones, and nothing."""
    makers = [
        lambda node: node - 1,
        lambda node: 0,
        lambda node: (node - 1) // 3,
        lambda node: generator.randrange(max(0, node - 4), node),
    ]
    sizes = [generator.randrange(max_nodes + 1) for _ in range(count)]
    drawn = zip(sizes, generator.choices(makers, weights=[1, 1, 3, 2], k=count), strict=True)
    return [[-1, *map(maker, range(1, size))][:size] for size, maker in drawn]
