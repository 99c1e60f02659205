"""Drafting chains with a model: one forward pass per token of all drafts, and as little as possible beside it."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from .cache import PagedKVCache
from .kernels.ops import argmax, entries
from .protocols import Noise, RequestView
from .rollout import DraftNetwork, catch_up, known, running
from .sampling import Context
from .tree import TokenTree
from .types import Draft

SampleMethod: TypeAlias = Literal["greedy", "probabilistic", "coupled"]  # how tokens come from scores


class Chain:
    """The growing draft of one request.

    Args:
        view: the request.
        depth: drafted tokens at most.
        method: how they come from the draft model's scores; see `DraftModel`.
        noise: of the request.

    Example:
        >>> from types import SimpleNamespace
        >>> chain = Chain(SimpleNamespace(tokens=[5, 7]), depth=1, method="greedy", noise=None)
        >>> chain.grow(torch.tensor([[0.0, 2.0, 1.0]]), probs=None, row=0)
        >>> chain.is_done, chain.draft("example").tree.tokens
        (True, [7, 1])
    """

    __slots__ = ("_rows", "_scores", "depth", "method", "noise", "tokens", "view")

    def __init__(self, view: RequestView, depth: int, method: SampleMethod, noise: Noise) -> None:
        self.view, self.depth, self.method, self.noise = view, depth, method, noise
        self.tokens = [view.tokens[-1]]  # the pending one, then those drafted
        self._rows: list[Tensor] = []  # [vocab] each: what the drafted tokens were drawn from, if they claim a q
        self._scores = [0.0]  # log-probability of the way to each token, if somebody works it out

    @property
    def is_done(self) -> bool:
        return len(self.tokens) > self.depth

    @property
    def num_rows(self) -> int:
        """Rows of the last forward pass whose scores matter."""
        return 1

    @property
    def row(self) -> int:
        """Where the last token goes."""
        return self.view.table.length + len(self.tokens) - 1

    def context(self) -> Context:
        """What stands before the last token's row, for processors."""
        tree = TokenTree.chain(self.tokens)
        return Context(self.view.seen, tree, self.view.row, first=len(tree) - 1)

    def grow(self, scores: Tensor, probs: Tensor | None, row: int) -> None:  # [n, vocab] each
        """Adds a token by row `row`; `probs` is softmax of `scores` for a chain that draws from it."""
        start, depth = len(self.view.tokens), len(self.tokens) - 1
        if self.method == "probabilistic":
            assert probs is not None
            self._rows.append(probs[row])
            self.tokens.append(self.noise.draft_token(self._rows[-1], start, depth, 0))
        elif self.method == "coupled":
            tokens = self.noise.coupled_tokens(scores[row], start + depth, 1)
            self.tokens += tokens
            self.depth = self.depth if tokens else depth
        else:
            self.tokens.append(int(argmax(scores[row, None])))

    def rate(self, prob: float) -> None:
        """Keeps the last token's own probability, if a token was added."""
        if len(self._scores) < len(self.tokens):
            self._scores.append(self._scores[-1] + (math.log(prob) if prob > 0 else -math.inf))

    def draft(self, source: str) -> Draft:
        """What was drafted."""
        tree = TokenTree.chain(self.tokens)
        scores = torch.tensor(self._scores) if 1 < len(tree) == len(self._scores) else None
        if not self._rows:
            return Draft.chosen(tree, source, scores)
        probs = torch.stack([*self._rows, torch.zeros_like(self._rows[0])])
        return Draft(tree, [False] + [True] * len(self._rows), probs, scores, source)


# Chains and logits -> the scores that tokens come from, [n, vocab] both.
Final: TypeAlias = Callable[[Sequence[Chain], Tensor], Tensor]


def grow_chains(
    model: DraftNetwork, cache: PagedKVCache, chains: Sequence[Chain], final: Final | None, threshold: float = 0.0
) -> None:
    """Drafts for all chains at once, until each is done or its last token's own probability is below `threshold`.

    Args:
        model: the draft model.
        cache: of the chains' tables.
        chains: what to grow.
        final: makes scores of logits; None if every chain takes the likeliest token by the logits.
        threshold: see above.

    Raises:
        CacheFull: there are too few pages.
    """
    live = [chain for chain in chains if not chain.is_done]
    pieces = []
    for chain in live:
        cache.stage(chain.view.table, chain.depth + 1)
        pieces.append(catch_up(model, cache, chain.view))
    if not live:
        return
    is_simple = not threshold and all(chain.method == "greedy" for chain in live)
    depths = {chain.depth for chain in live}
    if is_simple and final is None and len(depths) == 1:
        drafted = model.chain(cache, pieces, depths.pop())
        if drafted is not None:
            for chain, found in zip(live, drafted, strict=True):
                chain.tokens += found
            return
    grown = _likeliest if is_simple else partial(_grown, threshold=threshold)
    with running(model, [chain.view.sampler for chain in live]):
        logits = model.score(cache, pieces).logits
        while live := grown(live, logits if final is None else final(live, logits)):
            ends = [(chain.view.table, chain.row, chain.tokens[-1]) for chain in live]
            tables, rows, tokens = zip(*ends, strict=True)
            logits = model.step(cache, tables, rows, known(tokens, model))


def _likeliest(chains: list[Chain], scores: Tensor) -> list[Chain]:  # [n, vocab]
    """Adds the likeliest token to each chain; which of them go on."""
    for chain, token in zip(chains, argmax(scores).tolist(), strict=True):
        chain.tokens.append(token)
    return [chain for chain in chains if not chain.is_done]


def _grown(chains: list[Chain], scores: Tensor, threshold: float) -> list[Chain]:  # [n, vocab]
    """Adds a token to each chain, each in its way; which of them go on."""
    needs_probs = threshold or any(chain.method == "probabilistic" for chain in chains)
    probs = scores.float().softmax(-1) if needs_probs else None
    for row, chain in enumerate(chains):
        chain.grow(scores, probs, row)
    if not threshold or probs is None:
        return [chain for chain in chains if not chain.is_done]
    own = entries(probs, range(len(chains)), [chain.tokens[-1] for chain in chains])
    for chain, prob in zip(chains, own, strict=True):
        chain.rate(prob)
    return [chain for chain, prob in zip(chains, own, strict=True) if prob >= threshold and not chain.is_done]
