"""Token rejection along trees, the last steps of `verify_kernels`: the tests that need no sums, and the walk.

Behind a node the sampled children are tested in draw order. A first test needs p and q of one token only, so all of
them are made at once, and where one fails that the walk may come to, what is left of p is summed up by all programs
together. Later tests behind the same node need what the earlier ones left: the walk makes them, one after the other.
"""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

from .philox import uniforms
from .residual import index_at, pair_of, part_at
from .verify_parts import ACCEPT, NEGLIGIBLE

STEP: tl.constexpr = tl.constexpr(16)  # nodes with which all others are compared at a time
SMALLEST: tl.constexpr = tl.constexpr(2.0**-126)  # normal number of float32


@triton.jit
def first_tests_kernel(
    scores_ptr,
    scores_stride,
    probs_ptr,
    probs_stride,
    tokens_ptr,
    parents_ptr,
    sampled_ptr,
    cu_nodes_ptr,
    tops_ptr,
    totals_ptr,
    drawn_ptr,
    weights_ptr,
    tests_ptr,
    passes_ptr,
    open_ptr,
    seeds_ptr,
    starts_ptr,
    accepted_ptr,
    max_depth,
    NODES: tl.constexpr,
):  # grid: request
    """The uniforms of all tests, and the test of the first sampled child of every node.

    A node's weight becomes 1 if that fails and the walk may come to the node, -1 otherwise; `accepted` becomes -1 if a
    sampled token has no q, else 0.
    """
    request = tl.program_id(0)
    first = tl.load(cu_nodes_ptr + request).to(tl.int64)
    num_nodes = (tl.load(cu_nodes_ptr + request + 1) - first).to(tl.int32)
    node = tl.arange(0, NODES)
    is_node = node < num_nodes
    parents = tl.load(parents_ptr + first + node, mask=is_node, other=-1)
    is_child = is_node & (parents >= 0)
    rows = first + tl.maximum(parents, 0)
    tokens = tl.load(tokens_ptr + first + node, mask=is_child, other=0).to(tl.int64)
    is_sampled = tl.load(sampled_ptr + first + node, mask=is_child, other=0) != 0

    scores = tl.load(scores_ptr + rows * scores_stride + tokens, mask=is_child, other=0.0).to(tl.float32)
    tops = tl.load(tops_ptr + rows, mask=is_child, other=0.0)
    p = tl.div_rn(tl.exp(scores - tops), tl.load(totals_ptr + rows, mask=is_child, other=1.0)).to(tl.float64)
    q = tl.zeros((NODES,), tl.float64)
    if probs_ptr is not None:
        q = tl.load(probs_ptr + rows * probs_stride + tokens, mask=is_sampled, other=0.0).to(tl.float64)
    is_broken = tl.max((is_sampled & ((q > 0) == 0)).to(tl.int32), 0)
    tl.store(accepted_ptr + request, -is_broken)

    draws, drawn_first = tl.zeros((NODES,), tl.int32), tl.full((NODES,), NODES, tl.int32)  # of the node's siblings
    for begin in range(0, num_nodes, STEP):
        other = begin + tl.arange(0, STEP)
        is_other = (other > 0) & (other < num_nodes)
        others_parents = tl.load(parents_ptr + first + other, mask=is_other, other=-2)
        is_other &= tl.load(sampled_ptr + first + other, mask=is_other, other=0) != 0
        is_sibling = (parents[:, None] == others_parents[None, :]) & is_other[None, :]
        draws += tl.sum((is_sibling & (other[None, :] < node[:, None])).to(tl.int32), 1)
        drawn_first = tl.minimum(drawn_first, tl.min(tl.where(is_sibling, other[None, :], NODES), 1))
    is_first = is_sampled & (drawn_first == node)
    sub_index = (tl.maximum(parents, 0) << 16 | draws).to(tl.uint32)
    uniform = uniforms(tl.load(seeds_ptr + request), ACCEPT, tl.load(starts_ptr + request), sub_index)
    tl.store(tests_ptr + first + node, uniform, mask=is_node)
    passes = is_first & (uniform < p / tl.where(q > 0, q, 1.0))
    tl.store(passes_ptr + first + node, passes.to(tl.int8), mask=is_node)
    tl.store(weights_ptr + first + node, tl.full((NODES,), -1.0, tl.float64), mask=is_node)
    tl.debug_barrier()

    # Whether the walk may go on from a parent to the node.
    has_first = is_child & (drawn_first < NODES)
    is_passed = tl.load(passes_ptr + first + drawn_first, mask=has_first, other=0) != 0
    drawn = tl.load(drawn_ptr + rows, mask=is_child, other=-1)
    is_open = tl.where(has_first, is_first == is_passed, is_child & (drawn == tokens)) | (node == 0)
    tl.store(open_ptr + first + node, is_open.to(tl.int8), mask=is_node)
    tl.debug_barrier()
    at = tl.maximum(parents, 0)
    is_reached = is_first & (passes == 0)
    for _ in range(max_depth):
        is_reached &= tl.load(open_ptr + first + at, mask=is_reached, other=0) != 0
        at = tl.maximum(tl.load(parents_ptr + first + at, mask=is_reached, other=0), 0)
    tl.store(weights_ptr + rows, tl.full((NODES,), 1.0, tl.float64), mask=is_reached)


@triton.jit
def walk_kernel(
    scores_ptr,
    vocab,
    scores_stride,
    probs_ptr,
    probs_stride,
    tokens_ptr,
    parents_ptr,
    sampled_ptr,
    cu_nodes_ptr,
    masses_ptr,
    sums_ptr,
    tops_ptr,
    totals_ptr,
    drawn_ptr,
    uniforms_ptr,
    weights_ptr,
    tests_ptr,
    refused_ptr,
    divisors_ptr,
    accepted_ptr,
    emitted_ptr,
    path_ptr,
    num_parts,
    max_depth,
    max_nodes,
    NODES: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILE: tl.constexpr,
    PARTS: tl.constexpr,
):  # grid: request
    """Goes from the root to accepted children, and draws from what is left of p where all sampled ones failed."""
    request = tl.program_id(0).to(tl.int64)
    first = tl.load(cu_nodes_ptr + request).to(tl.int64)
    num_nodes = (tl.load(cu_nodes_ptr + request + 1) - first).to(tl.int32)
    node, column = tl.arange(0, NODES), tl.arange(0, COLUMNS)
    is_node = node < num_nodes
    tokens = tl.load(tokens_ptr + first + node, mask=is_node, other=-1).to(tl.int64)
    parents = tl.load(parents_ptr + first + node, mask=is_node, other=-2)
    is_sampled = tl.load(sampled_ptr + first + node, mask=is_node, other=0) != 0
    emitted, path = tl.full((COLUMNS,), -1, tl.int64), tl.full((COLUMNS,), -1, tl.int32)
    refusals = (refused_ptr + request * max_nodes, divisors_ptr + request * max_nodes * 2)
    rows = (scores_ptr, vocab, scores_stride, probs_ptr, probs_stride, tops_ptr, totals_ptr)
    parts = (masses_ptr, sums_ptr, num_parts)
    last, num_accepted = tl.min(node, 0), tl.min(node, 0)
    is_broken = tl.load(accepted_ptr + request) < 0
    is_open = (num_nodes > 0) & (is_broken == 0)
    for _ in range(max_depth + 1):
        if is_open:
            row = first + last
            is_drawn = (parents == last) & is_sampled
            child = tl.min(tl.where(is_drawn, node, NODES), 0)
            is_refused = (child < NODES) & (tl.load(weights_ptr + row) >= 0)
            accepted = tl.where(is_refused, NODES, child)
            num_refused = tl.min(node, 0)
            while is_refused:
                refuse(row, tl.sum(tl.where(node == child, tokens, 0), 0), rows, parts, refusals, num_refused, PARTS)
                num_refused += 1
                child = tl.min(tl.where(is_drawn & (node > child), node, NODES), 0)
                is_refused = child < NODES
                if is_refused:
                    p, q = rest_of(row, tl.sum(tl.where(node == child, tokens, 0), 0), rows, refusals, num_refused)
                    is_broken |= (q > 0) == 0
                    uniform = tl.load(tests_ptr + first + child)
                    is_refused = (uniform < p.to(tl.float64) / q.to(tl.float64)) == 0
                    if is_refused:
                        sum_parts(row, rows, parts, refusals, num_refused, TILE, True)
                    else:
                        accepted = child
            token = tl.load(drawn_ptr + row)
            if (accepted == NODES) & (num_refused > 0):
                token = draw_rest(row, tl.load(uniforms_ptr + row), rows, parts, refusals, num_refused, TILE, PARTS)
            if accepted == NODES:
                is_chosen = (parents == last) & (is_sampled == 0) & (tokens == token)
                accepted = tl.min(tl.where(is_chosen, node, NODES), 0)
            is_open = accepted < NODES
            token = tl.where(is_open, tl.sum(tl.where(node == accepted, tokens, 0), 0), token)
            emitted = tl.where(column == num_accepted, token, emitted)
            path = tl.where((column == num_accepted) & is_open, accepted, path)
            last = tl.where(is_open, accepted, last)
            num_accepted += is_open.to(tl.int32)
    count = tl.where(is_broken, -1, tl.minimum(num_accepted + 1, num_nodes))
    emitted, path = tl.where(is_broken, -1, emitted), tl.where(is_broken, -1, path)
    tl.store(emitted_ptr + request * (max_depth + 2), count.to(tl.int64))
    tl.store(emitted_ptr + request * (max_depth + 2) + 1 + column, emitted, mask=column <= max_depth)
    tl.store(path_ptr + request * max_depth + column, path.to(tl.int64), mask=column < max_depth)


@triton.jit
def rest_of(row, index, rows, refusals, num_refused):  # -> p, q, float32
    """p and q of the next sibling at some tokens, after these refusals.

    Of p stays (p - q)+ normalised, of q all but the token that failed, normalised (Sequoia, 2402.12374). A mass of
    zero says that only rounding would have been left, and p stays as it was.
    """
    p, q = pair_of(row, index, -1, *rows)
    refused_ptr, divisors_ptr = refusals
    for each in range(num_refused):
        mass, others = tl.load(divisors_ptr + 2 * each), tl.load(divisors_ptr + 2 * each + 1)
        p = tl.where(mass > 0, tl.div_rn(tl.maximum(p - q, 0.0), tl.where(mass > 0, mass, 1.0)), p)
        q = tl.where(index == tl.load(refused_ptr + each), 0.0, tl.div_rn(q, others))
    return p, q


@triton.jit
def sum_parts(row, rows, parts, refusals, num_refused, TILE: tl.constexpr, IS_LEFT: tl.constexpr):
    """Sums up (p - q)+, or else p, and q of every part, as they are after these refusals."""
    masses_ptr, sums_ptr, num_parts = parts
    for part in range(num_parts):
        p, q = rest_of(row, part * TILE + tl.arange(0, TILE), rows, refusals, num_refused)
        if IS_LEFT:
            p = tl.maximum(p - q, 0.0)
        tl.store(masses_ptr + row * num_parts + part, tl.sum(p.to(tl.float64), 0))
        tl.store(sums_ptr + row * num_parts + part, tl.sum(q.to(tl.float64), 0))
    tl.debug_barrier()


@triton.jit
def refuse(row, token, rows, parts, refusals, num_refused, PARTS: tl.constexpr):
    """Notes that a token failed, after its parts were summed up."""
    masses_ptr, sums_ptr, num_parts = parts
    refused_ptr, divisors_ptr = refusals
    part = tl.arange(0, PARTS)
    mass = tl.sum(tl.load(masses_ptr + row * num_parts + part, mask=part < num_parts, other=0.0), 0)
    others = tl.sum(tl.load(sums_ptr + row * num_parts + part, mask=part < num_parts, other=0.0), 0)
    _, q = rest_of(row, token, rows, refusals, num_refused)
    tl.debug_barrier()  # all threads have read what stands here
    tl.store(refused_ptr + num_refused, token)
    tl.store(divisors_ptr + 2 * num_refused, tl.where(mass > NEGLIGIBLE, mass, 0.0).to(tl.float32))
    tl.store(divisors_ptr + 2 * num_refused + 1, tl.maximum(others - q, SMALLEST).to(tl.float32))
    tl.debug_barrier()


@triton.jit
def draw_rest(row, uniform, rows, parts, refusals, num_refused, TILE: tl.constexpr, PARTS: tl.constexpr):
    """A draw from p as it is after these refusals."""
    masses_ptr, _, num_parts = parts
    _, divisors_ptr = refusals
    mass = tl.load(divisors_ptr + 2 * (num_refused - 1)).to(tl.float64)
    if mass == 0:  # what was summed up is not what stayed
        sum_parts(row, rows, parts, refusals, num_refused, TILE, False)
    part = tl.arange(0, PARTS)
    masses = tl.load(masses_ptr + row * num_parts + part, mask=part < num_parts, other=0.0)
    goal = tl.sum(masses, 0) * uniform
    chosen, before = part_at(masses, goal, PARTS)
    index = chosen * TILE + tl.arange(0, TILE)
    p, _ = rest_of(row, index, rows, refusals, num_refused)
    scale = tl.where(mass > 0, mass, 1.0)  # of the sums
    return index_at(p.to(tl.float64), before / scale, goal / scale, index).to(tl.int64)
