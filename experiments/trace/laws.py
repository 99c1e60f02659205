"""How far a draft is accepted, given the text: the laws of all rules along a text that they would all have made.

Let y be the text behind a position, p and q the probabilities of its tokens there, and tau how many drafted tokens are
accepted. Every lossless rule makes texts of the same law, so the question is P(tau >= i | y).

chosen nodes    A chosen node is accepted if and only if the text goes through it: what follows a node is drawn from p
                whatever is below (algorithms.md 2.1). So tau is the length of the path that y takes, by any rule.
sample_and_match of drawn tokens: token i was drawn from q apart from y: P = q(y_1) ... q(y_i).
rejection       A token is emitted as an accepted draft with probability q min(1, p/q) = min(p, q), at all with p; so
                given that it was emitted, it was accepted with min(1, q/p), apart from all others (2211.17192).
block           Let w_i be the weight of block verification, w_i = min(1, w_{i-1} p_i / q_i) = P(tau >= i | x_1..x_i).
                Then m_i = q_1..q_i w_i = min(q_1..q_i, m_{i-1} p_i) is the probability that y_1..y_i is drafted and
                kept, and what follows then has the law p (algorithms.md 1.5). So with G_i = (q_1..q_i) / (p_1..p_i)
                P(tau >= i | y) = m_i / (p_1..p_i) = g_i = min(g_{i-1}, G_i), g_0 = 1 (Sun et al. 2403.10444).

All draws are fresh in every round (algorithms.md 3.3), so given the text rounds are a Markov chain of start positions.
Where a chain stops may depend on its tokens up to there: the laws are those of the tokens that were drafted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .cuts import Cut

RULES = ("greedy", "sample_and_match", "rejection", "block")
PATH, LAW = "path", "law"


def exactness(header: Mapping[str, Any], rule: str) -> str:
    """In which sense a trace tells what a rule does: on the very path of a seeded run, or in law.

    Raises:
        ValueError: it tells nothing.

    Example:
        >>> exactness({"do_sample": True, "settings": {"draft_sample_method": "probabilistic"}}, "block")
        'law'
    """
    method = header.get("settings", {}).get("draft_sample_method")
    if rule not in RULES:
        raise ValueError(f"expected a rule of {', '.join(RULES)}, got {rule!r}; pick one of them")
    if rule == "block" and header.get("is_tree"):
        raise ValueError("expected a trace of chains for the rule 'block', got one of trees; use 'rejection'")
    if not header.get("do_sample"):
        return PATH
    if rule == "greedy":
        raise ValueError("expected a greedy trace for the rule 'greedy', got a sampled one; use 'sample_and_match'")
    if method == "coupled" and rule != "sample_and_match":
        raise ValueError(
            f"expected drafts that do not share the noise of sample_and_match for the rule {rule!r}, got coupled ones; "
            "trace with another draft_sample_method"
        )
    return PATH if rule == "sample_and_match" and method != "probabilistic" else LAW


def survival(cut: Cut, text: Sequence[int], rule: str) -> list[float]:
    """P(tau >= i | text) for i = 0, 1, ..., as far as it is not zero, and the text goes.

    Args:
        cut: the draft.
        text: what is said from its position on.
        rule: which verifies.

    Example:
        >>> from specdec.experiments.trace.texts import TracedDraft
        >>> p, q = [0, 0.5, 0.2], [0, 0.2, 0.5]
        >>> draft = TracedDraft(4, [9, 5, 6], [-1, 0, 1], [0, 1, 2], [False, True, True], None, p, q)
        >>> survival(Cut(draft, (0, 1, 2), True), [5, 6, 7], "rejection")
        [1.0, 0.4, 0.4]
        >>> survival(Cut(draft, (0, 1, 2), True), [5, 6, 7], "sample_and_match")
        [1.0, 0.2, 0.1]
    """
    draft, step = cut.draft, STEPS[rule]
    children: dict[tuple[int, int], int] = {}  # (parent, token) -> node; of equal siblings the first stands for all
    for node in cut.nodes[1:]:
        children.setdefault((draft.parents[node], draft.tokens[node]), node)
    found, weight, node = [1.0], 1.0, 0
    for token in text:
        child = children.get((node, token))
        if child is None:
            break
        # A chosen token was certain to be drafted.
        p, q = draft.p[child], draft.q[child] if draft.sampled[child] else 1.0
        now, weight = step(found[-1], weight, p, q) if draft.is_drawn else (1.0, 1.0)
        if now <= 0:
            break
        found.append(now)
        node = child
    return found


def _match(before: float, weight: float, p: float, q: float) -> tuple[float, float]:
    return before * q, weight


def _rejection(before: float, weight: float, p: float, q: float) -> tuple[float, float]:
    return before * (q / p if q < p else 1.0), weight


def _block(before: float, weight: float, p: float, q: float) -> tuple[float, float]:
    weight = weight * q / p if p > 0 else float(q > 0)
    return min(before, weight), weight


# P(tau >= i - 1), G_{i-1}, p_i, q_i -> P(tau >= i), G_i
Step = Callable[[float, float, float, float], tuple[float, float]]
STEPS: dict[str, Step] = {
    "greedy": _match,
    "sample_and_match": _match,
    "rejection": _rejection,
    "block": _block,
}
