"""What is left of a target row p beside the draft's q, and a draw from it by running sums over parts and inside one.

Device functions of `verify_parts` and `verify_trees`.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def pair_of(
    row,
    index,
    point,
    scores_ptr,
    vocab,
    scores_stride,
    probs_ptr,
    probs_stride,
    tops_ptr,
    totals_ptr,
):  # -> p, q, float32
    """p and q of one row at some tokens; q is a point mass at `point`, the token of a chosen child, unless it is -1."""
    mask = index < vocab
    scores = tl.load(scores_ptr + row * scores_stride + index, mask=mask, other=float("-inf")).to(tl.float32)
    p = tl.div_rn(tl.exp(scores - tl.load(tops_ptr + row)), tl.load(totals_ptr + row))
    q = (index == point).to(tl.float32)
    if probs_ptr is not None:
        if point < 0:
            q = tl.load(probs_ptr + row * probs_stride + index, mask=mask, other=0.0).to(tl.float32)
    return p, q


@triton.jit
def left_of(p, q, weight):  # float32, float32, float64 -> float64
    """(weight * p - q)+, in float32 as the reference has it."""
    return tl.maximum(weight.to(tl.float32) * p - q, 0.0).to(tl.float64)


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
