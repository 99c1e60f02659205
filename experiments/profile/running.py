"""The engine's rounds on texts of a chosen length: what passes, drafters and live checks are measured by."""

import statistics
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

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

from ..system_bench_passes import Prefixes

PARTS = ("draft", "score", "rule", "cache", "host")


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
    """A drafter that costs nothing and is hardly ever right: a chain of so many tokens that count up."""

    name = "guess"
    needs = DrafterNeeds()

    def __init__(self, num_speculative_tokens: int, vocab_size: int) -> None:
        self.num_speculative_tokens, self.vocab_size = num_speculative_tokens, vocab_size

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """A chain per view."""
        drafts = []
        for view, budget in zip(views, budgets, strict=True):
            first, count = view.tokens[-1], 1 + min(budget, self.num_speculative_tokens)
            tokens = [(first + step) % self.vocab_size for step in range(count)]
            drafts.append(Draft.chosen(TokenTree.chain(tokens), self.name))
        return drafts

    def close(self, request_ids: Sequence[int]) -> None:
        """Nothing is kept."""


def laps_of(
    target: PagedModel,
    prompts: Sequence[Sequence[int]],
    num_tokens: int,  # new ones, at most
    drafter: Drafter | None = None,
    cache: PagedKVCache | None = None,
    rule: Verifier | None = None,
) -> Generator[Lap]:
    """Greedy rounds of the engine over these prompts together; nothing ends a text but its length."""
    where = cache or target.cache or PagedKVCache()
    requests = [
        Request(list(prompt), Sampler(), Stopping((), len(prompt) + num_tokens), PhiloxNoise(0)) for prompt in prompts
    ]
    with Engine(target, drafter, rule or Greedy(), where) as engine:
        began = time.perf_counter()
        for event in engine.rounds(requests):
            ended = time.perf_counter()
            yield Lap(event, ended - began)
            began = time.perf_counter()


def first_laps(laps: Generator[Lap], count: int) -> list[Lap]:
    """The first so many of decoding, without the round in which a drafter reads the prompt; the rest is not run."""
    found: list[Lap] = []
    try:
        for lap in laps:
            if not lap.event.is_prefill:
                found.append(lap)
            if len(found) > count:
                break
    finally:
        laps.close()
    return found[1:]


@contextmanager
def kept(target: PagedModel, prompts: Sequence[Sequence[int]]) -> Iterator[PagedKVCache]:
    """A cache that holds the prompts while inside: requests that begin with them find their pages there."""
    with torch.inference_mode():
        prefixes = Prefixes(target, prompts)
    try:
        yield prefixes.cache
    finally:
        for table in prefixes.tables:
            prefixes.cache.close(table)


def pass_seconds(event: Round, is_on_gpu: bool) -> float:
    """Of the target's pass; on a GPU it is waited for where its result is read, in the rule."""
    return event.seconds.score + (event.seconds.rule if is_on_gpu else 0.0)
