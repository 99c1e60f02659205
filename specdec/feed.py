"""The target's features for drafters that read them: which rows are kept, and which are run again."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .cache import PagedKVCache, PageTable
from .features import FeatureRows
from .protocols import Drafter, Noise, RequestView
from .target import Chunk, PagedModel
from .tree import TokenTree
from .types import Draft


class FeatureFeed:
    """Sees to it that a drafter finds the features in its views that it has not been handed yet.

    Args:
        target: whose features.
        drafter: who wants them.
        cache: of the requests' tables.
        max_rows: that are run again in one forward pass.
    """

    def __init__(self, target: PagedModel, drafter: Drafter, cache: PagedKVCache, max_rows: int) -> None:
        self._target, self._drafter, self._cache, self._max_rows = target, drafter, cache, max_rows

    def tapped(self) -> AbstractContextManager[None]:
        """While inside, the target gives the features that the drafter wants."""
        return self._target.tapped(self._drafter.needs.feature_layers)

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """The drafter's proposals. Wanted features that are not there are computed first, those done with forgotten.

        Raises:
            CacheFull: there are too few pages.
        """
        for view in views:
            features, wanted = view.features, self._first_wanted(view)
            if features is not None and features.start > wanted:
                features.precede(self._recomputed(view.table, view.tokens, wanted, features.start))
        drafts = self._drafter.propose(views, budgets, noises)
        for view in views:
            if view.features is not None:
                view.features.forget(self._first_wanted(view))
        return drafts

    def _first_wanted(self, view: RequestView) -> int:
        """The features in front of the first row that the drafter has yet to make are the first it may want."""
        pool, length = self._drafter.needs.pool, view.table.length
        return max(0, (length if pool is None else min(view.table.filled[pool], length)) - 1)

    def _recomputed(self, table: PageTable, tokens: Sequence[int], start: int, stop: int) -> Tensor:
        """The features of rows start .. stop - 1, [stop - start, size], run in pages of their own."""
        cache, parts = self._cache, []
        fork = cache.fork(table)
        try:
            cache.truncate(fork, start)
            while fork.length < stop:
                piece = TokenTree.chain(tokens[fork.length : min(stop, fork.length + self._max_rows)])
                cache.stage(fork, len(piece))
                features = self._target.score(cache, [Chunk(fork, fork.length, piece, num_logits=0)]).features
                assert features is not None
                parts.append(features)
                cache.commit(fork, list(range(1, len(piece))), piece.tokens)
        finally:
            cache.close(fork)
        return torch.cat(parts)


def features_of(table: PageTable, origin: RequestView | None) -> FeatureRows:
    """For a new request with these pages: none of their rows, but for those that `origin`, who shares them, has.

    Example:
        >>> features = features_of(PageTable(length=16), None)
        >>> features.start, features.stop
        (16, 16)
    """
    if origin is None or origin.features is None:
        return FeatureRows(table.length)
    return origin.features.fork(table.length)


def feed_of(target: PagedModel, drafter: Drafter | None, cache: PagedKVCache, max_rows: int) -> FeatureFeed | None:
    """The feed of a drafter that reads features."""
    if drafter is None or not drafter.needs.feature_layers:
        return None
    return FeatureFeed(target, drafter, cache, max_rows)
