"""`tree_attention` in Triton: one wave of equal shares of the keys; rows and heads that share keys are one block."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .bodies import DTYPES, current
from .e4m3 import scaled
from .fp8 import E4M3
from .rows import PackedRows, Scoring
from .tree_columns import COUNT, ITEM, NODE, REQUEST, ROW, SEEN, START, STOP, STRIP, TREE
from .tree_plan import OPTIONS, Kind, Plan, facts_of, lower_bounds, plan_of
from .tree_steps import ancestors, fold, load_queries, load_rows, store_means, sunk

MAX_DIM = 256
E4M3_CAPABILITY = 89  # of GPUs with instructions for e4m3; elsewhere its bytes are taken apart
MERGED_NUMBERS, MERGED_SPLITS = 512, 16  # of one program of the merge: numbers per item, items at once


def tree_attention(
    query: Tensor,  # [1, heads, T, k_dim]
    keys: Tensor,  # [num_slots, kv_heads, k_dim]
    values: Tensor,  # [num_slots, kv_heads, v_dim]
    rows: PackedRows,
    scoring: Scoring,
    sinks: Tensor | None = None,  # [heads]
    scales: Tensor | None = None,  # [2, kv_heads] float32, of keys and values in e4m3
) -> Tensor:  # [1, T, heads, v_dim]
    """See `reference.tree_attention`. Nothing is waited for: grids depend on the number of rows and requests, lengths
    are read by the kernels.

    Raises:
        ValueError: the kernels know no such shapes, or no such numbers.
    """
    _check(query, keys, values, scoring, scales)
    with current(query):
        return _launched(query, keys, values, rows, scoring, sinks, scales)


def _check(query: Tensor, keys: Tensor, values: Tensor, scoring: Scoring, scales: Tensor | None) -> None:
    expected, dtype = None, query.dtype if scales is None else E4M3
    if query.dtype not in DTYPES or not dtype == keys.dtype == values.dtype:
        expected = "queries, keys and values of float16, bfloat16 or float32, all the same but for e4m3 with scales"
        got = f"{query.dtype}, {keys.dtype} and {values.dtype}"
    elif max(keys.shape[2], values.shape[2]) > MAX_DIM:
        expected, got = f"heads of up to {MAX_DIM} numbers", f"keys of {keys.shape[2]} and values of {values.shape[2]}"
    elif not (keys.is_contiguous() and values.is_contiguous()):
        expected, got = "contiguous keys and values", f"strides {keys.stride()} and {values.stride()}"
    elif scoring.scaling is not None and scoring.scaling <= 0:
        expected, got = "a positive scaling", str(scoring.scaling)
    if expected:
        raise ValueError(f"expected {expected}, got {got}; set SPECDEC_KERNELS=reference")


def _launched(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    rows: PackedRows,
    scoring: Scoring,
    sinks: Tensor | None,
    scales: Tensor | None,
) -> Tensor:
    (_, heads, num_rows, k_dim), (_, kv_heads, v_dim) = query.shape, values.shape
    output = query.new_empty(1, num_rows, heads, v_dim)
    if num_rows == 0:
        return output
    if query.stride(3) != 1:
        query = query.contiguous()
    group, padded_dim, itemsize = heads // kv_heads, _padded(max(k_dim, v_dim)), query.dtype.itemsize
    kind = Kind(group, kv_heads, padded_dim, itemsize, scoring.window, scoring.chunk, query.device)
    plan = plan_of(rows, kind)
    if scales is not None and facts_of(query.device)[1] < E4M3_CAPABILITY:
        keys, values = keys.view(torch.uint8), values.view(torch.uint8)
    _attend(query, keys, values, output, plan, scoring, sinks, scales)
    if plan.cuts.shape[0]:
        _merge(output, plan, sinks)
    return output


def _padded(dim: int) -> int:
    """What a block of numbers has room for: a power of two, and no less than tensor cores take at once."""
    return max(16, 1 << (dim - 1).bit_length())


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    output: Tensor,
    plan: Plan,
    scoring: Scoring,
    sinks: Tensor | None,
    scales: Tensor | None,
) -> None:
    shape, k_dim = plan.shape, keys.shape[2]
    _attention_kernel[(plan.num_chunks * plan.kind.kv_heads * shape.num_blocks,)](
        query,
        keys,
        values,
        output,
        plan.mixes,
        plan.totals,
        plan.chunks,
        plan.items,
        *plan.tables,
        sinks,
        scales,
        query.stride(2),
        query.stride(1),
        plan.bounds.num_pages,
        plan.bounds.num_words,
        shape.num_blocks,
        k_dim**-0.5 if scoring.scaling is None else scoring.scaling,
        scoring.softcap,
        *lower_bounds(plan.kind),
        K_DIM=k_dim,
        K_PADDED=_padded(k_dim),
        PAGE=plan.bounds.page,
        TILE=shape.tile,
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
        **_constants(output, plan),
    )


def _merge(output: Tensor, plan: Plan, sinks: Tensor | None) -> None:
    """Makes one of the results of each strip that was cut."""
    kind, at_once = plan.kind, max(1, MERGED_NUMBERS // _padded(output.shape[3]))
    _merge_kernel[(plan.cuts.shape[0], -(-plan.shape.strip_rows * kind.group // at_once), kind.kv_heads)](
        plan.mixes,
        plan.totals,
        output,
        plan.cuts,
        plan.tables.strips,
        sinks,
        plan.shape.num_blocks,
        ROWS=at_once,
        SPLITS=MERGED_SPLITS,
        num_warps=4,
        **_constants(output, plan),
    )


def _constants(output: Tensor, plan: Plan) -> dict[str, int]:
    """What both kernels are compiled for."""
    heads = {"KV_HEADS": plan.kind.kv_heads, "GROUP": plan.kind.group}
    dims = {"V_DIM": output.shape[3], "V_PADDED": _padded(output.shape[3])}
    return {**heads, **dims, "BLOCK_M": plan.shape.block_m, **OPTIONS}


@triton.jit(do_not_specialize=("num_pages", "num_words", "num_blocks", "window", "chunk_size"))
def _attention_kernel(
    query,  # [heads, T, K_DIM] by strides
    keys,  # [num_slots, KV_HEADS, K_DIM]
    values,  # [num_slots, KV_HEADS, V_DIM]
    output,  # [T, heads, V_DIM]
    mixes,  # [places, KV_HEADS, num_blocks, BLOCK_M, V_DIM] float32: results of items whose strip is cut
    totals,  # [places, KV_HEADS, num_blocks, BLOCK_M] float32: base-2 logarithm of the sum of exponentials
    chunks,
    items,
    words,
    depths,
    strips,
    pages,
    sinks,  # [heads], or None
    scales,  # [2, KV_HEADS] of keys and values in e4m3, or None
    query_row,
    query_head,
    num_pages,
    num_words,
    num_blocks,  # of BLOCK_M (row, head of the group) pairs in a strip
    scale,
    cap,  # or None
    window,  # None if no row's view is bounded below, else chunk_size is there too
    chunk_size,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,  # heads per head of keys
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_PADDED: tl.constexpr,
    V_PADDED: tl.constexpr,
    PAGE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    TILE: tl.constexpr,
):
    """All items of one chunk, for one head of keys and one block of rows."""
    block = tl.program_id(0) % num_blocks  # neighbours read the same keys
    kv_head = tl.program_id(0) // num_blocks % KV_HEADS
    chunk = chunks + tl.program_id(0) // (num_blocks * KV_HEADS)
    m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    row, head = m // GROUP, kv_head * GROUP + m % GROUP
    scale = scaled(scale, keys, scales, kv_head)
    TAIL: tl.constexpr = 64 if TILE > 64 else TILE
    j, jt = tl.arange(0, TILE), tl.arange(0, TAIL)
    for number in tl.range(tl.load(chunk), tl.load(chunk + 1), num_stages=1, disable_licm=True):
        item = items + number * ITEM
        strip = strips + tl.load(item) * STRIP
        size = tl.load(strip + COUNT) * GROUP
        is_row = m < size
        if block * BLOCK_M < size:
            begin, end, place = tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
            start, stop, full = tl.load(strip + START), tl.load(strip + STOP), tl.load(strip + SEEN) // TILE
            node, tree = tl.load(strip + NODE) + row, tl.load(strip + TREE)
            packed = (tl.load(strip + ROW) + row).to(tl.int64)
            q = load_queries(query, packed * query_row + head.to(tl.int64) * query_head, is_row, K_DIM, K_PADDED)
            top = tl.full((BLOCK_M,), float("-inf"), tl.float32)
            total, mixed = tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, V_PADDED), tl.float32)
            is_noded, line = m < tl.where(tree >= 0, size, 0), tree.to(tl.int64) + node
            low = None  # lowest position that a row sees
            if window is not None:
                position = start + tl.where(is_noded, tl.load(depths + line, mask=is_noded, other=0), node)
                low = tl.maximum(position - window + 1, position // chunk_size * chunk_size)[:, None]
            table = pages + tl.load(strip + REQUEST).to(tl.int64) * num_pages

            # Tiles that every row sees. Their pages are looked up one tile ahead: then no address depends on what is
            # loaded in the same turn, and the compiler keeps several tiles on the way; else it makes room for one.
            final = tl.maximum(tl.minimum(end, full) - 1, 0)
            ahead = tl.minimum(begin, final) * (TILE // PAGE) + j // PAGE
            ahead = tl.load(table + ahead, mask=ahead * PAGE < stop, other=0)
            for tile in tl.range(begin, tl.minimum(end, full)):
                slots = ahead.to(tl.int64) + j % PAGE
                ahead = tl.load(table + tl.minimum(tile + 1, final) * (TILE // PAGE) + j // PAGE)
                k = load_rows(keys, slots, None, kv_head, KV_HEADS, K_DIM, K_PADDED)
                v = load_rows(values, slots, None, kv_head, KV_HEADS, V_DIM, V_PADDED)
                keep = None if low is None else (tile * TILE + j)[None, :] >= low
                top, total, mixed = fold(q, k, v, keep, top, total, mixed, scale, cap)

            # The end of the prefix, and the tree. A row sees keys up to its `own` and its ancestors.
            own = tl.where(tree >= 0, start - 1, start + node)[:, None]
            limit = tl.minimum(end * TILE, stop)
            for first in tl.range(tl.maximum(begin, full) * TILE, limit, TAIL, num_stages=1):
                index = first + jt
                is_key = index < limit
                is_ancestor = ancestors(words + line * num_words, num_words, is_noded, first - start, jt)
                keep = is_key[None, :] & ((index[None, :] <= own) | is_ancestor)
                if window is not None:
                    is_node = is_key & (index >= tl.where(tree >= 0, start, stop))
                    depth = tl.load(depths + tree + index - start, mask=is_node, other=0)
                    keep = keep & (tl.where(is_node, start + depth, index)[None, :] >= low)
                slots = tl.load(table + index // PAGE, mask=is_key, other=0).to(tl.int64) + index % PAGE
                k = load_rows(keys, slots, is_key, kv_head, KV_HEADS, K_DIM, K_PADDED)
                v = load_rows(values, slots, is_key, kv_head, KV_HEADS, V_DIM, V_PADDED)
                top, total, mixed = fold(q, k, v, keep, top, total, mixed, scale, cap)

            mixed = scaled(mixed, values, scales, KV_HEADS + kv_head)
            if place < 0:
                top, total, mixed = sunk(sinks, head, is_row, top, total, mixed)
                store_means(output, packed * (KV_HEADS * GROUP) + head, mixed, total, is_row, V_DIM, V_PADDED)
            else:  # a row may have seen nothing of the share: then its top is -inf
                at = ((place * KV_HEADS + kv_head) * num_blocks + block).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
                store_means(mixes, at, mixed, total, is_row, V_DIM, V_PADDED)
                tl.store(totals + at, top + tl.log2(tl.where(total > 0, total, 1.0)), mask=is_row)


@triton.jit(do_not_specialize=("num_blocks",))
def _merge_kernel(
    mixes,
    totals,
    output,
    cuts,
    strips,
    sinks,
    num_blocks,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    V_DIM: tl.constexpr,
    V_PADDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROWS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """The results of a cut strip's items, weighed by their sums of exponentials, for ROWS (row, head of the group)."""
    cut, kv_head = cuts + tl.program_id(0) * ITEM, tl.program_id(2)
    num_splits = tl.load(cut + 2)
    if num_splits > 0:  # else there are fewer cuts than there is room for
        strip = strips + tl.load(cut) * STRIP
        m = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        is_row = m < tl.load(strip + COUNT) * GROUP
        head, vd, s = kv_head * GROUP + m % GROUP, tl.arange(0, V_PADDED), tl.arange(0, SPLITS)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total, mixed = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, V_PADDED), tl.float32)
        for split in range(0, num_splits, SPLITS):
            place = tl.load(cut + 1) + split + s
            is_there = (split + s < num_splits)[:, None] & is_row[None, :]
            at = ((place * KV_HEADS + kv_head) * num_blocks).to(tl.int64)[:, None] * BLOCK_M + m[None, :]
            weight = tl.load(totals + at, mask=is_there, other=float("-inf"))
            mix = mixes + (at * V_DIM)[:, :, None] + vd[None, None, :]
            mix = tl.load(mix, mask=is_there[:, :, None] & (vd < V_DIM)[None, None, :], other=0.0)
            new_top = tl.maximum(top, tl.max(weight, 0))
            shift = tl.where(new_top == float("-inf"), 0.0, new_top)
            weight, decay = tl.exp2(weight - shift[None, :]), tl.exp2(top - shift)
            total = total * decay + tl.sum(weight, 0)
            mixed = mixed * decay[:, None] + tl.sum(mix * weight[:, :, None], 0)
            top = new_top
        top, total, mixed = sunk(sinks, head, is_row, top, total, mixed)
        packed = (tl.load(strip + ROW) + m // GROUP).to(tl.int64)
        store_means(output, packed * (KV_HEADS * GROUP) + head, mixed, total, is_row, V_DIM, V_PADDED)
