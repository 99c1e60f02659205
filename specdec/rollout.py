"""Drafting with a model that keeps rows of its own: what it has to catch up on, and which rows its tree lies in."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Generic, Protocol, TypeVar

from torch import Tensor

from .cache import PagedKVCache, PageTable
from .chunk import Chunk, Scores
from .graphs import GraphReport
from .growth import BestFirst, Drawn, Ranked
from .protocols import RequestView
from .sampling import Context, Sampler
from .tree import TokenTree

MAX_CATCH_UP = 2048  # rows of one request in one forward pass

Growth = TypeVar("Growth", BestFirst, Ranked, Drawn)


class DraftNetwork(Protocol):
    """What drafts are made with, token by token: a `PagedModel`, or a head that stands in for one."""

    pool_name: str
    vocab_size: int  # width of its logits
    num_embeddings: int  # tokens it can be given
    max_positions: int

    @property
    def graph_report(self) -> GraphReport | None:
        """What capturing its passes has cost and saved; None without graphs."""
        ...

    def score(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Scores:
        """Logits after the wanted nodes, whose rows are staged; afterwards it counts them as filled."""
        ...

    def step(
        self, cache: PagedKVCache, tables: Sequence[PageTable], rows: Sequence[int], tokens: Sequence[int]
    ) -> Tensor:
        """Logits [b, vocab] after one more row per request, which is the last one."""
        ...

    def chain(self, cache: PagedKVCache, chunks: Sequence[Chunk], count: int) -> list[list[int]] | None:
        """The `count` likeliest tokens behind each chunk, whose rows are staged; None to draft them one by one."""
        ...

    def running(self) -> AbstractContextManager[None]:
        """Around several calls; their logits are then for reading only."""
        ...


def catch_up(model: DraftNetwork, cache: PagedKVCache, view: RequestView) -> Chunk:
    """The rows that the model missed and the pending token; of very many it runs all but the last ones first."""
    table, stop = view.table, view.table.length + 1
    start = min(table.filled.get(model.pool_name, 0), table.length)
    while stop - start > MAX_CATCH_UP:
        piece = TokenTree.chain(known(view.tokens[start : start + MAX_CATCH_UP], model))
        model.score(cache, [Chunk(table, start, piece, num_logits=0)])
        start += MAX_CATCH_UP
    return Chunk(table, start, TokenTree.chain(known(view.tokens[start:stop], model)))


def known(tokens: Sequence[int], model: DraftNetwork) -> list[int]:
    """The tokens, the model's last one in place of those it lacks: a target may have more, and a draft may be wrong."""
    last = model.num_embeddings - 1
    return [token if token < last else last for token in tokens]


def running(model: DraftNetwork, samplers: Iterable[Sampler]) -> AbstractContextManager[None]:
    """`model.running()` for a whole draft, if its scores need nothing but rows: a processor with a memory or a model of
    its own must not meet our attention and its inference tensors."""
    return nullcontext() if any(sampler.reads_prefix for sampler in samplers) else model.running()


class Rollout(Generic[Growth]):
    """The drafting for one request: its growing draft, and which of its nodes the model has run, in which row.

    rows   0 ... length | length       | length + 1 ...
           committed    | the pending  | frontier of level 1, of level 2, ...
    """

    def __init__(self, view: RequestView, growth: Growth, model: DraftNetwork) -> None:
        self.view, self.table, self._model = view, view.table, model
        self.growth: Growth = growth
        self._rows = {0: 0}  # node -> row, counted from the pending token's
        self._tokens, self._parents = [view.tokens[-1]], [-1]  # by row
        self._tree, self._first = TokenTree.chain(self._tokens), 0  # of the rows, and the first of the last chunk

    @property
    def num_rows(self) -> int:
        """Rows of the last forward pass whose scores matter."""
        return len(self.growth.frontier)

    def next_chunk(self) -> Chunk:
        """The frontier."""
        first = self._first = len(self._tokens)
        for node in self.growth.frontier:
            self._rows[node] = len(self._tokens)
            self._tokens.append(self.growth.tokens[node])
            self._parents.append(self._rows[self.growth.parents[node]])
        self._tree = TokenTree(list(self._tokens), list(self._parents))
        tree = TokenTree(known(self._tokens, self._model), self._tree.parents)
        return Chunk(self.table, self.table.length, tree, first, num_logits=len(tree) - first)

    def context(self) -> Context:
        """What stands before the rows of the last chunk, for processors."""
        return Context(self.view.seen, self._tree, self.view.row, self._first)
