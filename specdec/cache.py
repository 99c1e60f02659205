"""The paged KV cache: one allocator, one page table per request, several pools of rows that share the tables.

Row t of a request lies at slot `pages[t // page_size] * page_size + t % page_size` of every pool, so target and drafter
roll back together and a page is freed once. Who may write which rows:

    rows         0 ......... length ............ length + num_rows
                 | committed    | staged            |
    pages        [ may be shared ][ this table only, after `stage` ]
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .pages import CacheFull, PageAllocator, PrefixIndex, num_consecutive, num_in_place, shared_fill
from .pool import KVPool, kept_as, pages_that_fit

__all__ = ["CacheFull", "PageTable", "PagedKVCache"]  # the first is made in pages.py

TARGET = "target"  # the pool whose rows the prefix index vouches for
FIRST_PAGES = 64


@dataclass(eq=False, slots=True)
class PageTable:
    """Where the rows of one request lie. Made and changed by the cache only, but for `filled`."""

    pages: list[int] = field(default_factory=list)
    length: int = 0  # committed rows
    filled: Counter[str] = field(default_factory=Counter)  # pool -> leading rows it holds, staged ones included
    tokens: list[int] = field(default_factory=list)  # [length], of the committed rows
    serials: list[int] = field(default_factory=list)  # of the leading pages that are in the prefix index
    num_consecutive: int = 0  # leading pages that are numbered p, p + 1, ...


class PagedKVCache:
    """Pages of K/V rows for many requests. `stage` makes rows writable, `commit` keeps an accepted path of them.

    `num_pages` starts small and doubles up to `max_pages`. Without `max_pages` the limit is worked out anew when more
    pages are wanted: on each device the pools may hold `memory_fraction` of what would be free there without them.
    Before the first rows are written the size of a page is unknown, and pages are granted without a limit.

    Args:
        page_size: rows per page. Requests share whole pages only.
        max_pages: most pages there may ever be; None to go by memory.
        memory_fraction: the share of free memory that the pools may take.
        kv_cache_dtype: "auto" keeps rows as the models give them. "fp8" or "fp8_e4m3" rounds them to eight bits, in all
            pools: the text is another one than with "auto", and still the same with and without a drafter, as far as
            two passes give the same numbers, whose last bits may decide which way a row is rounded. Scales are 1.0
            unless set before the first rows, see `KVPool.set_scales` and `calibration.calibrate`.

    Example:
        >>> cache = PagedKVCache(page_size=4, max_pages=8)
        >>> table = cache.open()
        >>> cache.stage(table, 3)  # the pending token and two drafted ones, both continuing it
        >>> cache.slots(table, 0, 3).tolist()
        [0, 1, 2]
        >>> cache.commit(table, [2], tokens=[7, 9])  # the second one was accepted
        >>> table.length, cache.num_pages - cache.num_free_pages
        (2, 1)
        >>> cache.close(table)
    """

    def __init__(
        self,
        page_size: int = 16,
        max_pages: int | None = None,
        memory_fraction: float = 0.7,
        kv_cache_dtype: str = "auto",
    ) -> None:
        if page_size < 1 or (max_pages is not None and max_pages < 1) or not 0 < memory_fraction <= 1:
            raise ValueError(
                f"expected page_size and max_pages of at least 1 and memory_fraction in (0, 1], "
                f"got {page_size}, {max_pages} and {memory_fraction}"
            )
        self.page_size, self._max_pages, self._memory_fraction = page_size, max_pages, memory_fraction
        self._kept_as = kept_as(kv_cache_dtype)
        self._offsets = torch.arange(page_size)
        self._pools: dict[str, KVPool] = {}
        self._tables: set[PageTable] = set()
        self._prefixes = PrefixIndex()
        self._allocator = PageAllocator(min(FIRST_PAGES, max_pages or FIRST_PAGES), self._prefixes)

    @property
    def num_pages(self) -> int:
        """Pages there are now, free or used."""
        return len(self._allocator.references)

    @property
    def num_free_pages(self) -> int:
        """Pages that no table holds."""
        return self._allocator.num_free

    def take_peak_bytes(self) -> dict[str, int]:
        """Pool -> bytes of the most pages that were in use at once; the next call counts from now on."""
        num_rows, self._allocator.peak = self._allocator.peak * self.page_size, self.num_pages - self.num_free_pages
        return {name: num_rows * pool.slot_bytes().total() for name, pool in self._pools.items()}

    def pool(self, name: str) -> KVPool:
        """The pool of this name, made when first asked for."""
        if name not in self._pools:
            self._pools[name] = KVPool(name, self.num_pages * self.page_size, self._kept_as)
        return self._pools[name]

    def open(self, tokens: Sequence[int] = ()) -> PageTable:
        """The table of a new request; it starts with the whole pages that open tables hold of a prefix of `tokens`.

        The last token is never among them: it has to be run to know what follows. A pool that has yet to fill those
        pages writes into them though they are shared: a row is a function of the tokens up to it, so it is the same.
        """
        table, size = PageTable(), self.page_size
        for start in range(0, (len(tokens) - 1) // size * size, size):
            serial = table.serials[-1] if start else 0
            found = self._prefixes.find((serial, tuple(tokens[start : start + size])))
            if found is None:
                break
            table.serials.append(found[0])
            self._allocator.references[found[1]] += 1
            self._append(table, found[1])
        table.length = len(table.pages) * size
        table.tokens = list(tokens[: table.length])
        table.filled = shared_fill(table.pages, self._tables, size)
        table.filled[TARGET] = table.length
        self._tables.add(table)
        return table

    def stage(self, table: PageTable, num_rows: int) -> None:
        """Make the next `num_rows` rows writable: enough pages, and none of those rows in a page of somebody else.

        Rows staged before stay as they are; those of a draft that is given up are dropped by truncate(length).

        Raises:
            CacheFull: there are too few pages. Nothing was changed.
        """
        self._require_open(table)
        if not num_rows:
            return
        pages, references = table.pages, self._allocator.references
        first, stop = table.length // self.page_size, -(-(table.length + num_rows) // self.page_size)
        shared = [index for index in range(first, min(stop, len(pages))) if references[pages[index]] > 1]
        if (num_wanted := len(shared) + max(0, stop - len(pages))) > self.num_free_pages:
            self._grow(num_wanted)
        for index in shared:
            self._copy_on_write(table, index)
        for page in pages[first:stop]:
            self._prefixes.discard(page)  # a truncated page is about to be written
        while len(pages) < stop:
            self._append(table, self._allocator.take(pages[-1] + 1 if pages else -1))

    def slots(self, table: PageTable, start: int, stop: int) -> Tensor:  # [stop - start] int64, on the CPU
        """Where rows start .. stop - 1 lie in every pool."""
        size = self.page_size
        assert 0 <= start <= stop <= len(table.pages) * size, f"rows {start} to {stop} were not staged"
        if (begin := self.contiguous_start(table, stop)) is not None:
            return torch.arange(begin + start, begin + stop)
        skipped = start // size
        pages = table.pages[skipped : -(-stop // size)]
        if len(pages) == num_consecutive(pages):
            first = (pages[0] - skipped) * size
            return torch.arange(first + start, first + stop)
        slots = (torch.tensor(pages)[:, None] * size + self._offsets).flatten()
        return slots[start - skipped * size : stop - skipped * size]

    def contiguous_start(self, table: PageTable, stop: int) -> int | None:
        """The slot of row 0 if rows 0 .. stop - 1 lie one after the other, else None."""
        if stop > table.num_consecutive * self.page_size:
            return None
        return table.pages[0] * self.page_size if table.pages else 0

    def commit(self, table: PageTable, path: Sequence[int], tokens: Sequence[int], pool: str = TARGET) -> None:
        """Keep node 0 and the nodes of `path` of the staged tree, whose node i is row `length + i`; drop the others.

        In `pool` the kept rows are moved together; another pool keeps those in front of the first that moved and has
        to catch up. Pages that lie wholly behind the new length are freed.

        Args:
            path: kept nodes from the root's child down, ascending.
            tokens: of the kept rows, node 0 included; what the prefix index will know the rows by.
        """
        self._require_open(table)
        start, num_kept, num_still = table.length, 1 + len(path), num_in_place(path)
        last = start + (path[-1] if path else 0)
        if len(tokens) != num_kept or last >= len(table.pages) * self.page_size:
            raise ValueError(
                f"expected one token for each of {num_kept} staged rows up to row {last}, got {len(tokens)} tokens and "
                f"{len(table.pages) * self.page_size} rows; stage the rows before they are committed"
            )
        is_moved = num_still < num_kept and table.filled[pool] > last
        if is_moved:
            self._gather(table, path, num_still, pool)
        for name, rows in table.filled.items():
            num_valid = num_kept if is_moved and name == pool else num_still
            table.filled[name] = min(rows, start + num_valid)
        table.length += num_kept
        table.tokens += tokens
        self._index(table)
        self._trim(table)

    def truncate(self, table: PageTable, length: int) -> None:
        """Keep the first `length` committed rows; staged rows are dropped too."""
        self._require_open(table)
        if not 0 <= length <= table.length:
            raise ValueError(f"expected a length of 0 to {table.length} rows, got {length}; rows are added by commit")
        table.length = length
        for name, rows in table.filled.items():
            table.filled[name] = min(rows, length)
        del table.tokens[length:], table.serials[length // self.page_size :]
        self._trim(table)

    def fork(self, table: PageTable) -> PageTable:
        """A second table of the same committed rows. Both share the pages until one of them writes."""
        self._require_open(table)
        fork = PageTable(length=table.length, tokens=list(table.tokens), serials=list(table.serials))
        fork.filled.update({name: min(rows, table.length) for name, rows in table.filled.items()})
        for page in table.pages[: -(-table.length // self.page_size)]:
            self._allocator.references[page] += 1
            self._append(fork, page)
        self._tables.add(fork)
        return fork

    def close(self, table: PageTable) -> None:
        """Give the pages of a finished request back; the table is of no use afterwards."""
        self.truncate(table, 0)
        self._tables.remove(table)

    def check(self) -> None:
        """Assert that every page is free or held as often as counted, and that every table is within its bounds."""
        holders = Counter(page for table in self._tables for page in table.pages)
        self._allocator.check(holders)
        self._prefixes.check(holders)
        assert all(pool.num_slots >= self.num_pages * self.page_size for pool in self._pools.values())
        for table in self._tables:
            num_rows = len(table.pages) * self.page_size
            assert len(set(table.pages)) == len(table.pages), f"a table holds a page twice: {table}"
            assert all(0 <= rows <= num_rows for rows in (table.length, *table.filled.values())), f"too long: {table}"
            assert len(table.tokens) == table.length >= len(table.serials) * self.page_size, f"bad prefix: {table}"
            assert table.num_consecutive == num_consecutive(table.pages), f"pages are not consecutive: {table}"

    def _require_open(self, table: PageTable) -> None:
        if table not in self._tables:
            raise ValueError("expected an open table of this cache, got a closed or foreign one; open a new one")

    def _append(self, table: PageTable, page: int) -> None:
        pages = table.pages
        if table.num_consecutive == len(pages) and (not pages or pages[-1] + 1 == page):
            table.num_consecutive += 1
        pages.append(page)

    def _copy_on_write(self, table: PageTable, index: int) -> None:
        """Give the table a copy of its page number `index`, in all pools."""
        pages, size = table.pages, self.page_size
        source, target = pages[index], self._allocator.take(pages[index - 1] + 1 if index else -1)
        for pool in self._pools.values():
            pool.move(range(source * size, (source + 1) * size), range(target * size, (target + 1) * size))
        pages[index] = target
        self._allocator.release(source)
        table.num_consecutive = num_consecutive(pages)

    def _gather(self, table: PageTable, path: Sequence[int], num_still: int, pool: str) -> None:
        """Move the rows of `path` that are not where they belong next to those that are."""
        size, pages = self.page_size, table.pages
        first = table.length + num_still
        sources = [table.length + node for node in path[num_still - 1 :]]
        slots = [pages[row // size] * size + row % size for row in (*sources, *range(first, first + len(sources)))]
        self.pool(pool).move(slots[: len(sources)], slots[len(sources) :])

    def _index(self, table: PageTable) -> None:
        """Tell the prefix index of pages that became whole."""
        size, serials = self.page_size, table.serials
        for index in range(len(serials), min(table.length, table.filled[TARGET]) // size):
            key = (serials[-1] if serials else 0, tuple(table.tokens[index * size : (index + 1) * size]))
            serials.append(self._prefixes.add(key, table.pages[index]))

    def _trim(self, table: PageTable) -> None:
        """Free the pages that lie wholly behind the committed rows."""
        num_kept = -(-table.length // self.page_size)
        while len(table.pages) > num_kept:
            self._allocator.release(table.pages.pop())
        table.num_consecutive = min(table.num_consecutive, num_kept)

    def _grow(self, num_wanted: int) -> None:
        """See to it that so many pages are free: storage is doubled, layer by layer, as far as the limit allows."""
        num_used, limit = self.num_pages - self.num_free_pages, self._max_pages
        if limit is None:
            limit = pages_that_fit(self._pools.values(), self.num_pages, self.page_size, self._memory_fraction)
        if num_used + num_wanted > limit:
            raise CacheFull(num_wanted, limit - num_used)
        num_pages = min(limit, max(2 * self.num_pages, num_used + num_wanted))
        try:
            for pool in self._pools.values():
                pool.grow(num_pages * self.page_size)
        except torch.OutOfMemoryError as error:  # layers that have grown already are only larger than they need to be
            raise CacheFull(num_wanted, self.num_free_pages) from error
        self._allocator.grow(num_pages)
