"""The values that pass between drafter, target, verifier and engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from .kernels.ops import argmax
from .kernels.trees import PackedTrees
from .tree import TokenTree


class Exactness(Enum):
    """What a rule promises about the text, weakest promise last (algorithms.md, section 0)."""

    PATHWISE = "same seed, same text as plain sampling"  # E2
    DISTRIBUTION = "same distribution as plain sampling"  # E1
    GREEDY_IDENTICAL = "same text as plain greedy decoding"  # E0
    LOSSY = "changes the distribution"


@dataclass(frozen=True, slots=True)
class Draft:
    """What a drafter proposes for one request; a tree of one node is the empty draft.

    A node is *sampled* if it was drawn from its parent's row of `probs`, with the siblings drawn before it removed and
    the rest renormalised, and *chosen* otherwise. The row must be, bit for bit, what the token was drawn from.
    """

    tree: TokenTree
    sampled: Sequence[bool]  # [n]; False for the pending token
    probs: Tensor | None = None  # [n, vocab] float32; None if nothing was sampled
    scores: Tensor | None = None  # [n] float32: log of the estimated acceptance of the path to the node, if estimated
    source: str = ""  # name of the drafter, for people and events

    @classmethod
    def chosen(cls, tree: TokenTree, source: str = "", scores: Tensor | None = None) -> "Draft":
        """A draft whose nodes claim no probability."""
        return cls(tree, [False] * len(tree), scores=scores, source=source)

    @classmethod
    def empty(cls, pending: int, source: str = "") -> "Draft":
        """No proposal: plain decoding."""
        return cls.chosen(TokenTree.chain([pending]), source)

    def __len__(self) -> int:
        return len(self.tree)

    def require_sound(self, pending: int, budget: int, vocab_size: int) -> None:
        """Raises ValueError if a drafter broke its contract: the text would be wrong without a sign of it."""
        tokens, depth = self.tree.tokens, max(self.tree.depths)
        if tokens[0] != pending:
            found = f"the root {tokens[0]}"
        elif depth > budget:
            found = f"depth {depth}"
        elif not all([isinstance(token, int) for token in tokens]):
            found = "tokens that are no ints"
        elif not 0 <= min(tokens) <= max(tokens) < vocab_size:
            found = f"tokens from {min(tokens)} to {max(tokens)}"
        elif len(self.sampled) != len(tokens) or (self.probs is None and any(self.sampled)):
            found = "sampled nodes without the distributions they were drawn from"
        elif self.probs is not None and self.probs.shape != (len(tokens), vocab_size):
            found = f"probs of shape {tuple(self.probs.shape)} for {len(tokens)} nodes"
        else:
            return
        raise ValueError(
            f"expected from {self.source or 'the drafter'} a tree under the pending token {pending}, at most {budget} "
            f"deep, of tokens below {vocab_size}; got {found}; mend the drafter"
        )


@dataclass(frozen=True, slots=True)
class TargetRows:
    """What the target says after each node of one request's tree.

    `scores` are final: every logits processor and warper was applied with the node's own prefix. For a sampling
    request `softmax(scores)` is the distribution plain decoding draws from; a greedy one takes the argmax, the lowest
    token id winning ties.
    """

    scores: Tensor  # [n, vocab] float32 (float64 in tests)
    start: int  # number of committed tokens: the token after node v has position start + depth(v)
    depths: list[int]  # [n]
    is_greedy: bool

    @property
    def probs(self) -> Tensor:  # [n, vocab]
        """The final target distribution of every row; one-hot for a greedy request."""
        if self.is_greedy:
            return torch.nn.functional.one_hot(argmax(self.scores), self.scores.shape[-1]).to(self.scores.dtype)
        return self.scores.softmax(-1)

    @property
    def positions(self) -> list[int]:  # [n]
        """Absolute position of the token that follows each node."""
        return [self.start + depth for depth in self.depths]


class DraftBatch(NamedTuple):
    """The drafts of a round, T nodes of B requests, and what the target says after them, on its device."""

    scores: Tensor  # [T, vocab], final as in `TargetRows`
    trees: PackedTrees
    sampled: Tensor  # [T] bool
    probs: Tensor | None  # [T, vocab] float32, as in `Draft`
    seeds: Tensor  # [B] int64, of the requests' noise
    starts: Tensor  # [B] int64: numbers of committed tokens
    row_seeds: Tensor  # [T] int64: the seed of each node's request
    positions: Tensor  # [T] int64, of the token that follows each node
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule decided: the accepted path and the token after it."""

    path: list[int]  # accepted nodes from the root's child down; the pending token excluded
    next_token: int  # correction or bonus: the new pending token

    @property
    def num_accepted(self) -> int:
        return len(self.path)


def ordinary(rows: Tensor, indices: list[int]) -> Tensor:  # [n, vocab] -> [len(indices), vocab] float32
    """These rows as tensors that may be changed and learnt from, which those made in inference mode may not.

    Example:
        >>> with torch.inference_mode():
        ...     ordinary(torch.ones(3, 2), [0, 2]).is_inference()
        False
    """
    with torch.inference_mode(False):
        return rows[indices].float()
