"""The ops on stored rows: checks their arguments and picks the body, see `bodies.body_of`."""

from torch import Tensor

from . import reference_cache
from .bodies import body_of, current
from .fp8 import E4M3
from .layers import Layers


def kv_write(
    pool_keys: Tensor,  # [num_slots, kv_heads, k_dim]
    pool_values: Tensor,  # [num_slots, kv_heads, v_dim]
    keys: Tensor,  # [T, kv_heads, k_dim]
    values: Tensor,  # [T, kv_heads, v_dim]
    slots: Tensor,  # [T]
    scales: Tensor | None = None,  # [2, kv_heads] float32
) -> None:
    """Store keys and values of one layer in the rows `slots` of a pool; see `reference_cache.kv_write`."""
    if body_of(pool_keys) == "reference":
        try:
            return reference_cache.kv_write(pool_keys, pool_values, keys, values, slots, scales)
        except RuntimeError:  # torch has looked, and looking twice takes time that counts beside a small model
            _check(pool_keys, keys, scales)
            _check(pool_values, values, scales)
            raise
    _check(pool_keys, keys, scales)
    _check(pool_values, values, scales)
    from . import cache_kernels

    with current(pool_keys):
        cache_kernels.kv_write(pool_keys, pool_values, keys, values, slots, scales)


def _check(pool: Tensor, rows: Tensor, scales: Tensor | None) -> None:
    dtype = rows.dtype if scales is None else E4M3
    if pool.shape[1:] != rows.shape[1:] or pool.dtype != dtype or not pool.is_contiguous():
        raise ValueError(
            f"expected {rows.dtype} rows {list(rows.shape[1:])} for a contiguous pool of such rows, got a pool "
            f"{list(pool.shape)} of {pool.dtype}; the first rows of a layer settle shape and dtype"
        )


def move_rows(layers: Layers, sources: Tensor, targets: Tensor) -> None:
    """Copy rows between slots in all layers; see `reference_cache.move_rows`."""
    if sources.shape != targets.shape:
        raise ValueError(f"expected a target for each source, got {list(sources.shape)} and {list(targets.shape)}")
    if body_of(layers.table) == "reference":
        return reference_cache.move_rows(layers, sources, targets)
    from . import cache_kernels

    with current(layers.table):
        cache_kernels.move_rows(layers, sources, targets)
