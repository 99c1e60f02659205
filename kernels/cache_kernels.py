"""The cache ops in Triton: new rows to their slots, and rows between slots in all layers by one launch."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .e4m3 import e4m3_of
from .layers import MAX_MOVES, Layers
from .order import OPTIONS

ELEMENTS = 4096  # entries a program of `move_rows` holds at once
UNITS = {1: tl.int8, 2: tl.int16, 4: tl.int32, 8: tl.int64}


def kv_write(
    pool_keys: Tensor,
    pool_values: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    scales: Tensor | None = None,
) -> None:
    """See `reference_cache.kv_write`; any strides but for the pools, whose rows are contiguous."""
    num_rows, num_heads, k_dim = keys.shape
    if num_rows == 0:
        return
    if scales is not None:  # as bytes, for not every GPU has the numbers
        pool_keys, pool_values = pool_keys.view(torch.uint8), pool_values.view(torch.uint8)
    v_dim = values.shape[2]
    _kv_write_kernel[(num_rows,)](
        pool_keys,
        pool_values,
        keys,
        values,
        slots,
        scales,
        *keys.stride(),
        *values.stride(),
        HEADS=num_heads,
        K_DIM=k_dim,
        V_DIM=v_dim,
        HEADS_BLOCK=triton.next_power_of_2(num_heads),
        K_BLOCK=triton.next_power_of_2(k_dim),
        V_BLOCK=triton.next_power_of_2(v_dim),
        num_warps=4 if scales is None else 2,  # so that a thread stores 16 bytes at a time, for 8 heads of 128
        **OPTIONS,
    )


def move_rows(layers: Layers, sources: Tensor, targets: Tensor) -> None:
    """See `reference_cache.move_rows`."""
    if sources.numel() == 0:
        return
    sources, targets = (slots.reshape(-1, slots.shape[-1]).contiguous() for slots in (sources, targets))
    num_groups, num_moves = sources.shape
    if num_moves > MAX_MOVES:
        raise ValueError(f"expected groups of at most {MAX_MOVES} moves, got {num_moves}; move them in several groups")
    moves = triton.next_power_of_2(num_moves)
    columns = min(max(ELEMENTS // moves, 4), triton.next_power_of_2(layers.max_units))
    _move_rows_kernel[len(layers.tensors), num_groups, triton.cdiv(layers.max_units, columns)](
        layers.table,
        sources,
        targets,
        len(layers.tensors),
        num_moves,
        UNIT=UNITS[layers.unit],
        IS_ALIGNED=layers.is_aligned,
        MOVES=moves,
        COLUMNS=columns,
        num_warps=4,
        **OPTIONS,
    )


@triton.jit
def _kv_write_kernel(
    pool_keys_ptr,
    pool_values_ptr,
    keys_ptr,
    values_ptr,
    slots_ptr,
    scales_ptr,  # [2, HEADS], or None
    k_row,
    k_head,
    k_one,
    v_row,
    v_head,
    v_one,
    HEADS: tl.constexpr,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    V_BLOCK: tl.constexpr,
):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    if slot >= 0:
        heads = tl.arange(0, HEADS_BLOCK)[:, None]
        k_dims = tl.arange(0, K_BLOCK)[None, :]
        mask = (heads < HEADS) & (k_dims < K_DIM)
        keys = tl.load(keys_ptr + row * k_row + heads * k_head + k_dims * k_one, mask=mask, other=0)
        if scales_ptr is not None:
            keys = e4m3_of(keys, tl.load(scales_ptr + heads, mask=heads < HEADS, other=1.0))
        tl.store(pool_keys_ptr + slot * (HEADS * K_DIM) + heads * K_DIM + k_dims, keys, mask=mask)
        v_dims = tl.arange(0, V_BLOCK)[None, :]
        mask = (heads < HEADS) & (v_dims < V_DIM)
        values = tl.load(values_ptr + row * v_row + heads * v_head + v_dims * v_one, mask=mask, other=0)
        if scales_ptr is not None:
            values = e4m3_of(values, tl.load(scales_ptr + HEADS + heads, mask=heads < HEADS, other=1.0))
        tl.store(pool_values_ptr + slot * (HEADS * V_DIM) + heads * V_DIM + v_dims, values, mask=mask)


@triton.jit
def _move_rows_kernel(
    table_ptr,
    sources_ptr,
    targets_ptr,
    num_tensors,
    num_moves,
    UNIT: tl.constexpr,
    IS_ALIGNED: tl.constexpr,
    MOVES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program moves some columns of all rows of a group: a target may be the source of another row of the group,
    and programs run in no order, so nobody else may write these columns before they are read."""
    tensor, group = tl.program_id(0), tl.program_id(1).to(tl.int64)
    width = tl.load(table_ptr + num_tensors + tensor)
    base = tl.load(table_ptr + tensor).to(tl.pointer_type(UNIT))
    if IS_ALIGNED:
        width = tl.multiple_of(width, 2)
        base = tl.multiple_of(base, 16)
    moves = tl.arange(0, MOVES)
    sources = tl.load(sources_ptr + group * num_moves + moves, mask=moves < num_moves, other=-1).to(tl.int64)
    targets = tl.load(targets_ptr + group * num_moves + moves, mask=moves < num_moves, other=-1).to(tl.int64)
    columns = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    is_moved = (sources >= 0) & (targets >= 0) & (sources != targets)
    mask = is_moved[:, None] & (columns < width)[None, :]
    rows = tl.load(base + sources[:, None] * width + columns[None, :], mask=mask, other=0)
    tl.debug_barrier()  # all threads have read
    tl.store(base + targets[:, None] * width + columns[None, :], rows, mask=mask)
