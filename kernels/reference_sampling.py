"""The ops behind the target's scores in plain torch, with the same names and signatures as the kernels."""

import torch
from torch import Tensor

from .reference import argmax, gumbels, philox, pick
from .reference_draws import DRAFT, uniforms
from .trees import PackedTrees


def gumbel_argmax(scores: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:  # [n, vocab], [n], [n] -> [n] int64
    """The draw of each row from softmax(scores): the largest score plus Gumbel noise, the lowest token of equals.

    The noise is that of `PhiloxNoise`: a function of the seed (64 bits as int64), the position and the token alone.

    Example:
        >>> scores = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
        >>> gumbel_argmax(scores, torch.tensor([7, 7]), torch.tensor([4, 5])).tolist()[1]
        0
    """
    noise = torch.empty_like(scores, dtype=torch.float32)
    blocks = torch.arange(-(-scores.shape[1] // 4), device=scores.device)
    zero = torch.zeros((), dtype=torch.int64, device=scores.device)
    for row, (seed, position) in enumerate(zip(seeds.tolist(), positions.tolist(), strict=True)):
        words = philox(seed & 0xFFFFFFFFFFFFFFFF, zero + position, zero, zero, blocks).flatten()[: scores.shape[1]]
        noise[row] = gumbels(words)
    return argmax(scores + noise)


def walk(trees: PackedTrees, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The path of each tree along which a node's target token is the next node, and the first target token that is not.

    `targets` [T] are the target's own tokens after each node. Of siblings with the same token the first stands for all.

    Returns:
        [B, max_depth + 2] int64: how many tokens a request emits, and which; -1 behind them, 0 without nodes.
        [B, max_depth] int64: the accepted nodes; -1 behind them.

    Example:
        >>> tree = torch.tensor([5, 7, 8, 9]), torch.tensor([-1, 0, 0, 2]), torch.tensor([0, 1, 1, 2])
        >>> walk(PackedTrees(*tree, torch.tensor([0, 4]), max_nodes=4, max_depth=3), torch.tensor([8, 0, 9, 4]))
        (tensor([[ 3,  8,  9,  4, -1]]), tensor([[ 2,  3, -1]]))
    """
    num_requests = trees.cu_nodes.shape[0] - 1
    emitted = torch.full((num_requests, trees.max_depth + 2), -1, dtype=torch.int64)
    path = torch.full((num_requests, trees.max_depth), -1, dtype=torch.int64)
    tokens, parents, own = trees.tokens.tolist(), trees.parents.tolist(), targets.tolist()
    bounds = trees.cu_nodes.tolist()
    for request, (first, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        if first == stop:
            emitted[request, 0] = 0
            continue
        last, accepted = 0, []
        for node in range(1, stop - first):
            if parents[first + node] == last and tokens[first + node] == own[first + last]:
                accepted.append(node)
                last = node
        said = [*(tokens[first + node] for node in accepted), own[first + last]]
        emitted[request, : len(said) + 1] = torch.tensor([len(said), *said])
        path[request, : len(accepted)] = torch.tensor(accepted)
    return emitted.to(targets.device), path.to(targets.device)


def warp(scores: Tensor, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """The rows divided by their temperatures, with -inf where top-k, then top-p, then min-p remove a token.

    What transformers' warpers do, one row like another, with parameters per row: `top_k` [n] of 0, `top_p` [n] of 1 and
    `min_p` [n] of 0 are off. The last two and the temperatures are float64, so that they round where a Python number
    would. Top-k keeps all that equal the k-th value. Top-p keeps, of tokens with equal values at its border, those with
    the highest ids, and of them as many as it takes to reach the mass; transformers keeps as many, but which of them
    it leaves to a sort that promises no order. Rows hold no NaN and not only -inf.

    Example:
        >>> off = torch.ones(1, dtype=torch.float64)
        >>> warp(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), off, torch.tensor([3]), off * 0.5, off * 0)
        tensor([[-inf, 3., -inf, -inf]])
    """
    rows = scores.float() / temperatures.float()[:, None]
    vocab = rows.shape[1]
    limits = torch.where((top_k > 0) & (top_k < vocab), top_k, vocab).long()
    ascending, tokens = rows.sort(stable=True)
    border = ascending.gather(1, vocab - limits[:, None])
    rows = rows.masked_fill(rows < border, -torch.inf)
    # What top-k removed comes first in either order, so the order of the rest is that of a sort of the new rows.
    mass = ascending.masked_fill(ascending < border, -torch.inf).softmax(-1).cumsum(-1)
    removed = (mass <= (1 - top_p).float()[:, None]) & (top_p < 1)[:, None]
    removed[:, -1:] = False
    rows = rows.masked_fill(torch.zeros_like(removed).scatter_(1, tokens, removed), -torch.inf)
    probs = rows.softmax(-1)
    return rows.masked_fill(probs < min_p.float()[:, None] * probs.amax(-1, keepdim=True), -torch.inf)


def mark_seen(seen: Tensor, tokens: Tensor, starts: Tensor, counts: Tensor, ignored: Tensor) -> None:
    """Notes committed tokens for `penalize`: sets bit t % 32 of word t // 32 for each token t.

    Args:
        seen: [B, 2, words] int32, zeros in the beginning; what the repetition and the presence penalty look at.
        tokens: [B, n] new tokens of each request, of which the first `counts` [B] are meant.
        starts: [B] position of the first new token.
        ignored: [B, 2] tokens before these positions do not count for the one penalty, the other.

    Example:
        >>> seen = torch.zeros(1, 2, 1, dtype=torch.int32)
        >>> mark_seen(seen, torch.tensor([[3, 0, 9]]), torch.tensor([6]), torch.tensor([2]), torch.tensor([[0, 7]]))
        >>> seen.tolist()
        [[[9], [1]]]
    """
    flags = _flags(seen)
    for request, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
        for penalty, first in enumerate(ignored[request].tolist()):
            new = tokens[request, max(first - start, 0) : count].long()
            flags[request, penalty, new[(new >= 0) & (new < flags.shape[2])]] = True
    bits = torch.arange(32, device=seen.device)
    seen.copy_((flags.unflatten(2, (-1, 32)).long() << bits).sum(-1).to(torch.int32))


def penalize(
    scores: Tensor, trees: PackedTrees, seen: Tensor, lengths: Tensor, penalties: Tensor, ignored: Tensor
) -> Tensor:
    """The scores [T, vocab] after both penalties, each node with the committed tokens and its own path as prefix.

    The repetition penalty r of a token of the prefix is transformers': score * r if the score is negative, score / r
    otherwise. The presence penalty is then subtracted, once, however often the token occurs.

    Args:
        trees: whose rows the scores are; their pending tokens are marked in `seen`.
        seen: [B, 2, words] int32, see `mark_seen`.
        lengths: [B] number of committed tokens.
        penalties: [B, 2] float64: repetition (1 is off) and presence (0 is off).
        ignored: [B, 2] tokens before these positions do not count.

    Example:
        >>> seen = torch.tensor([[[2], [2]]], dtype=torch.int32)  # token 1, which is pending; token 2 is drafted
        >>> chain = torch.tensor([1, 2]), torch.tensor([-1, 0]), torch.tensor([0, 1])
        >>> trees = PackedTrees(*chain, torch.tensor([0, 2]), max_nodes=2, max_depth=1)
        >>> penalties, ignored = torch.tensor([[2.0, 0.25]]), torch.tensor([[0, 2]])
        >>> penalize(torch.ones(2, 3), trees, seen, torch.tensor([2]), penalties, ignored).tolist()
        [[1.0, 0.25, 1.0], [1.0, 0.25, 0.25]]
    """
    penalized, flags = scores.float(), _flags(seen)
    penalized = penalized.clone()
    tokens, parents = trees.tokens.tolist(), trees.parents.tolist()
    depths, bounds = trees.depths.tolist(), trees.cu_nodes.tolist()
    for request, (first, stop) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        repetition, presence = penalties[request].float()
        for node in range(stop - first):
            marks = flags[request, :, : scores.shape[1]].clone()
            at = node
            position = int(lengths[request]) + depths[first + node] - 1
            while at > 0:
                marks[:, tokens[first + at]] |= position >= ignored[request]
                at, position = parents[first + at], position - 1
            row = penalized[first + node]
            row = torch.where(marks[0], torch.where(row < 0, row * repetition, row / repetition), row)
            penalized[first + node] = torch.where(marks[1], row - presence, row)
    return penalized


def _flags(seen: Tensor) -> Tensor:  # [B, 2, words] int32 -> [B, 2, 32 * words] bool
    return (seen[..., None] >> torch.arange(32, device=seen.device) & 1).bool().flatten(2)


def draft_topk(logits: Tensor, count: int, temperatures: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best `count` tokens [n, count] of each row, best first, lower ids first among equals, and their log q.

    `log q` [n, count] float32 is of softmax(logits / temperature), `temperatures` [n]; count is at most the vocabulary.

    Example:
        >>> tokens, log_probs = draft_topk(torch.tensor([[0.0, 1.0, 1.0, 0.0]]), 2)
        >>> tokens.tolist(), log_probs.exp().round(decimals=3).tolist()
        ([[1, 2]], [[0.36..., 0.36...]])
    """
    rows = logits.float()
    if temperatures is not None:
        rows = rows / temperatures.float()[:, None]
    tokens = rows.sort(descending=True, stable=True)[1][:, :count]
    return tokens, rows.log_softmax(-1).gather(1, tokens)


def draft_draw(probs: Tensor, seeds: Tensor, starts: Tensor, nodes: Tensor) -> Tensor:  # [n] int64
    """A token drawn from each row, the first one below its node: `PhiloxNoise.draft_token` with draw 0, batched.

    Args:
        probs: [n, vocab] what to draw from; need not be normalised, but holds something.
        seeds: [n] int64, 64 bits, of the row's request.
        starts: [n] its number of committed tokens.
        nodes: [n] the node behind which the token is drawn; on a chain its depth.

    Example:
        >>> zero = torch.tensor([0, 0])
        >>> draft_draw(torch.tensor([[0.25, 0.75], [0.75, 0.25]]), zero + 7, zero + 4, zero).tolist()
        [1, 0]
    """
    drawn = []
    keys = zip(probs, seeds.tolist(), starts.long()[:, None], nodes.long()[:, None] << 16, strict=True)
    for row, seed, start, sub_index in keys:
        drawn.append(pick(row, uniforms(seed, DRAFT, start, sub_index)[0]))
    return torch.tensor(drawn, dtype=torch.int64, device=probs.device)
