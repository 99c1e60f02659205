"""The ops by which draft trees grow on the device, without a wait for the host; picks the body, see `body_of`."""

from torch import Tensor

from . import reference_growth
from .bodies import body_of, current
from .trees import GrowingTrees, PackedTrees


def plant(trees: GrowingTrees, pending: Tensor) -> None:
    """Begins trees anew; see `reference_growth.plant`."""
    if body_of(trees.tokens) == "reference":
        return reference_growth.plant(trees, pending)
    from . import growth_kernels

    with current(trees.tokens):
        growth_kernels.plant(trees, pending)


def grow(trees: GrowingTrees, tokens: Tensor, log_probs: Tensor, limits: Tensor, level: int) -> None:
    """Adds a level of children, and notes which of them are to be run; see `reference_growth.grow`."""
    if not 0 < level <= trees.growth.depth:
        raise ValueError(f"expected a level from 1 to {trees.growth.depth}, got {level}; make room for deeper trees")
    rows = trees.growth.rows(level - 1)
    wanted = [len(trees.counts), rows.stop - rows.start]
    if list(tokens.shape[:2]) != wanted or not 0 < tokens.shape[2] <= trees.growth.width:
        raise ValueError(
            f"expected {wanted} rows of 1 to {trees.growth.width} children for level {level}, "
            f"got {list(tokens.shape)}; pass those of the rows that were run, and of the padding among them"
        )
    if body_of(trees.tokens) == "reference":
        return reference_growth.grow(trees, tokens, log_probs, limits, level)
    from . import growth_kernels

    with current(trees.tokens):
        growth_kernels.grow(trees, tokens, log_probs, limits, level)


def prune(trees: GrowingTrees) -> tuple[PackedTrees, Tensor]:
    """The best nodes of each tree, and their scores; see `reference_growth.prune`."""
    if body_of(trees.tokens) == "reference":
        return reference_growth.prune(trees)
    from . import growth_kernels

    with current(trees.tokens):
        return growth_kernels.prune(trees)


def write_ancestors(trees: PackedTrees, words: Tensor, depths: Tensor) -> None:
    """Writes who sees whom into tables of `tree_attention`; see `reference_growth.write_ancestors`."""
    if words.shape[1] * 64 < trees.max_nodes:
        raise ValueError(f"expected words for {trees.max_nodes} nodes, got {words.shape[1]} of 64; make a larger table")
    if body_of(words) == "reference":
        return reference_growth.write_ancestors(trees, words, depths)
    from . import ancestor_kernels

    with current(words):
        ancestor_kernels.write_ancestors(trees, words, depths)
