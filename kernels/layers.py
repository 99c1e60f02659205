"""The K/V tensors of a pool's layers, and where they lie: what one launch needs to know to reach all of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Layers:
    """Tensors of one device whose rows, [num_slots, ...], move together. Made anew when a pool has grown.

    Example:
        >>> layers = Layers([torch.zeros(8, 2, 4), torch.zeros(8, 2, 3)])
        >>> layers.unit, layers.table[1].tolist()  # 32 and 24 bytes a row, in units of 8 bytes
        (8, [4, 3])
    """

    __slots__ = ("is_aligned", "max_units", "table", "tensors", "unit")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        if not tensors or not all(tensor.is_contiguous() for tensor in tensors):
            raise ValueError(f"expected contiguous tensors, got {len(tensors)}; pass the pool's own storage")
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1:
            raise ValueError(f"expected tensors of one device, got {sorted(map(str, devices))}; make one set for each")
        self.tensors = tuple(tensors)  # kept, so that the addresses stay good
        addresses = [tensor.data_ptr() for tensor in tensors]
        row_bytes = [tensor[0].nbytes for tensor in tensors]
        common = math.gcd(16, *row_bytes, *addresses)
        self.is_aligned = common == 16  # every row begins at a multiple of 16 bytes
        self.unit = min(common, 8)  # bytes moved at a time
        units = [size // self.unit for size in row_bytes]
        self.max_units = max(units)
        self.table = torch.tensor([addresses, units], device=tensors[0].device)  # [2, num_tensors] int64
