"""Chunks: rows of one request to run through a model, and how those of a batch become one packed sequence."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .cache import PagedKVCache, PageTable
from .kernels.rows import PackedRows, RequestRows
from .tree import TokenTree

MAX_KEPT_ROWS = 64  # of passes whose inputs keep their memory


@dataclass(frozen=True, slots=True)
class Chunk:
    """Nodes of one request to run. Rows before `start` are in the pool and every node may see them.

    Example:
        >>> cache = PagedKVCache()
        >>> chunk = Chunk(cache.open(), 0, TokenTree.chain([5, 7, 9]), num_logits=2)
        >>> chunk.num_rows
        3
    """

    table: PageTable
    start: int  # node i is row start + i; its position is start + its depth
    tree: TokenTree
    first: int = 0  # nodes before it are in the pool already; only nodes from it on are computed
    num_logits: int = 1  # logits of so many nodes are wanted, the last ones

    @property
    def num_rows(self) -> int:
        """Nodes computed."""
        return len(self.tree) - self.first


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says after the wanted nodes of all chunks, one chunk after the other."""

    logits: Tensor  # [sum of num_logits, vocab], as the model gives them
    features: Tensor | None  # [rows computed, num_layers * hidden]: outputs of the feature layers side by side

    def split_features(self, chunks: Sequence[Chunk]) -> Sequence[Tensor | None]:
        """Those of each chunk, [its rows, num_layers * hidden]."""
        if self.features is None:
            return [None] * len(chunks)
        parts: tuple[Tensor, ...] = self.features.split([chunk.num_rows for chunk in chunks])
        return parts


class Packed(NamedTuple):
    """The inputs of one forward pass over several chunks."""

    tokens: Tensor  # [1, T] int64
    positions: Tensor  # [1, T] int64
    rows: PackedRows
    write_slot: int | None  # where the new rows are stored, if they lie one after the other
    slots: Tensor | None  # [T] int64 otherwise
    keep: Tensor | int  # rows whose logits are wanted: 0 for all, or [R] int64
    num_logits: int  # R
    states: Tensor | None = None  # [T, size], as of `Inputs`


class Inputs(NamedTuple):
    """What is to be run, before it is packed."""

    requests: list[RequestRows]
    tokens: Sequence[int]  # of the computed rows, one request after the other
    positions: Sequence[int]
    wanted: list[int]  # logits of each request, those of its last rows
    states: Tensor | None = None  # [T, size]: what a head reads beside the tokens; none of them if they are to be made


class Packer:
    """Makes the inputs of a model's forward passes. What it returns is good until the next call.

    Token ids and positions of short passes are written into the memory of the same tensors every time: on a CPU that
    takes a tenth of the time of making new ones, and beside a small draft model it is time that counts.

    Args:
        device: where the model wants its inputs.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._kept: dict[int, tuple[list[array[int]], list[Tensor]]] = {}  # rows -> memory and tensors, two of each

    def pack(self, given: Inputs) -> Packed:
        """The requests one after the other."""
        requests, wanted = given.requests, given.wanted
        tokens, positions = self._inputs(given.tokens, given.positions)
        first, num_logits = requests[0], sum(wanted)
        write_slot, slots = None, None
        if len(requests) == 1 and first.first_slot is not None:
            write_slot = first.first_slot + first.start + first.first
        else:
            slots = new_slots(requests).to(self.device)
        keep: Tensor | int = 0
        if num_logits != tokens.shape[1]:
            # Not a count: given one, some families run their last layers for those rows only (Gemma 4).
            keep = torch.tensor(kept_rows(requests, wanted) or [0], device=self.device)
        return Packed(tokens, positions, PackedRows(requests), write_slot, slots, keep, num_logits, given.states)

    def _inputs(self, tokens: Sequence[int], positions: Sequence[int]) -> list[Tensor]:  # [1, T] int64, twice
        count = len(tokens)
        if count > MAX_KEPT_ROWS:
            return [torch.tensor([values], device=self.device) for values in (tokens, positions)]
        if count not in self._kept:
            memory = [array("q", [0] * count) for _ in range(2)]
            self._kept[count] = memory, [torch.frombuffer(part, dtype=torch.int64)[None] for part in memory]
        (ids, places), inputs = self._kept[count]
        for index in range(count):
            ids[index], places[index] = tokens[index], positions[index]
        return inputs if self.device.type == "cpu" else [part.to(self.device) for part in inputs]


def inputs_of(cache: PagedKVCache, chunks: Sequence[Chunk]) -> Inputs:
    """The chunks one after the other; their rows must be staged.

    Raises:
        ValueError: there are no chunks, or one wants more logits than it has rows.
    """
    if not chunks:
        raise ValueError("expected at least one chunk, got none; score what there is")
    requests = [_rows_of(cache, chunk) for chunk in chunks]
    tokens = [token for chunk in chunks for token in chunk.tree.tokens[chunk.first :]]
    positions = [position for request in requests for position in request.positions()]
    return Inputs(requests, tokens, positions, [chunk.num_logits for chunk in chunks])


def step_inputs(
    cache: PagedKVCache, tables: Sequence[PageTable], rows: Sequence[int], tokens: Sequence[int], num_staged: int = 1
) -> Inputs:
    """One row per request: `rows[i]` of `tables[i]`, where `tokens[i]` stands; so many from it on must be staged."""
    if not tables:
        raise ValueError("expected at least one row, got none; step through what there is")
    requests = []
    for table, row in zip(tables, rows, strict=True):
        first_slot = cache.contiguous_start(table, row + num_staged)
        slots = None if first_slot is not None else cache.slots(table, 0, row + num_staged)
        requests.append(RequestRows(row, 1, 0, None, None, first_slot, slots, cache.page_size))
    return Inputs(requests, tokens, rows, [1] * len(requests))


def inputs_ahead(cache: PagedKVCache, chunks: Sequence[Chunk], count: int) -> Inputs:
    """One row per request, the one behind its chunk; `count` from it on must be staged."""
    rows = [chunk.start + len(chunk.tree) for chunk in chunks]
    return step_inputs(cache, [chunk.table for chunk in chunks], rows, [0] * len(rows), count)


def new_slots(requests: Sequence[RequestRows]) -> Tensor:  # [T] int64
    """Where the computed rows go."""
    return torch.cat([_new_slots(request) for request in requests])


def kept_rows(requests: Sequence[RequestRows], wanted: Sequence[int]) -> list[int]:
    """Packed rows whose logits are wanted."""
    kept: list[int] = []
    stop = 0
    for request, count in zip(requests, wanted, strict=True):
        stop += request.num_rows
        kept.extend(range(stop - count, stop))
    return kept


def _rows_of(cache: PagedKVCache, chunk: Chunk) -> RequestRows:
    tree, first = chunk.tree, chunk.first
    num_nodes = len(tree)
    if not (0 <= first < num_nodes and 0 <= chunk.num_logits <= num_nodes - first):
        raise ValueError(
            f"expected rows to compute and no more logits than rows, got {num_nodes} nodes, first {first} and "
            f"{chunk.num_logits} logits; ask for the last {num_nodes - first} at most"
        )
    parents, depths = (None, None) if tree.is_chain else (tree.parents, tree.depths)
    stop = chunk.start + num_nodes
    first_slot = cache.contiguous_start(chunk.table, stop)
    slots = None if first_slot is not None else cache.slots(chunk.table, 0, stop)
    return RequestRows(chunk.start, num_nodes, first, parents, depths, first_slot, slots, cache.page_size)


def _new_slots(request: RequestRows) -> Tensor:  # [num_rows] int64
    begin = request.start + request.first
    if request.slots is not None:
        return request.slots[begin : request.stop]
    assert request.first_slot is not None
    return torch.arange(request.first_slot + begin, request.first_slot + request.stop)
