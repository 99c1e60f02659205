"""A head that drafts token by token, over pages: like a language model, but it reads features beside the tokens.

    row j of the pool      is made of token j and of what is known of row j - 1: the target's features, or, where the
                           target has not run that row yet, the state that the head itself ended with
    row 0                  has nothing in front of it, and is nothing: nobody sees it

So a row is a function of the tokens up to it, as the rows of every pool have to be, and requests may share pages. Rows
of drafted tokens hang on the head's own states: they are made again once the target has run those tokens.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from specdec.cache import PagedKVCache, PageTable
from specdec.chunk import Chunk, Inputs, Packer, Scores, inputs_of, step_inputs
from specdec.features import FeatureRows
from specdec.kernels.ops import argmax
from specdec.kernels.rows import Scoring
from specdec.pool import pool_name
from specdec.target import PagedModel

from .head_layers import Attend
from .head_network import HeadNetwork, Vocabulary, attention_over, scorings_of


class SteppingNetwork(HeadNetwork):
    """A network that says after every row what its token is followed by."""

    num_layers: int

    @property
    def scorings(self) -> Sequence[Scoring]:
        """How each layer scores."""
        return scorings_of(self.config, self.num_layers)

    def fused(self, features: Tensor) -> Tensor:  # [..., rows, layers * size] -> [..., rows, hidden]
        """The target's features in the form of a state."""
        raise NotImplementedError

    def forward(
        self,
        embedded: Tensor,  # [..., rows, hidden], of the rows' own tokens
        states: Tensor,  # [..., rows, hidden], of the rows in front of them
        positions: Tensor,  # [..., rows] int64
        attend: Attend,
    ) -> tuple[Tensor, Tensor]:
        """The states of the rows, and what the language model head reads of them, [..., rows, hidden] both."""
        raise NotImplementedError


class HeadRows:
    """Runs a stepping network on rows of its pool.

    Args:
        network: left as it is found.
        pool: name of the pool.
    """

    def __init__(self, network: SteppingNetwork, pool: str) -> None:
        self._network, self._pool = network, pool
        self._scorings = network.scorings
        self._packer = Packer(network.device)

    def run(
        self, cache: PagedKVCache, given: Inputs, states: Tensor, vocabulary: Vocabulary, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States [rows, hidden], and what is to be read of the rows wanted, [wanted, hidden].

        Args:
            states: [rows, hidden] of the rows in front of these.
            tokens: [rows] if they are on the device already.
        """
        if self._packer.device != self._network.device:  # it was moved
            self._packer = Packer(self._network.device)
        packed = self._packer.pack(_behind_row_0(given))
        attend = attention_over(cache, self._pool, packed, self._scorings)
        embedded = vocabulary.embedded(packed.tokens[0] if tokens is None else tokens)
        states, read = self._network(embedded, states, packed.positions[0], attend)
        if not packed.num_logits:
            return states, read[:0]
        return states, read.index_select(0, packed.keep) if isinstance(packed.keep, Tensor) else read

    def fused(self, features: list[Tensor]) -> Tensor:  # [rows, layers * size] each -> [rows, hidden]
        """All of them one after the other as states."""
        parts = [part.to(device=self._network.device, dtype=self._network.dtype) for part in features]
        return self._network.fused(parts[0] if len(parts) == 1 else torch.cat(parts))


class PagedHead:
    """Runs a stepping network; to whoever drafts with it, it is what a `PagedModel` is.

    Args:
        network: left as it is found.
    """

    def __init__(self, network: SteppingNetwork) -> None:
        self.network, self.pool_name = network, pool_name("head", network)
        self.max_positions: int = network.config.max_position_embeddings
        self.vocab_size = self.num_embeddings = network.config.vocab_size
        self._rows = HeadRows(network, self.pool_name)
        self._vocabulary: Vocabulary | None = None
        self._features: Mapping[PageTable, FeatureRows] = {}
        self._states = torch.empty(0)  # [n, hidden], of rows that were run since the last commit
        self._places: dict[PageTable, list[int]] = {}  # staged row, counted from the pending token's -> state

    def adopt(self, target: PagedModel) -> None:
        """Drafts for this target from now on.

        Raises:
            ValueError: it was made for another one.
        """
        self._vocabulary = Vocabulary(self.network, target)
        self.vocab_size, self.num_embeddings = self._vocabulary.size, self._vocabulary.num_embeddings

    def read(self, features: Mapping[PageTable, FeatureRows]) -> None:
        """What is known of the committed rows, until the next call."""
        self._features = features
        self._states, self._places = torch.empty(0), {}

    def running(self) -> AbstractContextManager[None]:
        """Around several calls of `score` and `step` it saves time; their logits are then for reading only."""
        return nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode()

    def score(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Scores:
        """Logits after the wanted nodes. Their rows must be staged; afterwards the pool holds them."""
        given = inputs_of(cache, chunks)
        with self.running():
            if chunks[0].first:
                parents = [chunk.tree.parents[node] for chunk in chunks for node in range(chunk.first, len(chunk.tree))]
                tables = [chunk.table for chunk in chunks for _ in range(chunk.num_rows)]
                places = [self._places[table][parent] for table, parent in zip(tables, parents, strict=True)]
                states = self._states.index_select(0, torch.tensor(places, device=self._states.device))
            else:
                states = self._rows.fused([self._in_front(chunk) for chunk in chunks])
            new, logits = self._run(cache, given, states)
            self._remember(chunks, new)
        for chunk in chunks:
            chunk.table.filled[self.pool_name] = chunk.start + len(chunk.tree)
        return Scores(logits if torch.is_inference_mode_enabled() else logits.clone(), None)

    def step(
        self, cache: PagedKVCache, tables: Sequence[PageTable], rows: Sequence[int], tokens: Sequence[int]
    ) -> Tensor:
        """Logits [b, vocab] after one more row per request, each behind the last one of its request."""
        places = [self._places[table][-1] for table in tables]
        with self.running():
            states = self._states
            if places != list(range(len(states))):
                states = states.index_select(0, torch.tensor(places, device=states.device))
            self._states, logits = self._run(cache, step_inputs(cache, tables, rows, tokens), states)
        for place, (table, row) in enumerate(zip(tables, rows, strict=True)):
            self._places[table].append(place)
            table.filled[self.pool_name] = row + 1
        return logits if torch.is_inference_mode_enabled() else logits.clone()

    def chain(self, cache: PagedKVCache, chunks: Sequence[Chunk], count: int) -> list[list[int]]:
        """The `count` likeliest tokens behind each chunk, whose rows are staged; the host waits for them once."""
        tables = [chunk.table for chunk in chunks]
        with self.running():
            drafted = [argmax(self.score(cache, chunks).logits)]
            for level in range(1, count):
                given = step_inputs(cache, tables, [table.length + level for table in tables], [0] * len(tables))
                tokens = drafted[-1].clamp(max=self.num_embeddings - 1)
                self._states, logits = self._run(cache, given, self._states, tokens)
                drafted.append(argmax(logits))
            listed: list[list[int]] = torch.stack(drafted, 1).tolist()
        return listed

    def _in_front(self, chunk: Chunk) -> Tensor:  # [rows, layers * size]
        """The features of the rows in front of a chunk's, which are committed."""
        return self._features[chunk.table].rows(chunk.start - 1, chunk.start - 1 + len(chunk.tree))

    def _run(
        self, cache: PagedKVCache, given: Inputs, states: Tensor, tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """States [rows, hidden], and logits [rows wanted, vocab]; `tokens` [rows] if they are on the device already."""
        if self._vocabulary is None:
            raise ValueError("expected a head that knows its target, got one without; call check(target) first")
        states, read = self._rows.run(cache, given, states, self._vocabulary, tokens)
        if not len(read):
            return states, read.new_empty(0, self.vocab_size)
        return states, self._vocabulary.logits(read)

    def _remember(self, chunks: Sequence[Chunk], states: Tensor) -> None:  # [rows, hidden]
        """Keeps the states of staged rows: what is drafted below them reads them."""
        kept: list[int] = []
        first = 0
        for chunk in chunks:
            rows = range(chunk.start + chunk.first, chunk.start + len(chunk.tree))
            places = self._places.setdefault(chunk.table, [])
            for index, row in enumerate(rows, start=first):
                if row >= chunk.table.length:
                    places.append(len(self._states) + len(kept))
                    kept.append(index)
            first += chunk.num_rows
        if len(kept) < len(states):
            states = states.index_select(0, torch.tensor(kept, dtype=torch.int64, device=states.device))
        self._states = torch.cat((self._states, states)) if len(self._states) else states


def _behind_row_0(given: Inputs) -> Inputs:
    """The rows as they would be if row 1 were the first one: in the same slots, seeing all but row 0."""
    requests = [
        request._replace(
            start=request.start - 1,
            first_slot=None if request.first_slot is None else request.first_slot + 1,
            slots=None if request.slots is None else request.slots[1:],
            page_size=1,
        )
        for request in given.requests
    ]
    return given._replace(requests=requests, positions=[position - 1 for position in given.positions])
