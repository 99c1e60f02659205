"""Token rejection and block verification in plain torch, with the names and signatures of the kernels."""

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import pick
from .reference_draws import ACCEPT, RESIDUAL, uniforms
from .trees import PackedTrees


class _Drafted(NamedTuple):
    """One request's tree of n nodes and its uniforms."""

    target: Tensor  # [n, vocab] p
    probs: Tensor  # [n, vocab] q of a node's first sampled child
    tokens: list[int]  # [n]
    children: list[list[int]]  # [n]
    sampled: list[bool]  # [n]
    ratios: list[float]  # [n] p(x) / q(x) of a sampled child that is drawn first, p(x) of a chosen one
    accept: list[float]  # [n] for the test of the node
    residual: list[float]  # [n] for a draw behind the node


def verify_rejection(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """What token rejection emits for each tree, and the path: `verifiers.rejection`, batched.

    Sampled children are tested in draw order, without replacement (Leviathan et al. 2211.17192 for one, Sequoia,
    2402.12374, for several); then a token is drawn from what is left of p, and a chosen child with it continues.

    Args:
        scores: [T, vocab] final target scores, p = softmax.
        draft_probs: [T, vocab] float32: row v is what the sampled children of node v were drawn from.
        trees: what was drafted.
        sampled: [T] bool: the token was drawn from its parent's row, not chosen.
        seeds: [B] int64, 64 bits.
        starts: [B] number of committed tokens.

    Returns:
        [B, max_depth + 2] int64: how many tokens a request emits, and which; -1 behind them. The number is 0 without
        nodes, and -1 if a token that counts as sampled has no q: the caller has to refuse such a draft.
        [B, max_depth] int64: the accepted nodes; -1 behind them.

    Example:
        >>> p, q = torch.tensor([[0.2, 0.8], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
        >>> tree = torch.tensor([0, 1]), torch.tensor([-1, 0]), torch.tensor([0, 1]), torch.tensor([0, 2])
        >>> keys = torch.tensor([False, True]), torch.tensor([0]), torch.tensor([4])
        >>> verify_rejection(p.log(), q, PackedTrees(*tree, 2, 1), *keys)[1]  # p / q = 1.6: always accepted
        tensor([[1]])
    """
    requests = _drafted(scores, draft_probs, trees, (sampled, seeds, starts))
    return _padded([_walked(drafted) for drafted in requests], trees.max_depth, scores.device)


def verify_block(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """What block verification (Sun et al. 2403.10444, algorithm 2) emits for each chain: `verifiers.block`, batched.

    Arguments and results as of `verify_rejection`, but the trees are chains.

    Example:
        >>> p, q = torch.tensor([[0.2, 0.8], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
        >>> chain = torch.tensor([0, 1]), torch.tensor([-1, 0]), torch.tensor([0, 1]), torch.tensor([0, 2])
        >>> keys = torch.tensor([False, True]), torch.tensor([0]), torch.tensor([4])
        >>> verify_block(p.log(), q, PackedTrees(*chain, 2, 1), *keys)[1]  # p / q = 1.6: always accepted
        tensor([[1]])
    """
    requests = _drafted(scores, draft_probs, trees, (sampled, seeds, starts))
    return _padded([_tested_at_once(drafted) for drafted in requests], trees.max_depth, scores.device)


def _walked(drafted: _Drafted | None) -> list[tuple[int, int]] | None:
    """Each accepted node and its token, then -1 and the last token; None if a sampled token has no q."""
    if drafted is None or not drafted.tokens:
        return None if drafted is None else []
    walked: list[tuple[int, int]] = []
    node = 0
    while True:
        rest, accepted = drafted.target[node], None
        proposal, draws = drafted.probs[node], [child for child in drafted.children[node] if drafted.sampled[child]]
        for draw, child in enumerate(draws):
            token, ratio = drafted.tokens[child], drafted.ratios[child]
            if draw > 0:
                if not proposal[token] > 0:
                    return None
                ratio = float(rest[token]) / float(proposal[token])
            if drafted.accept[child] < ratio:
                accepted = child
                break
            left = (rest - proposal).clamp_min(0)
            rest = left / float(left.sum()) if float(left.sum()) > torch.finfo(left.dtype).eps else rest
            proposal = proposal.clone()
            proposal[token] = 0
            proposal = proposal / proposal.sum().clamp_min(torch.finfo(proposal.dtype).tiny)
        if accepted is None:
            token = pick(rest, drafted.residual[node])
            chosen = [child for child in drafted.children[node] if child not in draws]
            accepted = next((child for child in chosen if drafted.tokens[child] == token), None)
            if accepted is None:
                return [*walked, (-1, token)]
        walked.append((accepted, drafted.tokens[accepted]))
        node = accepted


def _tested_at_once(drafted: _Drafted | None) -> list[tuple[int, int]] | None:
    """As `_walked`, of a chain."""
    if drafted is None or not drafted.tokens:
        return None if drafted is None else []
    length, weights = len(drafted.tokens) - 1, [1.0]
    for ratio in drafted.ratios[1:]:
        weights.append(min(1.0, weights[-1] * ratio))
    tokens = torch.tensor(drafted.tokens[1:], dtype=torch.int64, device=drafted.target.device)[:, None]
    points = torch.zeros_like(drafted.target[:length]).scatter_(1, tokens, 1.0)
    is_drawn = torch.tensor(drafted.sampled[1:], dtype=torch.bool, device=points.device)[:, None]
    scale = torch.tensor(weights[:length], dtype=points.dtype, device=points.device)[:, None]
    left = scale * drafted.target[:length] - torch.where(is_drawn, drafted.probs[:length], points)
    masses = left.clamp_min_(0).sum(-1).tolist()
    accepted = 0
    for node in range(1, length + 1):
        passes = weights[node]
        if node < length:
            missed = masses[node] + 1 - weights[node]
            passes = masses[node] / missed if missed > 0 else 1.0
        if drafted.accept[node] < passes:
            accepted = node
    is_left = accepted < length and masses[accepted] > torch.finfo(left.dtype).eps
    next_token = pick(left[accepted] if is_left else drafted.target[accepted], drafted.residual[accepted])
    return [*enumerate(drafted.tokens[1 : accepted + 1], start=1), (-1, next_token)]


def _drafted(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, keys: tuple[Tensor, Tensor, Tensor]
) -> list[_Drafted | None]:
    """The requests' trees; None for one with a token of no q."""
    requests: list[_Drafted | None] = []
    bounds, sampled = trees.cu_nodes.tolist(), keys[0].bool()
    for first, stop, seed, start in zip(bounds[:-1], bounds[1:], keys[1].tolist(), keys[2].tolist(), strict=True):
        target, is_drawn = scores[first:stop].float().softmax(-1), sampled[first:stop].clone()
        is_drawn[:1] = False
        probs = torch.zeros_like(target) if draft_probs is None else draft_probs[first:stop].float()
        tokens, parents = trees.tokens[first:stop].long(), trees.parents[first:stop].long()
        rows = parents.clamp_min(0)
        p, q = (each[rows, tokens].double() for each in (target, probs))
        if (is_drawn & ~(q > 0)).any():
            requests.append(None)
            continue
        children: list[list[int]] = [[] for _ in range(stop - first)]
        draws = [0] * (stop - first)
        for node, parent in enumerate(parents.tolist()):
            if node > 0 and parent >= 0:
                draws[node] = sum(bool(is_drawn[child]) for child in children[parent])
                children[parent].append(node)
        sub_indices = rows << 16 | torch.tensor(draws, dtype=torch.int64, device=rows.device)
        accept = uniforms(seed, ACCEPT, start + rows * 0, sub_indices)
        residual = uniforms(seed, RESIDUAL, start + trees.depths[first:stop].long(), rows * 0)
        ratios = torch.where(is_drawn, p / q, p).tolist()
        drafted = _Drafted(target, probs, tokens.tolist(), children, is_drawn.tolist(), ratios, accept, residual)
        requests.append(drafted)
    return requests


def _padded(
    walks: list[list[tuple[int, int]] | None], max_depth: int, device: torch.device
) -> tuple[Tensor, Tensor]:  # [B, max_depth + 2] and [B, max_depth] int64
    emitted, paths = [], []
    for walked in walks:
        path, tokens = [node for node, _ in walked or ()][:-1], [token for _, token in walked or ()]
        count = -1 if walked is None else len(tokens)
        emitted.append([count, *tokens] + [-1] * (max_depth + 1 - len(tokens)))
        paths.append(path + [-1] * (max_depth - len(path)))
    said, kept = (torch.tensor(rows, dtype=torch.int64, device=device) for rows in (emitted, paths))
    return said, kept
