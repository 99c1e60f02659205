"""Forward passes of a bucketed shape, captured once as a CUDA graph and replayed from then on.

A model of 32 layers is some 500 launches, which take the host longer than the GPU: a graph is one.
"""

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from . import capture
from .buckets import Forward, Key, chain_keys, key_of
from .cache import PagedKVCache
from .capture import memory_of, reserved_bytes
from .chunk import Chunk, Inputs, Packed, inputs_of, step_inputs
from .kernels.ops import argmax
from .pool import KVPool

Output = tuple[Tensor, dict[int, Tensor]]  # logits [rows wanted, vocab]; feature layer -> output [1, rows, hidden]

MAX_DIFFERENCE = 2.0**-5  # of a replayed from an eager logit, over the largest: libraries may pick another algorithm


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What capturing has cost and saved so far."""

    num_graphs: int  # kept at present
    num_captured: int  # in all
    num_replayed: int  # passes that a graph ran
    num_eager: int  # passes that none could run: too many rows, or the first of their bucket
    seconds: float  # that capturing took
    num_bytes: int  # of device memory that capturing reserved


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
        if self._place is None or self._place[0] is not pool or self._place[1:] != (pool.num_grown, weights):
            self.clear()
            self._place = pool, pool.num_grown, weights

    @torch.inference_mode()  # what stays was made in it, and may be changed in it only
    def run(self, cache: PagedKVCache, given: Inputs, layers: tuple[int, ...]) -> Output | None:
        """What the pass gives, with the outputs of these layers; None if it is to be run eagerly.

        The logits are good until the next pass.
        """

        def made(key: Key) -> tuple[Sequence[Forward], Callable[[], Output]]:
            forward = Forward(key, self._device)
            return [forward], lambda: self._run(cache, forward.packed)

        key = key_of(given, cache.page_size)
        graph = self._replayed(key and (key, layers), lambda: made(cast(Key, key)), [given])
        if graph is None:
            return None
        (logits, taps), num_rows, num_logits = graph.output, len(given.tokens), sum(given.wanted)
        taps = {layer: rows[:, :num_rows].clone() for layer, rows in taps.items()}  # they are kept for longer
        return logits[:num_logits], taps

    @torch.inference_mode()
    def chain(self, cache: PagedKVCache, chunks: Sequence[Chunk], count: int, last_id: int) -> list[list[int]] | None:
        """The `count` likeliest tokens behind each chunk, each behind the one before, by one graph.

        So many rows less one behind the chunks must be staged; None if the tokens are to be drafted one by one. For
        tokens beyond `last_id` it stands in.
        """
        given, rows = inputs_of(cache, chunks), [chunk.start + len(chunk.tree) for chunk in chunks]
        ahead = step_inputs(cache, [chunk.table for chunk in chunks], rows, [0] * len(rows), num_staged=count - 1)

        def made(first: Key, behind: Key) -> tuple[Sequence[Forward], Callable[[], Output]]:
            start, step = Forward(first, self._device), Forward(behind, self._device)
            return [start, step], lambda: self._chain(cache, start, step, count, last_id)

        keys = chain_keys(given, ahead, count, cache.page_size)
        graph = self._replayed(keys and (*keys, count), lambda: made(*cast(tuple[Key, Key], keys)), [given, ahead])
        if graph is None:
            return None
        tokens: list[list[int]] = graph.output[0][:, : len(chunks)].T.tolist()
        return tokens

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
        except torch.OutOfMemoryError:  # as many as there is room for
            self.clear()
            return None
        except RuntimeError as error:
            self._why_not = str(error.__context__ or error).split("\n")[0] or type(error).__name__
            self.clear()
            warnings.warn(f"this model runs without graphs, it cannot be captured: {self._why_not}", stacklevel=2)
            return None
        self._load(forwards, given)
        if eager.is_floating_point():  # drafted tokens may differ as much as they like
            output[0].fill_(torch.nan)  # what a graph does not write, it shall not have
            replay()
            num_rows = sum(given[0].wanted)  # behind them is padding, which is anything
            _require_same(output[0][:num_rows], eager[:num_rows])
        graph = self._graphs[key] = _Graph(forwards, replay, output)
        self._num_captured += 1
        self._seconds += time.perf_counter() - began
        self._num_bytes += max(0, reserved_bytes(self._device) - reserved)
        return graph


def _require_same(replayed: Tensor, eager: Tensor) -> None:
    """Raises ValueError if a graph does not give what it was captured of; a NaN is not the same."""
    scale = torch.where(eager.isfinite(), eager.abs(), 0.0).amax().clamp_min(1e-6)
    apart = torch.where(replayed == eager, 0.0, (replayed - eager).abs())
    difference = float((apart.amax() / scale).nan_to_num(nan=torch.inf))
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(
            f"expected of a captured forward pass the logits of the eager one, got a difference of {difference:.2g} "
            f"of the largest; pass graphs=False, or --no-graphs"
        )
