"""Forward passes of a bucketed shape, captured once as a CUDA graph and replayed from then on.

A model of 32 layers is some 500 launches, which take the host longer than the GPU: a graph is one. What differs from
pass to pass lies in memory that stays: token ids, positions, slots and the tables of `StaticRows` are filled anew by
two copies that nobody waits for. Rows behind those of the last request are padding; nobody reads where they go.
"""

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .cache import PagedKVCache
from .chunk import Inputs, Packed, kept_rows, new_slots
from .kernels.tree_tables import MAX_PAGE, Bucket, StaticRows
from .pool import KVPool

T = TypeVar("T")
Output = tuple[Tensor, dict[int, Tensor]]  # logits and the outputs of feature layers

MAX_ROWS = 512  # of a captured pass: beyond, the GPU is busy for longer than the host
MAX_NODES = 128  # of a request in a captured pass
MIN_PAGES = 64  # a bucket has room for prefixes of so many pages, or a power of two times as many
MAX_GRAPHS = 32  # of one model; the one that was not used for the longest time makes room
MAX_DIFFERENCE = 2.0**-5  # of a replayed from an eager logit, over the largest: libraries may pick another algorithm


class Key(NamedTuple):
    """What a graph is captured for."""

    bucket: Bucket
    wants_all: bool  # logits of all rows, or of the last one of each request


class Passed(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor  # [sum of wanted, vocab]
    taps: dict[int, Tensor]  # feature layer -> its output [1, rows, hidden]
    keep: Tensor | int  # the rows that `logits` belong to


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What capturing has cost and saved so far."""

    num_graphs: int  # kept at present
    num_captured: int  # in all
    num_replayed: int  # passes that a graph ran
    num_eager: int  # passes that none could run: too many rows, or the first of their bucket
    seconds: float  # that capturing took
    num_bytes: int  # of device memory that capturing reserved


class Forward:
    """The inputs of all passes of a bucket, in memory that stays, and what a captured graph makes of them."""

    def __init__(self, key: Key, device: torch.device) -> None:
        num_rows, num_kept = key.bucket.num_rows, 0 if key.wants_all else key.bucket.num_requests
        self.rows = StaticRows(key.bucket)
        self._sizes = (num_rows, num_rows, num_rows, num_kept)
        self._numbers = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)
        tokens, positions, slots, keep = self._numbers.split(self._sizes)
        kept: Tensor | int = keep if num_kept else 0
        self.packed = Packed(tokens[None], positions[None], self.rows, None, slots, kept, num_kept or num_rows)

    def load(self, given: Inputs, spare: int) -> None:
        """Fills the inputs; rows of padding are stored in the slot `spare`."""
        keep = kept_rows(given.requests, given.wanted) if self._sizes[3] else []
        tables = (given.tokens, given.positions, new_slots(given.requests).tolist(), keep)
        numbers: list[int] = []
        for values, size, filler in zip(tables, self._sizes, (0, 0, spare, 0), strict=True):
            numbers += values
            numbers += [filler] * (size - len(values))
        is_pinned = self._numbers.is_cuda
        self._numbers.copy_(torch.tensor(numbers, pin_memory=is_pinned), non_blocking=True)
        self.rows.load(given.requests)


class _Graph(NamedTuple):
    forward: Forward
    replay: Callable[[], object]
    output: Output


class Graphs:
    """The captured passes of one model over one pool. A pass is eager the first time its bucket is met.

    The weights must stay where they are; in-place changes of them are seen.

    Args:
        run: the pass: a cache and packed inputs to logits and features.
        device: of the model.
    """

    def __init__(self, run: Callable[[PagedKVCache, Packed], Output], device: torch.device) -> None:
        self._run, self._device = run, device
        self._graphs: OrderedDict[Key, _Graph] = OrderedDict()
        self._met: set[Key] = set()
        self._place: tuple[KVPool, int, int] | None = None  # of the storage that graphs read and write
        self._memory: object = None  # that all graphs share
        self._why_not = ""  # why this model cannot be captured
        self._num_captured = self._num_replayed = self._num_eager = self._num_bytes = 0
        self._seconds = 0.0

    @property
    def report(self) -> GraphReport:
        counts = self._num_captured, self._num_replayed, self._num_eager
        return GraphReport(len(self._graphs), *counts, self._seconds, self._num_bytes)

    @torch.inference_mode()  # what stays was made in it, and may be changed in it only
    def run(self, cache: PagedKVCache, pool: KVPool, given: Inputs, weights: int) -> Passed | None:
        """What the pass gives, good until the next one; None if it is to be run eagerly.

        `weights` is the address of one of them.
        """
        if self._place is None or self._place[0] is not pool or self._place[1:] != (pool.num_slots, weights):
            self.clear()
            self._place = pool, pool.num_slots, weights
        key = None if self._why_not else key_of(given, cache.page_size)
        if key is None or key not in self._met:
            self._num_eager += 1
            if key is not None:
                self._met.add(key)
            return None
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._captured(cache, pool, key, given)
            if graph is None:
                self._num_eager += 1
                return None
        else:
            self._graphs.move_to_end(key)
            graph.forward.load(given, pool.spare)
            graph.replay()
        self._num_replayed += 1
        (logits, taps), num_rows, num_logits = graph.output, len(given.tokens), sum(given.wanted)
        keep = graph.forward.packed.keep
        taps = {layer: rows[:, :num_rows] for layer, rows in taps.items()}
        return Passed(logits[:num_logits], taps, keep if isinstance(keep, int) else keep[:num_logits])

    def clear(self) -> None:
        """Gives the memory of all graphs back."""
        self._graphs.clear()
        self._met.clear()
        self._memory = None

    def _captured(self, cache: PagedKVCache, pool: KVPool, key: Key, given: Inputs) -> _Graph | None:
        """The graph of a bucket, replayed once; None, and a warning, if the model does not let itself be captured."""
        if len(self._graphs) >= MAX_GRAPHS:
            self._graphs.popitem(last=False)
        began, reserved = time.perf_counter(), reserved_bytes(self._device)
        forward = Forward(key, self._device)
        forward.load(given, pool.spare)
        eager = self._run(cache, forward.packed)[0]  # compiles kernels, makes the tables
        forward.rows.plans.clear()  # the planner belongs into the graph
        if self._memory is None:
            self._memory = memory_of(self._device)
        try:
            replay, output = record(lambda: self._run(cache, forward.packed), self._memory)
        except RuntimeError as error:
            self._why_not = str(error).split("\n")[0] or type(error).__name__
            self.clear()
            warnings.warn(f"this model runs without graphs, it cannot be captured: {self._why_not}", stacklevel=2)
            return None
        replay()
        _require_same(output[0][: sum(given.wanted)], eager[: sum(given.wanted)])
        graph = self._graphs[key] = _Graph(forward, replay, output)
        self._num_captured += 1
        self._seconds += time.perf_counter() - began
        self._num_bytes += max(0, reserved_bytes(self._device) - reserved)
        return graph


def key_of(given: Inputs, page_size: int) -> Key | None:
    """The bucket of a pass, and which logits it gives; None if it is not to be captured.

    Example:
        >>> from specdec.kernels.rows import RequestRows
        >>> rows = [RequestRows(100, 6, 0, None, None, 0, None), RequestRows(900, 5, 0, None, None, 4096, None)]
        >>> key_of(Inputs(rows, list(range(11)), list(range(11)), [6, 5]), page_size=16)
        Key(bucket=Bucket(num_rows=16, num_requests=2, num_nodes=8, num_pages=64, page=16), wants_all=True)
    """
    num_rows, num_nodes = len(given.tokens), max(request.num_nodes for request in given.requests)
    wants_all = sum(given.wanted) == num_rows
    if num_rows > MAX_ROWS or num_nodes > MAX_NODES or not (wants_all or set(given.wanted) == {1}):
        return None
    page = gcd(MAX_PAGE, page_size)
    num_pages = max(-(-request.stop // page) for request in given.requests)
    room = max(MIN_PAGES, power_of_two(num_pages))
    bucket = Bucket(_rounded(num_rows), power_of_two(len(given.requests)), power_of_two(num_nodes), room, page)
    return Key(bucket, wants_all)


def power_of_two(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << (count - 1).bit_length()


def _rounded(num_rows: int) -> int:
    """Rows of the bucket: what a tile of a matrix product has room for."""
    return power_of_two(num_rows) if num_rows < 16 else -(-num_rows // 16) * 16


def record(function: Callable[[], T], memory: Any) -> tuple[Callable[[], object], T]:
    """What runs the kernels of `function` again, and the tensors they write; it must have run before.

    Raises:
        RuntimeError: the function waits for the device, or does what a graph cannot.
    """
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


def _require_same(replayed: Tensor, eager: Tensor) -> None:
    """Raises ValueError if a graph does not give what it was captured of; a NaN is not the same."""
    scale = eager.abs().amax().clamp_min(1e-6)
    difference = float(((replayed - eager).abs().amax() / scale).nan_to_num(nan=torch.inf))
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(
            f"expected of a captured forward pass the logits of the eager one, got a difference of {difference:.2g} "
            f"of the largest; pass graphs=False"
        )


def only_gpu_of(model: nn.Module) -> torch.device:
    """The GPU that all weights are on.

    Raises:
        ValueError: they are elsewhere, or on several.
    """
    devices = {weight.device for weight in model.parameters()}
    if len(devices) > 1 or {device.type for device in devices} != {"cuda"}:
        places = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(f"expected all weights on one GPU for graphs=True, got {places}; pass graphs=False")
    return devices.pop()
