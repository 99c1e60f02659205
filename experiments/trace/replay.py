"""Replay: what tokens per step a setting would have had on the texts of a trace, without the model.

Given a text, a round that begins at a position accepts tau drafted tokens with a law that `laws` knows, and the next
one begins behind the token after them. So the probability that a round begins at a position, and with it every expected
count, follows in one pass over the text, without sampling. Where the law is certain this is the path of the live run.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from .cuts import Cut, Setting, cut
from .laws import survival
from .texts import Trace, TracedText

ONE_PASS = ("medusa", "dflash", "peagle")  # drafters of one pass per draft
NO_PASS = ("ngram", "replay")  # and of none


@dataclass(frozen=True, slots=True)
class Costs:
    """What a round costs, in target passes over one row."""

    draft: float = 0.0  # a pass of the drafter
    node: float = 0.0  # a further row of the target pass

    def __post_init__(self) -> None:
        if not (0 <= self.draft < inf and 0 <= self.node < inf):
            raise ValueError(f"expected finite costs of at least 0, got {self.draft} and {self.node}; correct them")

    def of(self, cut: Cut, drafter: str) -> float:
        """The cost of a round that drafts this.

        Example:
            >>> from specdec.experiments.trace.texts import TracedDraft
            >>> draft = TracedDraft(4, [9, 5], [-1, 0], [0, 1], [False] * 2, None, [0.0] * 2, [0.0] * 2)
            >>> Costs(draft=0.25).of(Cut(draft, (0, 1), True), "draft_model")
            1.25
        """
        passes = 0 if drafter in NO_PASS else min(1, cut.depth) if drafter in ONE_PASS else cut.depth
        return 1 + self.draft * passes + self.node * cut.num_nodes


@dataclass(slots=True)
class Totals:
    """Expected counts on one text; certain ones where a live run's are."""

    num_tokens: int = 0
    num_steps: float = 0.0
    num_accepted: float = 0.0
    num_drafted: float = 0.0  # depths
    num_nodes: float = 0.0
    cost: float = 0.0
    accepted: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # tau -> steps with a draft
    is_same: bool = True  # whether all drafts are those that a drafter with this setting makes


@dataclass(frozen=True, slots=True)
class Replayed:
    """A text under a setting: what every position would draft, and how far that is accepted."""

    text: TracedText
    cuts: tuple[Cut, ...]
    survivals: tuple[list[float], ...]

    @property
    def accepted(self) -> list[int]:
        """The accepted tokens of every round, where that is certain: of each position that a round begins at."""
        place, found = 0, []
        while place < len(self.cuts):
            found.append(len(self.survivals[place]) - 1)
            place += found[-1] + 1
        return found


def replayed(trace: Trace, text: TracedText, setting: Setting, rule: str) -> Replayed:
    """A text under a setting and a rule; a round accepts no more than the text has."""
    cuts = tuple(cut(draft, setting, trace.header) for draft in text.drafts)
    survivals = tuple(survival(each, text.tokens[place:], rule) for place, each in enumerate(cuts))
    return Replayed(text, cuts, survivals)


def totals(found: Replayed, costs: Costs, drafter: str) -> Totals:
    """The expected counts of all rounds.

    Example:
        >>> from specdec.experiments.trace.texts import TracedDraft
        >>> chain = TracedDraft(1, [9, 5, 7], [-1, 0, 1], [0, 1, 2], [False] * 3, None, [0.0] * 3, [0.0] * 3)
        >>> empty = TracedDraft(2, [5], [-1], [0], [False], None, [0.0], [0.0])
        >>> text = TracedText(0, 0, "a", (5, 6), (chain, empty))
        >>> cuts = tuple(Cut(draft, tuple(range(len(draft))), True) for draft in text.drafts)
        >>> totals(Replayed(text, cuts, ([1.0, 1.0], [1.0])), Costs(), "ngram").num_steps
        1.0
    """
    end = len(found.cuts)
    visits = [1.0] + [0.0] * end  # the probability that a round begins there
    sums = Totals(num_tokens=end)
    for place, (each, alive) in enumerate(zip(found.cuts, found.survivals, strict=True)):
        weight = visits[place]
        if weight == 0:
            continue
        for count, chance in enumerate(chances(alive)):
            visits[min(place + count + 1, end)] += weight * chance
            sums.num_accepted += weight * chance * count
            if each.num_nodes:
                sums.accepted[count] += weight * chance
        sums.num_steps += weight
        sums.num_drafted += weight * each.depth
        sums.num_nodes += weight * each.num_nodes
        sums.cost += weight * costs.of(each, drafter)
        sums.is_same = sums.is_same and each.is_same
    return sums


def chances(alive: Sequence[float]) -> list[float]:
    """P(tau = i) of P(tau >= i)."""
    return [here - behind for here, behind in zip(alive, [*alive[1:], 0.0], strict=True)]


def replay(trace: Trace, setting: Setting, rule: str, costs: Costs) -> list[Totals]:
    """The expected counts on every text of a trace."""
    name = str(trace.header.get("drafter_name"))
    return [totals(replayed(trace, text, setting, rule), costs, name) for text in trace.texts]


def settings_of(options: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """All combinations of the values of each option; without a value an option stays as traced.

    Example:
        >>> settings_of({"num_speculative_tokens": [2, 3], "budget": []})[1].num_speculative_tokens
        3
    """
    found = [Setting()]
    for name, values in options.items():
        if values:
            found = [replace(setting, **{name: value}) for setting in found for value in values]
    return found
