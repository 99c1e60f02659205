"""Rows of eight bits (float8 e4m3) with a scale per head: a stored number counts for itself times its head's scale."""

import torch
from torch import Tensor

E4M3 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3, which has no infinity


def quantized(rows: Tensor, scale: Tensor) -> Tensor:  # [..., kv_heads, dim], [kv_heads] float32 -> uint8
    """The bytes of the nearest e4m3 numbers, ties to even; what is too large becomes the largest, NaN stays NaN.

    Bytes, because the CPU has no index operations for e4m3 itself.

    Example:
        >>> rows = torch.tensor([[0.3, -9.0], [0.3, -9e9]])
        >>> by_head(quantized(rows, torch.tensor([0.5, 2.0])).view(E4M3).float(), torch.tensor([0.5, 2.0]))
        tensor([[ 3.1250e-01, -9.0000e+00],
                [ 3.1250e-01, -8.9600e+02]])
    """
    wide = rows.float() if rows.dtype.itemsize < 4 else rows
    return (wide / scale[:, None]).clamp(-LARGEST, LARGEST).to(E4M3).view(torch.uint8)


def by_head(rows: Tensor, scale: Tensor) -> Tensor:  # [..., heads, dim], [kv_heads] float32
    """`rows` times the scale of the head of keys that each head reads, rounded once.

    Example:
        >>> by_head(torch.ones(1, 4, 1), torch.tensor([2.0, 3.0])).flatten()
        tensor([2., 2., 3., 3.])
    """
    return (rows * scale.repeat_interleave(rows.shape[-2] // scale.shape[0])[:, None]).to(rows.dtype)


def rows_at(pool: Tensor, slots: Tensor) -> Tensor:  # [num_slots, ...], [S] -> [S, ...]
    """Rows of a pool, copied.

    Example:
        >>> rows_at(torch.arange(3.0).to(E4M3), torch.tensor([2, 1])).float()
        tensor([2., 1.])
    """
    if pool.dtype is not E4M3:
        return pool.index_select(0, slots)
    return pool.view(torch.uint8).index_select(0, slots).view(E4M3)
