"""Forward passes of a bucketed shape, captured once as a CUDA graph and replayed from then on.

A model of 32 layers is some 500 launches, which take the host longer than the GPU: a graph is one. What differs from
pass to pass lies in memory that stays: token ids, positions, slots and the tables of `StaticRows` are filled anew by
two copies that nobody waits for. Rows behind those of the last request are padding; nobody reads where they go.
"""

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import gcd
from typing import NamedTuple, cast

import torch
from torch import Tensor

from . import capture
from .cache import PagedKVCache
from .capture import memory_of, power_of_two, reserved_bytes, rounded
from .chunk import Inputs, Packed, kept_rows, new_slots
from .kernels.ops import argmax
from .kernels.tree_tables import MAX_PAGE, Bucket, StaticRows
from .pool import KVPool

Output = tuple[Tensor, dict[int, Tensor]]  # logits and the outputs of feature layers

MAX_ROWS = 512  # of a captured pass: beyond, the GPU is busy for longer than the host
MAX_NODES = 128  # of a request in a captured pass
MIN_PAGES = 64  # a bucket has room for prefixes of so many pages, or a power of two times as many
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
        self._spare = 0
        self.packed = Packed(tokens[None], positions[None], self.rows, None, slots, kept, num_kept or num_rows)

    def load(self, given: Inputs, spare: int) -> None:
        """Fills the inputs; rows of padding are stored in the slot `spare`."""
        keep = kept_rows(given.requests, given.wanted) if self._sizes[3] else []
        tables = (given.tokens, given.positions, new_slots(given.requests).tolist(), keep)
        numbers: list[int] = []
        for values, size, filler in zip(tables, self._sizes, (0, 0, spare, 0), strict=True):
            numbers += values
            numbers += [filler] * (size - len(values))
        self._spare = spare
        is_pinned = self._numbers.is_cuda
        self._numbers.copy_(torch.tensor(numbers, pin_memory=is_pinned), non_blocking=True)
        self.rows.load(given.requests)

    def enter(self, tokens: Tensor, is_next: bool) -> None:  # [requests] int64
        """Sets the tokens of a pass of one row per request, which is the one behind the last pass's if `is_next`."""
        self.packed.tokens.copy_(tokens[None])
        if is_next:
            self.packed.positions.add_(1)
            slots = self.packed.slots
            assert slots is not None
            there = self.rows.advance(self.packed.positions[0])
            slots.copy_(torch.where(slots == self._spare, self._spare, there))


class _Graph(NamedTuple):
    forwards: Sequence[Forward]
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
        self._graphs: OrderedDict[object, _Graph] = OrderedDict()
        self._met: set[object] = set()
        self._place: tuple[KVPool, int, int] | None = None  # of the storage that graphs read and write
        self._memory: object = None  # that all graphs share
        self._why_not = ""  # why this model cannot be captured
        self._num_captured = self._num_replayed = self._num_eager = self._num_bytes = 0
        self._seconds = 0.0

    @property
    def report(self) -> GraphReport:
        counts = self._num_captured, self._num_replayed, self._num_eager
        return GraphReport(len(self._graphs), *counts, self._seconds, self._num_bytes)

    def clear(self) -> None:
        """Gives the memory of all graphs back."""
        self._graphs.clear()
        self._met.clear()
        self._memory = None

    def bind(self, pool: KVPool, weights: int) -> None:
        """What graphs read and write: this pool's storage, and the weights, of which one has this address.

        If either has moved, all is captured anew.
        """
        if self._place is None or self._place[0] is not pool or self._place[1:] != (pool.num_slots, weights):
            self.clear()
            self._place = pool, pool.num_slots, weights

    @torch.inference_mode()  # what stays was made in it, and may be changed in it only
    def run(self, cache: PagedKVCache, given: Inputs) -> Passed | None:
        """What the pass gives, good until the next one; None if it is to be run eagerly."""

        def made(key: Key) -> tuple[Sequence[Forward], Callable[[], Output]]:
            forward = Forward(key, self._device)
            return [forward], lambda: self._run(cache, forward.packed)

        key = key_of(given, cache.page_size)
        graph = self._replayed(key, lambda: made(cast(Key, key)), [given])
        if graph is None:
            return None
        (logits, taps), num_rows, num_logits = graph.output, len(given.tokens), sum(given.wanted)
        keep = graph.forwards[0].packed.keep
        taps = {layer: rows[:, :num_rows].clone() for layer, rows in taps.items()}  # they are kept for longer
        return Passed(logits[:num_logits], taps, keep if isinstance(keep, int) else keep[:num_logits])

    @torch.inference_mode()
    def chain(self, cache: PagedKVCache, given: Inputs, ahead: Inputs, count: int, last_id: int) -> Tensor | None:
        """The `count` likeliest tokens [count, requests], each behind the one before; None to draft them one by one.

        Args:
            given: rows to run first, with a logit each.
            ahead: the row behind them of each request, with pages for `count - 1`.
            last_id: what stands for tokens beyond it.
        """

        def made(first: Key, behind: Key) -> tuple[Sequence[Forward], Callable[[], Output]]:
            start, step = Forward(first, self._device), Forward(behind, self._device)
            return [start, step], lambda: self._chain(cache, start, step, count, last_id)

        keys = chain_keys(given, ahead, count, cache.page_size)
        graph = self._replayed(keys and (*keys, count), lambda: made(*cast(tuple[Key, Key], keys)), [given, ahead])
        return None if graph is None else graph.output[0][:, : len(given.requests)]

    def _chain(self, cache: PagedKVCache, start: Forward, step: Forward, count: int, last_id: int) -> Output:
        tokens = [argmax(self._run(cache, start.packed)[0])]
        while len(tokens) < count:
            step.enter(tokens[-1].clamp_max(last_id), is_next=len(tokens) > 1)
            step.rows.plans.clear()  # keys are shared out anew
            tokens.append(argmax(self._run(cache, step.packed)[0]))
        return torch.stack(tokens), {}

    def _replayed(
        self,
        key: object | None,
        make: Callable[[], tuple[Sequence[Forward], Callable[[], Output]]],
        given: Sequence[Inputs],
    ) -> _Graph | None:
        """The graph of a key, which has run with these inputs; None if there is none."""
        graph = None
        if key is not None and not self._why_not and key in self._met:
            graph = self._graphs.get(key) or self._captured(key, *make(), given)
        if key is not None:
            self._met.add(key)
        if graph is None:
            self._num_eager += 1
            return None
        self._graphs.move_to_end(key)
        self._load(graph.forwards, given)
        graph.replay()
        self._num_replayed += 1
        return graph

    def _load(self, forwards: Sequence[Forward], given: Sequence[Inputs]) -> None:
        assert self._place is not None
        for forward, inputs in zip(forwards, given, strict=True):
            forward.load(inputs, self._place[0].spare)

    def _captured(
        self, key: object, forwards: Sequence[Forward], function: Callable[[], Output], given: Sequence[Inputs]
    ) -> _Graph | None:
        """A new graph; None, and a warning, if the model does not let itself be captured."""
        if len(self._graphs) >= capture.MAX_GRAPHS:
            self._graphs.popitem(last=False)
        began, reserved = time.perf_counter(), reserved_bytes(self._device)
        self._load(forwards, given)
        eager = function()[0]  # compiles kernels, makes the tables
        self._load(forwards, given)
        if self._memory is None:
            self._memory = memory_of(self._device)
        for forward in forwards:
            forward.rows.plans.clear()  # the planner belongs into the graph
        try:
            replay, output = capture.record(function, self._memory, self._device)
        except RuntimeError as error:
            self._why_not = str(error).split("\n")[0] or type(error).__name__
            self.clear()
            warnings.warn(f"this model runs without graphs, it cannot be captured: {self._why_not}", stacklevel=2)
            return None
        self._load(forwards, given)
        replay()
        if eager.is_floating_point():  # drafted tokens may differ as much as they like
            _require_same(output[0], eager)
        graph = self._graphs[key] = _Graph(forwards, replay, output)
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
    page, room = _pages(given, page_size)
    bucket = Bucket(rounded(num_rows), power_of_two(len(given.requests)), power_of_two(num_nodes), room, page)
    return Key(bucket, wants_all)


def chain_keys(given: Inputs, ahead: Inputs, count: int, page_size: int) -> tuple[Key, Key] | None:
    """The buckets of the first pass of a chain and of those behind it; None if it is not to be captured.

    Example:
        >>> from specdec.kernels.rows import RequestRows
        >>> given = Inputs([RequestRows(99, 2, 0, None, None, 0, None)], [5, 6], [99, 100], [1])
        >>> ahead = Inputs([RequestRows(101, 1, 0, None, None, 0, None)], [0], [101], [1])
        >>> [key.bucket[:3] for key in chain_keys(given, ahead, count=4, page_size=16)]
        [(2, 1, 2), (1, 1, 1)]
    """
    key, count_rows = key_of(given, page_size), power_of_two(len(given.requests))
    if key is None or count_rows > MAX_ROWS:
        return None
    page, room = _pages(ahead, page_size, count)
    num_rows, num_nodes = max(key.bucket.num_rows, rounded(2 * count_rows)), max(2, key.bucket.num_nodes)
    first = Bucket(num_rows, count_rows, num_nodes, room, page)
    return Key(first, wants_all=False), Key(Bucket(count_rows, count_rows, 1, room, page), wants_all=True)


def _pages(given: Inputs, page_size: int, count: int = 0) -> tuple[int, int]:
    """Slots of a page, and room for the pages of each request and `count` more rows."""
    page = gcd(MAX_PAGE, page_size)
    num_pages = max(-(-(request.stop + count) // page) for request in given.requests)
    return page, max(MIN_PAGES, power_of_two(num_pages))


def _require_same(replayed: Tensor, eager: Tensor) -> None:
    """Raises ValueError if a graph does not give what it was captured of; a NaN is not the same."""
    scale = eager[eager.isfinite()].abs().amax().clamp_min(1e-6)
    apart = torch.where(replayed == eager, 0.0, (replayed - eager).abs())
    difference = float((apart.amax() / scale).nan_to_num(nan=torch.inf))
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(
            f"expected of a captured forward pass the logits of the eager one, got a difference of {difference:.2g} "
            f"of the largest; pass graphs=False, or --no-graphs"
        )
