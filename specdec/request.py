"""A request, and what is known of it while it is being generated."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from .cache import PagedKVCache, PageTable
from .events import Step
from .features import FeatureRows
from .protocols import Noise, RequestView
from .sampling import Context, Sampler
from .stopping import Stopping
from .target import Chunk
from .tree import TokenTree
from .types import Draft, Verdict


@dataclass(frozen=True, slots=True)
class Request:
    """What to continue, and how."""

    tokens: Sequence[int]  # the prompt, at least one token
    sampler: Sampler
    stopping: Stopping
    noise: Noise
    row: int = 0  # row of the caller's batch, for processors that depend on it
    padding: Sequence[int] = ()  # left padding that processors and criteria see before the prompt
    table: PageTable | None = None  # pages that hold a first part of the prompt already


class LiveRequest:
    """A request being generated: it grows by `tokens.extend` and by what the cache commits to `table`.

    Between rounds `table.length == len(tokens) - 1`, once the prompt is in the cache.
    """

    __slots__ = ("rank", "request", "scores", "table", "tokens", "view")

    def __init__(
        self,
        rank: int,
        request: Request,
        tokens: list[int],
        table: PageTable,
        cache: PagedKVCache,
        features: FeatureRows | None,
    ) -> None:
        self.rank, self.request, self.tokens, self.table = rank, request, tokens, table
        self.scores: list[Tensor] = []  # final scores of all tokens so far, if they are kept: criteria may read them
        length = len(request.tokens)  # what a drafter sees:
        places = request.padding, request.row
        self.view = RequestView(rank, tokens, length, table, request.sampler, cache, *places, features)

    @property
    def is_prefilled(self) -> bool:
        """Whether prompt and first token are done, so that a draft may follow."""
        return self.table.length == len(self.tokens) - 1 and len(self.tokens) > len(self.request.tokens)

    @property
    def missing(self) -> int:
        """Committed tokens before the pending one that are not in the cache."""
        return len(self.tokens) - 1 - self.table.length

    def keep_features(self, rows: Tensor | None, kept: Sequence[int]) -> None:  # [n, size]
        """Adds the features of rows `kept` of these, which were committed, if the drafter wants any."""
        if rows is not None and self.view.features is not None:
            self.view.features.extend(rows, kept)

    def step(self, draft: Draft, verdict: Verdict, kept: Tensor | None, logits: Tensor | None) -> Step:
        """What is emitted: the accepted run, cut where a stop rule says.

        `kept` and `logits`, [len(run), vocab] each, are the final scores and the logits its tokens came from, if the
        caller wants them.
        """
        run = [*draft.tree.tokens_at(verdict.path), verdict.next_token]
        seen = None if kept is None else [*self.scores, *kept.unbind()]
        count, reason = self.request.stopping.cut(self.view.seen, run, seen)
        if seen is not None:
            self.scores = seen[: len(self.scores) + count]
        return Step(
            request_id=self.rank,
            tokens=tuple(run[:count]),
            num_accepted=min(len(verdict.path), count),
            num_drafted=max(draft.tree.depths),
            num_nodes=len(draft) - 1,
            num_wasted=len(run) - count,
            source=draft.source,
            finish_reason=reason,
            tree=draft.tree,
            path=tuple(verdict.path[:count]),
            scores=None if kept is None else kept[:count],
            logits=None if logits is None else logits[:count],
        )

    def context(self, tree: TokenTree) -> Context:
        """What stands before the rows of `tree`."""
        return Context(self.view.seen, tree, self.request.row)

    def chunk(self, tree: TokenTree) -> Chunk:
        """The rows to run: committed tokens that are not in the cache yet, then the tree."""
        missing = self.missing
        if missing:
            before = self.tokens[self.table.length : -1]
            parents = [*range(-1, missing), *(missing + parent for parent in tree.parents[1:])]
            tree = TokenTree([*before, *tree.tokens], parents)
        return Chunk(self.table, self.table.length, tree, num_logits=len(tree) - missing)
