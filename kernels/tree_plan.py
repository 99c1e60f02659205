"""Who attends which keys: the launch shape for rows of a kind, and the kernel that shares the keys out.

The key tiles of all strips (see `tree_tables`) lie on one line, which is cut into equal shares, one per program of a
wave. What one program does of one strip is an item:

    strips   |         0          |  1  |         2          |     keys, in tiles
    chunks   |     0     |     1     |     2     |     3     |
    items    |     0     |   1    |  2  |   3    |     4     |     strips 0 and 2 are cut: their items are merged
"""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from functools import lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .rows import PackedRows
from .tree_columns import COUNT, ITEM, NODE, START, STOP, STRIP, TREE
from .tree_tables import Bounds, Tables, tables_of

MIN_KEYS = 256  # a share is no smaller, so that its keys are more than the result that has to be merged
OPTIONS = {"enable_fp_fusion": True}  # multiply and add in one; a release after 3.9 no longer does so by itself
MAX_BLOCKS = 8  # of rows that walk over the same keys side by side; more rows are cut into strips
UNBOUNDED = 1 << 30  # a window or chunk that hides nothing
STEP = 16  # items written by one program of the planner
INTERPRETED = (4, 90)  # processors and capability that the interpreter stands for


class Shape(NamedTuple):
    """How attention over rows of a kind is launched."""

    block_m: int  # (row, head of the group) pairs per program
    num_blocks: int  # in a strip
    strip_rows: int  # rows of a request that share their keys, at most
    tile: int  # keys per turn
    num_warps: int
    num_stages: int
    num_resident: int  # programs that a processor holds at once


class Kind(NamedTuple):
    """What the launch shape and the shares of a layer depend on, beside the rows."""

    group: int  # heads per head of keys
    kv_heads: int
    padded_dim: int  # the larger one of keys and values, as a power of two
    itemsize: int
    window: int | None
    chunk: int | None
    device: torch.device


class Plan(NamedTuple):
    """The tables of a forward, the shares of its keys, and room for the results of strips that were cut."""

    kind: Kind
    bounds: Bounds
    tables: Tables
    shape: Shape
    chunks: Tensor  # [num_chunks + 1] int32
    items: Tensor  # [num_items, ITEM] int32
    cuts: Tensor  # [num_cuts, ITEM] int32
    mixes: Tensor  # [num_places * kv_heads * num_blocks * block_m, padded_dim] float32
    totals: Tensor  # [num_places * kv_heads * num_blocks * block_m] float32

    @property
    def num_chunks(self) -> int:
        return self.chunks.shape[0] - 1


def pick(tree_rows: int, chain_rows: int, kind: Kind, capability: int) -> Shape:
    """The launch shape, from static facts only: nothing is timed.

    Chosen from what the compiler makes of it: two or three tiles of keys and values on their way, no register spilled
    in the loop over tiles, and as many rows per program as there are, so that the keys are read once.

    Args:
        tree_rows: most rows of a request that is a tree.
        chain_rows: most rows of a request that is a chain. Long ones are cut into strips, each of which sees less.
        capability: of the device, 90 for 9.0.

    Example:
        >>> kind = Kind(4, 8, 128, 2, None, None, torch.device("cuda"))  # Llama-3.1-8B
        >>> pick(tree_rows=8, chain_rows=1, kind=kind, capability=90)[:4]
        (32, 1, 8, 64)
    """
    block_m, tile, num_warps, num_stages, num_resident = _tiling(
        max(tree_rows, chain_rows) * kind.group, kind, capability
    )
    strip_rows = max(1, tree_rows, min(chain_rows, block_m // kind.group))
    if strip_rows * kind.group > MAX_BLOCKS * block_m:
        strip_rows = max(1, block_m // kind.group)
    num_blocks = -(-strip_rows * kind.group // block_m)
    return Shape(block_m, num_blocks, strip_rows, tile, num_warps, num_stages, num_resident)


def _tiling(size: int, kind: Kind, capability: int) -> tuple[int, int, int, int, int]:
    """block_m, tile, num_warps, num_stages, num_resident for `size` (row, head of the group) pairs."""
    is_large = capability // 10 in (9, 10)  # 227 KB of shared memory, tensor cores that take 64 rows at once
    dim, block_m = kind.padded_dim, max(16, triton.next_power_of_2(size))
    if kind.itemsize == 4:  # exact products, which tensor cores do not give
        return 16, 16, 8, 2 if dim <= 128 else 1, 1
    if dim <= 64:
        block_m = min(block_m, 128)
        if block_m <= 32:
            return block_m, 128, 4, 3, 2
        return block_m, 64, *((4, 3, 2) if block_m == 64 else (8, 3, 1))
    if dim <= 128:
        block_m = min(block_m, 128)
        if block_m <= 32:
            return block_m, 64, 4, 3, 2
        if not is_large:
            return block_m, 32, 8, 3, 1
        return block_m, 64, *((4, 3, 2) if block_m == 64 else (8, 3, 1))
    if is_large:
        return min(block_m, 64), 32, 4, 3 if block_m < 64 else 2, 2
    return 16, 32, 4, 3, 2


@lru_cache
def facts_of(device: torch.device) -> tuple[int, int]:
    """Processors of a device, and its capability: 90 for 9.0."""
    if device.type != "cuda":
        return INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    return properties.multi_processor_count, 10 * properties.major + properties.minor


def plan_of(rows: PackedRows, kind: Kind) -> Plan:
    """The plan of a forward for layers of a kind; made by the first of them."""
    plan: Plan | None = rows.plans.get(kind)
    if plan is None:
        plan = rows.plans[kind] = _planned(rows, kind)
    return plan


def _planned(rows: PackedRows, kind: Kind) -> Plan:
    num_processors, capability = facts_of(kind.device)
    shape = pick(*rows.most_rows(), kind, capability)
    bounds, tables = tables_of(rows, shape.strip_rows, kind.device)
    num_chunks = max(1, num_processors * shape.num_resident // (kind.kv_heads * shape.num_blocks))
    num_items, num_cuts = bounds.num_strips + num_chunks, min(bounds.num_strips, num_chunks) if num_chunks > 1 else 0
    sizes = (num_items * ITEM.value, num_cuts * ITEM.value, num_chunks + 1)
    items, cuts, chunks = torch.empty(sum(sizes), dtype=torch.int32, device=kind.device).split(sizes)
    items, cuts = items.view(-1, ITEM.value), cuts.view(-1, ITEM.value)
    num_lines = (num_cuts and num_cuts + num_chunks) * kind.kv_heads * shape.num_blocks * shape.block_m
    mixes = torch.empty(num_lines, kind.padded_dim, dtype=torch.float32, device=kind.device)
    totals = torch.empty(num_lines, dtype=torch.float32, device=kind.device)
    window, chunk_size = lower_bounds(kind)
    _plan_kernel[(-(-max(num_items, num_chunks + 1) // STEP),)](
        tables.strips,
        chunks,
        items,
        cuts,
        bounds.num_strips,
        num_items,
        num_cuts,
        window,
        chunk_size,
        TILE=shape.tile,
        MIN_TILES=-(-max(MIN_KEYS, 4 * shape.block_m) // shape.tile),
        NUM_CHUNKS=num_chunks,
        STRIPS=triton.next_power_of_2(max(2, bounds.num_strips)),
        STEP=STEP,
        num_warps=4 if bounds.num_strips <= 256 else 8,
        **OPTIONS,
    )
    return Plan(kind, bounds, tables, shape, chunks, items, cuts, mixes, totals)


def lower_bounds(kind: Kind) -> tuple[int | None, int | None]:
    """Window and chunk for a kernel: both or none."""
    if kind.window is None and kind.chunk is None:
        return None, None
    return kind.window or UNBOUNDED, kind.chunk or UNBOUNDED


# Numbers that vary from call to call: Triton would compile anew for some of them.
@triton.jit(do_not_specialize=("num_strips", "num_items", "num_cuts", "window", "chunk_size"))
def _plan_kernel(
    strips,  # [num_strips, STRIP]
    chunks,  # [NUM_CHUNKS + 1]: items of chunk c are chunks[c] .. chunks[c + 1] - 1
    items,  # [num_items, ITEM]
    cuts,  # [num_cuts, ITEM]
    num_strips,
    num_items,
    num_cuts,
    window,  # None if no row's view is bounded below, else chunk_size is there too
    chunk_size,
    TILE: tl.constexpr,
    MIN_TILES: tl.constexpr,  # a share is no smaller
    NUM_CHUNKS: tl.constexpr,
    STRIPS: tl.constexpr,  # num_strips as a power of two
    STEP: tl.constexpr,
):
    """Cuts the line of all key tiles into equal shares. Every program sees the whole line and writes STEP items."""
    s = tl.arange(0, STRIPS)
    is_strip = s < num_strips
    line = strips + s * STRIP
    stop = tl.load(line + STOP, mask=is_strip, other=0)
    is_used = tl.load(line + COUNT, mask=is_strip, other=0) > 0
    first = tl.zeros((STRIPS,), tl.int32)
    if window is not None:  # no row is in front of this position, and no key's position is larger than its index
        lowest = tl.load(line + START, mask=is_strip, other=0)
        is_chain = tl.load(line + TREE, mask=is_strip, other=0) < 0
        lowest += tl.where(is_chain, tl.load(line + NODE, mask=is_strip, other=0), 0)
        first = tl.maximum(tl.maximum(lowest - window + 1, 0), lowest // chunk_size * chunk_size) // TILE
    last = (stop + TILE - 1) // TILE
    units = tl.where(is_used, last - first, 0)
    end = tl.cumsum(units, 0)
    begin = end - units
    share = tl.maximum((tl.sum(units, 0) + NUM_CHUNKS - 1) // NUM_CHUNKS, MIN_TILES)
    chunk = begin // share  # of its first item
    splits = tl.where(units > 0, (end - 1) // share - chunk + 1, 0)
    item_end = tl.cumsum(splits, 0)
    is_cut = splits > 1
    place_end = tl.cumsum(tl.where(is_cut, splits, 0), 0)

    i = tl.program_id(0) * STEP + tl.arange(0, STEP)
    before = tl.minimum(tl.maximum(i[:, None] - chunk[None, :], 0), splits[None, :])
    tl.store(chunks + i, tl.sum(before, 1), mask=i <= NUM_CHUNKS)

    is_past = (item_end[None, :] <= i[:, None]) & is_strip[None, :]
    owner = tl.sum(is_past.to(tl.int32), 1)
    is_owner = s[None, :] == owner[:, None]
    split = i - tl.sum(tl.where(is_owner, (item_end - splits)[None, :], 0), 1)
    low = tl.sum(tl.where(is_owner, first[None, :], 0), 1)
    high = tl.sum(tl.where(is_owner, last[None, :], 0), 1)
    # Where the line's tile 0 would lie within the strip, to which shares are added.
    origin = low + tl.sum(tl.where(is_owner, (chunk * share - begin)[None, :], 0), 1) + split * share
    place = tl.sum(tl.where(is_owner & is_cut[None, :], (place_end - splits + 1)[None, :], 0), 1) - 1
    is_item = (i < num_items) & (owner < num_strips)
    tl.store(items + i * ITEM, owner, mask=is_item)
    tl.store(items + i * ITEM + 1, tl.maximum(origin, low), mask=is_item)
    tl.store(items + i * ITEM + 2, tl.minimum(origin + share, high), mask=is_item)
    tl.store(items + i * ITEM + 3, tl.where(place < 0, -1, place + split), mask=is_item)

    if tl.program_id(0) == 0:
        rank = tl.cumsum(is_cut.to(tl.int32), 0) - 1
        num_used = tl.sum(is_cut.to(tl.int32), 0)
        tl.store(cuts + rank * ITEM, s, mask=is_cut)
        tl.store(cuts + rank * ITEM + 1, place_end - splits, mask=is_cut)
        tl.store(cuts + rank * ITEM + 2, splits, mask=is_cut)
        tl.store(cuts + s * ITEM + 2, 0, mask=(s >= num_used) & (s < num_cuts))
