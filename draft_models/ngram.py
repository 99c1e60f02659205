"""Prompt lookup: propose what followed the last few tokens when they occurred before."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Literal

from specdec.protocols import DrafterNeeds, Noise, RequestView
from specdec.tree import TokenTree
from specdec.types import Draft

MAX_MATCHES = 256  # occurrences looked at, latest first: bounds the time on text that repeats itself endlessly


class NGram:
    """A drafter that copies from the request's own text (algorithms.md 4.4; Saxena, prompt-lookup-decoding, 2023).

    Of the n-grams that end the text, the longest that occurred before counts. What followed it is proposed; a
    continuation that runs into the end of the text goes on with itself, periodically. No match, no draft.

    Args:
        num_speculative_tokens: longest draft.
        prompt_lookup_max, prompt_lookup_min: longest and shortest n-gram that counts as a match.
        ties: which of several matches: the latest ("recent"), or the latest of those with the most frequent next
            token ("frequent", counted over the latest 256).
        num_branches: how many matches are merged into a tree, best first; 1 makes a chain.

    Example:
        >>> from types import SimpleNamespace
        >>> view = SimpleNamespace(request_id=0, tokens=[7, 1, 2, 3, 4, 1, 2])
        >>> NGram(num_speculative_tokens=3).propose([view], [5], [])[0].tree.tokens  # pending 2, then a copy
        [2, 3, 4, 1]
    """

    name = "ngram"

    def __init__(
        self,
        num_speculative_tokens: int = 5,
        prompt_lookup_max: int = 4,
        prompt_lookup_min: int = 2,
        ties: Literal["recent", "frequent"] = "recent",
        num_branches: int = 1,
    ) -> None:
        if num_speculative_tokens < 1 or num_branches < 1:
            raise ValueError(
                "expected num_speculative_tokens and num_branches of at least 1, "
                f"got {num_speculative_tokens} and {num_branches}; pass no drafter for plain decoding"
            )
        if not 1 <= prompt_lookup_min <= prompt_lookup_max:
            raise ValueError(
                f"expected 1 <= prompt_lookup_min <= prompt_lookup_max, got {prompt_lookup_min} and "
                f"{prompt_lookup_max}; give both, the defaults are 2 and 4"
            )
        if ties not in ("recent", "frequent"):
            raise ValueError(f"expected ties 'recent' or 'frequent', got {ties!r}; 'recent' is the default")
        self.num_speculative_tokens, self.ties, self.num_branches = num_speculative_tokens, ties, num_branches
        self.needs = DrafterNeeds(tree=num_branches > 1)
        self.sizes = range(prompt_lookup_max, prompt_lookup_min - 1, -1)  # longest first
        self._indices: dict[int, _Index] = {}

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """What followed the longest match, one chosen chain or tree per view."""
        return [self._draft(view, budget) for view, budget in zip(views, budgets, strict=True)]

    def close(self, request_ids: Sequence[int]) -> None:
        """Drops the indices of these requests."""
        for request_id in request_ids:
            self._indices.pop(request_id, None)

    def _draft(self, view: RequestView, budget: int) -> Draft:
        tokens = view.tokens if isinstance(view.tokens, list) else list(view.tokens)
        length = min(budget, self.num_speculative_tokens)
        if length < 1:
            return Draft.empty(tokens[-1], self.name)
        index = self._indices.get(view.request_id)
        if index is None:
            index = self._indices[view.request_id] = _Index(self.sizes)
        index.update(tokens)
        starts = self._starts(index)
        if self.num_branches > 1:
            return Draft.chosen(_merged(tokens, starts, length, self.num_branches), self.name)
        start = next(starts, None)
        if start is None:
            return Draft.empty(tokens[-1], self.name)
        return Draft.chosen(TokenTree.chain([tokens[-1], *_continuation(tokens, start, length)]), self.name)

    def _starts(self, index: "_Index") -> Iterator[int]:
        """Where the continuations of all matches begin, best match first."""
        for size in self.sizes:
            starts = index.continuations(size)
            if self.ties == "recent":
                yield from islice(starts, MAX_MATCHES)
            else:
                latest = list(islice(starts, MAX_MATCHES))
                counts = Counter(index.tokens[start] for start in latest)
                yield from sorted(latest, key=lambda start: -counts[index.tokens[start]])


def _continuation(tokens: list[int], start: int, length: int) -> list[int]:
    """`length` tokens from `start` on; past the end of the text the continuation goes on with itself."""
    copied = tokens[start : start + length]
    return copied if len(copied) == length else (copied * length)[:length]


def _merged(tokens: list[int], starts: Iterator[int], length: int, num_branches: int) -> TokenTree:
    """The first `num_branches` different continuations, common prefixes merged."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    drafted, parents = [tokens[-1]], [-1]
    for start in starts:
        node, before = 0, len(drafted)
        for token in _continuation(tokens, start, length):
            key = node, token
            node = nodes.setdefault(key, len(drafted))
            if node == len(drafted):
                drafted.append(token)
                parents.append(key[0])
        num_branches -= len(drafted) > before
        if num_branches == 0:
            break
    return TokenTree(drafted, parents)


class _Index:
    """Where the n-grams of one request's text occurred: per n-gram the last place, per place the one before it.

    Only n-grams with a token after them are entered, so the end of the text never matches itself.
    """

    def __init__(self, sizes: range) -> None:
        self.tokens: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}  # n-gram -> its latest start
        self._earlier: dict[int, list[int]] = {size: [] for size in sizes}  # size -> start -> start before it, or -1

    def update(self, tokens: list[int]) -> None:
        """Enters what is new in `tokens`; forgets what is no longer there."""
        known = len(self.tokens)
        if tokens[:known] != self.tokens:
            pairs = enumerate(zip(tokens, self.tokens, strict=False))
            known = next((place for place, (new, old) in pairs if new != old), min(len(tokens), known))
            self._truncate(known)
        for size, earlier in self._earlier.items():
            for start in range(len(earlier), len(tokens) - size):
                gram = tuple(tokens[start : start + size])
                earlier.append(self._last.get(gram, -1))
                self._last[gram] = start
        self.tokens.extend(tokens[known:])

    def _truncate(self, length: int) -> None:
        for size, earlier in self._earlier.items():
            while len(earlier) > max(0, length - size):
                start = len(earlier) - 1
                gram, before = tuple(self.tokens[start : start + size]), earlier.pop()
                if before < 0:
                    del self._last[gram]
                else:
                    self._last[gram] = before
        del self.tokens[length:]

    def continuations(self, size: int) -> Iterator[int]:
        """Where the last `size` tokens were followed by something: the places after the matches, latest first."""
        if len(self.tokens) <= size:
            return
        earlier = self._earlier[size]
        start = self._last.get(tuple(self.tokens[-size:]), -1)
        while start >= 0:
            yield start + size
            start = earlier[start]
