"""The cache ops in plain torch, with the same names and signatures as the kernels."""

import torch
from torch import Tensor

from .fp8 import quantized
from .layers import Layers


def kv_write(
    pool_keys: Tensor,  # [num_slots, kv_heads, k_dim]
    pool_values: Tensor,  # [num_slots, kv_heads, v_dim]
    keys: Tensor,  # [T, kv_heads, k_dim]
    values: Tensor,  # [T, kv_heads, v_dim]
    slots: Tensor,  # [T]
    scales: Tensor | None = None,  # [2, kv_heads] float32, of keys and values: the pool holds e4m3 numbers
) -> None:
    """Store keys and values of one layer in the rows `slots` of a pool.

    Rows whose slot is -1 are padding and go nowhere. No slot may occur twice, unless nobody reads it.

    Example:
        >>> pool = torch.zeros(4, 1, 2), torch.zeros(4, 1, 2)
        >>> kv_write(*pool, torch.ones(2, 1, 2), torch.ones(2, 1, 2), torch.tensor([3, -1]))
        >>> pool[0][:, 0, 0].tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    if scales is not None:
        keys, values = quantized(keys, scales[0]), quantized(values, scales[1])
        pool_keys, pool_values = pool_keys.view(torch.uint8), pool_values.view(torch.uint8)
    if slots.is_cpu:
        try:
            pool_keys.index_copy_(0, slots, keys)
            pool_values.index_copy_(0, slots, values)
            return
        except IndexError:  # padding, which is seldom and dear to look for; what was stored is stored again
            pass
    if not slots.numel():
        return
    # What is padding repeats the row with the highest slot, or the pool's first row if there is none: no shape depends
    # on numbers, so that nothing waits for a GPU.
    highest = slots.argmax(keepdim=True)
    is_kept, last = slots >= 0, slots.index_select(0, highest)
    sources = torch.where(is_kept, torch.arange(len(slots), device=slots.device), highest)
    slots = torch.where(is_kept, slots, last).clamp(min=0).long()
    for pool, rows in ((pool_keys, keys), (pool_values, values)):
        rows = torch.where((last >= 0)[:, None, None], rows.index_select(0, sources), pool[:1])
        pool.index_copy_(0, slots, rows)


def move_rows(layers: Layers, sources: Tensor, targets: Tensor) -> None:
    """Copy rows between slots in every layer: row `sources[g, i]` to row `targets[g, i]`, [groups, moves] or [moves].

    All rows of a group are read before any is written, so its targets may be sources too; what one group writes no
    other group may read or write. Moves with a negative source or target are padding.

    Example:
        >>> rows = torch.arange(5.0)[:, None].clone()
        >>> move_rows(Layers([rows]), torch.tensor([2, 3, -1]), torch.tensor([1, 2, -1]))
        >>> rows.flatten().tolist()
        [0.0, 2.0, 3.0, 3.0, 4.0]
    """
    if sources.ndim > 1 or min(sources.tolist() + targets.tolist(), default=0) < 0:
        kept = (sources >= 0) & (targets >= 0)
        sources, targets = sources[kept], targets[kept]
    targets = targets.long()
    for tensor in layers.tensors:
        tensor.index_copy_(0, targets, tensor.index_select(0, sources))
