"""Best-first trees grown level by level from random children, on the device and by `specdec.growth`."""

import math

import torch

from specdec.growth import BestFirst
from specdec.kernels.trees import GrowingTrees, Growth

THRESHOLD = 0.2


def random_growth(generator):
    width, depth = generator.randint(1, 5), generator.randint(1, 5)
    threshold = generator.choice([0.0, 0.0, THRESHOLD])
    log_threshold = math.log(threshold) if threshold else -math.inf
    return Growth(width, depth, generator.choice([1, 3, 8, 16, 70]), log_threshold), threshold


def children(generator, num_requests, growth, count=None):
    """Level, tokens and log-probabilities of each, best first; many are equal, and some rows end early."""
    count = count or generator.randint(1, growth.width)
    torch.manual_seed(generator.randrange(1 << 32))
    for level in range(1, growth.depth + 1):
        rows = growth.rows(level - 1)
        shape = (num_requests, rows.stop - rows.start, count)
        log_probs = -torch.randint(0, 9, shape) / 4 - 0.25 if generator.random() < 0.5 else -3 * torch.rand(shape)
        log_probs[torch.rand(shape) < 0.1] = math.log(THRESHOLD)  # rounded, it is below
        log_probs[torch.rand(shape) < 0.1] = -torch.inf
        yield level, torch.randint(0, 1000, shape), log_probs.sort(descending=True)[0]


def grown(ops, pending, growth, limits, levels):
    """Trees grown by these ops."""
    trees = GrowingTrees.empty(len(pending), growth, pending.device)
    ops.plant(trees, pending)
    for level, tokens, log_probs in levels:
        ops.grow(trees, tokens, log_probs, limits, level)
    return trees


def best_first(pending, growth, limit, levels, request, threshold):
    """The tree of one request, and the nodes that were run at every level."""
    tree, runs = BestFirst(pending, growth.num_nodes, growth.width, limit, threshold), []
    for _, tokens, log_probs in levels:
        runs.append(tree.frontier)
        if tree.frontier:
            count = len(tree.frontier)
            tree.expand(tokens[request, :count].tolist(), log_probs[request, :count].tolist())
    return tree, runs
