"""What the Triton kernels of tree attention are made of: loading rows, softmax step by step, ancestors."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from .e4m3 import numbers

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_queries(query, lines, is_row, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Queries [M, PADDED] that begin at `lines`; zeros where there is none."""
    d = tl.arange(0, PADDED)
    return tl.load(query + lines[:, None] + d[None, :], mask=is_row[:, None] & (d < DIM)[None, :], other=0.0)


@triton.jit
def load_rows(pool, slots, is_key, head, HEADS: tl.constexpr, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Keys or values [slots, PADDED] of one head; zeros where there is none."""
    d = tl.arange(0, PADDED)
    rows = pool + head * DIM + (slots * (HEADS * DIM))[:, None] + d[None, :]
    if is_key is not None:
        return tl.load(rows, mask=is_key[:, None] & (d < DIM)[None, :], other=0.0)
    if DIM < PADDED:
        return tl.load(rows, mask=(d < DIM)[None, :], other=0.0)
    return tl.load(rows)


@triton.jit
def fold(q, k, v, keep, top, total, mixed, scale, cap):
    """One step of online softmax (Milakov and Gimelshein, 1805.02867) in base 2. q [M, K], k [N, K], v [N, V]."""
    k, v = numbers(k, q.dtype), numbers(v, q.dtype)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee")
    factor = scale * LOG2E
    if cap is not None:  # cap * tanh(score / cap), finite for every score
        scores = cap - 2.0 * cap / (tl.exp2(scores * (factor * 2.0 / cap)) + 1.0)
        factor = LOG2E
    if keep is not None:
        scores = tl.where(keep, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1) * factor)  # the factor is positive, so it commutes with the maximum
    shift = new_top
    if keep is not None:  # a row that has seen nothing yet
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
    weights = tl.exp2(scores * factor - shift[:, None])
    decay = tl.exp2(top - shift)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * decay[:, None], input_precision="ieee")
    return new_top, total * decay + tl.sum(weights, 1), mixed


@triton.jit
def sunk(sinks, head, is_row, top, total, mixed):
    """The same with one more key, whose score is the sink of the row's head and whose value is zero; if there are."""
    if sinks is not None:
        sink = tl.load(sinks + head, mask=is_row, other=0.0).to(tl.float32) * LOG2E
        new_top = tl.maximum(top, sink)
        decay = tl.exp2(top - new_top)
        top, total, mixed = new_top, total * decay + tl.exp2(sink - new_top), mixed * decay[:, None]
    return top, total, mixed


@triton.jit
def store_means(target, lines, mixed, total, is_row, DIM: tl.constexpr, PADDED: tl.constexpr):
    """Stores weighted means to lines of [.., DIM]; zeros for a row that saw nothing."""
    d = tl.arange(0, PADDED)
    means = (mixed / tl.where(total > 0, total, 1.0)[:, None]).to(target.dtype.element_ty)
    tl.store(target + (lines * DIM)[:, None] + d[None, :], means, mask=is_row[:, None] & (d < DIM)[None, :])


@triton.jit
def ancestors(words, num_words, is_noded, node, j):
    """Whether nodes `node + j` (`node` may be negative, j is 0 .. 63) are ancestors, by lines of words; [M, N] bool."""
    word = tl.where(is_noded, (node + 128) // 64 - 2, -2)  # rounded down; [M], as its tests shall be
    shift = ((node + 128) % 64).to(tl.uint64)
    low = tl.load(words + word, mask=(word >= 0) & (word < num_words), other=0).to(tl.uint64)
    high = tl.load(words + word + 1, mask=(word >= -1) & (word + 1 < num_words), other=0).to(tl.uint64)
    bits = (low >> shift) | ((high << 1) << (63 - shift))
    return ((bits[:, None] >> j.to(tl.uint64)[None, :]) & 1) != 0
