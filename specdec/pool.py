"""Where K/V rows are stored: one pool per model, one pair of tensors per layer, addressed by slot."""

import itertools
import sys
import weakref
from array import array
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from .kernels.cache_ops import kv_write, move_rows
from .kernels.fp8 import E4M3, by_head, rows_at
from .kernels.layers import MAX_MOVES, Layers

KV_CACHE_DTYPES = {"auto": None, "fp8": E4M3, "fp8_e4m3": E4M3}  # as vLLM calls them


def kept_as(kv_cache_dtype: str) -> torch.dtype | None:
    """What rows are kept as; None for what the model gives.

    Example:
        >>> kept_as("auto"), kept_as("fp8")
        (None, torch.float8_e4m3fn)
    """
    if kv_cache_dtype not in KV_CACHE_DTYPES:
        names = ", ".join(KV_CACHE_DTYPES)
        raise ValueError(f"expected kv_cache_dtype to be one of {names}, got {kv_cache_dtype!r}; leave it at 'auto'")
    return KV_CACHE_DTYPES[kv_cache_dtype]


class Stored(NamedTuple):
    """All rows of one layer."""

    keys: Tensor  # [num_slots + 1, kv_heads, k_dim]
    values: Tensor  # [num_slots + 1, kv_heads, v_dim]
    scales: Tensor | None  # [2, kv_heads] float32, of keys and values in fp8: a number stands for so many times itself
    dtype: torch.dtype  # of the rows as they were written
    is_on_cpu: bool


_serials = itertools.count()
_names: weakref.WeakKeyDictionary[object, str] = weakref.WeakKeyDictionary()


def pool_name(kind: str, owner: object) -> str:
    """The name of an owner's own pool, the same each time; never one that another owner had, as its address may be.

    Example:
        >>> from torch import nn
        >>> first, second = nn.Identity(), nn.Identity()
        >>> pool_name("draft", first) == pool_name("draft", first) != pool_name("draft", second)
        True
    """
    if owner not in _names:
        _names[owner] = f"{kind} {next(_serials)}"
    return _names[owner]


class KVPool:
    """The keys and values of one model's layers, by slot. Storage appears with the first rows of a layer.

    Example:
        >>> pool = KVPool("target", num_slots=64)
        >>> pool.write("layer 0", torch.ones(2, 1, 4), torch.ones(2, 1, 3), torch.tensor([5, 6]))
        >>> pool.view("layer 0", 6, 2)[1][:, 0].tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """

    def __init__(self, name: str, num_slots: int, kept_as: torch.dtype | None = None) -> None:
        self.name = name
        self.num_slots = num_slots
        self.num_grown = 0  # times that storage moved, or some of it before memory ran out
        self._kept_as = kept_as
        self._layers: dict[Hashable, Stored] = {}
        self._scales: dict[Hashable, Tensor] = {}  # of layers to come
        self._together: list[Layers] = []  # the layers of each device; empty if that has changed
        self._moved: deque[tuple[Tensor, Tensor]] = deque(maxlen=4)  # slots as given and on a layer's device

    def set_scales(self, key: Hashable, scales: Tensor) -> None:
        """Keep the keys and values of a layer divided by the scales of their heads, [2, kv_heads]; else by one.

        Raises:
            ValueError: this pool is not kept in fp8, or the layer holds rows already.
        """
        if self._kept_as is None or key in self._layers:
            got = "a layer with rows" if key in self._layers else "a pool that keeps them as they are"
            raise ValueError(f"expected scales for a pool in fp8, before a layer's first rows, got them for {got}")
        scales = scales.float()
        if scales.ndim != 2 or len(scales) != 2 or not bool(((scales > 0) & scales.isfinite()).all()):
            raise ValueError(
                f"expected positive scales [2, kv_heads], got {scales.tolist()}; 1.0 leaves a head as it is"
            )
        self._scales[key] = scales

    def write(
        self,
        key: Hashable,
        keys: Tensor,  # [T, kv_heads, k_dim]
        values: Tensor,  # [T, kv_heads, v_dim]
        slots: Tensor,  # [T] int64, not to be changed in place afterwards
    ) -> None:
        """Store rows of one layer. The first rows of a layer settle its shapes, dtype and device."""
        all_keys, all_values, scales, _, is_on_cpu = self._layers.get(key) or self._make(key, keys, values)
        if not (is_on_cpu and slots.is_cpu):
            slots = self._beside(all_keys, slots)
        kv_write(all_keys, all_values, keys, values, slots, scales)

    def stored(self, key: Hashable) -> Stored:
        """All rows of a layer, not copied; good until the next `stage`.

        Raises:
            KeyError: it has none.
        """
        return self._layers[key]

    def read(self, key: Hashable, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys [S, kv_heads, k_dim] and values [S, kv_heads, v_dim] of these slots [S], copied, as they were written.

        Up to the rounding of a pool in fp8.
        """
        stored = self._layers[key]
        slots = self._beside(stored.keys, slots)
        keys, values = rows_at(stored.keys, slots), rows_at(stored.values, slots)
        if stored.scales is None:
            return keys, values
        dtype = stored.dtype
        return by_head(keys.to(dtype), stored.scales[0]), by_head(values.to(dtype), stored.scales[1])

    def view(self, key: Hashable, first_slot: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values of `count` slots from `first_slot`, as they are stored; good until the next `stage`."""
        stored = self._layers[key]
        return stored.keys.narrow(0, first_slot, count), stored.values.narrow(0, first_slot, count)

    def move(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy rows between slots in every layer: one launch on each GPU, which is not waited for.

        MAX_MOVES at a time are gathered before any is stored, so they may overlap.
        """
        if not self._together:
            tensors = [tensor for stored in self._layers.values() for tensor in stored[:2]]
            devices = dict.fromkeys(tensor.device for tensor in tensors)
            self._together = [Layers([t for t in tensors if t.device == device]) for device in devices]
        for layers in self._together:
            device = layers.table.device
            for start in range(0, len(sources), MAX_MOVES):
                part = slice(start, start + MAX_MOVES)
                move_rows(layers, *_on(device, sources[part], targets[part]))

    def grow(self, num_slots: int) -> None:
        """Give every layer at least `num_slots` slots; one layer at a time, to need little room beside the new."""
        self.num_grown += 1
        self._together = []  # it holds the old storage
        for key, stored in self._layers.items():
            keys, values = _resized(stored.keys, num_slots + 1), _resized(stored.values, num_slots + 1)
            self._layers[key] = stored._replace(keys=keys, values=values)
        self.num_slots = max(self.num_slots, num_slots)

    @property
    def spare(self) -> int:
        """A slot that nobody reads: where passes with rows of padding store those."""
        return self.num_slots

    def slot_bytes(self) -> Counter[torch.device]:
        """How many bytes a slot takes on each device."""
        sizes: Counter[torch.device] = Counter()
        for tensor in (tensor for stored in self._layers.values() for tensor in stored[:2]):
            sizes[tensor.device] += tensor[0].nbytes
        return sizes

    def _make(self, key: Hashable, keys: Tensor, values: Tensor) -> Stored:
        """The storage of a layer whose first rows these are."""
        scales = None
        if self._kept_as is not None:
            scales = self._scales.get(key, torch.ones(2, keys.shape[1])).to(keys.device)
            if scales.shape[1] != keys.shape[1]:
                raise ValueError(f"expected {keys.shape[1]} scales for the heads of {key!r}, got {scales.shape[1]}")
        size = self.num_slots + 1
        first, second = (_resized(rows[:0].to(self._kept_as or rows.dtype), size) for rows in (keys, values))
        self._together = []
        self._layers[key] = stored = Stored(first, second, scales, keys.dtype, keys.is_cpu)
        return stored

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


def _on(device: torch.device, sources: Sequence[int], targets: Sequence[int]) -> Sequence[Tensor]:
    """Two lists of the same length as int64 tensors; by one copy to a GPU, which is not waited for."""
    if device.type == "cpu":  # from memory: it takes a third of the time
        return [torch.frombuffer(array("q", slots), dtype=torch.int64) for slots in (sources, targets)]
    return torch.tensor((sources, targets), pin_memory=device.type == "cuda").to(device, non_blocking=True).unbind()


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
