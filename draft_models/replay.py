"""Replay: propose a recorded continuation with errors of a known rate, to measure a system at any acceptance rate."""

from collections.abc import Mapping, Sequence

from specdec.protocols import DrafterNeeds, Noise, RequestView
from specdec.tree import TokenTree
from specdec.types import Draft

MASK = (1 << 64) - 1


class Replay:
    """A drafter that knows what the target will say, and errs on purpose with probability 1 - acceptance per token.

    Whether the token at a place is wrong depends on seed, request and place only, so proposals are a function of the
    views, and a target that says what was recorded accepts each tested token independently with probability
    `acceptance`. Once the text differs from the record, or the record ends, the draft is empty.

    The prompt is not part of a record: give `sequence[prompt_length:]`. With the prompt in front, the text differs from
    the record at once and nothing is ever drafted. That cannot be refused, for a text may well repeat its prompt.

    Args:
        continuation: the new tokens alone, without the prompt, per request id; a sequence counts requests from 0.
        acceptance: probability that a drafted token is right.
        num_speculative_tokens: longest draft.
        seed: of the errors.

    Example:
        >>> from types import SimpleNamespace
        >>> view = SimpleNamespace(request_id=0, tokens=[1, 2, 5], prompt_length=2)  # prompt 1 2, then 5
        >>> drafter = Replay([[5, 6, 7, 8]], acceptance=1.0, num_speculative_tokens=2)
        >>> drafter.propose([view], [9], [])[0].tree.tokens
        [5, 6, 7]
    """

    name = "replay"
    needs = DrafterNeeds()

    def __init__(
        self,
        continuation: Sequence[Sequence[int]] | Mapping[int, Sequence[int]],
        acceptance: float,
        num_speculative_tokens: int = 5,
        seed: int = 0,
    ) -> None:
        if not 0.0 <= acceptance <= 1.0:
            raise ValueError(f"expected acceptance between 0 and 1, got {acceptance}; 1 replays the record unchanged")
        if num_speculative_tokens < 1:
            raise ValueError(
                f"expected num_speculative_tokens of at least 1, got {num_speculative_tokens}; "
                "pass no drafter for plain decoding"
            )
        records = continuation.items() if isinstance(continuation, Mapping) else enumerate(continuation)
        self.records = {request_id: list(tokens) for request_id, tokens in records}
        self.acceptance, self.num_speculative_tokens, self.seed = acceptance, num_speculative_tokens, seed

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """The recorded continuation with its errors, one chosen chain per view."""
        return [self._draft(view, budget) for view, budget in zip(views, budgets, strict=True)]

    def close(self, request_ids: Sequence[int]) -> None:
        """Nothing to forget: the records are the caller's."""

    def _draft(self, view: RequestView, budget: int) -> Draft:
        said = list(view.tokens[view.prompt_length :])
        record = self.records.get(view.request_id, [])
        tokens = [view.tokens[-1]]
        if said == record[: len(said)]:
            stop = len(said) + min(budget, self.num_speculative_tokens)
            for place, token in enumerate(record[len(said) : stop], start=len(said)):
                is_right = _uniform(self.seed, view.request_id, place) < self.acceptance
                tokens.append(token if is_right else _other(token))
        return Draft.chosen(TokenTree.chain(tokens), self.name)


def _other(token: int) -> int:
    """A token id that is not `token`, and valid whenever `token` is."""
    return token - 1 if token > 0 else 1


def _uniform(*key: int) -> float:
    """A number in [0, 1) that depends on the key only: its words absorbed one by one into splitmix64
    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, mix64 variant 13)."""
    state = 0
    for word in key:
        state = ((state ^ (word & MASK)) + 0x9E3779B97F4A7C15) & MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53
