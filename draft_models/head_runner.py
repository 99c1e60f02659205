"""A head over pages; to whoever drafts with it, it is what a `PagedModel` is."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from specdec.cache import PagedKVCache, PageTable
from specdec.chunk import Chunk, Scores
from specdec.features import FeatureRows
from specdec.graphs import GraphReport, Graphs
from specdec.pool import pool_name
from specdec.target import PagedModel

from .head_network import HeadNetwork, Vocabulary


class HeadRunner:
    """What heads over pages share: the target, its features, and captured passes if the target's are captured.

    Args:
        network: left as it is found.
        max_positions: the longest text it can be used on.

    Example:
        >>> from transformers import LlamaConfig
        >>> head = HeadRunner(HeadNetwork(LlamaConfig(vocab_size=9), [0, 2]), max_positions=64)
        >>> head.vocab_size, head.graph_report
        (9, None)
    """

    def __init__(self, network: HeadNetwork, max_positions: int) -> None:
        self.network, self.max_positions = network, max_positions
        self.pool_name = pool_name("head", network)
        self.vocab_size = self.num_embeddings = network.config.vocab_size
        self.features: Mapping[PageTable, FeatureRows] = {}  # of the committed rows
        self._adopted: Vocabulary | None = None
        self._graphs: Graphs | None = None
        self._beside: Graphs | None = None  # the target's
        self._weights: list[Tensor] = []  # that captured passes read

    @property
    def vocabulary(self) -> Vocabulary:
        """What it borrows of its target."""
        if self._adopted is None:
            raise ValueError("expected a head that knows its target, got one without; call check(target) first")
        return self._adopted

    @property
    def graph_report(self) -> GraphReport | None:
        """What capturing has cost and saved; None without graphs."""
        return None if self._graphs is None else self._graphs.report

    def adopt(self, target: PagedModel) -> None:
        """Drafts for this target from now on; captured passes stay if it did before.

        Raises:
            ValueError: it was made for another one.
        """
        found = Vocabulary(self.network, target)
        self.vocab_size, self.num_embeddings = found.size, found.num_embeddings
        if self._adopted is None or not found.is_same(self._adopted):
            self._adopted, self._graphs = found, None  # graphs read what it holds
        beside = target.graphs
        if beside is None or beside.device != self.network.device:
            beside = self._graphs = None
        elif self._graphs is None or beside is not self._beside:
            self._graphs = beside.beside()
        self._beside = beside
        self._weights = []  # asked for at every call of `generate`, so only where they are looked at
        if beside is not None:
            self._weights = [*self.network.parameters(), *self.network.buffers(), *found.weights]

    def read(self, features: Mapping[PageTable, FeatureRows]) -> None:
        """What is known of the committed rows, until the next call."""
        self.features = features

    def running(self) -> AbstractContextManager[None]:
        """Around several calls of `score` and `step` it saves time; their logits are then for reading only."""
        return nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode()

    def score(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Scores:
        """Logits after the wanted nodes. Their rows must be staged; afterwards the pool holds them.

        With graphs they are good until the next pass.
        """
        raise NotImplementedError

    def step(
        self, cache: PagedKVCache, tables: Sequence[PageTable], rows: Sequence[int], tokens: Sequence[int]
    ) -> Tensor:
        """Logits [b, vocab] after one more row per request, each behind the last one of its request."""
        raise NotImplementedError

    def chain(self, cache: PagedKVCache, chunks: Sequence[Chunk], count: int) -> list[list[int]] | None:
        """The `count` likeliest tokens behind each chunk, whose rows are staged; the host waits for them once."""
        raise NotImplementedError

    def _graphs_over(self, cache: PagedKVCache) -> Graphs | None:
        """Captured passes, those dropped that read or write what has moved."""
        if self._graphs is not None:
            self._graphs.bind(cache.pool(self.pool_name), tuple([weight.data_ptr() for weight in self._weights]))
        return self._graphs


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:  # [n] int64
    """Numbers on a device; a copy to a GPU is not waited for.

    Example:
        >>> on_device([3, 1], torch.device("cpu"))
        tensor([3, 1])
    """
    made = torch.tensor(numbers, dtype=torch.int64, pin_memory=device.type == "cuda")
    return made.to(device, non_blocking=True)
