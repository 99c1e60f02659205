"""What the Triton body of `tree_attention` is told about a forward: strips of rows, page table, ancestors; one copy."""

from array import array
from collections.abc import Sequence
from itertools import chain
from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from .rows import PackedRows, RequestRows

NUM_COLUMNS = 8  # of strips, see tree_columns; no triton is needed here
SEEN, START = 3, 5  # the columns that grow by one from row to row of a chain, and the one between them
ALIGNED = 4  # tables begin at multiples of 16 bytes: Triton compiles anew for a pointer that does not
MAX_PAGE = 16  # larger pages have several entries: the kernels are compiled for few sizes


class Bounds(NamedTuple):
    """Room in the tables: exact for one forward, or larger for tables that are filled again and again."""

    strip_rows: int  # most rows of a strip
    page: int  # consecutive slots for which the page table has one entry: a power of two, up to MAX_PAGE
    num_strips: int
    num_requests: int
    num_pages: int  # entries of the page table per request
    num_nodes: int  # of all trees that are no chains
    num_words: int  # 64-bit words per node

    def sizes(self) -> tuple[int, int, int, int]:
        """How many int32 the words, depths, strips and the page table take, each up to where the next begins."""
        nodes, entries = self.num_nodes, self.num_requests * self.num_pages
        counts = (2 * nodes * self.num_words, nodes, self.num_strips * NUM_COLUMNS, entries)
        words, depths, strips, pages = (-(-count // ALIGNED) * ALIGNED for count in counts)
        return words, depths, strips, pages


class Tables(NamedTuple):
    """The tables of a forward: views of one buffer, so that they travel to the device together."""

    words: Tensor  # [num_nodes, num_words] int64: bit j % 64 of word j // 64 says that the node sees node j of its tree
    depths: Tensor  # [num_nodes] int32
    strips: Tensor  # [num_strips, NUM_COLUMNS] int32
    pages: Tensor  # [num_requests, num_pages] int32: slot of the first row of each page


class Bucket(NamedTuple):
    """The most that a forward may have, to fit into tables that are filled again and again."""

    num_rows: int  # computed, of all requests
    num_requests: int
    num_nodes: int  # of one request's tree, those before the computed ones included
    num_pages: int  # of one request
    page: int  # slots per page, as in `Bounds`

    def bounds(self, strip_rows: int) -> Bounds:
        """Room for every forward that fits."""
        num_strips = self.num_requests * -(-self.num_nodes // strip_rows)
        num_nodes, num_words = self.num_requests * self.num_nodes, -(-self.num_nodes // 64)
        return Bounds(strip_rows, self.page, num_strips, self.num_requests, self.num_pages, num_nodes, num_words)


class StaticRows(PackedRows):
    """Rows whose tables stay where they are and are filled anew for each forward: what a captured graph reads.

    Packed rows behind those of the last request are padding: they attend nothing, and their output is anything.

    Example:
        >>> rows = StaticRows(Bucket(num_rows=8, num_requests=2, num_nodes=4, num_pages=4, page=16))
        >>> bounds, tables = tables_of(rows, strip_rows=4, device=torch.device("cpu"))
        >>> rows.load([RequestRows(3, 2, 0, None, None, 32, None)])
        >>> tables.strips.tolist()
        [[0, 0, 2, 4, 5, 3, 0, -1], [0, 0, 0, 0, 0, 0, 0, 0]]
    """

    __slots__ = ("_buffers", "bucket")

    def __init__(self, bucket: Bucket) -> None:
        super().__init__([])
        self.bucket, self.num_rows = bucket, bucket.num_rows
        self._buffers: dict[object, tuple[Bounds, Tensor]] = {}

    def most_rows(self) -> tuple[int, int]:
        """As of any forward of the bucket."""
        return self.bucket.num_nodes, self.bucket.num_nodes

    def keep(self, key: object, bounds: Bounds, buffer: Tensor) -> None:
        """Remembers a buffer of tables to fill."""
        self._buffers[key] = bounds, buffer

    def advance(self, positions: Tensor) -> Tensor:  # [num_requests] int64 -> [num_requests] int64
        """Moves every request on to the next row, at these positions, and says in which slots those lie.

        For forwards of one row per request that continues a chain; the pages must be in the tables already.
        """
        for bounds, tables in self.tables.values():
            tables.strips[:, SEEN : START + 1] += 1  # it sees itself, and so does nobody else
            pages = tables.pages.gather(1, (positions // bounds.page)[:, None])[:, 0]
            slots: Tensor = pages + positions % bounds.page
        return slots

    def load(self, requests: Sequence[RequestRows]) -> None:
        """Fills all tables for a forward of these requests; nothing is waited for."""
        self.requests = requests
        for bounds, buffer in self._buffers.values():
            buffer.copy_(written(self, bounds, buffer.is_cuda), non_blocking=True)


def tables_of(rows: PackedRows, strip_rows: int, device: torch.device) -> tuple[Bounds, Tables]:
    """The tables of a forward on a device; written for the first layer that asks."""
    key = strip_rows, device
    found: tuple[Bounds, Tables] | None = rows.tables.get(key)
    if found is None:
        bounds = bounds_of(rows, strip_rows)
        buffer = written(rows, bounds, device.type == "cuda").to(device, non_blocking=True)
        found = rows.tables[key] = bounds, split(buffer, bounds)
        if isinstance(rows, StaticRows):
            rows.keep(key, bounds, buffer)
    return found


def bounds_of(rows: PackedRows, strip_rows: int) -> Bounds:
    """The bounds of a forward: exact ones, or those of its bucket.

    Example:
        >>> tree = RequestRows(3, 3, 0, [-1, 0, 0], [0, 1, 1], 0, None)
        >>> prompt = RequestRows(0, 70, 0, None, None, 16, None)
        >>> bounds_of(PackedRows([tree, prompt]), strip_rows=32)[2:]  # strips, requests, pages, nodes, words
        (4, 2, 5, 3, 1)
    """
    if isinstance(rows, StaticRows):
        return rows.bucket.bounds(strip_rows)
    requests = rows.requests
    page = gcd(MAX_PAGE, *[request.page_size for request in requests if request.slots is not None])
    trees = [request.num_nodes for request in requests if request.parents is not None]
    return Bounds(
        strip_rows,
        page,
        sum([-(-request.num_rows // strip_rows) for request in requests]),
        len(requests),
        max([-(-request.stop // page) for request in requests]),
        sum(trees),
        max([-(-count // 64) for count in trees], default=0),
    )


def split(buffer: Tensor, bounds: Bounds) -> Tables:  # [sum(bounds.sizes())] int32
    """The tables within a buffer."""
    words, depths, strips, pages = buffer.split(bounds.sizes())
    return Tables(
        words.view(torch.int64)[: bounds.num_nodes * bounds.num_words].view(bounds.num_nodes, bounds.num_words),
        depths[: bounds.num_nodes],
        strips.view(-1, NUM_COLUMNS)[: bounds.num_strips],
        pages[: bounds.num_requests * bounds.num_pages].view(bounds.num_requests, bounds.num_pages),
    )


def written(rows: PackedRows, bounds: Bounds, is_pinned: bool) -> Tensor:  # [sum(bounds.sizes())] int32, on the CPU
    """A buffer with the tables of a forward; pinned, its copy to a GPU is not waited for.

    Example:
        >>> tree = RequestRows(3, 3, 0, [-1, 0, 0], [0, 1, 1], 32, None)
        >>> rows = PackedRows([tree, RequestRows(0, 2, 0, None, None, 16, None)])
        >>> bounds = bounds_of(rows, strip_rows=4)
        >>> words, depths, strips, pages = split(written(rows, bounds, False), bounds)
        >>> [bin(word) for word in words.flatten().tolist()]
        ['0b1', '0b11', '0b101']
        >>> strips.tolist()
        [[0, 0, 3, 3, 6, 3, 0, 0], [1, 3, 2, 1, 2, 0, 0, -1]]
        >>> pages.tolist()
        [[32], [16]]
    """
    buffer = torch.zeros(sum(bounds.sizes()), dtype=torch.int32, pin_memory=is_pinned)
    words, depths, strips, pages = split(buffer, bounds)
    lines = _strips(rows.requests, bounds.strip_rows)
    strips[: len(lines)] = torch.tensor(lines, dtype=torch.int32).view(-1, NUM_COLUMNS)
    if rows.requests:
        _write_pages(rows.requests, bounds.page, pages)
    trees = [request for request in rows.requests if request.parents is not None]
    if trees:
        _write_trees(trees, words, depths)
    return buffer


def _strips(requests: Sequence[RequestRows], strip_rows: int) -> list[tuple[int, ...]]:
    row, tree = 0, 0
    lines: list[tuple[int, ...]] = []
    for index, request in enumerate(requests):
        start, stop = request.start, request.stop
        for node in range(request.first, request.num_nodes, strip_rows):
            count = min(strip_rows, request.num_nodes - node)
            if request.parents is None:  # causal: what the first row sees, all see, and none sees behind the last
                lines.append((index, row, count, start + node + 1, start + node + count, start, node, -1))
            else:
                lines.append((index, row, count, start, stop, start, node, tree))
            row += count
        tree += 0 if request.parents is None else request.num_nodes
    return lines


def _write_pages(requests: Sequence[RequestRows], page: int, pages: Tensor) -> None:
    firsts = torch.tensor([request.first_slot or 0 for request in requests], dtype=torch.int32)
    steps = torch.arange(0, page * pages.shape[1], page, dtype=torch.int32)
    torch.add(firsts[:, None], steps, out=pages[: len(requests)])  # behind a request's last page nobody looks
    for index, request in enumerate(requests):
        if request.slots is not None:
            starts = request.slots[::page]
            pages[index, : len(starts)] = starts


def _write_trees(trees: Sequence[RequestRows], words: Tensor, depths: Tensor) -> None:
    """Depths and ancestor words of all nodes of all trees, by doubling: a node sees what its 2**k-th ancestor sees."""
    all_depths = _joined([tree.depths or () for tree in trees])
    num_nodes, counts = len(all_depths), torch.tensor([tree.num_nodes for tree in trees])
    words, depths[:num_nodes] = words[:num_nodes], all_depths
    offsets = (counts.cumsum(0) - counts).repeat_interleave(counts)  # of each node's tree
    parents = _joined([tree.parents or () for tree in trees])
    jump = parents.clamp_(min=0).add_(offsets)  # the root jumps to itself, so a jump that is too far ends there
    node = torch.arange(num_nodes) - offsets
    words.scatter_(1, (node // 64)[:, None], (1 << node % 64)[:, None])
    for _ in range(int(all_depths.max()).bit_length()):
        words |= words.index_select(0, jump)
        jump = jump.index_select(0, jump)
    last = -1
    for tree in trees:
        last += tree.num_nodes
        if tree.is_mutual:  # its last node sees all of it
            words[last - tree.num_nodes + 1 : last] = words[last]


def _joined(lists: Sequence[Sequence[int]]) -> Tensor:  # [sum of lengths] int64
    """As `torch.tensor`, in a quarter of its time."""
    return torch.frombuffer(array("q", chain.from_iterable(lists)), dtype=torch.int64)
