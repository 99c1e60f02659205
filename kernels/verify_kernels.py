"""Token rejection and block verification of sampled chains in Triton, several launches and no wait in between.

A row of p or of what is left of it is cut into parts of `TILE` tokens. A draw by inversion, the token whose stretch of
the running sum holds a uniform, finds first the part and then the token in it.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .order import OPTIONS
from .trees import PackedTrees
from .verify_parts import chain_kernel, deepest_kernel, draw_kernel, emit_kernel, left_kernel, parts_kernel

TILE = 4096  # tokens of a part


class _Rows(NamedTuple):
    """What is known of the rows of p: scratch of one call."""

    maxima: Tensor  # [T, num_parts] float32
    masses: Tensor  # [T, num_parts] float64: sum of exp(score - maximum) of the part; later what is left of p there
    tops: Tensor  # [T] float32
    totals: Tensor  # [T] float32: sum of exp(score - top) of the row
    drawn: Tensor  # [T] int64: a draw from p
    weights: Tensor  # [T] float64: of p in what is left behind the node, (weight * p - q)+; negative: nobody asks


def verify_rejection(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> Tensor:
    """See `reference_verify.verify_rejection`."""
    return _verify(scores, draft_probs, trees, (sampled, seeds, starts), is_block=False)


def verify_block(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> Tensor:
    """See `reference_verify.verify_block`."""
    return _verify(scores, draft_probs, trees, (sampled, seeds, starts), is_block=True)


def _verify(
    scores: Tensor,
    draft_probs: Tensor | None,
    trees: PackedTrees,
    keys: tuple[Tensor, Tensor, Tensor],
    is_block: bool,
) -> Tensor:  # [B, max_depth + 2]
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    if draft_probs is not None and draft_probs.stride(-1) != 1:
        draft_probs = draft_probs.contiguous()
    sampled, seeds, starts = keys
    num_requests, vocab, device = trees.cu_nodes.shape[0] - 1, scores.shape[1], scores.device
    num_parts = triton.cdiv(vocab, TILE)
    rows = _rows(scores.shape[0], num_parts, device)
    accepted = torch.empty(num_requests, dtype=torch.int32, device=device)
    emitted = torch.empty(num_requests, trees.max_depth + 2, dtype=torch.int64, device=device)
    p = (scores, vocab, scores.stride(0))
    q = (draft_probs, 0 if draft_probs is None else draft_probs.stride(0))
    chains = (trees.tokens, sampled.view(torch.uint8), trees.cu_nodes)
    known = (seeds, starts, accepted)
    per_node, per_part = ((count, trees.max_nodes, num_requests) for count in (1, num_parts))
    sizes: dict[str, Any] = {"TILE": TILE, "num_warps": 8, **OPTIONS}
    parts = triton.next_power_of_2(num_parts)
    nodes: dict[str, Any] = {"NODES": triton.next_power_of_2(trees.max_nodes), "num_warps": 1, **OPTIONS}
    parts_kernel[per_part](*p, trees.cu_nodes, rows.maxima, rows.masses, **sizes)
    draw_kernel[per_node](*p, trees.cu_nodes, *rows[:5], seeds, starts, num_parts, PARTS=parts, **sizes)
    chain_kernel[(num_requests,)](*p, *q, *chains, *rows[2:], *known, IS_BLOCK=is_block, **nodes)
    left_kernel[per_part](*p, *q, *chains, *rows, **sizes)
    if is_block:
        deepest_kernel[(num_requests,)](trees.cu_nodes, rows.masses, rows.weights, *known, num_parts, **nodes)
    columns = triton.next_power_of_2(trees.max_depth + 1)
    bounds = (num_parts, trees.max_depth)
    emit_kernel[(num_requests,)](
        *p, *q, *chains, *rows, *known, emitted, *bounds, COLUMNS=columns, PARTS=parts, **sizes
    )
    return emitted


def _rows(num_rows: int, num_parts: int, device: torch.device) -> _Rows:
    maxima = torch.empty(num_rows, num_parts, device=device)
    masses = torch.empty(num_rows, num_parts, dtype=torch.float64, device=device)
    tops, totals = torch.empty(num_rows, device=device), torch.empty(num_rows, device=device)
    drawn = torch.empty(num_rows, dtype=torch.int64, device=device)
    return _Rows(maxima, masses, tops, totals, drawn, torch.empty(num_rows, dtype=torch.float64, device=device))
