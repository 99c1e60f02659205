"""Forward passes of a bucketed shape, captured once as a CUDA graph and replayed from then on.

A model of 32 layers is some 500 launches, which take the host longer than the GPU: a graph is one.
"""

import time
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import capture
from .buckets import Forward, Key, chain_keys, key_of
from .capture import memory_of, reserved_bytes
from .chunk import Inputs, Packed
from .kernels.ops import argmax
from .pool import KVPool

Output = tuple[Tensor, dict[int, Tensor]]  # logits [rows wanted, vocab]; feature layer -> output [1, rows, hidden]

Pass: TypeAlias = Callable[[Packed], Output]

STATES = 0  # among the outputs of a head: the states [rows, hidden] of its rows, which those behind them read
MAX_DIFFERENCE = 2.0**-5  # of a replayed from an eager logit, over the largest: libraries may pick another algorithm
MAX_LOGIT = 2.0**14  # the largest; beyond it are those of tokens that cannot be


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
    """The captured passes of one network over one pool. A pass is eager the first time its bucket is met.

    The weights must stay where they are; in-place changes of them are seen. Whoever has a pass run hands it over each
    time, and what it reads beside its inputs must be bound: it is captured, not called, from the second time on.

    Args:
        device: of the network.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
        self._met: set[Hashable] = set()
        self._place: tuple[KVPool, int, Hashable] | None = None  # of the storage that graphs read and write
        self._memory: object = None  # that all graphs share
        self._why_not = ""  # why this network cannot be captured
        self._beside: weakref.WeakSet[Graphs] = weakref.WeakSet()
        self._num_captured = self._num_replayed = self._num_eager = self._num_bytes = 0
        self._seconds = 0.0

    @property
    def report(self) -> GraphReport:
        counts = self._num_captured, self._num_replayed, self._num_eager
        return GraphReport(len(self._graphs), *counts, self._seconds, self._num_bytes)

    def beside(self) -> "Graphs":
        """For a network that runs beside this one: cleared when these are."""
        graphs = Graphs(self.device)
        self._beside.add(graphs)
        return graphs

    def clear(self) -> None:
        """Gives the memory of all graphs back."""
        self._drop()
        for graphs in self._beside:
            graphs.clear()

    def _drop(self) -> None:
        self._graphs.clear()
        self._met.clear()
        self._memory = None

    def bind(self, pool: KVPool, weights: Hashable) -> None:
        """What graphs read and write: this pool's storage, and weights at this address or these.

        If any has moved, all is captured anew.
        """
        if self._place is None or self._place[0] is not pool or self._place[1:] != (pool.num_grown, weights):
            self._drop()
            self._place = pool, pool.num_grown, weights

    @torch.inference_mode()  # what stays was made in it, and may be changed in it only
    def run(self, run: Pass, given: Inputs, kind: Hashable) -> Output | None:
        """What a pass gives, the outputs of layers to keep; None if it is to be run eagerly.

        The logits are good until the next pass. `kind` tells passes of the same shape apart.
        """
        key = key_of(given)
        output = self.replayed(kind, None if key is None else [key], lambda forward: run(forward.packed), [given])
        if output is None:
            return None
        (logits, taps), num_rows, num_logits = output, len(given.tokens), sum(given.wanted)
        taps = {layer: rows.narrow(-2, 0, num_rows).clone() for layer, rows in taps.items()}  # they are kept for longer
        return logits[:num_logits], taps

    @torch.inference_mode()
    def chain(
        self, runs: tuple[Pass, Pass], given: Inputs, ahead: Inputs, count: int, last_id: int
    ) -> list[list[int]] | None:
        """The `count` likeliest tokens behind each request, each behind the one before, by one graph.

        Args:
            runs: the first pass, and those behind it; the states of a head are handed on from one to the next.
            given: of the first pass.
            ahead: one row per request behind that; so many rows less one must be staged.
            last_id: stands in for tokens beyond it.

        Returns:
            The tokens of each request; None if they are to be drafted one by one.
        """

        def chained(start: Forward, step: Forward) -> Output:
            return _chained(runs, start, step, count, last_id), {}

        output = self.replayed(("chain", count), chain_keys(given, ahead, count), chained, [given, ahead])
        if output is None:
            return None
        tokens: list[list[int]] = output[0][:, : len(given.requests)].T.tolist()
        return tokens

    @torch.inference_mode()
    def replayed(
        self, kind: Hashable, keys: Sequence[Key] | None, run: Callable[..., Output], given: Sequence[Inputs]
    ) -> Output | None:
        """What `run` gives of forwards of these keys that hold these inputs; None if it is to be run eagerly.

        Good until the next pass. Logits are those that the first inputs want, and then padding.
        """
        graph, key = None, (kind, *(keys or ()))
        if keys is not None and not self._why_not and key in self._met:
            graph = self._graphs.get(key) or self._captured(key, keys, run, given)
        if keys is not None:
            self._met.add(key)
        if graph is None:
            self._num_eager += 1
            return None
        self._graphs.move_to_end(key)
        self._load(graph.forwards, given)
        graph.replay()
        self._num_replayed += 1
        return graph.output

    def _load(self, forwards: Sequence[Forward], given: Sequence[Inputs]) -> None:
        assert self._place is not None
        for forward, inputs in zip(forwards, given, strict=True):
            forward.load(inputs, self._place[0].spare)

    def _captured(
        self, key: Hashable, keys: Sequence[Key], run: Callable[..., Output], given: Sequence[Inputs]
    ) -> _Graph | None:
        """A new graph; None, and a warning, if the model does not let itself be captured."""
        forwards = [Forward(each, self.device) for each in keys]
        function = partial(run, *forwards)
        if len(self._graphs) >= capture.MAX_GRAPHS:
            self._graphs.popitem(last=False)
        began, reserved = time.perf_counter(), reserved_bytes(self.device)
        self._load(forwards, given)
        eager = function()[0]  # compiles kernels, makes the tables
        self._load(forwards, given)
        if self._memory is None:
            self._memory = memory_of(self.device)
        for forward in forwards:
            forward.rows.plans.clear()  # the planner belongs into the graph
        try:
            replay, output = capture.record(function, self._memory, self.device)
        except torch.OutOfMemoryError:  # as many as there is room for
            self.clear()
            return None
        except RuntimeError as error:
            self._why_not = str(error.__context__ or error).split("\n")[0] or type(error).__name__
            self._drop()
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
        self._num_bytes += max(0, reserved_bytes(self.device) - reserved)
        return graph


def _chained(runs: tuple[Pass, Pass], start: Forward, step: Forward, count: int, last_id: int) -> Tensor:
    """The tokens of a chain, [count, requests]."""
    logits, taps = runs[0](start.packed)
    tokens = [argmax(logits)]
    while len(tokens) < count:
        is_next = len(tokens) > 1
        step.enter(tokens[-1].clamp_max(last_id), is_next)
        if step.packed.states is not None:
            states, ends = taps[STATES], start.packed.keep
            assert isinstance(ends, Tensor)
            step.packed.states.copy_(states if is_next else states.index_select(0, ends))
        step.rows.plans.clear()  # keys are shared out anew
        logits, taps = runs[1](step.packed)
        tokens.append(argmax(logits))
    return torch.stack(tokens)


def _require_same(replayed: Tensor, eager: Tensor) -> None:
    """Raises ValueError if a graph does not give what it was captured of; a NaN is not the same."""
    scale = torch.where(eager.abs() < MAX_LOGIT, eager.abs(), 0.0).amax().clamp_min(1e-6)
    apart = torch.where(replayed == eager, 0.0, (replayed - eager).abs())
    difference = float((apart.amax() / scale).nan_to_num(nan=torch.inf))
    if not difference <= MAX_DIFFERENCE:
        raise ValueError(
            f"expected of a captured forward pass the logits of the eager one, got a difference of {difference:.2g} "
            f"of the largest; pass graphs=False, or --no-graphs"
        )
