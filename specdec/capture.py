"""CUDA graphs: what a function launches, captured once and run again by one launch, on the very same memory."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

MAX_GRAPHS = 32  # of one owner; the one that was not used for the longest time makes room


def record(function: Callable[[], T], memory: Any, device: torch.device) -> tuple[Callable[[], object], T]:
    """What runs the kernels of `function` again, and the tensors they write; it must have run before.

    Raises:
        RuntimeError: the function waits for the device, or does what a graph cannot.
    """
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=memory):
            output = function()
    return graph.replay, output


def memory_of(device: torch.device) -> object:
    """Memory for graphs to share: they run one after the other."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def reserved_bytes(device: torch.device) -> int:
    """Memory held on a device."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0


def power_of_two(count: int) -> int:
    """The least power of two that is no less.

    Example:
        >>> power_of_two(5)
        8
    """
    return 1 << (count - 1).bit_length()


def rounded(num_rows: int) -> int:
    """Rows of the bucket: what a tile of a matrix product has room for.

    Example:
        >>> rounded(5), rounded(17)
        (8, 32)
    """
    return power_of_two(num_rows) if num_rows < 16 else -(-num_rows // 16) * 16


class Replayed:
    """Functions of tensors whose launches are captured the second time they are called with a key, and replayed.

    Example:
        >>> twice = Replayed()
        >>> twice("a key", lambda rows: 2 * rows, [torch.tensor([1, 2])])
        tensor([2, 4])
    """

    def __init__(self) -> None:
        self._met: set[object] = set()
        self._graphs: OrderedDict[object, tuple[Sequence[Tensor], Callable[[], object], Tensor]] = OrderedDict()
        self._memory: object = None

    @torch.inference_mode()
    def __call__(self, key: object, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """`function(*inputs)`, good until the next call with the key, which stands for all but the tensors' contents.

        Raises:
            RuntimeError: the function waits for the device, or does what a graph cannot.
        """
        found = self._graphs.get(key)
        if found is None:
            output = function(*inputs)
            if key in self._met:
                if len(self._graphs) >= MAX_GRAPHS:
                    self._graphs.popitem(last=False)
                fixed = [given.clone() for given in inputs]
                device = fixed[0].device
                self._memory = self._memory or memory_of(device)
                self._graphs[key] = (fixed, *record(lambda: function(*fixed), self._memory, device))
            self._met.add(key)
            return output
        fixed_inputs, replay, output = found
        self._graphs.move_to_end(key)
        for mine, given in zip(fixed_inputs, inputs, strict=True):
            mine.copy_(given)
        replay()
        return output
