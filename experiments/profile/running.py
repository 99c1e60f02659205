"""The engine's rounds on texts of a chosen length: what passes, drafters and live checks are measured by."""

import statistics
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from specdec.cache import PagedKVCache
from specdec.engine import Engine
from specdec.events import Round
from specdec.noise import PhiloxNoise
from specdec.protocols import Drafter, DrafterNeeds, Noise, RequestView, Verifier
from specdec.request import Request
from specdec.sampling import Sampler
from specdec.stopping import Stopping
from specdec.target import PagedModel
from specdec.tree import TokenTree
from specdec.types import Draft
from specdec.verifiers.greedy import Greedy


@dataclass(frozen=True, slots=True)
class Lap:
    """A round, and its time from the end of the one before to its own."""

    event: Round
    seconds: float


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several times, and where it lies with 95 % confidence."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """By order statistics: no assumption on how times are distributed.

        Example:
            >>> Spread.of([4.0, 1.0, 3.0, 2.0, 9.0])
            Spread(median=3.0, low=1.0, high=9.0)
            >>> Spread.of(range(101))
            Spread(median=50, low=40, high=60)
        """
        ordered = sorted(values)
        reach = round(0.98 * len(ordered) ** 0.5)  # binomial(n, 1/2), in the normal approximation
        middle = (len(ordered) - 1) / 2
        low, high = max(0, int(middle) - reach), min(len(ordered) - 1, int(middle + 0.5) + reach)
        if len(ordered) < 6:  # too few to leave any out
            low, high = 0, len(ordered) - 1
        return cls(statistics.median(ordered), ordered[low], ordered[high])


class Guess:
    """A drafter that costs nothing and is hardly ever right: chains of tokens that count up, of these lengths in turn.

    Whose turn it is depends on how far the first request is, so that all requests have drafts of one length.

    Example:
        >>> from types import SimpleNamespace
        >>> view = SimpleNamespace(tokens=[5, 6, 7], prompt_length=2)
        >>> Guess([0, 2], vocab_size=9).propose([view], [5], [])[0].tree.tokens
        [7, 8, 0]
    """

    name = "guess"
    needs = DrafterNeeds()

    def __init__(self, lengths: Sequence[int], vocab_size: int) -> None:
        self.lengths, self.vocab_size = lengths, vocab_size

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """A chain per view."""
        length = self.lengths[(len(views[0].tokens) - views[0].prompt_length) % len(self.lengths)]
        drafts = []
        for view, budget in zip(views, budgets, strict=True):
            tokens = [(view.tokens[-1] + step) % self.vocab_size for step in range(1 + min(budget, length))]
            drafts.append(Draft.chosen(TokenTree.chain(tokens), self.name))
        return drafts

    def close(self, request_ids: Sequence[int]) -> None:
        """Nothing is kept."""


def laps_of(
    target: PagedModel,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,  # new ones, at most
    drafter: Drafter | None = None,
    rule: Verifier | None = None,
) -> Generator[Lap]:
    """Greedy rounds of the engine over these prompts together; nothing ends a text but its length."""
    requests = [
        Request(list(prompt), Sampler(), Stopping((), len(prompt) + num_tokens), PhiloxNoise(0)) for prompt in prompts
    ]
    with Engine(target, drafter, rule or Greedy(), target.cache or PagedKVCache()) as engine:
        began = time.perf_counter()
        for event in engine.rounds(requests):
            ended = time.perf_counter()
            yield Lap(event, ended - began)
            began = time.perf_counter()


def decoding_laps(laps: Generator[Lap], batch: int) -> Generator[Lap]:
    """The rounds behind the prompts, while all requests go on."""
    try:
        for lap in laps:
            if not lap.event.is_prefill:
                if len(lap.event.steps) < batch:
                    return
                yield lap
    finally:
        laps.close()


def first_laps(laps: Generator[Lap], count: int) -> list[Lap]:
    """So many of them, without the first, in which a drafter reads the prompt; the rest is not run.

    Example:
        >>> first_laps((number for number in range(9)), 3)
        [1, 2, 3]
    """
    found = list(islice(laps, count + 1))[1:]
    laps.close()
    return found


def pass_seconds(event: Round, is_on_gpu: bool) -> float:
    """Of the target's pass; on a GPU it is waited for where its result is read, in the rule."""
    return event.seconds.score + (event.seconds.rule if is_on_gpu else 0.0)
