"""Bookkeeping of pages for the cache: who holds how many, which is next, and what the whole ones contain."""

from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heappop, heappush
from itertools import count, pairwise, takewhile
from typing import Protocol

PrefixKey = tuple[int, tuple[int, ...]]  # (serial of the page before, 0 for none; tokens of the page)


class CacheFull(RuntimeError):
    """Raised when a request wants more pages than there are; the cache is as it was before the call.

    Example:
        >>> print(CacheFull(5, 2))
        expected 5 free cache pages, got 2; raise max_pages or memory_fraction, or run fewer or shorter requests at once
    """

    def __init__(self, pages_wanted: int, pages_free: int) -> None:
        super().__init__(pages_wanted, pages_free)
        self.pages_wanted, self.pages_free = pages_wanted, pages_free

    def __str__(self) -> str:
        return (
            f"expected {self.pages_wanted} free cache pages, got {self.pages_free}; "
            f"raise max_pages or memory_fraction, or run fewer or shorter requests at once"
        )


class PrefixIndex:
    """Which pages hold which whole page of committed tokens after which pages before it.

    A page's key is (serial of the page before, its tokens), and a serial stands for all tokens up to there and is never
    given twice: the dictionary compares the tokens themselves, a hash collision costs time and nothing else. Every page
    of equal content is listed, so a prefix can be found as long as any request holds it.
    """

    def __init__(self) -> None:
        self._entries: dict[PrefixKey, tuple[int, list[int]]] = {}  # (serial, pages of this content)
        self._keys: dict[int, PrefixKey] = {}  # by page
        self._serials = count(1)

    def find(self, key: PrefixKey) -> tuple[int, int] | None:
        """Serial and a page of this content."""
        entry = self._entries.get(key)
        return entry and (entry[0], entry[1][0])

    def add(self, key: PrefixKey, page: int) -> int:
        """The serial of this content, which `page` holds from now on."""
        assert page not in self._keys, f"page {page} is indexed already"
        self._keys[page] = key
        serial, pages = self._entries.get(key) or self._entries.setdefault(key, (next(self._serials), []))
        pages.append(page)
        return serial

    def discard(self, page: int) -> None:
        """Forget what the page holds, if it was known."""
        key = self._keys.pop(page, None)
        if key is not None:
            pages = self._entries[key][1]
            pages.remove(page)
            if not pages:
                del self._entries[key]

    def check(self, holders: Counter[int]) -> None:
        """Assert that only pages in use are known, each under its own key."""
        assert all(holders[page] for page in self._keys), "a free page is indexed"
        listed = [(page, key) for key, (_, pages) in self._entries.items() for page in pages]
        assert len(listed) == len(self._keys) and dict(listed) == self._keys, "the prefix index does not balance"


class PageAllocator:
    """Reference counts of pages, and which page is next: the one wanted if it is free, else the lowest free one."""

    def __init__(self, num_pages: int, prefixes: PrefixIndex) -> None:
        self.references: list[int] = []  # by page
        self.num_free = 0
        self.peak = 0  # most pages that were in use at once
        self._prefixes = prefixes  # told when a page becomes free
        self._heap: list[int] = []  # every free page once; used pages may linger until they come up
        self._in_heap: list[bool] = []
        self.grow(num_pages)

    def grow(self, num_pages: int) -> None:
        """Add free pages until there are `num_pages`."""
        new = range(len(self.references), num_pages)
        self.num_free += len(new)
        self.references += [0] * len(new)
        self._in_heap += [True] * len(new)
        self._heap += new  # higher than all that are there, so it stays a heap

    def take(self, wanted: int) -> int:
        """A free page, now with one reference. There must be one."""
        page = wanted
        if not 0 <= page < len(self.references) or self.references[page]:
            page = self._pop()
            while self.references[page]:
                page = self._pop()
        self.references[page] = 1
        self.num_free -= 1
        self.peak = max(self.peak, len(self.references) - self.num_free)
        return page

    def release(self, page: int) -> None:
        """Give one reference up; without any the page is free, and what it held is forgotten."""
        self.references[page] -= 1
        if self.references[page]:
            return
        self.num_free += 1
        self._prefixes.discard(page)
        if not self._in_heap[page]:
            self._in_heap[page] = True
            heappush(self._heap, page)

    def check(self, holders: Counter[int]) -> None:
        """Assert that the references are those of `holders` and that each free page can be found once."""
        assert self.references == [holders[page] for page in range(len(self.references))], "references do not balance"
        free = [page for page, references in enumerate(self.references) if not references]
        assert len(free) == self.num_free, f"{len(free)} pages are free, {self.num_free} counted"
        assert len(set(self._heap)) == len(self._heap) and set(free) <= set(self._heap), "free pages are lost"

    def _pop(self) -> int:
        page = heappop(self._heap)
        self._in_heap[page] = False
        return page


def num_consecutive(pages: Sequence[int]) -> int:
    """How many leading pages are numbered p, p + 1, ..."""
    return next((i for i in range(1, len(pages)) if pages[i] != pages[i - 1] + 1), len(pages))


def num_in_place(path: Sequence[int]) -> int:
    """How many of the rows of node 0 and then of `path` are next to each other as they stand: all, if it is a chain.

    Example:
        >>> num_in_place([1, 2]), num_in_place([1, 3, 4]), num_in_place([2])
        (3, 2, 1)
    """
    if path == list(range(1, len(path) + 1)):
        return 1 + len(path)
    if any(node <= before for before, node in pairwise((0, *path))):
        raise ValueError(f"expected ascending nodes from 1, got {list(path)[:8]}; list the path from root to leaf")
    return 1 + next((i for i, node in enumerate(path) if node != i + 1), len(path))


class Holder(Protocol):
    """Who holds pages, and how many leading rows of them each pool has filled."""

    pages: list[int]
    filled: Counter[str]


def shared_fill(pages: Sequence[int], others: Iterable[Holder], page_size: int) -> Counter[str]:
    """How many leading rows each pool has filled of these pages, which only those know who begin with the same ones.

    Example:
        >>> from types import SimpleNamespace
        >>> other = SimpleNamespace(pages=[3, 4, 9], filled=Counter(target=40, draft=21))
        >>> shared_fill([3, 4], [other], page_size=16)
        Counter({'target': 32, 'draft': 21})
    """
    filled: Counter[str] = Counter()
    for other in others if pages else ():
        pairs = zip(pages, other.pages, strict=False)
        num_rows = page_size * sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        for pool, rows in other.filled.items():
            filled[pool] = max(filled[pool], min(rows, num_rows))
    return filled
