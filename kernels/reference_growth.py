"""Best-first draft trees on the device in plain torch, with the names and signatures of the kernels."""

import heapq

import torch
from torch import Tensor

from .trees import PADDING, GrowingTrees, PackedTrees


def plant(trees: GrowingTrees, pending: Tensor) -> None:  # [B]
    """Begins trees anew: each has its root, the pending token, and that is to be run.

    Example:
        >>> from specdec.kernels.trees import Growth
        >>> trees = GrowingTrees.empty(1, Growth(width=2, depth=2, num_nodes=3), torch.device("cpu"))
        >>> plant(trees, torch.tensor([9]))
        >>> trees.runs.tokens.tolist(), trees.runs.parents.tolist(), trees.counts.tolist()
        ([9, 0, 0], [-1, -2, -2], [1])
    """
    roots = ((trees.tokens, pending), (trees.parents, -1), (trees.depths, 0), (trees.scores, 0))
    for tensor, value in roots:
        tensor[:, 0] = value
    trees.counts.fill_(1)
    num_runs = trees.growth.max_runs
    rows = ((trees.nodes, 0, -1), (trees.runs.tokens, pending, 0), (trees.runs.parents, -1, PADDING))
    for tensor, root, padding in (*rows, (trees.runs.depths, 0, 0)):
        tensor.fill_(padding)
        tensor.view(-1, num_runs)[:, 0] = root


def grow(trees: GrowingTrees, tokens: Tensor, log_probs: Tensor, limits: Tensor, level: int) -> None:
    """Adds a level of children, and notes which of them are to be run: `specdec.growth.BestFirst.expand`, batched.

    Run next are the best `width` of the children, as far as a child of theirs could still be among the best nodes.

    Args:
        trees: planted, and grown up to the level before.
        tokens: [B, rows, count] children of the nodes run in `growth.rows(level - 1)`, best first.
        log_probs: [B, rows, count] float32; -inf: there are no more.
        limits: [B] int32 depth of the request's tree at most.
        level: depth of the children.

    Example:
        >>> from specdec.kernels.trees import Growth
        >>> trees = GrowingTrees.empty(1, Growth(width=2, depth=2, num_nodes=3), torch.device("cpu"))
        >>> plant(trees, torch.tensor([9]))
        >>> grow(trees, torch.tensor([[[4, 5]]]), torch.tensor([[[-0.1, -2.5]]]), torch.tensor([2]), level=1)
        >>> trees.tokens[0, :3].tolist(), trees.runs.tokens.tolist(), trees.runs.parents.tolist()
        ([9, 4, 5], [9, 4, 5], [-1, 0, 0])
    """
    growth, before = trees.growth, trees.growth.rows(level - 1)
    for request, limit in enumerate(limits.tolist()):
        nodes, born = trees.nodes[request].tolist(), []
        count = int(trees.counts[request])
        for place, row in enumerate(range(before.start, before.stop) if level <= limit else ()):
            if nodes[row] < 0:
                continue
            score = float(trees.scores[request, nodes[row]])
            children = zip(tokens[request, place].tolist(), log_probs[request, place].tolist(), strict=True)
            for token, log_prob in children:
                if log_prob == -torch.inf:
                    break
                trees.tokens[request, count], trees.parents[request, count] = token, nodes[row]
                trees.depths[request, count], trees.scores[request, count] = level, score + log_prob
                if log_prob >= growth.log_threshold and level < limit:
                    born.append((-score - log_prob, count, row))
                count += 1
        trees.counts[request] = count
        best = trees.scores[request, 1:count].topk(min(growth.num_nodes, count - 1))[0]
        last = float(best[-1]) if count > growth.num_nodes else -torch.inf
        kept = [entry for entry in heapq.nsmallest(growth.width, born) if -entry[0] > last]
        _note_runs(trees, request, level, kept)


def _note_runs(trees: GrowingTrees, request: int, level: int, kept: list[tuple[float, int, int]]) -> None:
    """Writes the rows of a level: (-score, node, row of its parent) of each node that is to be run."""
    growth, num_runs = trees.growth, trees.growth.max_runs
    if level == growth.depth:
        return
    tokens, parents, depths = (tensor.view(-1, num_runs)[request] for tensor in trees.runs[:3])
    rows = growth.rows(level)
    padding = [(0.0, -1, PADDING)] * growth.width
    for row, (_, node, parent) in zip(range(rows.start, rows.stop), kept + padding, strict=False):
        trees.nodes[request, row], parents[row], depths[row] = node, parent, level
        tokens[row] = trees.tokens[request, node] if node >= 0 else 0


def prune(trees: GrowingTrees) -> tuple[PackedTrees, Tensor]:
    """The best nodes of each tree, ties going to the one that came up first: `specdec.growth.BestFirst.draft`, batched.

    Returns:
        B trees of `num_nodes + 1` rows each, the root first. Where fewer nodes came up, padding follows.
        [B * (num_nodes + 1)] float32: their scores; -inf for padding.

    Example:
        >>> from specdec.kernels.trees import Growth
        >>> trees = GrowingTrees.empty(1, Growth(width=2, depth=2, num_nodes=3), torch.device("cpu"))
        >>> plant(trees, torch.tensor([9]))
        >>> grow(trees, torch.tensor([[[4, 5]]]), torch.tensor([[[-0.1, -2.5]]]), torch.tensor([2]), 1)
        >>> log_probs = torch.tensor([[[-0.2, -1.7], [-0.1, -2.0]]])
        >>> grow(trees, torch.tensor([[[6, 7], [8, 1]]]), log_probs, torch.tensor([2]), 2)
        >>> kept, _ = prune(trees)  # 5 and its children scored below 7
        >>> kept.tokens.tolist(), kept.parents.tolist(), kept.depths.tolist()
        ([9, 4, 6, 7], [-1, 0, 1, 1], [0, 1, 2, 2])
    """
    (num_requests, _), width = trees.tokens.shape, trees.growth.num_nodes + 1
    device = trees.tokens.device
    tokens = torch.zeros(num_requests, width, dtype=torch.int64, device=device)
    parents = torch.full((num_requests, width), PADDING, dtype=torch.int32, device=device)
    depths, kept_scores = torch.zeros_like(parents), torch.full(tokens.shape, -torch.inf, device=device)
    for request, count in enumerate(trees.counts.tolist()):
        scores = trees.scores[request].tolist()
        best = heapq.nsmallest(width - 1, range(1, count), key=lambda node: (-scores[node], node))
        kept = [0, *sorted(best)]
        places = {node: place for place, node in enumerate(kept)}
        for place, node in enumerate(kept):
            tokens[request, place], depths[request, place] = trees.tokens[request, node], trees.depths[request, node]
            parents[request, place] = places[int(trees.parents[request, node])] if node else -1
            kept_scores[request, place] = scores[node]
    cu_nodes = torch.arange(0, num_requests * width + 1, width, dtype=torch.int32, device=device)
    flat = tokens.view(-1), parents.view(-1), depths.view(-1)
    return PackedTrees(*flat, cu_nodes, width, trees.growth.depth), kept_scores.view(-1)


def write_ancestors(trees: PackedTrees, words: Tensor, depths: Tensor) -> None:
    """Writes who sees whom, as `tree_attention` reads it from its tables: see `tree_tables.Tables`.

    Args:
        trees: T nodes; one that is padding sees only itself.
        words: [at least T, num_words] int64: bit j % 64 of word j // 64 of a row says that the node sees node j.
        depths: [at least T] int32.

    Example:
        >>> tree = torch.tensor([5, 7, 8, 9]), torch.tensor([-1, 0, 0, 2]), torch.tensor([0, 1, 1, 2])
        >>> words, depths = torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, dtype=torch.int32)
        >>> write_ancestors(PackedTrees(*tree, torch.tensor([0, 4]), max_nodes=4, max_depth=2), words, depths)
        >>> [bin(word) for word in words.flatten().tolist()], depths.tolist()
        (['0b1', '0b11', '0b101', '0b1101'], [0, 1, 1, 2])
    """
    bounds, parents = trees.cu_nodes.tolist(), trees.parents.tolist()
    for first, stop in zip(bounds[:-1], bounds[1:], strict=True):
        depths[first:stop] = trees.depths[first:stop]
        seen: list[int] = []
        for node, parent in enumerate(parents[first:stop]):
            seen.append(1 << node | (seen[parent] if parent >= 0 else 0))
            for word in range(words.shape[1]):
                value = seen[-1] >> 64 * word & 0xFFFFFFFFFFFFFFFF
                words[first + node, word] = value - (1 << 64) if value >> 63 else value
