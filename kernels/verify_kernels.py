"""Token rejection and block verification of sampled drafts in Triton, several launches and no wait in between.

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
from .verify_trees import first_tests_kernel, walk_kernel

TILE = 4096  # tokens of a part
REGISTERS = 240  # of a thread of the walk, of which few run at once; left alone, compilers keep some in memory


class _Rows(NamedTuple):
    """What is known of the rows of p: scratch of one call."""

    masses: Tensor  # [T, num_parts] float64: sum of exp(score - maximum) of the part; later what is left of p there
    tops: Tensor  # [T] float32
    totals: Tensor  # [T] float32: sum of exp(score - top) of the row
    drawn: Tensor  # [T] int64: a draw from p
    uniforms: Tensor  # [T] float64: for a draw behind the node
    weights: Tensor  # [T] float64: of p in what is left behind the node, (weight * p - q)+; negative: nobody asks


class _Call(NamedTuple):
    """The arguments of one call, as the kernels take them."""

    p: tuple[Any, ...]
    q: tuple[Any, ...]
    keys: tuple[Tensor, Tensor]
    per_node: tuple[int, int, int]  # grids
    per_part: tuple[int, int, int]
    nodes: int  # sizes as powers of two
    columns: int
    parts: int
    accepted: Tensor  # [B] int32
    emitted: Tensor  # [B, max_depth + 2]
    path: Tensor  # [B, max_depth]

    @property
    def num_parts(self) -> int:
        return self.per_part[0]


def verify_rejection(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference_verify.verify_rejection`."""
    call = _call(scores, draft_probs, trees, seeds, starts)
    rows = _drawn(call, trees)
    drafted = trees.tokens, trees.parents, sampled.view(torch.uint8), trees.cu_nodes
    grid, device, num_rows = (seeds.shape[0],), scores.device, scores.shape[0]
    tests = torch.empty(num_rows, dtype=torch.float64, device=device)  # uniforms of the nodes' tests
    flags = [torch.empty(num_rows, dtype=torch.int8, device=device) for _ in range(2)]
    known = rows.tops, rows.totals, rows.drawn, rows.weights, tests, *flags, *call.keys, call.accepted
    sizes: dict[str, Any] = {"NODES": call.nodes, "num_warps": max(1, call.nodes // 32), **OPTIONS}
    first_tests_kernel[grid](call.p[0], call.p[2], *call.q, *drafted, *known, trees.max_depth, **sizes)

    sums = torch.empty(num_rows, call.num_parts, dtype=torch.float64, device=device)
    _sum_left(call, trees, sampled, rows, sums)
    refused = torch.empty(*grid, trees.max_nodes, dtype=torch.int64, device=device)
    divisors = torch.empty(*grid, trees.max_nodes, 2, device=device)
    bounds = call.num_parts, trees.max_depth, trees.max_nodes
    known = rows.masses, sums, *rows[1:], tests, refused, divisors, *call[-3:]
    sizes = {"NODES": call.nodes, "COLUMNS": call.columns, "TILE": TILE, "PARTS": call.parts, **OPTIONS}
    walk_kernel[grid](*call.p, *call.q, *drafted, *known, *bounds, num_warps=8, maxnreg=REGISTERS, **sizes)
    return call.emitted, call.path


def verify_block(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """See `reference_verify.verify_block`."""
    call = _call(scores, draft_probs, trees, seeds, starts)
    rows = _drawn(call, trees)
    drafted = trees.tokens, sampled.view(torch.uint8), trees.cu_nodes
    one_warp: dict[str, Any] = {"NODES": call.nodes, "num_warps": 1, **OPTIONS}
    grid = (seeds.shape[0],)
    chain_kernel[grid](*call.p, *call.q, *drafted, rows.tops, rows.totals, rows.weights, call.accepted, **one_warp)
    _sum_left(call, trees, sampled, rows, None)
    deepest_kernel[grid](
        trees.cu_nodes, rows.masses, rows.weights, *call.keys, call.accepted, call.num_parts, **one_warp
    )
    bounds = call.num_parts, trees.max_depth
    sizes: dict[str, Any] = {"COLUMNS": call.columns, "TILE": TILE, "PARTS": call.parts, "num_warps": 8, **OPTIONS}
    emit_kernel[grid](*call.p, *call.q, *drafted, *rows, *call[-3:], *bounds, **sizes)
    return call.emitted, call.path


def _call(scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, seeds: Tensor, starts: Tensor) -> _Call:
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    if draft_probs is not None and draft_probs.stride(-1) != 1:
        draft_probs = draft_probs.contiguous()
    num_requests, vocab, device = seeds.shape[0], scores.shape[1], scores.device
    num_parts = triton.cdiv(vocab, TILE)
    return _Call(
        (scores, vocab, scores.stride(0)),
        (draft_probs, 0 if draft_probs is None else draft_probs.stride(0)),
        (seeds, starts),
        (1, trees.max_nodes, num_requests),
        (num_parts, trees.max_nodes, num_requests),
        triton.next_power_of_2(trees.max_nodes),
        triton.next_power_of_2(trees.max_depth + 1),
        triton.next_power_of_2(num_parts),
        torch.empty(num_requests, dtype=torch.int32, device=device),
        torch.empty(num_requests, trees.max_depth + 2, dtype=torch.int64, device=device),
        torch.empty(num_requests, trees.max_depth, dtype=torch.int64, device=device),
    )


def _drawn(call: _Call, trees: PackedTrees) -> _Rows:
    """Masses of all parts of p, and a draw from every row."""
    num_rows, device = call.p[0].shape[0], call.accepted.device
    maxima = torch.empty(num_rows, call.num_parts, device=device)
    rows = _Rows(
        torch.empty(num_rows, call.num_parts, dtype=torch.float64, device=device),
        torch.empty(num_rows, device=device),
        torch.empty(num_rows, device=device),
        torch.empty(num_rows, dtype=torch.int64, device=device),
        torch.empty(num_rows, dtype=torch.float64, device=device),
        torch.empty(num_rows, dtype=torch.float64, device=device),
    )
    sizes: dict[str, Any] = {"TILE": TILE, "num_warps": 8, **OPTIONS}
    parts_kernel[call.per_part](*call.p, trees.cu_nodes, maxima, rows.masses, **sizes)
    draw_kernel[call.per_node](
        *call.p, trees.cu_nodes, trees.depths, maxima, *rows[:5], *call.keys, call.num_parts, PARTS=call.parts, **sizes
    )
    return rows


def _sum_left(call: _Call, trees: PackedTrees, sampled: Tensor, rows: _Rows, sums: Tensor | None) -> None:
    """What is left of p in the parts of the rows with a weight."""
    drafted = trees.tokens, sampled.view(torch.uint8), trees.cu_nodes
    left_kernel[call.per_part](
        *call.p,
        *call.q,
        *drafted,
        rows.masses,
        sums,
        rows.tops,
        rows.totals,
        rows.weights,
        IS_BLOCK=sums is None,
        TILE=TILE,
        num_warps=8,
        **OPTIONS,
    )
