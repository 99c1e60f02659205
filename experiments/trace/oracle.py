"""Oracles: what the best choice at every round would be worth. Upper bounds, as nobody knows the choice beforehand.

A dynamic programme over the positions of a text, from its end: the least cost of what is left is that of the best round
here and of what is left behind it. The length of a draft is chosen in hindsight, knowing how far it would be accepted;
shorter drafts accept the same tokens as far as they go. The drafter is chosen knowing the text, and the laws, but not
the draws, of those that draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .cuts import Setting
from .replay import Costs, Replayed, chances, replayed
from .texts import Trace

LENGTH, DRAFTER, BOTH = "best length per round", "best drafter per round", "best drafter and length per round"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A drafter on one text, and what its rounds cost."""

    found: Replayed
    drafter: str
    costs: Costs

    def best(self, place: int, left: Sequence[float], has_choice: bool) -> float:
        """The expected cost from this position on, if `left` is that from every later one."""
        each, end = self.found.cuts[place], len(left) - 1
        total = 0.0
        for count, chance in enumerate(chances(self.found.survivals[place])):
            if chance == 0:
                continue
            if has_choice:  # a draft deeper than what is accepted costs more and brings nothing
                options = [
                    self.costs.of(each.at_most(depth), self.drafter) + left[min(place + depth + 1, end)]
                    for depth in range(count + 1)
                ]
            else:
                options = [self.costs.of(each, self.drafter) + left[min(place + count + 1, end)]]
            total += chance * min(options)
        return total


def least_cost(candidates: Sequence[Candidate], has_choice: bool) -> float:
    """The least expected cost of a text, with the best candidate at every round, and with the best length if there is a
    choice.

    Example:
        >>> from specdec.experiments.trace.cuts import Cut
        >>> from specdec.experiments.trace.texts import TracedDraft, TracedText
        >>> chain = TracedDraft(1, [9, 5, 7], [-1, 0, 1], [0, 1, 2], [False] * 3, None, [0.0] * 3, [0.0] * 3)
        >>> empty = TracedDraft(2, [5], [-1], [0], [False], None, [0.0], [0.0])
        >>> cuts = tuple(Cut(draft, tuple(range(len(draft))), True) for draft in (chain, empty))
        >>> found = Replayed(TracedText(0, 0, "a", (5, 6), (chain, empty)), cuts, ([1.0, 1.0], [1.0]))
        >>> candidate = Candidate(found, "draft_model", Costs(draft=0.25))
        >>> least_cost([candidate], has_choice=False), least_cost([candidate], has_choice=True)
        (1.5, 1.25)
    """
    end = len(candidates[0].found.cuts)
    left = [0.0] * (end + 1)
    for place in reversed(range(end)):
        left[place] = min(candidate.best(place, left, has_choice) for candidate in candidates)
    return left[0]


@dataclass(frozen=True, slots=True)
class Oracle:
    """What a choice would be worth on the texts that its arms have in common."""

    name: str
    arms: tuple[str, ...]
    labels: tuple[str, ...]
    prompts: tuple[str, ...]  # of each text
    tokens: tuple[int, ...]  # of each text
    steps: tuple[float, ...]  # least
    costs: tuple[float, ...]  # least


def oracles(arms: Sequence[tuple[Trace, str]], costs: Costs) -> list[Oracle]:
    """The best length of every arm, a trace and its rule, and the best drafter of those that have texts in common."""
    found = [oracle for arm in arms for oracle in _of([arm], costs, {LENGTH: True})]
    for group in _groups(arms):
        if len(group) > 1:
            found += _of(group, costs, {DRAFTER: False, BOTH: True})
    return found


def _groups(arms: Sequence[tuple[Trace, str]]) -> list[list[tuple[Trace, str]]]:
    """Arms of one cell that have texts in common with the first of their group."""
    groups: list[list[tuple[Trace, str]]] = []
    for arm in arms:
        keys = _keys(arm[0])
        group = next((group for group in groups if keys & _keys(group[0][0])), None)
        if group is None:
            groups.append(group := [])
        group.append(arm)
    return groups


def _keys(trace: Trace) -> set[tuple[Any, ...]]:
    return {(trace.cell, *text.key) for text in trace.texts}


def _of(arms: Sequence[tuple[Trace, str]], costs: Costs, kinds: Mapping[str, bool]) -> list[Oracle]:
    runs: dict[tuple[str, int, tuple[int, ...]], list[tuple[Replayed, str]]] = {}
    for trace, rule in arms:
        name = str(trace.header.get("drafter_name"))
        for text in trace.texts:
            runs.setdefault(text.key, []).append((replayed(trace, text, Setting(), rule), name))
    shared = [found for found in runs.values() if len(found) == len(arms)]
    prompts = tuple(found[0][0].text.prompt for found in shared)
    names = tuple(trace.arm for trace, _ in arms), tuple(trace.label for trace, _ in arms)
    tokens = tuple(len(found[0][0].cuts) for found in shared)
    made = []
    for kind, has_choice in kinds.items():
        steps, least = (
            tuple(least_cost([Candidate(*run, each) for run in found], has_choice) for found in shared)
            for each in (Costs(), costs)
        )
        made.append(Oracle(kind, *names, prompts, tokens, steps, least))
    return made if shared else []
