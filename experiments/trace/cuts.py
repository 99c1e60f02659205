"""Drafts cut to a smaller setting, and whether a drafter with that setting would have drafted just that.

A chain cut to k tokens is what its drafter drafts for k, but for one that fills a block at once. A tree holds the best
of what its drafter looked at, so its best n nodes are those of a tree of n. Cut by depth it loses nodes in whose place
a shallower tree has others, unless enough are left, or the tree was never full. Cut by width it is an approximation:
the drafter would have looked elsewhere.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from .texts import TracedDraft

# Drafters whose chain of k begins a longer one. A block of k tokens is another pass than a longer block.
STEADY = ("ngram", "draft_model", "eagle", "eagle3", "mtp", "medusa", "peagle", "replay")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is to be replayed; None leaves a value as it was traced."""

    num_speculative_tokens: int | None = None  # depth at most
    num_tree_nodes: int | None = None  # of a tree
    tree_width: int | None = None  # children per node at most
    confidence_threshold: float | None = None  # nothing behind a token whose own probability is below
    budget: int | None = None  # nodes per round at most, of chains and trees

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 0 if name in ("confidence_threshold", "num_speculative_tokens", "budget") else 1
            if value is not None and not value >= least:  # a NaN is not
                raise ValueError(f"expected {name} of at least {least}, got {value}; drop it to leave it as traced")


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left of a draft: nodes in their order, the pending one first; parents stay with their children."""

    draft: TracedDraft
    nodes: tuple[int, ...]
    is_same: bool  # whether the drafter with this setting would have drafted just this

    @property
    def depth(self) -> int:
        return max(self.draft.depths[node] for node in self.nodes)

    @property
    def num_nodes(self) -> int:
        """Drafted ones."""
        return len(self.nodes) - 1

    def at_most(self, depth: int) -> "Cut":
        """The same, cut at a depth."""
        nodes = tuple(node for node in self.nodes if self.draft.depths[node] <= depth)
        return Cut(self.draft, nodes, self.is_same)


def obstacle(header: Mapping[str, Any], setting: Setting) -> str | None:
    """Why a trace cannot answer for a setting, if it cannot.

    Example:
        >>> about = {"drafter_name": "ngram", "is_tree": False, "settings": {"num_speculative_tokens": 5}}
        >>> obstacle(about, Setting(num_tree_nodes=4))
        'the trace is of chains, which have no num_tree_nodes'
    """
    traced, name = header.get("settings", {}), header.get("drafter_name")
    depth, nodes = traced.get("num_speculative_tokens"), traced.get("num_tree_nodes")
    for option in ("num_tree_nodes", "tree_width"):
        if not header.get("is_tree") and getattr(setting, option) is not None:
            return f"the trace is of chains, which have no {option}"
    for option, most in (("num_speculative_tokens", depth), ("num_tree_nodes", nodes)):
        if most is not None and (getattr(setting, option) or 0) > most:
            return f"the trace was made with {option} {most}; trace again with more"
    threshold = traced.get("confidence_threshold")
    if setting.confidence_threshold is not None and setting.confidence_threshold < (threshold or 0):
        return f"the trace was made with confidence_threshold {threshold}; trace again with less"
    if setting.confidence_threshold is not None and name == "dflash":
        return "a block's confidence_threshold is not one of single tokens; trace with the threshold itself"
    if setting.num_tree_nodes is not None and traced.get("speculative_token_tree"):
        return "the trace is of a tree of fixed shape, which has no num_tree_nodes; use budget"
    return None


def cut(draft: TracedDraft, setting: Setting, header: Mapping[str, Any]) -> Cut:
    """What is left of a draft under a setting.

    Raises:
        ValueError: it depends on scores that the drafter did not give.

    Example:
        >>> draft = TracedDraft(4, [9, 5, 6, 7], [-1, 0, 1, 2], [0, 1, 2, 3], [False] * 4, None, [0.0] * 4, [0.0] * 4)
        >>> cut(draft, Setting(num_speculative_tokens=2), {"drafter_name": "ngram"}).nodes
        (0, 1, 2)
    """
    traced = header.get("settings", {})
    if not header.get("is_tree"):
        return _cut_chain(draft, setting, header)
    nodes = list(range(len(draft)))
    if setting.num_speculative_tokens is not None:
        nodes = [node for node in nodes if draft.depths[node] <= setting.num_speculative_tokens]
    if setting.tree_width is not None:
        nodes = _connected(draft, nodes, _narrow(draft, setting.tree_width))
    if setting.confidence_threshold is not None:
        nodes = _connected(draft, nodes, _sure(draft, setting.confidence_threshold))
    wanted, full = setting.num_tree_nodes or traced.get("num_tree_nodes"), traced.get("num_tree_nodes")
    is_same = len(nodes) == len(draft) or bool(traced.get("speculative_token_tree"))
    others = setting.tree_width, setting.confidence_threshold
    if not is_same and draft.scores is not None and full is not None and others == (None, None):
        # A full tree has lost what could stand in the place of the nodes that are gone.
        is_same = len(nodes) > wanted or len(draft) - 1 < full
    if wanted is not None and len(nodes) - 1 > wanted:
        nodes = _best(draft, nodes, wanted)
    if setting.budget is not None and len(nodes) - 1 > setting.budget:
        nodes, is_same = _best(draft, nodes, setting.budget), is_same and full is not None
    return Cut(draft, tuple(nodes), is_same and _is_steady(setting, header))


def _cut_chain(draft: TracedDraft, setting: Setting, header: Mapping[str, Any]) -> Cut:
    length = len(draft) - 1
    limits = [limit for limit in (setting.num_speculative_tokens, setting.budget) if limit is not None]
    kept = min([length, *limits])
    if setting.confidence_threshold is not None and kept:
        unsure = (node for node in range(1, kept) if _own(draft, node) < setting.confidence_threshold)
        kept = next(unsure, kept)
    return Cut(draft, tuple(range(kept + 1)), _is_steady(setting, header))


def _is_steady(setting: Setting, header: Mapping[str, Any]) -> bool:
    """Whether the nodes of a drafter that is asked for fewer tokens are the first of those that it gives for more."""
    wanted, traced = setting.num_speculative_tokens, header.get("settings", {}).get("num_speculative_tokens")
    return header.get("drafter_name") in STEADY or wanted is None or wanted == traced


def _best(draft: TracedDraft, nodes: list[int], count: int) -> list[int]:
    """Node 0 and the `count` best others; scores fall along a path, so these hold their parents."""
    scores = draft.scores
    if scores is None:
        raise ValueError(f"expected scores to choose {count} nodes of a tree by, got none from its drafter; drop it")
    best = sorted(nodes[1:], key=lambda node: (-scores[node], node))[:count]
    return [0, *sorted(best)]


def _connected(draft: TracedDraft, nodes: list[int], wanted: set[int]) -> list[int]:
    """The nodes whose whole path is wanted."""
    kept = {0}
    for node in nodes[1:]:
        if node in wanted and draft.parents[node] in kept:
            kept.add(node)
    return sorted(kept)


def _narrow(draft: TracedDraft, width: int) -> set[int]:
    """Nodes that are among the first `width` children of their parents."""
    seen: dict[int, int] = {}
    found = set()
    for node in range(1, len(draft)):
        rank = seen[draft.parents[node]] = seen.get(draft.parents[node], 0) + 1
        if rank <= width:
            found.add(node)
    return found


def _sure(draft: TracedDraft, threshold: float) -> set[int]:
    """Nodes whose parents are likely enough to have children."""
    return {
        node
        for node in range(1, len(draft))
        if draft.parents[node] == 0 or _own(draft, draft.parents[node]) >= threshold
    }


def _own(draft: TracedDraft, node: int) -> float:
    prob = draft.own_prob(node)
    if prob is None:
        raise ValueError(
            "expected to know how sure the drafter was, got a trace without scores; trace the drafter with "
            "confidence_threshold=1e-30, or drop the threshold"
        )
    return prob
