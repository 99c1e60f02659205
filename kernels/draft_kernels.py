"""The best tokens of a draft model's rows and their log-probabilities, and tokens drawn from them, in Triton."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .order import OPTIONS, image_of, index_of, ranked, value_of
from .philox import uniforms
from .residual import index_at, part_at

TILE = 2048  # entries of a row that one program looks at
DRAFT: tl.constexpr = tl.constexpr(1)  # a role of the random words, as in specdec.noise


def draft_topk(logits: Tensor, count: int, temperatures: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """See `reference_sampling.draft_topk`."""
    logits = logits if logits.stride(-1) == 1 else logits.contiguous()
    num_rows, vocab = logits.shape
    tokens = torch.empty(num_rows, count, dtype=torch.int64, device=logits.device)
    log_probs = torch.empty(num_rows, count, device=logits.device)
    if num_rows == 0:
        return tokens, log_probs
    num_parts = triton.cdiv(vocab, TILE)
    ranks = torch.empty(num_rows, num_parts, count, dtype=torch.int64, device=logits.device)
    maxima = torch.empty(num_rows, num_parts, device=logits.device)
    masses = torch.empty(num_rows, num_parts, device=logits.device)
    _topk_parts_kernel[num_rows, num_parts](
        logits,
        temperatures,
        ranks,
        maxima,
        masses,
        vocab,
        logits.stride(0),
        count,
        TILE=TILE,
        num_warps=4,
        **OPTIONS,
    )
    _topk_kernel[(num_rows,)](
        ranks,
        maxima,
        masses,
        tokens,
        log_probs,
        num_parts,
        count,
        PARTS=triton.next_power_of_2(num_parts),
        RANKS=triton.next_power_of_2(num_parts * count),
        num_warps=4,
        **OPTIONS,
    )
    return tokens, log_probs


def draft_draw(probs: Tensor, seeds: Tensor, starts: Tensor, nodes: Tensor) -> Tensor:  # [n] int64
    """See `reference_sampling.draft_draw`."""
    probs = probs if probs.stride(-1) == 1 else probs.contiguous()
    num_rows, vocab = probs.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=probs.device)
    if num_rows == 0:
        return tokens
    num_parts = triton.cdiv(vocab, TILE)
    masses = torch.empty(num_rows, num_parts, dtype=torch.float64, device=probs.device)
    rows = probs, vocab, probs.stride(0), masses
    sizes: dict[str, Any] = {"TILE": TILE, "num_warps": 4, **OPTIONS}
    _sum_parts_kernel[num_rows, num_parts](*rows, **sizes)
    parts = triton.next_power_of_2(num_parts)
    _draw_kernel[(num_rows,)](*rows, seeds, starts, nodes, tokens, num_parts, PARTS=parts, **sizes)
    return tokens


@triton.jit
def _topk_parts_kernel(
    logits_ptr,
    temperatures_ptr,
    ranks_ptr,
    maxima_ptr,
    masses_ptr,
    vocab,
    row_stride,
    count,
    TILE: tl.constexpr,
):
    """One program per row and tile: its best entries, one after the other, and the sum of exp(value - maximum)."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = part * TILE + tl.arange(0, TILE)
    values = tl.load(logits_ptr + row * row_stride + index, mask=index < vocab, other=float("-inf")).to(tl.float32)
    if temperatures_ptr is not None:
        values = tl.div_rn(values, tl.load(temperatures_ptr + row).to(tl.float32))
    top = tl.max(values, 0)
    mass = tl.sum(tl.exp(values - tl.where(top == float("-inf"), 0.0, top)), 0)
    part = row * tl.num_programs(1) + part
    tl.store(maxima_ptr + part, top)
    tl.store(masses_ptr + part, mass)
    ranks = ranked(values, index)
    for place in range(count):
        best = tl.max(ranks, 0)
        tl.store(ranks_ptr + part * count + place, best)
        ranks = tl.where(ranks == best, -0x7FFFFFFFFFFFFFFF, ranks)


@triton.jit
def _topk_kernel(
    ranks_ptr,
    maxima_ptr,
    masses_ptr,
    tokens_ptr,
    log_probs_ptr,
    num_parts,
    count,
    PARTS: tl.constexpr,
    RANKS: tl.constexpr,
):
    """One program per row: the best of the best, and the mass of all."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    maxima = tl.load(maxima_ptr + row * num_parts + part, mask=part < num_parts, other=float("-inf"))
    masses = tl.load(masses_ptr + row * num_parts + part, mask=part < num_parts, other=0.0)
    top = tl.max(maxima, 0)
    log_mass = tl.log(tl.sum(masses * tl.exp(maxima - top), 0))
    index = tl.arange(0, RANKS)
    ranks = tl.load(
        ranks_ptr + row * num_parts * count + index, mask=index < num_parts * count, other=-0x7FFFFFFFFFFFFFFF
    )
    for place in range(count):
        best = tl.max(ranks, 0)
        tl.store(tokens_ptr + row * count + place, index_of(best))
        tl.store(log_probs_ptr + row * count + place, value_of(image_of(best)) - top - log_mass)
        ranks = tl.where(ranks == best, -0x7FFFFFFFFFFFFFFF, ranks)


@triton.jit
def _sum_parts_kernel(probs_ptr, vocab, row_stride, masses_ptr, TILE: tl.constexpr):
    """One program per row and tile: its sum."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = part * TILE + tl.arange(0, TILE)
    probs = tl.load(probs_ptr + row * row_stride + index, mask=index < vocab, other=0.0).to(tl.float64)
    tl.store(masses_ptr + row * tl.num_programs(1) + part, tl.sum(probs, 0))


@triton.jit
def _draw_kernel(
    probs_ptr,
    vocab,
    row_stride,
    masses_ptr,
    seeds_ptr,
    starts_ptr,
    nodes_ptr,
    tokens_ptr,
    num_parts,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program per row: the tile, then the token in which the running sum passes the uniform."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    masses = tl.load(masses_ptr + row * num_parts + part, mask=part < num_parts, other=0.0)
    sub_index = tl.zeros((1,), tl.uint32) + (tl.load(nodes_ptr + row) << 16).to(tl.uint32)
    uniform = uniforms(tl.load(seeds_ptr + row), DRAFT, tl.load(starts_ptr + row), sub_index)
    goal = tl.sum(masses, 0) * tl.sum(uniform, 0)
    chosen, before = part_at(masses, goal, PARTS)
    index = chosen * TILE + tl.arange(0, TILE)
    probs = tl.load(probs_ptr + row * row_stride + index, mask=index < vocab, other=0.0).to(tl.float64)
    tl.store(tokens_ptr + row, index_at(probs, before, goal, index).to(tl.int64))
