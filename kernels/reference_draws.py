"""The uniforms of the noise in plain torch, for draws that need one number each."""

import torch
from torch import Tensor

from .reference import philox

DRAFT, ACCEPT, RESIDUAL = 1, 2, 3  # roles of the random words, as in specdec.noise


def uniforms(seed: int, role: int, positions: Tensor, sub_indices: Tensor) -> list[float]:  # [n], [n] -> [n]
    """Multiples of 2**-53 in [0, 1) of the counters (position, role, sub-index, 0).

    Example:
        >>> uniforms(7, DRAFT, torch.tensor([4, 4]), torch.tensor([0, 1 << 16]))  # behind nodes 0 and 1
        [0.57..., 0.18...]
    """
    zero = torch.zeros((), dtype=torch.int64, device=positions.device)
    words = philox(seed & 0xFFFFFFFFFFFFFFFF, positions, zero + role, sub_indices, zero)
    values: list[float] = ((words[:, 0] << 21 | words[:, 1] >> 11).double() * 2.0**-53).tolist()
    return values
