"""The best tokens of a draft model's rows and their log-probabilities, in Triton."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .order import OPTIONS, image_of, index_of, ranked, value_of

TILE = 2048  # entries of a row that one program looks at


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
