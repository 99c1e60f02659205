"""Steps of `verify_kernels`: mass of every part, a draw from every row, the tests of a block, what is left, the result.

Programs of a request beyond its nodes end at once, so that a bucket may be larger than what is in it.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from .philox import uniforms
from .residual import index_at, left_of, pair_of, part_at

ACCEPT: tl.constexpr = tl.constexpr(2)  # roles of the random words, as in specdec.noise
RESIDUAL: tl.constexpr = tl.constexpr(3)
NEGLIGIBLE: tl.constexpr = tl.constexpr(2.0**-23)  # mass below which a difference of float32 rows is only rounding


@triton.jit
def parts_kernel(
    scores_ptr, vocab, scores_stride, cu_nodes_ptr, maxima_ptr, masses_ptr, TILE: tl.constexpr
):  # grid: part, node, request
    """Maximum of a part and the sum of exp(score - maximum) in it."""
    part, request = tl.program_id(0), tl.program_id(2)
    row = (tl.load(cu_nodes_ptr + request) + tl.program_id(1)).to(tl.int64)
    if row < tl.load(cu_nodes_ptr + request + 1):
        index = part * TILE + tl.arange(0, TILE)
        scores = tl.load(scores_ptr + row * scores_stride + index, mask=index < vocab, other=float("-inf"))
        scores = scores.to(tl.float32)
        top = tl.max(scores, 0)
        mass = tl.exp(scores - tl.where(top == float("-inf"), 0.0, top))
        tl.store(maxima_ptr + row * tl.num_programs(0) + part, top)
        tl.store(masses_ptr + row * tl.num_programs(0) + part, tl.sum(mass.to(tl.float64), 0))


@triton.jit
def draw_kernel(
    scores_ptr,
    vocab,
    scores_stride,
    cu_nodes_ptr,
    depths_ptr,
    maxima_ptr,
    masses_ptr,
    tops_ptr,
    totals_ptr,
    drawn_ptr,
    uniforms_ptr,
    seeds_ptr,
    starts_ptr,
    num_parts,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
):  # grid: 1, node, request
    """Maximum and mass of a row, the uniform for draws behind the node, and a draw from p."""
    node, request = tl.program_id(1), tl.program_id(2)
    row = (tl.load(cu_nodes_ptr + request) + node).to(tl.int64)
    if row < tl.load(cu_nodes_ptr + request + 1):
        part = tl.arange(0, PARTS)
        maxima = tl.load(maxima_ptr + row * num_parts + part, mask=part < num_parts, other=float("-inf"))
        masses = tl.load(masses_ptr + row * num_parts + part, mask=part < num_parts, other=0.0)
        top = tl.max(maxima, 0)
        masses *= tl.exp(maxima - top).to(tl.float64)
        total = tl.sum(masses, 0)
        position = tl.load(starts_ptr + request) + tl.load(depths_ptr + row)
        zero = tl.zeros((1,), tl.uint32)
        uniform = tl.sum(uniforms(tl.load(seeds_ptr + request), RESIDUAL, position, zero), 0)
        goal = total * uniform
        chosen, before = part_at(masses, goal, PARTS)
        index = chosen * TILE + tl.arange(0, TILE)
        scores = tl.load(scores_ptr + row * scores_stride + index, mask=index < vocab, other=float("-inf"))
        weights = tl.exp(scores.to(tl.float32) - top).to(tl.float64)
        tl.store(tops_ptr + row, top)
        tl.store(totals_ptr + row, total.to(tl.float32))
        tl.store(drawn_ptr + row, index_at(weights, before, goal, index).to(tl.int64))
        tl.store(uniforms_ptr + row, uniform)


@triton.jit
def chain_kernel(
    scores_ptr,
    vocab,
    scores_stride,
    probs_ptr,
    probs_stride,
    tokens_ptr,
    sampled_ptr,
    cu_nodes_ptr,
    tops_ptr,
    totals_ptr,
    weights_ptr,
    accepted_ptr,
    NODES: tl.constexpr,
):  # grid: request
    """The weights of a block; `accepted` becomes -1 if a sampled token has no q, else 0."""
    request = tl.program_id(0)
    first = tl.load(cu_nodes_ptr + request).to(tl.int64)
    num_nodes = tl.load(cu_nodes_ptr + request + 1) - first
    node = tl.arange(0, NODES)
    rows = first + node
    has_child = node + 1 < num_nodes
    tokens = tl.load(tokens_ptr + rows + 1, mask=has_child, other=0).to(tl.int64)
    is_sampled = tl.load(sampled_ptr + rows + 1, mask=has_child, other=0) != 0
    scores = tl.load(scores_ptr + rows * scores_stride + tokens, mask=has_child, other=0.0).to(tl.float32)
    tops = tl.load(tops_ptr + rows, mask=has_child, other=0.0)
    p = tl.div_rn(tl.exp(scores - tops), tl.load(totals_ptr + rows, mask=has_child, other=1.0)).to(tl.float64)
    q = tl.zeros((NODES,), tl.float64)
    if probs_ptr is not None:
        q = tl.load(probs_ptr + rows * probs_stride + tokens, mask=has_child & is_sampled, other=0.0).to(tl.float64)
    is_broken = tl.max((has_child & is_sampled & ((q > 0) == 0)).to(tl.int32), 0)
    ratios = tl.where(is_sampled, p / tl.where(q > 0, q, 1.0), p)
    weights = tl.full((NODES,), 1.0, tl.float64)
    weight = tl.max(weights, 0)
    for step in range(num_nodes.to(tl.int32) - 1):
        weight = tl.minimum(weight * tl.sum(tl.where(node == step, ratios, 0.0), 0), 1.0)
        weights = tl.where(node == step + 1, weight, weights)
    tl.store(weights_ptr + rows, weights, mask=node < num_nodes)
    tl.store(accepted_ptr + request, -is_broken)


@triton.jit
def left_kernel(
    scores_ptr,
    vocab,
    scores_stride,
    probs_ptr,
    probs_stride,
    tokens_ptr,
    sampled_ptr,
    cu_nodes_ptr,
    masses_ptr,
    sums_ptr,
    tops_ptr,
    totals_ptr,
    weights_ptr,
    IS_BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):  # grid: part, node, request
    """What is left of p in a part, and the sum of q, where they are asked for."""
    part, request = tl.program_id(0), tl.program_id(2)
    row = (tl.load(cu_nodes_ptr + request) + tl.program_id(1)).to(tl.int64)
    if row + 1 < tl.load(cu_nodes_ptr + request + 1):
        weight = tl.load(weights_ptr + row)
        if weight >= 0:
            rows = (scores_ptr, vocab, scores_stride, probs_ptr, probs_stride, tops_ptr, totals_ptr)
            index = part * TILE + tl.arange(0, TILE)
            point = tl.full((), -1, tl.int64)
            if IS_BLOCK:
                point = point_of(row, tokens_ptr, sampled_ptr)
            p, q = pair_of(row, index, point, *rows)
            tl.store(masses_ptr + row * tl.num_programs(0) + part, tl.sum(left_of(p, q, weight), 0))
            if sums_ptr is not None:
                tl.store(sums_ptr + row * tl.num_programs(0) + part, tl.sum(q.to(tl.float64), 0))


@triton.jit
def point_of(row, tokens_ptr, sampled_ptr):  # -> int64
    """The token behind a node of a chain if it was chosen, else -1."""
    token = tl.load(tokens_ptr + row + 1).to(tl.int64)
    return tl.where(tl.load(sampled_ptr + row + 1) != 0, -1, token)


@triton.jit
def deepest_kernel(
    cu_nodes_ptr,
    masses_ptr,
    weights_ptr,
    seeds_ptr,
    starts_ptr,
    accepted_ptr,
    num_parts,
    NODES: tl.constexpr,
):  # grid: request
    """The deepest test of a block that passes: h = mass / (mass + 1 - w), at the last node w (2403.10444, alg. 2)."""
    request = tl.program_id(0)
    first = tl.load(cu_nodes_ptr + request).to(tl.int64)
    last = tl.load(cu_nodes_ptr + request + 1) - first - 1
    node = tl.arange(0, NODES)
    masses = tl.zeros((NODES,), tl.float64)
    for part in range(num_parts):
        masses += tl.load(masses_ptr + (first + node) * num_parts + part, mask=node < last, other=0.0)
    weights = tl.load(weights_ptr + first + node, mask=node <= last, other=0.0)
    missed = masses + 1 - weights
    passes = tl.where(missed > 0, masses / tl.where(missed > 0, missed, 1.0), 1.0)
    passes = tl.where(node == last, weights, passes)
    sub_index = (tl.maximum(node, 1) - 1).to(tl.uint32) << 16
    uniform = uniforms(tl.load(seeds_ptr + request), ACCEPT, tl.load(starts_ptr + request), sub_index)
    deepest = tl.max(tl.where((node <= last) & (uniform < passes), node, 0), 0)
    tl.store(accepted_ptr + request, tl.where(tl.load(accepted_ptr + request) < 0, -1, deepest))


@triton.jit
def emit_kernel(
    scores_ptr,
    vocab,
    scores_stride,
    probs_ptr,
    probs_stride,
    tokens_ptr,
    sampled_ptr,
    cu_nodes_ptr,
    masses_ptr,
    tops_ptr,
    totals_ptr,
    drawn_ptr,
    uniforms_ptr,
    weights_ptr,
    accepted_ptr,
    emitted_ptr,
    path_ptr,
    num_parts,
    max_depth,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
):  # grid: request
    """The accepted tokens of a chain and one from what is left behind them."""
    request = tl.program_id(0).to(tl.int64)
    first = tl.load(cu_nodes_ptr + request).to(tl.int64)
    stop = tl.load(cu_nodes_ptr + request + 1)
    num_accepted = tl.load(accepted_ptr + request)
    row = first + num_accepted
    is_sound = (num_accepted >= 0) & (row < stop)
    token = tl.load(drawn_ptr + row, mask=is_sound, other=-1)
    if is_sound & (row + 1 < stop):
        part = tl.arange(0, PARTS)
        masses = tl.load(masses_ptr + row * num_parts + part, mask=part < num_parts, other=0.0)
        total = tl.sum(masses, 0)
        if total > NEGLIGIBLE:
            goal = total * tl.load(uniforms_ptr + row)
            chosen, before = part_at(masses, goal, PARTS)
            rows = (scores_ptr, vocab, scores_stride, probs_ptr, probs_stride, tops_ptr, totals_ptr)
            index = chosen * TILE + tl.arange(0, TILE)
            p, q = pair_of(row, index, point_of(row, tokens_ptr, sampled_ptr), *rows)
            left = left_of(p, q, tl.load(weights_ptr + row))
            token = index_at(left, before, goal, index).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    is_kept = column < num_accepted
    emitted = tl.load(tokens_ptr + first + 1 + column, mask=is_kept, other=-1).to(tl.int64)
    emitted = tl.where(column == num_accepted, token, emitted)
    count = tl.where(num_accepted < 0, -1, tl.where(first < stop, num_accepted + 1, 0))
    tl.store(emitted_ptr + request * (max_depth + 2), count.to(tl.int64))
    tl.store(emitted_ptr + request * (max_depth + 2) + 1 + column, emitted, mask=column <= max_depth)
    path = tl.where(is_kept, column + 1, -1).to(tl.int64)
    tl.store(path_ptr + request * max_depth + column, path, mask=column < max_depth)
