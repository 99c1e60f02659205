"""The cache ops in plain torch, with the same names and signatures as the kernels."""

from torch import Tensor

from .layers import Layers


def kv_write(pool_keys: Tensor, pool_values: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> None:
    """Store keys [T, kv_heads, k_dim] and values [T, kv_heads, v_dim] in the rows `slots` [T] of one layer of a pool.

    Rows whose slot is -1 are padding and go nowhere. No slot may occur twice.

    Example:
        >>> import torch
        >>> pool = torch.zeros(4, 1, 2), torch.zeros(4, 1, 2)
        >>> kv_write(*pool, torch.ones(2, 1, 2), torch.ones(2, 1, 2), torch.tensor([3, -1]))
        >>> pool[0][:, 0, 0].tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    kept = slots >= 0
    slots = slots[kept].long()
    pool_keys.index_copy_(0, slots, keys[kept])
    pool_values.index_copy_(0, slots, values[kept])


def move_rows(layers: Layers, sources: Tensor, targets: Tensor) -> None:
    """Copy rows between slots in every layer: row `sources[g, i]` to row `targets[g, i]`, [groups, moves] or [moves].

    All rows of a group are read before any is written, so its targets may be sources too; what one group writes no
    other group may read or write. Moves with a negative source or target are padding.

    Example:
        >>> import torch
        >>> rows = torch.arange(5.0)[:, None].clone()
        >>> move_rows(Layers([rows]), torch.tensor([2, 3, -1]), torch.tensor([1, 2, -1]))
        >>> rows.flatten().tolist()
        [0.0, 2.0, 3.0, 3.0, 4.0]
    """
    kept = (sources >= 0) & (targets >= 0)
    sources, targets = sources[kept].long(), targets[kept].long()
    for tensor in layers.tensors:
        tensor.index_copy_(0, targets, tensor.index_select(0, sources))
