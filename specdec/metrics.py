"""Figures about speculation, as pure functions of events (algorithms.md, section 6). Sums first, ratios last."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from .events import Round, Seconds, Step


@dataclass(frozen=True, slots=True)
class Metrics:
    """Sums over steps, and the ratios people quote. Ratios are micro: a ratio of sums, never a mean of ratios.

    What is undefined, say the acceptance rate where nothing was drafted, is 0.

    Example:
        >>> steps = [Step(0, (5, 6, 7), num_accepted=2, num_drafted=4, num_nodes=4), Step(0, (8,), 0, 4, 4)]
        >>> metrics = summarize_steps(steps)
        >>> metrics.tokens_per_step, metrics.acceptance_rate
        (2.0, 0.25)
        >>> metrics.mean_acceptance_length, metrics.draft_acceptance_rate, metrics.acceptance_at_pos  # vLLM's names
        (2.0, 0.25, [0.5, 0.5, 0.0, 0.0])
    """

    num_steps: int  # request-rounds, the first token's included
    num_steps_without_draft: int
    num_tokens: int  # emitted
    num_accepted: int
    num_drafted: int
    num_nodes: int
    num_wasted: int
    accepted_histogram: dict[int, int]  # accepted drafted tokens -> number of steps that had a draft
    drafted_histogram: dict[int, int]  # depth of the draft -> number of steps
    seconds: Seconds

    @property
    def tokens_per_step(self) -> float:
        """Emitted tokens per step, correction or bonus and the prompt's step included: block efficiency, tau."""
        return _ratio(self.num_tokens, self.num_steps)

    @property
    def mean_acceptance_length(self) -> float:
        """vLLM's: 1 + accepted tokens per step that had a draft. The bonus counts, steps without a draft do not."""
        num_with_draft = self.num_steps - self.num_steps_without_draft
        return _ratio(num_with_draft + self.num_accepted, num_with_draft)

    @property
    def acceptance_rate(self) -> float:
        """Accepted share of the drafted depth: sum of accepted / sum of drafted."""
        return _ratio(self.num_accepted, self.num_drafted)

    @property
    def node_acceptance_rate(self) -> float:
        """Accepted share of all drafted nodes; below `acceptance_rate` for trees."""
        return _ratio(self.num_accepted, self.num_nodes)

    @property
    def draft_acceptance_rate(self) -> float:
        """`acceptance_rate` by vLLM's name."""
        return self.acceptance_rate

    @property
    def acceptance_at_pos(self) -> list[float]:  # [deepest draft]
        """vLLM's: by position the share of the steps with a draft, however short, that accepted so many tokens."""
        counts = [
            sum(count for accepted, count in self.accepted_histogram.items() if accepted >= position)
            for position in range(1, max(self.drafted_histogram, default=0) + 1)
        ]
        return [_ratio(count, self.num_steps - self.num_steps_without_draft) for count in counts]

    def acceptance_at(self, position: int) -> float:
        """Share of the steps that drafted at least `position` tokens and accepted at least so many (1 = first)."""
        offered = sum(count for drafted, count in self.drafted_histogram.items() if drafted >= position)
        accepted = sum(count for accepted, count in self.accepted_histogram.items() if accepted >= position)
        return _ratio(accepted, offered)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        depth = max(self.drafted_histogram, default=0)
        parts = self.seconds
        return {
            "num_steps": self.num_steps,
            "num_steps_without_draft": self.num_steps_without_draft,
            "num_tokens": self.num_tokens,
            "num_accepted": self.num_accepted,
            "num_drafted": self.num_drafted,
            "num_nodes": self.num_nodes,
            "num_wasted": self.num_wasted,
            "tokens_per_step": self.tokens_per_step,
            "acceptance_rate": self.acceptance_rate,
            "node_acceptance_rate": self.node_acceptance_rate,
            "mean_acceptance_length": self.mean_acceptance_length,
            "draft_acceptance_rate": self.draft_acceptance_rate,
            "acceptance_at_pos": self.acceptance_at_pos,
            "acceptance_at": [self.acceptance_at(position) for position in range(1, depth + 1)],
            "accepted_histogram": {str(key): value for key, value in sorted(self.accepted_histogram.items())},
            "seconds": {name: getattr(parts, name) for name in ("draft", "score", "rule", "cache", "host", "total")},
        }


def summarize(rounds: Iterable[Round]) -> Metrics:
    """The metrics of these rounds, all requests together."""
    rounds = list(rounds)
    seconds = Seconds(
        *(sum(getattr(r.seconds, name) for r in rounds) for name in ("draft", "score", "rule", "cache", "host"))
    )
    return summarize_steps([step for r in rounds for step in r.steps], seconds)


def summarize_steps(steps: Iterable[Step], seconds: Seconds = Seconds()) -> Metrics:  # noqa: B008 - frozen value
    """The metrics of these steps."""
    steps = list(steps)
    return Metrics(
        num_steps=len(steps),
        num_steps_without_draft=sum(step.num_nodes == 0 for step in steps),
        num_tokens=sum(len(step.tokens) for step in steps),
        num_accepted=sum(step.num_accepted for step in steps),
        num_drafted=sum(step.num_drafted for step in steps),
        num_nodes=sum(step.num_nodes for step in steps),
        num_wasted=sum(step.num_wasted for step in steps),
        accepted_histogram=dict(Counter(step.num_accepted for step in steps if step.num_nodes)),
        drafted_histogram=dict(Counter(step.num_drafted for step in steps)),
        seconds=seconds,
    )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0
