"""Buckets: forward passes of about the same shape share a captured graph, whose inputs lie in memory that stays.

What differs from pass to pass, token ids, positions, slots and the tables of `StaticRows`, is filled anew by two copies
that nobody waits for, and a head's states by a third. Rows behind those of the last request are padding; nobody reads
where they go.
"""

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from .capture import power_of_two, rounded
from .chunk import Inputs, Packed, kept_rows, new_slots
from .kernels.tree_tables import MAX_PAGE, Bucket, StaticRows

MAX_ROWS = 512  # of a captured pass: beyond, the GPU is busy for longer than the host
MAX_NODES = 128  # of a request in a captured pass
MIN_PREFIX = 1024  # a bucket has room for so many rows of a request, or a power of two times as many


class Key(NamedTuple):
    """What a graph is captured for."""

    bucket: Bucket
    wants_all: bool  # logits of all rows, or of the last one of each request
    states: tuple[int, torch.dtype] | None = None  # size and type of what rows bring along beside their tokens


class Forward:
    """The inputs of all passes of a bucket, in memory that stays, and what a captured graph makes of them."""

    def __init__(self, key: Key, device: torch.device) -> None:
        num_rows, num_kept = key.bucket.num_rows, 0 if key.wants_all else key.bucket.num_requests
        self.rows = StaticRows(key.bucket)
        self._sizes = (num_rows, num_rows, num_rows, num_kept)
        self._numbers = torch.zeros(sum(self._sizes), dtype=torch.int64, device=device)
        tokens, positions, slots, keep = self._numbers.split(self._sizes)
        kept: Tensor | int = keep if num_kept else 0
        self._spare, states = 0, None
        if key.states is not None:
            size, dtype = key.states
            states = torch.zeros(num_rows, size, dtype=dtype, device=device)
        self.packed = Packed(tokens[None], positions[None], self.rows, None, slots, kept, num_kept or num_rows, states)

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
        if self.packed.states is not None and given.states is not None:
            self.packed.states[: len(given.states)].copy_(given.states)
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


def key_of(given: Inputs) -> Key | None:
    """The bucket of a pass, and which logits it gives; None if it is not to be captured.

    Example:
        >>> from functools import partial
        >>> from specdec.kernels.rows import RequestRows
        >>> rows = partial(RequestRows, first=0, parents=None, depths=None, slots=None, page_size=16)
        >>> given = [rows(100, 6, first_slot=0), rows(900, 5, first_slot=4096)]
        >>> key_of(Inputs(given, list(range(11)), list(range(11)), [6, 5]))[:2]
        (Bucket(num_rows=16, num_requests=2, num_nodes=8, num_pages=64, page=16), True)
    """
    num_rows, num_nodes = len(given.tokens), max(request.num_nodes for request in given.requests)
    wants_all = sum(given.wanted) == num_rows
    if num_rows > MAX_ROWS or num_nodes > MAX_NODES or not (wants_all or set(given.wanted) == {1}):
        return None
    page, room = _pages(given)
    bucket = Bucket(rounded(num_rows), power_of_two(len(given.requests)), power_of_two(num_nodes), room, page)
    return Key(bucket, wants_all, _kind(given.states))


def chain_keys(given: Inputs, ahead: Inputs, count: int) -> tuple[Key, Key] | None:
    """The buckets of the first pass of a chain and of those behind it; None if it is not to be captured.

    Example:
        >>> from specdec.kernels.rows import RequestRows
        >>> given = Inputs([RequestRows(99, 2, 0, None, None, 0, None)], [5, 6], [99, 100], [1])
        >>> ahead = Inputs([RequestRows(101, 1, 0, None, None, 0, None)], [0], [101], [1])
        >>> [key.bucket[:3] for key in chain_keys(given, ahead, count=4)]
        [(2, 1, 2), (1, 1, 1)]
    """
    key, count_rows = key_of(given), power_of_two(len(given.requests))
    if key is None or count_rows > MAX_ROWS:
        return None
    page, room = _pages(ahead, count)
    num_rows, num_nodes = max(key.bucket.num_rows, rounded(2 * count_rows)), max(2, key.bucket.num_nodes)
    first = Bucket(num_rows, count_rows, num_nodes, room, page)
    behind = Bucket(count_rows, count_rows, 1, room, page)
    return Key(first, False, key.states), Key(behind, True, _kind(ahead.states))


def block_keys(blocks: Inputs, context: Inputs, size: int) -> list[Key] | None:
    """The buckets of blocks of `size` rows, and of the rows in front of them that are stored with them; None if they
    are not to be captured. There is always room for the rows of blocks that were accepted whole.

    Example:
        >>> from specdec.kernels.rows import RequestRows
        >>> blocks = Inputs([RequestRows(20, 5, 0, None, None, 0, None)], [0] * 5, list(range(20, 25)), [4])
        >>> context = Inputs([RequestRows(18, 2, 0, None, None, 0, None)], [0] * 2, [18, 19], [0])
        >>> [key.bucket[:3] for key in block_keys(blocks, context, size=5)]
        [(5, 1, 8), (8, 1, 1)]
    """
    count = power_of_two(len(blocks.requests))
    num_rows = max(rounded(len(context.tokens)), rounded(count * size))
    if num_rows > MAX_ROWS:
        return None
    page, room = _pages(blocks)
    bucket = Bucket(count * size, count, power_of_two(size), room, page)
    in_front = Bucket(num_rows, count, 1, 1, page)  # nobody attends from there
    return [Key(bucket, True), Key(in_front, True, _kind(context.states))]


def _kind(states: Tensor | None) -> tuple[int, torch.dtype] | None:
    return None if states is None else (states.shape[1], states.dtype)


def _pages(given: Inputs, count: int = 0) -> tuple[int, int]:
    """Slots of a page, and room for the pages of each request and `count` more rows."""
    page = gcd(MAX_PAGE, *[request.page_size for request in given.requests])
    num_pages = max(-(-(request.stop + count) // page) for request in given.requests)
    return page, max(MIN_PREFIX // page, power_of_two(num_pages))
