"""A plan's predictions beside live runs of the same ways to decode."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from specdec.protocols import Drafter
from specdec.target import PagedModel

from ..measure import turns
from .cost import Prediction
from .drafters import Setting
from .plan import label_of
from .running import decoding_laps, laps_of

T = TypeVar("T")
NUM_OTHERS = 2  # beside plain decoding and the best
ROOM = 64  # tokens: for the rounds that do not count, and whole drafts in the last ones


class Texts(NamedTuple):
    """What is continued, and how far."""

    prompts: Sequence[Sequence[int]]
    num_tokens: int

    @property
    def context(self) -> float:
        """Tokens that a request has behind it while it is continued, on average."""
        return sum(map(len, self.prompts)) / len(self.prompts) + self.num_tokens / 2


def chosen(ways: Sequence[Prediction]) -> list[Prediction]:
    """Plain decoding, the best, and the best of two other drafters."""
    plain = next(way for way in ways if way.setting is None)
    by_drafter: dict[str, Prediction] = {}
    for way in ways:
        if way.setting is not None:
            by_drafter.setdefault(way.setting.drafter, way)
    return [plain, *list(by_drafter.values())[: 1 + NUM_OTHERS]]


def live(
    target: PagedModel,
    ways: Sequence[Prediction],  # of one batch size, plain decoding first
    drafters: Mapping[Setting, Drafter],
    texts: Texts,
    repeats: int,
    on_run: Callable[[int, int, str], None],
) -> list[dict[str, Any]]:
    """Predicted and measured tokens per second of each way. Ways take turns on each group of prompts.

    Raises:
        ValueError: there are fewer prompts than requests of a batch.
    """
    batch, prompts = ways[0].batch_size, texts.prompts
    if batch > len(prompts):
        raise ValueError(
            f"expected as many prompts as requests of a batch, got {len(prompts)} for {batch}; raise --num-prompts"
        )
    groups = grouped(prompts, batch)
    seconds: dict[tuple[int, int], list[float]] = {}
    tokens: dict[tuple[int, int], int] = {}
    order = list(turns(range(len(ways)), len(groups), repeats + 1))
    for done, (index, group) in enumerate(order):
        on_run(done, len(order), f"live: {label_of(ways[index])}, batch {batch}")
        setting = ways[index].setting
        drafter = None if setting is None else drafters[setting]
        spent, tokens[index, group] = timed(target, groups[group], texts.num_tokens, drafter)
        if done >= len(ways) * len(groups):  # the first turn warms up
            seconds.setdefault((index, group), []).append(spent)
    speeds = []
    for index in range(len(ways)):
        spent = sum(statistics.median(seconds[index, group]) for group in range(len(groups)))
        speeds.append(sum(tokens[index, group] for group in range(len(groups))) / spent)
    return [_row(way, speed, speeds[0]) for way, speed in zip(ways, speeds, strict=True)]


def grouped(prompts: Sequence[T], batch: int) -> list[list[T]]:
    """Groups of so many, in which each prompt comes equally often.

    Example:
        >>> grouped("abcdef", 4)
        [['a', 'b', 'c', 'd'], ['e', 'f', 'a', 'b'], ['c', 'd', 'e', 'f']]
    """
    count = len(prompts)
    places = range(math.lcm(count, batch))
    return [[prompts[place % count] for place in places[first : first + batch]] for first in places[::batch]]


def timed(
    target: PagedModel, prompts: Sequence[Sequence[int]], num_tokens: int, drafter: Drafter | None
) -> tuple[float, int]:
    """Seconds of rounds until each request has so many tokens on average, or one its context full, and the tokens.

    The rounds in which the target and the drafter read the prompts are left out.
    """
    spent, emitted = 0.0, 0
    room = min(4 * num_tokens + ROOM, target.max_positions - max(map(len, prompts)))
    laps = decoding_laps(laps_of(target, prompts, room, drafter), len(prompts))
    for number, lap in enumerate(laps):
        if number == 0:  # in which the drafter reads the prompts
            continue
        spent += lap.seconds
        emitted += sum(len(step.tokens) for step in lap.event.steps)
        if emitted >= num_tokens * len(prompts):
            break
    laps.close()
    return spent, emitted


def _row(way: Prediction, speed: float, plain: float) -> dict[str, Any]:
    return {
        "label": label_of(way),
        "batch_size": way.batch_size,
        "predicted_tokens_per_second": way.tokens_per_second,
        "measured_tokens_per_second": speed,
        "ratio": way.tokens_per_second / speed,
        "predicted_speedup": way.speedup,
        "measured_speedup": speed / plain,
        "speedup_ratio": way.speedup * plain / speed,
    }
