"""Where K/V rows are stored: one pool per model, one pair of tensors per layer, addressed by slot."""

import sys
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor


class KVPool:
    """The keys and values of one model's layers, by slot. Storage appears with the first rows of a layer.

    Example:
        >>> pool = KVPool("target", num_slots=64)
        >>> pool.write("layer 0", torch.ones(2, 1, 4), torch.ones(2, 1, 3), torch.tensor([5, 6]))
        >>> pool.view("layer 0", 6, 2)[1][:, 0].tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, name: str, num_slots: int) -> None:
        self.name = name
        self.num_slots = num_slots
        self.num_grown = 0  # times that storage moved, or some of it before memory ran out
        self._layers: dict[Hashable, tuple[Tensor, Tensor]] = {}  # [num_slots, kv_heads, k_dim], [.., v_dim]
        self._moved: deque[tuple[Tensor, Tensor]] = deque(maxlen=4)  # slots as given and on a layer's device

    def write(
        self,
        key: Hashable,
        keys: Tensor,  # [T, kv_heads, k_dim]
        values: Tensor,  # [T, kv_heads, v_dim]
        slots: Tensor,  # [T] int64, not to be changed in place afterwards
    ) -> None:
        """Store rows of one layer. The first rows of a layer settle its shapes, dtype and device."""
        layer = self._layers.get(key)
        if layer is None:
            size = self.num_slots + 1
            layer = self._layers[key] = (_resized(keys[:0], size), _resized(values[:0], size))
        slots = self._beside(layer[0], slots)
        layer[0].index_copy_(0, slots, keys)
        layer[1].index_copy_(0, slots, values)

    def read(self, key: Hashable, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [S, kv_heads, k_dim] and values [S, kv_heads, v_dim] of these slots [S], copied."""
        keys, values = self._layers[key]
        slots = self._beside(keys, slots)
        return keys.index_select(0, slots), values.index_select(0, slots)

    def view(self, key: Hashable, first_slot: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of `count` slots from `first_slot`, not copied; good until the next `stage`."""
        keys, values = self._layers[key]
        return keys.narrow(0, first_slot, count), values.narrow(0, first_slot, count)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows between slots in every layer. All are gathered before any is stored, so they may overlap."""
        source, target = torch.tensor(sources), torch.tensor(targets)
        for pair in self._layers.values():
            here, there = self._beside(pair[0], source), self._beside(pair[0], target)
            for tensor in pair:
                tensor.index_copy_(0, there, tensor.index_select(0, here))

    def grow(self, num_slots: int) -> None:
        """Give every layer at least `num_slots` slots; one layer at a time, to need little room beside the new."""
        self.num_grown += 1
        for key, (keys, values) in self._layers.items():
            self._layers[key] = (_resized(keys, num_slots + 1), _resized(values, num_slots + 1))
        self.num_slots = max(self.num_slots, num_slots)

    @property
    def spare(self) -> int:
        """A slot that nobody reads: where passes with rows of padding store those."""
        return self.num_slots

    def slot_bytes(self) -> Counter[torch.device]:
        """How many bytes a slot takes on each device."""
        sizes: Counter[torch.device] = Counter()
        for tensor in (tensor for pair in self._layers.values() for tensor in pair):
            sizes[tensor.device] += tensor[0].nbytes
        return sizes

    def _beside(self, tensor: Tensor, slots: Tensor) -> Tensor:
        """`slots` on the device of `tensor`; copied once per forward, not once per layer."""
        device = tensor.device
        if slots.device == device:
            return slots
        for given, moved in self._moved:
            if given is slots and moved.device == device:
                return moved
        # A copy to the CPU must be waited for; one to an accelerator stays in order with the ops that use it.
        self._moved.append((slots, slots.to(device, non_blocking=device.type != "cpu")))
        return self._moved[-1][1]


def pages_that_fit(pools: Iterable[KVPool], num_pages: int, page_size: int, memory_fraction: float) -> int:
    """Pages there may be, at least `num_pages`, which there are.

    On each device the pools may hold `memory_fraction` of what would be free there without them.
    """
    sizes = sum((pool.slot_bytes() for pool in pools), Counter[torch.device]())
    limit = sys.maxsize
    for device, slot_bytes in sizes.items():
        free = _free_bytes(device)
        if free is not None:
            limit = min(limit, int(memory_fraction * (free / (slot_bytes * page_size) + num_pages)))
    return max(limit, num_pages)


def _free_bytes(device: torch.device) -> int | None:
    """Memory that could still be taken on `device`, as far as the system tells; None if it does not."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024  # given in kB


def _resized(tensor: Tensor, num_slots: int) -> Tensor:  # [s, ...] -> [max(s, num_slots), ...]
    """The rows of `tensor`, then zeros. Never an inference tensor: it is written in and outside of inference mode."""
    if tensor.shape[0] >= num_slots:
        return tensor
    with torch.inference_mode(False):
        resized = torch.zeros(num_slots, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
    resized[: tensor.shape[0]] = tensor
    return resized
