"""The ops on stored rows: checks their arguments and picks the body, see `bodies.body_of`."""

from torch import Tensor

from . import reference_cache
from .bodies import body_of, current
from .layers import Layers


def kv_write(pool_keys: Tensor, pool_values: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Store keys and values [T, kv_heads, dim] of one layer in the rows `slots` [T]; see `reference_cache.kv_write`."""
    for pool, rows in ((pool_keys, keys), (pool_values, values)):
        if pool.shape[1:] != rows.shape[1:] or pool.dtype != rows.dtype or not pool.is_contiguous():
            raise ValueError(
                f"expected {rows.dtype} rows {list(rows.shape[1:])} for a contiguous pool of such rows, got a pool "
                f"{list(pool.shape)} of {pool.dtype}; the first rows of a layer settle shape and dtype"
            )
    if body_of(pool_keys) == "reference":
        return reference_cache.kv_write(pool_keys, pool_values, keys, values, slots)
    from . import cache_kernels

    with current(pool_keys):
        cache_kernels.kv_write(pool_keys, pool_values, keys, values, slots)


def move_rows(layers: Layers, sources: Tensor, targets: Tensor) -> None:
    """Copy rows between slots in all layers; see `reference_cache.move_rows`."""
    if sources.shape != targets.shape:
        raise ValueError(f"expected a target for each source, got {list(sources.shape)} and {list(targets.shape)}")
    if body_of(layers.table) == "reference":
        return reference_cache.move_rows(layers, sources, targets)
    from . import cache_kernels

    with current(layers.table):
        cache_kernels.move_rows(layers, sources, targets)
