"""How often drafts are accepted: measured here, read from a result file, or assumed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from specdec.kernels.ops import argmax
from specdec.protocols import Drafter, Noise
from specdec.rules import walk
from specdec.target import PagedModel
from specdec.types import Draft, Exactness, TargetRows, Verdict

from ..statistics import MIN_PROMPTS, interval, resampled
from .cost import Yield, expected_tokens
from .drafters import Setting, longest_chains
from .running import laps_of

OnRun = Callable[[int, int, str], None]


class Acceptance(Protocol):
    """What rounds emit, by setting."""

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        ...

    def of(self, setting: Setting) -> Yield | None:
        """None if nothing is known of it."""
        ...


@dataclass(frozen=True, slots=True)
class Assumed:
    """The same for all: each drafted token is accepted with this probability, independently.

    Example:
        >>> Assumed(0.5).of(Setting("ngram", 2)).tokens_per_step
        1.75
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"expected --acceptance-rate from 0 to 1, got {self.rate}; it is a probability")

    @property
    def source(self) -> str:
        return f"assumed: {self.rate:g}, independently"

    def of(self, setting: Setting) -> Yield | None:
        """Trees are left out: a rate per token does not say what siblings are worth."""
        if setting.num_tree_nodes is not None:
            return None
        return Yield(expected_tokens([self.rate], setting.num_speculative_tokens))


@dataclass(frozen=True, slots=True)
class Known:
    """Of settings that were measured, and of shorter chains by the curve of a longer one."""

    source: str
    yields: Mapping[Setting, Yield]
    curves: Mapping[str, Sequence[float]] = field(default_factory=dict)  # drafter -> of its longest chain
    shares: Mapping[str, float] = field(default_factory=dict)  # drafter -> share of the rounds with a draft

    def of(self, setting: Setting) -> Yield | None:
        """Behind its last position a curve goes on as it ends.

        Example:
            >>> Known("here", {}, {"ngram": [0.5, 0.5]}, {"ngram": 0.5}).of(Setting("ngram", 2))
            Yield(tokens_per_step=1.375, drafted_share=0.5, low=None, high=None)
        """
        if setting in self.yields:
            return self.yields[setting]
        curve = self.curves.get(setting.drafter)
        if curve is None or setting.num_tree_nodes is not None:
            return None
        share = self.shares[setting.drafter]
        return Yield(1 + share * (expected_tokens(curve, setting.num_speculative_tokens) - 1), share)


class Tracing:
    """A rule that accepts nothing and notes how much of each draft greedy decoding would have accepted.

    So a drafter is asked at every place of the text, and what shorter drafts would have done follows.
    """

    name: ClassVar[str] = "tracing"
    level: ClassVar[Exactness] = Exactness.GREEDY_IDENTICAL
    chain_only: ClassVar[bool] = False

    def __init__(self) -> None:
        self.noted: list[tuple[int, int]] = []  # (depth of the draft, accepted), in the order of the calls

    def verify(self, draft: Draft, rows: TargetRows, noise: Noise) -> Verdict:
        """The token of plain decoding."""
        choices: list[int] = argmax(rows.scores).tolist()
        self.noted.append((max(draft.tree.depths), len(walk(draft.tree, choices).path)))
        return Verdict([], choices[0])


Trace = list[tuple[int, int]]  # of one text, by place: (depth of the draft there, how much of it would be accepted)


def traced(target: PagedModel, prompts: Sequence[Sequence[int]], num_tokens: int, drafter: Drafter) -> list[Trace]:
    """What the drafter proposes at so many places behind each prompt."""
    traces: list[Trace] = [[] for _ in prompts]
    rule, room = Tracing(), num_tokens + 1 + 64  # for whole drafts at the last places
    laps = laps_of(target, prompts, room, drafter, rule=rule)
    while min(map(len, traces)) < num_tokens:
        event = next(laps).event
        for step, noted in zip(event.steps, rule.noted, strict=True):
            if step.num_nodes or not event.is_prefill:
                traces[step.request_id].append(noted)
        rule.noted.clear()
    laps.close()
    return [trace[:num_tokens] for trace in traces]


def replayed(trace: Trace, num_tokens: int) -> Trace:
    """The rounds that drafts of at most so many tokens would have had on this text.

    Example:
        >>> replayed([(3, 2), (3, 0), (3, 1), (0, 0), (3, 3)], num_tokens=2)  # places 0, 3 and 4
        [(2, 2), (0, 0), (2, 2)]
    """
    rounds, place = [], 0
    while place < len(trace):
        depth, accepted = (min(value, num_tokens) for value in trace[place])
        rounds.append((depth, accepted))
        place += accepted + 1
    return rounds


def yield_of(texts: Sequence[Trace]) -> Yield:
    """Of the rounds on several texts, with a 95 % interval by the bootstrap over texts.

    Example:
        >>> yield_of([[(2, 2), (0, 0)], [(2, 1)]])
        Yield(tokens_per_step=2.0, drafted_share=0.6666666666666666, low=None, high=None)
    """
    counts = np.array(
        [(sum(1 + accepted for _, accepted in rounds), len(rounds)) for rounds in texts], dtype=np.float64
    )
    tokens, steps = counts.sum(axis=0)
    share = sum(depth > 0 for rounds in texts for depth, _ in rounds) / steps
    low = high = None
    if len(texts) >= MIN_PROMPTS:
        sums = resampled(counts)  # [RESAMPLES, 2]
        low, high = map(float, interval(sums[:, 0] / sums[:, 1]))
    return Yield(float(tokens / steps), float(share), low, high)


def measured(
    target: PagedModel,
    drafters: Mapping[Setting, Drafter],  # of each drafter the longest chain is run, and every tree
    prompts: Sequence[Sequence[int]],
    num_tokens: int,
    on_run: OnRun,
) -> Known:
    """By greedy decoding: every chain up to the longest, exactly as it would have gone on these texts."""
    longest = longest_chains(drafters)
    wanted = [setting for setting in drafters if setting.num_tree_nodes is not None or setting in longest.values()]
    yields: dict[Setting, Yield] = {}
    for done, setting in enumerate(wanted):
        on_run(done, len(wanted), f"acceptance of {setting.label}")
        traces = traced(target, prompts, num_tokens, drafters[setting])
        lengths = [setting.num_speculative_tokens]
        if setting.num_tree_nodes is None:
            lengths = list(range(1, setting.num_speculative_tokens + 1))
        for length in lengths:
            shorter = setting._replace(num_speculative_tokens=length)
            yields[shorter] = yield_of([replayed(trace, length) for trace in traces])
    return Known(f"measured here: {len(prompts)} prompts, {num_tokens} tokens each, greedy", yields)


def as_rows(acceptance: Acceptance, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """What is known of these settings, as plain values."""
    known = {setting: found for setting in settings if (found := acceptance.of(setting)) is not None}
    return [
        {
            "drafter": setting.drafter,
            "num_speculative_tokens": setting.num_speculative_tokens,
            "num_tree_nodes": setting.num_tree_nodes,
            "tokens_per_step": found.tokens_per_step,
            "low": found.low,
            "high": found.high,
            "drafted_share": found.drafted_share,
        }
        for setting, found in known.items()
    ]
