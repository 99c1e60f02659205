"""Chunks: rows of one request to run through a model, and how those of a batch become one packed sequence."""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Packed:
    """The inputs of one forward pass over several chunks."""

    tokens: Tensor  # [1, T] int64
    positions: Tensor  # [1, T] int64
    rows: PackedRows
    slots: Tensor  # [T] int64: where the new rows are stored
    write_slot: int | None  # the first of them if they lie one after the other
    keep: Tensor | int  # rows whose logits are wanted: the last so many (0: all), or [R] int64
    num_logits: int  # R


def pack(cache: PagedKVCache, chunks: Sequence[Chunk], device: torch.device) -> Packed:
    """The chunks one after the other, on `device`; their rows must be staged.

    Raises:
        ValueError: there are no chunks, or one wants more logits than it has rows.
    """
    if not chunks or any(not 0 <= chunk.num_logits <= chunk.num_rows for chunk in chunks):
        wanted = [(chunk.num_logits, chunk.num_rows) for chunk in chunks]
        raise ValueError(f"expected chunks with at most as many logits as rows, got (logits, rows) = {wanted}")
    requests = [_rows_of(cache, chunk) for chunk in chunks]
    slots = [_new_slots(cache, chunk, rows) for chunk, rows in zip(chunks, requests, strict=True)]
    keep: Tensor | int
    if len(chunks) == 1:
        chunk, request = chunks[0], requests[0]
        tokens, new_slots = chunk.tree.tokens, slots[0]
        if chunk.first:
            tokens = tokens[chunk.first :]
        if request.depths is None:
            positions = torch.arange(request.start + request.first, request.stop)
        else:
            positions = torch.tensor(request.positions())
        write_slot = None if request.first_slot is None else request.first_slot + request.start + request.first
        keep, num_logits = chunk.num_logits or 1, chunk.num_logits
    else:
        tokens = torch.cat([chunk.tree.tokens[chunk.first :] for chunk in chunks])
        positions = torch.tensor([position for request in requests for position in request.positions()])
        new_slots, write_slot = torch.cat(slots), None
        keep, num_logits = _wanted(chunks)
    if device.type != "cpu":
        tokens, positions, new_slots = tokens.to(device), positions.to(device), new_slots.to(device)
        keep = keep.to(device) if isinstance(keep, Tensor) else keep
    return Packed(tokens[None], positions[None], PackedRows(requests), new_slots, write_slot, keep, num_logits)


def _rows_of(cache: PagedKVCache, chunk: Chunk) -> RequestRows:
    tree, num_nodes = chunk.tree, len(chunk.tree)
    parents: list[int] | None = tree.parents.tolist()
    if parents == list(range(-1, num_nodes - 1)):
        parents = None
    stop = chunk.start + num_nodes
    first_slot = cache.contiguous_start(chunk.table, stop)
    return RequestRows(
        chunk.start,
        num_nodes,
        chunk.first,
        parents,
        None if parents is None else tree.depths(),
        first_slot,
        None if first_slot is not None else cache.slots(chunk.table, 0, stop),
    )


def _new_slots(cache: PagedKVCache, chunk: Chunk, rows: RequestRows) -> Tensor:  # [num_rows] int64
    begin = rows.start + rows.first
    if rows.slots is not None:
        return rows.slots[begin:]
    return cache.slots(chunk.table, begin, rows.stop)


def _wanted(chunks: Sequence[Chunk]) -> tuple[Tensor | int, int]:
    """Which rows' logits are wanted, and how many those are."""
    if all(chunk.num_logits == chunk.num_rows for chunk in chunks):
        return 0, sum(chunk.num_rows for chunk in chunks)
    wanted: list[int] = []
    stop = 0
    for chunk in chunks:
        stop += chunk.num_rows
        wanted.extend(range(stop - chunk.num_logits, stop))
    return (torch.tensor(wanted), len(wanted)) if wanted else (1, 0)
