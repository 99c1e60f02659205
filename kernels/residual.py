"""What is left of a target row p beside the draft's q, and a draw from it by running sums over parts and inside one.

Device functions of `verify_parts`.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from .philox import uniforms

RESIDUAL: tl.constexpr = tl.constexpr(3)  # a role of the random words, as in specdec.noise


@triton.jit
def left_of(
    row,
    index,
    weight,
    scores_ptr,
    vocab,
    scores_stride,
    probs_ptr,
    probs_stride,
    tokens_ptr,
    sampled_ptr,
    tops_ptr,
    totals_ptr,
):  # -> float64
    """(weight * p - q)+ of one row, in float32 as the reference has it; q of a chosen token is a point mass."""
    mask = index < vocab
    scores = tl.load(scores_ptr + row * scores_stride + index, mask=mask, other=float("-inf")).to(tl.float32)
    p = tl.div_rn(tl.exp(scores - tl.load(tops_ptr + row)), tl.load(totals_ptr + row))
    q = (index == tl.load(tokens_ptr + row + 1)).to(tl.float32)
    if probs_ptr is not None:
        if tl.load(sampled_ptr + row + 1) != 0:
            q = tl.load(probs_ptr + row * probs_stride + index, mask=mask, other=0.0).to(tl.float32)
    return tl.maximum(weight.to(tl.float32) * p - q, 0.0).to(tl.float64)


@triton.jit
def residual_uniform(seed, position):
    return tl.sum(uniforms(seed, RESIDUAL, position, tl.zeros((1,), tl.uint32)), 0)


@triton.jit
def part_at(masses, goal, PARTS: tl.constexpr):  # -> part, mass before it
    """The part in which the running sum passes the goal; always one that has mass."""
    part = tl.arange(0, PARTS)
    sums = tl.cumsum(masses, 0)
    passed = tl.min(tl.where((sums > goal) & (masses > 0), part, PARTS), 0)
    chosen = tl.minimum(passed, tl.max(tl.where(masses > 0, part, 0), 0))
    return chosen, tl.max(tl.where(part < chosen, sums, 0.0), 0)


@triton.jit
def index_at(weights, before, goal, index):
    """The index at which the running sum passes the goal; always one that has weight."""
    sums = before + tl.cumsum(weights, 0)
    passed = tl.min(tl.where((sums > goal) & (weights > 0), index, 0x7FFFFFFF), 0)
    return tl.minimum(passed, tl.max(tl.where(weights > 0, index, 0), 0))
