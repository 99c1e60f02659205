"""The drafters that a profile looks at: every one that the models allow, at several lengths, and as a tree."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from specdec.draft_models.draft_model import pool_of
from specdec.methods import build_drafter, load_head, paged
from specdec.protocols import Drafter
from specdec.target import PagedModel

from ..loading import Models


class Setting(NamedTuple):
    """A drafter and how much it drafts."""

    drafter: str
    num_speculative_tokens: int
    num_tree_nodes: int | None = None  # None: a chain

    @property
    def label(self) -> str:
        """For people.

        Example:
            >>> Setting("ngram", 5).label, Setting("eagle3", 5, 12).label
            ('ngram k=5', 'eagle3 k=5, tree of 12')
        """
        tree = "" if self.num_tree_nodes is None else f", tree of {self.num_tree_nodes}"
        return f"{self.drafter} k={self.num_speculative_tokens}{tree}"

    @property
    def num_rows(self) -> int:
        """Of the target's pass, for a request with a full draft."""
        return 1 + (self.num_tree_nodes or self.num_speculative_tokens)


def longest_chains(settings: Iterable[Setting]) -> dict[str, Setting]:
    """Of each drafter the longest chain; none of one that drafts trees only.

    Example:
        >>> longest_chains([Setting("ngram", 2), Setting("ngram", 5), Setting("eagle3", 5, 12)])
        {'ngram': Setting(drafter='ngram', num_speculative_tokens=5, num_tree_nodes=None)}
    """
    longest: dict[str, Setting] = {}
    for setting in settings:
        if setting.num_tree_nodes is None:
            longest[setting.drafter] = max(setting, longest.get(setting.drafter, setting), key=lambda s: s.num_rows)
    return longest


def drafters_of(
    models: Models, target: PagedModel, lengths: Sequence[int], tree_nodes: int | None
) -> dict[Setting, Drafter]:
    """Each drafter at each length, and as a tree of so many nodes at the longest; a network is loaded once for all.

    A head that cannot draft so many tokens drafts what it can. The n-gram drafter makes chains only.
    """
    found: dict[Setting, Drafter] = {}
    for name, options, reach in _kinds(models, target):
        depths = sorted({min(length, reach or length) for length in lengths})
        settings = [Setting(name, depth) for depth in depths]
        if tree_nodes is not None and options["method"] != "ngram":
            settings.append(Setting(name, depths[-1], tree_nodes))
        for setting in settings:
            tree = {} if setting.num_tree_nodes is None else {"num_tree_nodes": setting.num_tree_nodes}
            given = {**options, "num_speculative_tokens": setting.num_speculative_tokens, **tree}
            drafter = build_drafter(given, target)
            assert drafter is not None, "a mapping with a method makes a drafter"
            found[setting] = drafter
    return found


def _kinds(models: Models, target: PagedModel) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """Name, options, and how many tokens it can draft if there is a limit."""
    yield "ngram", {"method": "ngram"}, None
    if models.draft is not None:
        has_graphs = target.graphs is not None and models.draft.device == target.device
        draft = paged(models.draft, pool_of(models.draft), graphs=has_graphs)
        yield "draft_model", {"method": "draft_model", "model": draft}, None
    for name, path in models.heads.items():
        head = load_head(path, target)
        yield name, {"method": head.method, "model": head.network}, head.network.depth
