"""Temperature, top-k, top-p and min-p without a sort, in Triton."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .order import OPTIONS, image, value_of

TILE = 4096  # entries of a row that are looked at together


def warp(scores: Tensor, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """See `reference_sampling.warp`."""
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    num_rows, vocab = scores.shape
    warped = torch.empty(num_rows, vocab, dtype=torch.float32, device=scores.device)
    if num_rows == 0:
        return warped
    _warp_kernel[(num_rows,)](
        scores,
        warped,
        temperatures,
        top_k,
        top_p,
        min_p,
        vocab,
        scores.stride(0),
        TILE=min(TILE, triton.next_power_of_2(vocab)),
        num_warps=8,
        **OPTIONS,
    )
    return warped


@triton.jit
def _warp_kernel(
    scores_ptr, warped_ptr, temperatures_ptr, top_k_ptr, top_p_ptr, min_p_ptr, vocab, row_stride, TILE: tl.constexpr
):
    """One program per row. The borders are found by bisection over the images of the values, in at most 32 steps each.

    Every pass reads the row as `_tempered` left it: dividing by the temperature can make different scores equal.
    """
    row = tl.program_id(0).to(tl.int64)
    warped = warped_ptr + row * vocab
    temperature = tl.load(temperatures_ptr + row).to(tl.float32)
    top = _tempered(scores_ptr + row * row_stride, warped, temperature, vocab, TILE)
    tl.debug_barrier()  # other threads may read what this one wrote
    k = tl.load(top_k_ptr + row)
    low = image(float("-inf"))
    if (k > 0) & (k < vocab):
        low = _top_k_border(warped, k, low, image(top), vocab, TILE)
    p = tl.load(top_p_ptr + row)
    border = low  # values above it are kept; of those at it, all but the first `num_removed`
    num_removed = vocab * 0
    if p < 1:
        goal = p.to(tl.float32) * _mass_above(warped, low - 1, top, vocab, TILE)
        border = _top_p_border(warped, goal, low, top, vocab, TILE)
        num_removed = _removed_at(warped, border, goal, top, vocab, TILE)
    least = tl.load(min_p_ptr + row).to(tl.float32)
    _write(warped, border, num_removed, least, top, vocab, TILE)


@triton.jit
def _tempered(scores, warped, temperature, vocab, TILE: tl.constexpr):  # -> greatest value
    """Writes scores / temperature, rounded as torch does."""
    best = tl.full((TILE,), float("-inf"), tl.float32)
    for first in range(0, vocab, TILE):
        index = first + tl.arange(0, TILE)
        values = tl.load(scores + index, mask=index < vocab, other=float("-inf")).to(tl.float32)
        values = tl.div_rn(values, temperature)
        tl.store(warped + index, values, mask=index < vocab)
        best = tl.maximum(best, values)
    return tl.max(best, 0)


@triton.jit
def _top_k_border(warped, k, low, high, vocab, TILE: tl.constexpr):  # -> image
    """The image of the k-th greatest value: the lowest above which there are fewer than k."""
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)
        count = tl.zeros((TILE,), tl.int32)
        for first in range(0, vocab, TILE):
            index = first + tl.arange(0, TILE)
            values = tl.load(warped + index, mask=index < vocab, other=float("-inf"))
            count += (image(values) > middle).to(tl.int32)
        if tl.sum(count, 0) < k:
            high = middle
        else:
            low = middle + 1
    return low


@triton.jit
def _mass_above(warped, border, top, vocab, TILE: tl.constexpr):
    """Sum of exp(value - top) of the values whose image is above the border. Always added in the same order, so that
    rounding does not make it grow with the border."""
    mass = tl.zeros((TILE,), tl.float32)
    for first in range(0, vocab, TILE):
        index = first + tl.arange(0, TILE)
        values = tl.load(warped + index, mask=index < vocab, other=float("-inf"))
        mass += tl.where(image(values) > border, tl.exp(values - top), 0.0)
    return tl.sum(mass, 0)


@triton.jit
def _top_p_border(warped, goal, low, top, vocab, TILE: tl.constexpr):  # -> image
    """The lowest image above which there is less mass than `goal`; that of the greatest value if none has."""
    high = image(top)
    while low < high:
        middle = (low & high) + ((low ^ high) >> 1)
        if _mass_above(warped, middle, top, vocab, TILE) < goal:
            high = middle
        else:
            low = middle + 1
    return low


@triton.jit
def _removed_at(warped, border, goal, top, vocab, TILE: tl.constexpr):
    """How many of the values at the border top-p removes: as many of them stay as it takes to reach the goal."""
    count = tl.zeros((TILE,), tl.int32)
    for first in range(0, vocab, TILE):
        index = first + tl.arange(0, TILE)
        values = tl.load(warped + index, mask=index < vocab, other=float("-inf"))
        count += ((image(values) == border) & (index < vocab)).to(tl.int32)
    num_equal = tl.sum(count, 0)
    wanted = goal - _mass_above(warped, border, top, vocab, TILE)
    mass = tl.exp(value_of(border) - top)
    # A value of no mass is at the border only if all above it are not enough, by rounding: then all of them stay.
    num_kept = tl.where(mass * num_equal > wanted, tl.ceil(wanted / mass), num_equal.to(tl.float32))
    return num_equal - tl.maximum(num_kept.to(tl.int32), 1)


@triton.jit
def _write(warped, border, num_removed, least, top, vocab, TILE: tl.constexpr):
    """Sets what is removed to -inf."""
    num_before = num_removed * 0  # values at the border in the tiles before
    for first in range(0, vocab, TILE):
        index = first + tl.arange(0, TILE)
        values = tl.load(warped + index, mask=index < vocab, other=float("-inf"))
        images = image(values)
        is_kept = images >= border
        if num_removed > 0:
            is_equal = (images == border).to(tl.int32)
            is_kept = is_kept & ((is_equal == 0) | (num_before + tl.cumsum(is_equal, 0) > num_removed))
            num_before += tl.sum(is_equal, 0)
        is_kept = is_kept & (tl.exp(values - top) >= least)
        tl.store(warped + index, tl.where(is_kept, values, float("-inf")), mask=index < vocab)
