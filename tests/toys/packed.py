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
    """Scores, what tokens were drawn from, the chains, which tokens were drawn, seeds and starts; q is near p."""
    torch.manual_seed(generator.randrange(1 << 32))
    trees = packed(generator, vocab, max(sizes) + 1, [list(range(-1, size - 1)) for size in sizes])
    num_rows, num_requests = len(trees.tokens), len(sizes)
    scores = torch.randn(num_rows, vocab) * generator.choice([0.5, 3.0])
    probs = (scores + torch.randn(num_rows, vocab) * 0.5).softmax(-1)
    sampled = torch.tensor([generator.choice(kinds) for _ in range(num_rows)])
    scores[:, 0] = -torch.inf  # as warpers leave it
    for row in range(1, num_rows):
        likely = probs[row - 1] if sampled[row] else scores[row - 1].mul(2).softmax(-1)
        trees.tokens[row] = torch.multinomial(likely, 1)
    seeds = torch.randint(-(1 << 62), 1 << 62, (num_requests,))
    return scores, probs, trees, sampled, seeds, torch.randint(1, 5000, (num_requests,), dtype=torch.int32)
