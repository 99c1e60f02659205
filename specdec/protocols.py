"""The seams: what a drafter, a rule and a source of randomness must offer. The target is `target.PagedModel`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from .cache import PagedKVCache, PageTable
from .features import FeatureRows
from .sampling import Sampler
from .types import Draft, DraftBatch, Exactness, TargetRows, Verdict


class Noise(Protocol):
    """All randomness of one request, as pure functions of a seed and a key (algorithms.md 3.3).

    The four roles are disjoint streams. `start` is the number of committed tokens at the beginning of the round; it
    strictly grows, so keys of different rounds never meet. `node` is the index of the parent node: on a chain, depth.
    """

    def target_tokens(self, scores: Tensor, positions: Sequence[int]) -> Sequence[int]:
        """The target's own draw from softmax of each row, `scores` [n, vocab]; depends on seed and position only."""
        ...

    def coupled_tokens(self, scores: Tensor, position: int, count: int) -> list[int]:
        """Tokens a drafter draws from softmax(`scores` [vocab]) with the target's own noise, best first: a sample
        without replacement, of which the first is an exact draw (Daliri et al. 2408.07978)."""
        ...

    def draft_token(self, probs: Tensor, start: int, node: int, draw: int) -> int:
        """Draw number `draw` below `node` from `probs` [vocab], which need not be normalised."""
        ...

    def accept(self, ratio: float, start: int, node: int, draw: int) -> bool:
        """True with probability min(1, ratio): u < ratio, strictly."""
        ...

    def residual_token(self, probs: Tensor, position: int) -> int:
        """What a rule that uses q emits at this position of the text, from `probs` [vocab], not always normalised.

        Keyed by the position, not by the round: on a tree a round may draw several residuals, one per position.
        """
        ...


@dataclass(frozen=True, slots=True)
class DrafterNeeds:
    """What a drafter proposes, which decides what rule goes with it, and what it reads of the target."""

    tree: bool = False  # may propose trees, not only chains
    sampled: bool = False  # proposes drawn tokens and says from what
    feature_layers: tuple[int, ...] = ()  # of the target, whose outputs it reads; 0 is the first, see `features`
    pool: str | None = None  # where it keeps what it made of them; None if the last row is all it reads


@dataclass(frozen=True, slots=True)
class RequestView:
    """What a drafter may see of a request. Reading only."""

    request_id: int
    tokens: Sequence[int]  # committed; the last one is pending
    prompt_length: int
    table: PageTable  # table.length == len(tokens) - 1
    sampler: Sampler  # turns logits into the distribution this request samples from
    cache: PagedKVCache  # where a drafter with a model keeps its rows, in a pool of its own
    padding: Sequence[int] = ()  # left padding that processors see before `tokens`
    row: int = 0  # row of the caller's batch, for processors that depend on it
    features: FeatureRows | None = None  # up to the last committed row, if the drafter wants any

    @property
    def seen(self) -> Sequence[int]:
        """What processors and criteria see: left padding, then the committed tokens."""
        return [*self.padding, *self.tokens] if self.padding else self.tokens


class Drafter(Protocol):
    """Proposes tokens. Batched over live requests; owns no tokens and repairs its own state by common prefix.

    Its proposals must be a function of views and noise, so that a preempted request is drafted for again without harm,
    and it changes nothing it is handed but the rows of its own pool.
    """

    name: str
    needs: DrafterNeeds

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """One draft per view, its root the pending token and its depth at most the budget (0: the empty draft)."""
        ...

    def close(self, request_ids: Sequence[int]) -> None:
        """These requests ended; forget them."""
        ...


class Verifier(Protocol):
    """Decides which drafted tokens stand. A pure function of its arguments, written for one request."""

    name: ClassVar[str]
    level: ClassVar[Exactness]
    chain_only: ClassVar[bool]

    def verify(self, draft: Draft, rows: TargetRows, noise: Noise) -> Verdict:
        """The accepted path and the token after it."""
        ...


@runtime_checkable
class BatchVerifier(Verifier, Protocol):
    """A rule that can also decide on all drafts of a round at once, where they are: what a GPU is waited for once."""

    def decide(self, batch: DraftBatch) -> tuple[Tensor, Tensor]:
        """What `verify` decides with `PhiloxNoise`, without a look at the host.

        Returns:
            [B, max_depth + 2] int64: how many tokens a request emits, and which; and [B, max_depth] int64: the accepted
            nodes. What is behind them is -1. The number is -1 if a token that counts as sampled has no q.
        """
        ...


def is_foreign(part: object) -> bool:
    """Whether a part is code of the caller's.

    Example:
        >>> is_foreign(None), is_foreign("a drafter of one's own")
        (False, True)
    """
    return part is not None and not type(part).__module__.startswith("specdec.")
