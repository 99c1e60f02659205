"""Token rejection and block verification of chains in plain torch, with the names and signatures of the kernels."""

from typing import NamedTuple

import torch
from torch import Tensor

from .reference import philox, pick
from .trees import PackedTrees

ACCEPT, RESIDUAL = 2, 3  # roles of the random words, as in specdec.noise


class _Chain(NamedTuple):
    """One request's chain of k drafted tokens and its uniforms."""

    target: Tensor  # [k + 1, vocab] p
    proposal: Tensor  # [k, vocab] q; a point mass for a chosen token
    tokens: list[int]  # [k]
    sampled: list[bool]  # [k]
    ratios: list[float]  # [k] p(x) / q(x), p(x) of a chosen token
    accept: list[float]  # [k + 1] for the test of the token behind each node
    residual: list[float]  # [k + 1] for a draw behind each node


def verify_rejection(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> Tensor:
    """What token rejection (Leviathan et al. 2211.17192) emits for each chain: `verifiers.rejection`, batched.

    Args:
        scores: [T, vocab] final target scores, p = softmax.
        draft_probs: [T, vocab] float32: row v is what a sampled token behind node v was drawn from.
        trees: chains.
        sampled: [T] bool: the token was drawn from its parent's row, not chosen.
        seeds: [B] int64, 64 bits.
        starts: [B] number of committed tokens.

    Returns:
        [B, max_depth + 2] int64: how many tokens a request emits, and which; -1 behind them. The number is 0 without
        nodes, and -1 if a token that counts as sampled has no q: the caller has to refuse such a draft.

    Example:
        >>> p, q = torch.tensor([[0.2, 0.8], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
        >>> chain = torch.tensor([0, 1]), torch.tensor([-1, 0]), torch.tensor([0, 1]), torch.tensor([0, 2])
        >>> keys = torch.tensor([False, True]), torch.tensor([0]), torch.tensor([4])
        >>> verify_rejection(p.log(), q, PackedTrees(*chain, 2, 1), *keys)[:, :2]  # p / q = 1.6: always accepted
        tensor([[2, 1]])
    """
    emitted = []
    for chain in _chains(scores, draft_probs, trees, (sampled, seeds, starts)):
        accepted = 0
        if chain is None or not chain.target.shape[0]:
            emitted.append([-1 if chain is None else 0])
            continue
        rest = chain.target[0]
        while accepted < len(chain.tokens):
            token = chain.tokens[accepted]
            if chain.sampled[accepted]:
                passes = chain.accept[accepted] < chain.ratios[accepted]
            else:
                passes = pick(rest, chain.residual[accepted]) == token
            if not passes:
                break
            accepted += 1
            rest = chain.target[accepted]
        if accepted < len(chain.tokens) and chain.sampled[accepted]:
            left = (rest - chain.proposal[accepted]).clamp_min(0)
            rest = left if float(left.sum()) > torch.finfo(left.dtype).eps else rest
        next_token = pick(rest, chain.residual[accepted])
        emitted.append([accepted + 1, *chain.tokens[:accepted], next_token])
    return _padded(emitted, trees.max_depth, scores.device)


def verify_block(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> Tensor:
    """What block verification (Sun et al. 2403.10444, algorithm 2) emits for each chain: `verifiers.block`, batched.

    Arguments and result as of `verify_rejection`.

    Example:
        >>> p, q = torch.tensor([[0.2, 0.8], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.0, 0.0]])
        >>> chain = torch.tensor([0, 1]), torch.tensor([-1, 0]), torch.tensor([0, 1]), torch.tensor([0, 2])
        >>> keys = torch.tensor([False, True]), torch.tensor([0]), torch.tensor([4])
        >>> verify_block(p.log(), q, PackedTrees(*chain, 2, 1), *keys)[:, :2]  # p / q = 1.6: always accepted
        tensor([[2, 1]])
    """
    emitted = []
    for chain in _chains(scores, draft_probs, trees, (sampled, seeds, starts)):
        if chain is None or not chain.target.shape[0]:
            emitted.append([-1 if chain is None else 0])
            continue
        length, weights = len(chain.tokens), [1.0]
        for ratio in chain.ratios:
            weights.append(min(1.0, weights[-1] * ratio))
        scale = torch.tensor(weights[:length], dtype=chain.target.dtype, device=scores.device)
        left = (scale[:, None] * chain.target[:length] - chain.proposal).clamp_min_(0)
        masses = left.sum(-1).tolist()
        accepted = 0
        for node in range(1, length + 1):
            passes = weights[node]
            if node < length:
                missed = masses[node] + 1 - weights[node]
                passes = masses[node] / missed if missed > 0 else 1.0
            if chain.accept[node - 1] < passes:
                accepted = node
        is_left = accepted < length and masses[accepted] > torch.finfo(left.dtype).eps
        next_token = pick(left[accepted] if is_left else chain.target[accepted], chain.residual[accepted])
        emitted.append([accepted + 1, *chain.tokens[:accepted], next_token])
    return _padded(emitted, trees.max_depth, scores.device)


def _chains(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, keys: tuple[Tensor, Tensor, Tensor]
) -> list[_Chain | None]:
    """The requests' chains; None for one with a token of no q."""
    chains: list[_Chain | None] = []
    bounds, sampled = trees.cu_nodes.tolist(), keys[0].tolist()
    requests = zip(bounds[:-1], bounds[1:], keys[1].tolist(), keys[2].tolist(), strict=True)
    for first, stop, seed, start in requests:
        target = scores[first:stop].float().softmax(-1)
        tokens = trees.tokens[first + 1 : stop].long()
        proposal = torch.zeros_like(target[:-1]).scatter_(1, tokens[:, None], 1.0)
        drawn = torch.tensor(sampled[first + 1 : stop], dtype=torch.bool, device=scores.device)
        if draft_probs is not None:
            proposal = torch.where(drawn[:, None], draft_probs[first : max(stop - 1, first)].float(), proposal)
        q = proposal.gather(1, tokens[:, None]).squeeze(1).double()
        if (drawn & ~(q > 0)).any() or (draft_probs is None and drawn.any()):
            chains.append(None)
            continue
        p = target[:-1].gather(1, tokens[:, None]).squeeze(1).double()
        nodes = torch.arange(stop - first, device=scores.device)
        accept = _uniforms(seed, ACCEPT, start + nodes * 0, nodes << 16)
        residual = _uniforms(seed, RESIDUAL, start + nodes, nodes * 0)
        ratios = (p / q).tolist()
        chains.append(_Chain(target, proposal, tokens.tolist(), drawn.tolist(), ratios, accept, residual))
    return chains


def _uniforms(seed: int, role: int, positions: Tensor, sub_indices: Tensor) -> list[float]:  # [n], [n] -> [n]
    """Multiples of 2**-53 in [0, 1)."""
    zero = torch.zeros((), dtype=torch.int64, device=positions.device)
    words = philox(seed & 0xFFFFFFFFFFFFFFFF, positions, zero + role, sub_indices, zero)
    uniforms: list[float] = ((words[:, 0] << 21 | words[:, 1] >> 11).double() * 2.0**-53).tolist()
    return uniforms


def _padded(emitted: list[list[int]], max_depth: int, device: torch.device) -> Tensor:  # [B, max_depth + 2] int64
    return torch.tensor([row + [-1] * (max_depth + 2 - len(row)) for row in emitted], device=device)
