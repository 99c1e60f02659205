"""Best-first draft trees in Triton: one program per request, all sizes bounded by shapes, nothing waited for."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .order import OPTIONS
from .trees import PADDING as _PADDING
from .trees import GrowingTrees, PackedTrees

BLOCK = 128  # nodes that one program ranks
PADDING: tl.constexpr = tl.constexpr(_PADDING)
STEP: tl.constexpr = tl.constexpr(16)  # ... and with how many it compares them at a time


def plant(trees: GrowingTrees, pending: Tensor) -> None:
    """See `reference_growth.plant`."""
    max_nodes, max_runs = trees.growth.max_nodes, trees.growth.max_runs
    _plant_kernel[(len(pending),)](
        pending,
        *trees[:6],
        *trees.runs[:3],
        max_nodes,
        max_runs,
        RUNS=triton.next_power_of_2(max_runs),
        num_warps=1,
        **OPTIONS,
    )


def grow(trees: GrowingTrees, tokens: Tensor, log_probs: Tensor, limits: Tensor, level: int) -> None:
    """See `reference_growth.grow`."""
    growth = trees.growth
    num_requests, num_rows, count = tokens.shape
    _grow_kernel[(num_requests,)](
        tokens.contiguous(),
        log_probs.contiguous(),
        limits,
        *trees[:6],
        *trees.runs[:3],
        growth.max_nodes,
        growth.max_runs,
        growth.rows(level - 1).start,
        growth.rows(level).start,
        num_rows,
        count,
        level,
        growth.depth,
        growth.width,
        growth.num_nodes,
        LOG_THRESHOLD=growth.log_threshold,  # as a constant it is a float64
        CHILDREN=triton.next_power_of_2(num_rows * count),
        NODES=triton.next_power_of_2(growth.max_nodes),
        num_warps=4,
        **OPTIONS,
    )


def prune(trees: GrowingTrees) -> tuple[PackedTrees, Tensor]:
    """See `reference_growth.prune`."""
    num_requests, growth, device = len(trees.counts), trees.growth, trees.counts.device
    width, nodes = growth.num_nodes + 1, triton.next_power_of_2(growth.max_nodes)
    tokens = torch.empty(num_requests * width, dtype=torch.int64, device=device)
    parents, depths = (torch.empty(num_requests * width, dtype=torch.int32, device=device) for _ in range(2))
    cu_nodes = torch.empty(num_requests + 1, dtype=torch.int32, device=device)
    scores = torch.empty(num_requests * width, device=device)
    ranks, places = (torch.empty_like(trees.parents) for _ in range(2))
    block = min(BLOCK, nodes)
    _rank_kernel[num_requests, -(-growth.max_nodes // block)](
        trees.scores, trees.counts, ranks, growth.max_nodes, BLOCK=block, num_warps=4, **OPTIONS
    )
    _prune_kernel[(num_requests,)](
        *trees[:5],
        ranks,
        places,
        tokens,
        parents,
        depths,
        cu_nodes,
        scores,
        growth.max_nodes,
        growth.num_nodes,
        NODES=nodes,
        WIDTH=triton.next_power_of_2(width),
        num_warps=max(1, min(16, nodes // 64)),
        **OPTIONS,
    )
    return PackedTrees(tokens, parents, depths, cu_nodes, width, growth.depth), scores


@triton.jit
def _plant_kernel(
    pending_ptr,
    tokens_ptr,
    parents_ptr,
    depths_ptr,
    scores_ptr,
    counts_ptr,
    nodes_ptr,
    run_tokens_ptr,
    run_parents_ptr,
    run_depths_ptr,
    max_nodes,
    max_runs,
    RUNS: tl.constexpr,
):
    """The root of a request, and rows to run that hold nothing else."""
    request = tl.program_id(0).to(tl.int64)
    root = request * max_nodes
    pending = tl.load(pending_ptr + request).to(tl.int64)
    tl.store(tokens_ptr + root, pending)
    tl.store(parents_ptr + root, -1)
    tl.store(depths_ptr + root, 0)
    tl.store(scores_ptr + root, 0.0)
    tl.store(counts_ptr + request, 1)
    run = tl.arange(0, RUNS)
    rows = request * max_runs + run
    is_run = run < max_runs
    tl.store(nodes_ptr + rows, tl.where(run == 0, 0, -1), mask=is_run)
    tl.store(run_tokens_ptr + rows, tl.where(run == 0, pending, 0), mask=is_run)
    tl.store(run_parents_ptr + rows, tl.where(run == 0, -1, PADDING), mask=is_run)
    tl.store(run_depths_ptr + rows, run * 0, mask=is_run)


# Numbers that vary from level to level: Triton would compile anew for some of them.
@triton.jit(do_not_specialize=("before", "after", "level", "num_rows"))
def _grow_kernel(
    new_tokens_ptr,
    log_probs_ptr,
    limits_ptr,
    tokens_ptr,
    parents_ptr,
    depths_ptr,
    scores_ptr,
    counts_ptr,
    nodes_ptr,
    run_tokens_ptr,
    run_parents_ptr,
    run_depths_ptr,
    max_nodes,
    max_runs,
    before,  # first row of the nodes that were run
    after,  # ... of those that are to be run
    num_rows,
    count,  # children of a row
    level,
    depth,
    width,
    num_nodes,
    LOG_THRESHOLD: tl.constexpr,
    CHILDREN: tl.constexpr,
    NODES: tl.constexpr,
):
    """Appends the children of a request, and picks those that are to be run, one after the other."""
    request = tl.program_id(0).to(tl.int64)
    limit, first = tl.load(limits_ptr + request), tl.load(counts_ptr + request)
    nodes_ptr += request * max_runs
    tokens_ptr += request * max_nodes
    scores_ptr += request * max_nodes
    child = tl.arange(0, CHILDREN)
    row = before + child // count
    is_slot = child < tl.where(level <= limit, num_rows * count, 0)
    new = request * num_rows * count + child
    tokens = tl.load(new_tokens_ptr + new, mask=is_slot, other=0).to(tl.int64)
    log_probs = tl.load(log_probs_ptr + new, mask=is_slot, other=float("-inf")).to(tl.float64)
    parents = tl.load(nodes_ptr + row, mask=is_slot, other=-1)
    is_new = (parents >= 0) & (log_probs > float("-inf"))
    scores = tl.load(scores_ptr + parents, mask=is_new, other=0.0) + log_probs
    places = first + tl.cumsum(is_new.to(tl.int32), 0) - 1
    num_all = first + tl.sum(is_new.to(tl.int32), 0)
    tl.debug_barrier()  # all threads have read how many there were
    tl.store(counts_ptr + request, num_all)
    tl.store(tokens_ptr + places, tokens, mask=is_new)
    tl.store(parents_ptr + request * max_nodes + places, parents, mask=is_new)
    tl.store(depths_ptr + request * max_nodes + places, tl.zeros((CHILDREN,), tl.int32) + level, mask=is_new)
    tl.store(scores_ptr + places, scores, mask=is_new)
    tl.debug_barrier()

    if level < depth:
        node = tl.arange(0, NODES)
        is_rival = (node > 0) & (node < num_all)
        rivals = tl.load(scores_ptr + node, mask=is_rival, other=float("-inf"))
        may_run = is_new & (log_probs >= LOG_THRESHOLD) & (level < limit)
        for run in range(width):
            best = tl.max(tl.where(may_run, scores, float("-inf")), 0)
            chosen = tl.min(tl.where(may_run & (scores == best), child, CHILDREN), 0)
            # Its children score no more than it does: with as many nodes that do not score less, they are too many.
            num_above = tl.sum((rivals >= best).to(tl.int32), 0)
            is_run = (chosen < CHILDREN) & (num_above < num_nodes)
            is_chosen = child == chosen
            place = tl.sum(tl.where(is_chosen, places, 0), 0)
            token = tl.sum(tl.where(is_chosen, tokens, 0), 0)
            parent = tl.sum(tl.where(is_chosen, row, 0), 0)
            line = request * max_runs + after + run
            tl.store(nodes_ptr + after + run, tl.where(is_run, place, -1))
            tl.store(run_tokens_ptr + line, tl.where(is_run, token, 0))
            tl.store(run_parents_ptr + line, tl.where(is_run, parent, PADDING))
            tl.store(run_depths_ptr + line, level)
            may_run &= child != chosen


@triton.jit
def _rank_kernel(scores_ptr, counts_ptr, ranks_ptr, max_nodes, BLOCK: tl.constexpr):
    """Counts for each node of a block the drafted ones before it in the order of scores."""
    base = tl.program_id(0).to(tl.int64) * max_nodes
    count = tl.load(counts_ptr + tl.program_id(0))
    node = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_node = node < count
    scores = tl.load(scores_ptr + base + node, mask=is_node, other=0.0)
    num_above = tl.zeros((BLOCK,), tl.int32)
    for begin in range(0, tl.where(tl.program_id(1) * BLOCK < count, count, 0), STEP):
        other = begin + tl.arange(0, STEP)
        is_other = (other > 0) & (other < count)
        rivals = tl.load(scores_ptr + base + other, mask=is_other, other=float("-inf"))
        is_equal = (rivals[None, :] == scores[:, None]) & (other[None, :] < node[:, None])
        num_above += tl.sum(((rivals[None, :] > scores[:, None]) | is_equal).to(tl.int32), 1)
    tl.store(ranks_ptr + base + node, num_above, mask=is_node)


@triton.jit
def _prune_kernel(
    tokens_ptr,
    parents_ptr,
    depths_ptr,
    scores_ptr,
    counts_ptr,
    ranks_ptr,
    places_ptr,
    kept_tokens_ptr,
    kept_parents_ptr,
    kept_depths_ptr,
    cu_nodes_ptr,
    kept_scores_ptr,
    max_nodes,
    num_nodes,
    NODES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Moves up what is kept of a request, and fills up with padding."""
    request = tl.program_id(0).to(tl.int64)
    base, line = request * max_nodes, request * (num_nodes + 1)
    count = tl.load(counts_ptr + request)
    node = tl.arange(0, NODES)
    is_node = node < count
    scores = tl.load(scores_ptr + base + node, mask=is_node, other=0.0)
    ranks = tl.load(ranks_ptr + base + node, mask=is_node, other=0)
    is_kept = is_node & ((node == 0) | (ranks < num_nodes))
    places = tl.cumsum(is_kept.to(tl.int32), 0) - 1
    tl.store(places_ptr + base + node, places, mask=is_node)
    tl.debug_barrier()
    parents = tl.load(parents_ptr + base + node, mask=is_kept & (node > 0), other=-1)
    parents = tl.load(places_ptr + base + parents, mask=is_kept & (node > 0), other=-1)
    tokens = tl.load(tokens_ptr + base + node, mask=is_kept, other=0)
    depths = tl.load(depths_ptr + base + node, mask=is_kept, other=0)
    tl.store(kept_tokens_ptr + line + places, tokens, mask=is_kept)
    tl.store(kept_parents_ptr + line + places, parents, mask=is_kept)
    tl.store(kept_depths_ptr + line + places, depths, mask=is_kept)
    tl.store(kept_scores_ptr + line + places, scores.to(tl.float32), mask=is_kept)
    place = tl.arange(0, WIDTH)
    is_padding = (place >= tl.sum(is_kept.to(tl.int32), 0)) & (place <= num_nodes)
    tl.store(kept_tokens_ptr + line + place, tl.zeros((WIDTH,), tl.int64), mask=is_padding)
    tl.store(kept_parents_ptr + line + place, place * 0 + PADDING, mask=is_padding)
    tl.store(kept_depths_ptr + line + place, place * 0, mask=is_padding)
    tl.store(kept_scores_ptr + line + place, tl.full((WIDTH,), float("-inf"), tl.float32), mask=is_padding)
    tl.store(cu_nodes_ptr + request, line.to(tl.int32))
    tl.store(cu_nodes_ptr + request + 1, (line + num_nodes + 1).to(tl.int32))  # as the next one does
