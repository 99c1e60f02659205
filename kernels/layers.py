"""The K/V tensors of a pool's layers, and where they lie: what one launch needs to know to reach all of them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .fp8 import E4M3

MAX_MOVES = 1024  # rows of a group, which one program holds in registers


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
        # Kept, so that the addresses stay good. As bytes where torch has no index operations on a CPU for them.
        self.tensors = tuple(tensor.view(torch.uint8) if tensor.dtype == E4M3 else tensor for tensor in tensors)
        addresses = [tensor.data_ptr() for tensor in tensors]
        row_bytes = [tensor[0].nbytes for tensor in tensors]
        common = math.gcd(16, *row_bytes, *addresses)
        self.is_aligned = common == 16  # every row begins at a multiple of 16 bytes
        self.unit = min(common, 8)  # bytes moved at a time
        units = [size // self.unit for size in row_bytes]
        self.max_units = max(units)
        device = tensors[0].device
        table = torch.tensor([addresses, units], pin_memory=device.type == "cuda")
        self.table = table.to(device, non_blocking=True)  # [2, num_tensors] int64
