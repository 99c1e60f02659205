"""Analytic acceptance: how likely each depth is to be reached, over all tokens that might follow.

Of P(tau >= i | y) the last token is averaged out by the target's distribution p (Rao-Blackwell): where the prefix is
the text's, drawn drafts of a chain get one token further with

    sample_and_match   P(tau >= i - 1) sum p q
    rejection          P(tau >= i - 1) sum min(p, q)
    block              sum min(g_{i-1} p, G_{i-1} q)         (see `laws`)

and chosen nodes of depth i with the sum of the products of p on their paths. A trace keeps the likeliest tokens of p
and q alone; what the others can come to at least and at most is bounded by their mass and by the last token kept.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from .cuts import Cut, Setting, cut
from .laws import STEPS, survival
from .texts import Trace, TracedText

Probs = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Bounds:
    """A number that is known to lie between two; equal, but for rounding, if nothing was truncated."""

    low: float
    high: float


def overlap(p: Probs, p_tail: float, q: Probs, q_tail: float) -> Bounds:
    """Sum of min(p, q) over all tokens; the weights given and what is left of each.

    Of tokens that q lists and p does not, p is at most the smallest that it lists, and p_tail in all; and the other way
    round. Tokens in neither list have what then is left of the tails.

    Example:
        >>> overlap({0: 0.5, 1: 0.25}, 0.25, {0: 0.25, 1: 0.75}, 0.0)
        Bounds(low=0.5, high=0.5)
        >>> overlap({0: 0.5}, 0.5, {1: 0.75}, 0.25)
        Bounds(low=0.0, high=0.75)
    """
    least_p, least_q = min(p.values(), default=1.0), min(q.values(), default=1.0)
    both = sum((min(value, q[token]) for token, value in p.items() if token in q), 0.0)
    of_p = min(q_tail, sum(min(value, least_q) for token, value in p.items() if token not in q))
    of_q = min(p_tail, sum(min(value, least_p) for token, value in q.items() if token not in p))
    # q's tail lies on tokens of p's list (of_p) or on neither's, and the other way round.
    return Bounds(both, both + min(p_tail + of_p, q_tail + of_q))


def matching(p: Probs, p_tail: float, q: Probs, q_tail: float) -> Bounds:
    """Sum of p q over all tokens.

    Example:
        >>> matching({0: 0.5}, 0.5, {1: 0.75}, 0.25)
        Bounds(low=0.0, high=0.5)
    """
    both = sum((value * q[token] for token, value in p.items() if token in q), 0.0)
    most_p = max([value for token, value in p.items() if token not in q] + [min(p.values(), default=1.0)])
    most_q = max([value for token, value in q.items() if token not in p], default=0.0)
    return Bounds(both, both + most_p * q_tail + most_q * p_tail)


def analytic_acceptance(trace: Trace, setting: Setting, rule: str) -> list[Bounds]:
    """P(tau >= i) for i = 1, 2, ...: the mean over all positions of the texts where a draft reaches so deep.

    A live run visits some positions more than others, so its survival by depth is another mean of the same kind. Greedy
    texts, and drafts that share the target's noise, have no chance in them: there the share of accepted ones is given.
    """
    sums: list[tuple[float, float, int]] = []
    for text in trace.texts:
        for place, draft in enumerate(text.drafts):
            each = cut(draft, setting, trace.header)
            for depth, found in enumerate(_reached(trace, text, place, each, rule)):
                if depth == len(sums):
                    sums.append((0.0, 0.0, 0))
                low, high, count = sums[depth]
                sums[depth] = low + found.low, high + found.high, count + 1
    return [Bounds(low / count, high / count) for low, high, count in sums]


def _reached(trace: Trace, text: TracedText, place: int, each: Cut, rule: str) -> Iterator[Bounds]:
    """Of one position, for every depth that was drafted and that the text has."""
    draft, rest = each.draft, text.tokens[place:]
    depth = min(each.depth, len(rest))
    is_certain = not trace.header.get("do_sample")
    is_certain |= trace.header.get("settings", {}).get("draft_sample_method") == "coupled"
    if draft.is_drawn:
        yield from _drawn(trace, each, depth, rule)
    elif is_certain:
        accepted = len(survival(each, rest, rule)) - 1
        yield from (Bounds(float(accepted > i), float(accepted > i)) for i in range(depth))
    else:
        chances, sums = {0: 1.0}, [0.0] * (each.depth + 1)
        said = set()  # of equal siblings the first stands for all
        for node in each.nodes[1:]:
            key = draft.parents[node], draft.tokens[node]
            chances[node] = 0.0 if key in said else chances[draft.parents[node]] * draft.p[node]
            said.add(key)
            sums[draft.depths[node]] += chances[node]
        yield from (Bounds(value, value) for value in sums[1 : depth + 1])


def _drawn(trace: Trace, each: Cut, depth: int, rule: str) -> Iterator[Bounds]:
    """Along the text, whose tokens a drawn chain has."""
    draft, before, weight = each.draft, 1.0, 1.0
    for node in range(depth):
        p, p_tail = trace.p_top.row(draft.first_row + node)
        q, q_tail = trace.q_top.row(draft.first_row + node)
        if rule == "block":
            yield overlap(_scaled(p, before), p_tail * before, _scaled(q, weight), q_tail * weight)
        else:
            found = (overlap if rule == "rejection" else matching)(p, p_tail, q, q_tail)
            yield Bounds(before * found.low, before * found.high)
        before, weight = STEPS[rule](before, weight, draft.p[node + 1], draft.q[node + 1])


def _scaled(probs: Probs, factor: float) -> Probs:
    return {token: factor * prob for token, prob in probs.items()}
