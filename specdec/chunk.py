"""Chunks: rows of one request to run through a model, and how those of a batch become one packed sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .cache import PagedKVCache, PageTable
from .kernels.rows import PackedRows, RequestRows
from .tree import TokenTree


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
    features: Tensor | None  # [sum of num_logits, num_layers * hidden]: outputs of the feature layers side by side


class Packed(NamedTuple):
    """The inputs of one forward pass over several chunks."""

    tokens: Tensor  # [1, T] int64
    positions: Tensor  # [1, T] int64
    rows: PackedRows
    write_slot: int | None  # where the new rows are stored, if they lie one after the other
    slots: Tensor | None  # [T] int64 otherwise
    keep: Tensor | int  # rows whose logits are wanted: 0 for all, or [R] int64
    num_logits: int  # R


def pack(cache: PagedKVCache, chunks: Sequence[Chunk], device: torch.device) -> Packed:
    """The chunks one after the other, on `device`; their rows must be staged.

    Raises:
        ValueError: there are no chunks, or one wants more logits than it has rows.
    """
    requests = [_rows_of(cache, chunk) for chunk in chunks]
    packed = _one(chunks[0], requests[0]) if len(chunks) == 1 else _several(cache, chunks, requests)
    if device.type == "cpu":
        return packed
    return Packed._make(part.to(device) if isinstance(part, Tensor) else part for part in packed)


def _one(chunk: Chunk, request: RequestRows) -> Packed:
    tokens, begin = chunk.tree.tokens, request.start + request.first
    if request.first:
        tokens = tokens[request.first :]
    positions = torch.tensor([request.positions()])
    write_slot, slots = None, None
    if request.slots is None:
        assert request.first_slot is not None
        write_slot = request.first_slot + begin
    else:
        slots = request.slots[begin:]
    # Not a count: given one, some families run their last layers for those rows only (Gemma 4).
    keep = 0 if chunk.num_logits == chunk.num_rows else _last(chunk.num_rows, chunk.num_logits or 1)
    rows = PackedRows((request,))
    return Packed(tokens[None], positions, rows, write_slot, slots, keep, chunk.num_logits)


def _several(cache: PagedKVCache, chunks: Sequence[Chunk], requests: Sequence[RequestRows]) -> Packed:
    if not chunks:
        raise ValueError("expected at least one chunk, got none; score what there is")
    tokens = torch.cat([chunk.tree.tokens[chunk.first :] for chunk in chunks])
    positions = torch.tensor([position for request in requests for position in request.positions()])
    slots = torch.cat([_new_slots(cache, chunk, rows) for chunk, rows in zip(chunks, requests, strict=True)])
    num_logits = sum(chunk.num_logits for chunk in chunks)
    keep: Tensor | int = 0
    if num_logits != len(positions):
        wanted: list[int] = []
        stop = 0
        for chunk in chunks:
            stop += chunk.num_rows
            wanted.extend(range(stop - chunk.num_logits, stop))
        keep = torch.tensor(wanted or [0])
    return Packed(tokens.unsqueeze(0), positions.unsqueeze(0), PackedRows(requests), None, slots, keep, num_logits)


def _rows_of(cache: PagedKVCache, chunk: Chunk) -> RequestRows:
    tree, first = chunk.tree, chunk.first
    num_nodes = len(tree)
    if not (0 <= first < num_nodes and 0 <= chunk.num_logits <= num_nodes - first):
        raise ValueError(
            f"expected rows to compute and no more logits than rows, got {num_nodes} nodes, first {first} and "
            f"{chunk.num_logits} logits; ask for the last {num_nodes - first} at most"
        )
    parents, depths = None, None
    if num_nodes > 1:
        parents = tree.parents.tolist()
        if parents == list(range(-1, num_nodes - 1)):
            parents = None
        else:
            depths = tree.depths()
    stop = chunk.start + num_nodes
    first_slot = cache.contiguous_start(chunk.table, stop)
    slots = None if first_slot is not None else cache.slots(chunk.table, 0, stop)
    return RequestRows(chunk.start, num_nodes, first, parents, depths, first_slot, slots)


def _new_slots(cache: PagedKVCache, chunk: Chunk, rows: RequestRows) -> Tensor:  # [num_rows] int64
    begin = rows.start + rows.first
    return cache.slots(chunk.table, begin, rows.stop) if rows.slots is None else rows.slots[begin:]


def _last(num_rows: int, count: int) -> Tensor:  # [count] int64
    return torch.arange(num_rows - count, num_rows)
