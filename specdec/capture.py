"""CUDA graphs: what a function launches, captured once and run again by one launch, on the very same memory."""

import warnings
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
        _require_unwaited(function)  # a capture that breaks off leaves generators and streams in disorder
        before = torch.cuda.current_stream()
        graph = torch.cuda.CUDAGraph()
        try:
            # A stream of this device, for torch keeps one per process; other threads may go on as they like.
            stream, mode = torch.cuda.Stream(), "thread_local"
            with torch.cuda.graph(graph, pool=memory, stream=stream, capture_error_mode=mode):
                output = function()
        except RuntimeError:
            torch.cuda.set_stream(before)
            raise
    return graph.replay, output


def memory_of(device: torch.device) -> object:
    """Memory for graphs to share: they run one after the other."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def reserved_bytes(device: torch.device) -> int:
    """Memory held on a device for what is in use."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()  # as a capture does when it begins
    return torch.cuda.memory_reserved(device)


def _require_unwaited(function: Callable[[], object]) -> None:
    """Raises RuntimeError if the function waits for the device."""
    mode = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this is a prototype
            torch.cuda.set_sync_debug_mode("error")
        function()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.synchronize()


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
        self._is_off = False

    @torch.inference_mode()
    def __call__(self, key: object, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> Tensor:
        """`function(*inputs)`, good until the next call with the key, which stands for all but the tensors' contents.

        If it cannot be captured, or there is no memory for that, a warning says so once and it is called as it is.
        """
        found = self._graphs.get(key)
        if found is None:
            output = function(*inputs)
            if key in self._met and not self._is_off:
                self._capture(key, function, inputs)
            self._met.add(key)
            return output
        fixed_inputs, replay, output = found
        self._graphs.move_to_end(key)
        for mine, given in zip(fixed_inputs, inputs, strict=True):
            mine.copy_(given)
        replay()
        return output

    def _capture(self, key: object, function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        if len(self._graphs) >= MAX_GRAPHS:
            self._graphs.popitem(last=False)
        fixed, device = [given.clone() for given in inputs], inputs[0].device
        self._memory = self._memory or memory_of(device)
        try:
            self._graphs[key] = (fixed, *record(lambda: function(*fixed), self._memory, device))
        except RuntimeError as error:
            self._is_off = True
            self._graphs.clear()
            warnings.warn(f"verification runs without graphs, it cannot be captured: {error}", stacklevel=2)
