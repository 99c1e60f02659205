"""The options of drafters that draft token by token: which of them mean something, and what trees are written as."""

import ast
from collections.abc import Sequence
from typing import Any, get_args

from specdec.chains import SampleMethod


def require_sense(options: Any) -> None:
    """Refuses options that mean nothing, alone or together.

    Raises:
        ValueError: says which.

    Example:
        >>> from specdec.draft_models.draft_model import DraftModel
        >>> DraftModel(None, tree_width=3)
        Traceback (most recent call last):
        ValueError: expected num_tree_nodes beside tree_width, got tree_width alone; a chain has no width
    """
    methods = get_args(SampleMethod)
    if options.draft_sample_method not in methods:
        raise ValueError(f"expected draft_sample_method of {', '.join(methods)}, got {options.draft_sample_method!r}")
    for name in ("num_speculative_tokens", "num_tree_nodes", "tree_width"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"expected {name} of at least 1, got {value}; pass no drafter for plain decoding")
    if options.speculative_token_tree is not None and options.num_tree_nodes is not None:
        raise ValueError(
            f"expected num_tree_nodes or speculative_token_tree, got both, {options.num_tree_nodes} nodes and a shape; "
            "drop one"
        )
    if options.tree_width is not None and options.num_tree_nodes is None:
        raise ValueError("expected num_tree_nodes beside tree_width, got tree_width alone; a chain has no width")
    if options.confidence_threshold is not None and not 0 <= options.confidence_threshold <= 1:
        raise ValueError(
            f"expected confidence_threshold from 0 to 1, got {options.confidence_threshold}; it is a probability"
        )
    if options.draft_temperature is not None and not options.draft_temperature > 0:
        raise ValueError(
            f"expected draft_temperature above 0, got {options.draft_temperature}; "
            "for the likeliest tokens pass draft_sample_method='greedy'"
        )
    if options.draft_temperature is not None and options.draft_sample_method == "greedy":
        raise ValueError(
            "expected draft_temperature with drawn tokens, got draft_sample_method='greedy'; "
            "pass 'probabilistic' or 'coupled', or drop it"
        )


def tree_choices(written: str | Sequence[Sequence[int]] | None) -> list[tuple[int, ...]]:
    """The rank paths of a tree in the order its nodes are drafted, level by level; none for None.

    Raises:
        ValueError: it is no tree.

    Example:
        >>> tree_choices("[(0,), (0, 0), (1,)]")
        [(0,), (1,), (0, 0)]
    """
    if written is None:
        return []
    try:
        listed = ast.literal_eval(written) if isinstance(written, str) else written
        paths = sorted({tuple(int(rank) for rank in path) for path in listed}, key=lambda path: (len(path), path))
    except (SyntaxError, TypeError, ValueError):
        paths = []
    known = {(), *paths}
    if not paths or any(not path or min(path) < 0 or path[:-1] not in known for path in paths):
        raise ValueError(
            f"expected a speculative_token_tree of rank paths with all their beginnings, like [(0,), (1,), (0, 0)], "
            f"got {str(written)[:60]}; add what is missing"
        )
    return paths
