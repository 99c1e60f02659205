"""A head that drafts token by token, over pages: like a language model, but it reads features beside the tokens.

    row j of the pool      is made of token j and of what is known of row j - 1: the target's features, or, where the
                           target has not run that row yet, the state that the head itself ended with
    row 0                  has nothing in front of it, and is nothing: nobody sees it

So a row is a function of the tokens up to it, as the rows of every pool have to be, and requests may share pages. Rows
of drafted tokens hang on the head's own states: they are made again once the target has run those tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from specdec.cache import PagedKVCache, PageTable
from specdec.chunk import Chunk, Inputs, Packed, Packer, Scores, inputs_ahead, inputs_of, step_inputs
from specdec.features import FeatureRows
from specdec.graphs import STATES, Output
from specdec.kernels.ops import argmax
from specdec.kernels.rows import Scoring

from .head_layers import Attend
from .head_network import HeadNetwork, Vocabulary, attention_over, scorings_of
from .head_runner import HeadRunner, on_device


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


class Rows:
    """Rows of a stepping network over its pool.

    Args:
        network: left as it is found.
        pool: the name of the pool.
    """

    def __init__(self, network: SteppingNetwork, pool: str) -> None:
        self._network, self._pool = network, pool
        self._scorings = network.scorings
        self._packer = Packer(network.device)

    def packed(self, given: Inputs) -> Packed:
        """The rows one after the other, on the network's device."""
        if self._packer.device != self._network.device:  # it was moved
            self._packer = Packer(self._network.device)
        return self._packer.pack(given)

    def run(self, cache: PagedKVCache, packed: Packed, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
        """States [rows, hidden], and what the language model head reads of the rows wanted, [wanted, hidden]."""
        states = packed.states
        assert states is not None
        attend = attention_over(cache, self._pool, packed, self._scorings)
        states, read = self._network(vocabulary.embedded(packed.tokens[0]), states, packed.positions[0], attend)
        if not packed.num_logits:
            return states, read[:0]
        return states, read.index_select(0, packed.keep) if isinstance(packed.keep, Tensor) else read


class PagedHead(HeadRunner):
    """Runs a stepping network.

    Args:
        network: left as it is found.
    """

    network: SteppingNetwork

    def __init__(self, network: SteppingNetwork) -> None:
        super().__init__(network, network.config.max_position_embeddings)
        self._rows = Rows(network, self.pool_name)
        self._states = torch.empty(0)  # [n, hidden], of rows that were run since the last commit
        self._places: dict[PageTable, list[int]] = {}  # staged row, counted from the pending token's -> state

    def read(self, features: Mapping[PageTable, FeatureRows]) -> None:
        """What is known of the committed rows, until the next call."""
        super().read(features)
        self._states, self._places = torch.empty(0), {}

    def score(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Scores:
        """Logits after the wanted nodes. Their rows must be staged; afterwards the pool holds them.

        With graphs they are good until the next pass.
        """
        given = behind_row_0(inputs_of(cache, chunks))
        with self.running():
            if chunks[0].first:
                parents = [chunk.tree.parents[node] for chunk in chunks for node in range(chunk.first, len(chunk.tree))]
                tables = [chunk.table for chunk in chunks for _ in range(chunk.num_rows)]
                places = [self._places[table][parent] for table, parent in zip(tables, parents, strict=True)]
                states = self._states.index_select(0, on_device(places, self._states.device))
                logits, new = self._passed(self._continued, cache, given._replace(states=states))
            else:
                logits, new = self._passed(self._begun, cache, given._replace(states=self._in_front(chunks)))
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
                states = states.index_select(0, on_device(places, states.device))
            given = behind_row_0(step_inputs(cache, tables, rows, tokens))._replace(states=states)
            logits, self._states = self._passed(self._continued, cache, given)
        for place, (table, row) in enumerate(zip(tables, rows, strict=True)):
            self._places[table].append(place)
            table.filled[self.pool_name] = row + 1
        return logits if torch.is_inference_mode_enabled() else logits.clone()

    def chain(self, cache: PagedKVCache, chunks: Sequence[Chunk], count: int) -> list[list[int]]:
        """The `count` likeliest tokens behind each chunk, whose rows are staged; the host waits for them once."""
        tables = [chunk.table for chunk in chunks]
        with self.running():
            captured = self._chain_by_graph(cache, chunks, count)
            if captured is not None:
                return captured
            drafted = [argmax(self.score(cache, chunks).logits)]
            for level in range(1, count):
                given = step_inputs(cache, tables, [table.length + level for table in tables], [0] * len(tables))
                packed = self._rows.packed(behind_row_0(given)._replace(states=self._states))
                tokens = drafted[-1].clamp(max=self.num_embeddings - 1)
                self._states, read = self._rows.run(cache, packed._replace(tokens=tokens[None]), self.vocabulary)
                drafted.append(self.vocabulary.likeliest(self.vocabulary.outputs(read)))
            listed: list[list[int]] = torch.stack(drafted, 1).tolist()
        return listed

    def _chain_by_graph(self, cache: PagedKVCache, chunks: Sequence[Chunk], count: int) -> list[list[int]] | None:
        graphs = self._graphs_over(cache)
        if graphs is None:
            return None
        features = self._in_front(chunks)
        given = behind_row_0(inputs_of(cache, chunks))._replace(states=features)
        size = self.network.config.hidden_size
        ahead = behind_row_0(inputs_ahead(cache, chunks, count - 1))._replace(states=features.new_empty(0, size))
        runs = partial(self._begun, cache), partial(self._continued, cache)
        drafted = graphs.chain(runs, given, ahead, count, self.num_embeddings - 1)
        if drafted is not None:
            for chunk in chunks:
                chunk.table.filled[self.pool_name] = chunk.start + len(chunk.tree)
        return drafted

    def _in_front(self, chunks: Sequence[Chunk]) -> Tensor:  # [rows, layers * size]
        """The features of the rows in front of those of the chunks, which are committed."""
        found = []
        for chunk in chunks:
            found.append(self.features[chunk.table].rows(chunk.start - 1, chunk.start - 1 + len(chunk.tree)))
        rows = found[0] if len(found) == 1 else torch.cat(found)
        return rows.to(device=self.network.device, dtype=self.network.dtype)

    def _passed(
        self, run: Callable[[PagedKVCache, Packed], Output], cache: PagedKVCache, given: Inputs
    ) -> tuple[Tensor, Tensor]:
        """Logits [rows wanted, vocab], and states [rows, hidden]; by a graph if there is one."""
        graphs = self._graphs_over(cache)
        output = None if graphs is None else graphs.run(partial(run, cache), given, run.__name__)
        logits, taps = run(cache, self._rows.packed(given)) if output is None else output
        return logits, taps[STATES]

    def _begun(self, cache: PagedKVCache, packed: Packed) -> Output:
        """A pass over rows behind committed ones, whose features are in place of states."""
        assert packed.states is not None
        return self._continued(cache, packed._replace(states=self.network.fused(packed.states)))

    def _continued(self, cache: PagedKVCache, packed: Packed) -> Output:
        """A pass over rows behind those of the states."""
        states, read = self._rows.run(cache, packed, self.vocabulary)
        logits = self.vocabulary.logits(read) if packed.num_logits else read.new_empty(0, self.vocab_size)
        return logits, {STATES: states}

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
            states = states.index_select(0, on_device(kept, states.device))
        self._states = torch.cat((self._states, states)) if len(self._states) else states


def behind_row_0(given: Inputs) -> Inputs:
    """The rows as they would be if row 1 were the first one: in the same slots, seeing all but row 0."""
    requests = [
        request._replace(start=request.start - 1, first_slot=(request.first_slot or 0) + 1)
        if request.slots is None
        else request._replace(start=request.start - 1, slots=request.slots[1:], page_size=1)
        for request in given.requests
    ]
    return given._replace(requests=requests, positions=[position - 1 for position in given.positions])
