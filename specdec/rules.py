"""What several rules and drafters share: the arithmetic of q, the residual, and the step that needs no q."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .kernels.ops import entries
from .tree import TokenTree
from .types import Draft, Verdict


def walk(tree: TokenTree, targets: Sequence[int]) -> Verdict:
    """The path along which each node's target token is the next node, and the first target token that is not.

    `targets[v]` is the target's own token after node v; only those of visited nodes are read. Of siblings with the same
    token the first stands for all. (algorithms.md 2.1; on a chain 1.2, with argmax as target token 1.1)

    Example:
        >>> tree = TokenTree([5, 7, 8, 9], [-1, 0, 0, 2])  # after 5 either 7 or 8, after 8 then 9
        >>> walk(tree, [8, 0, 9, 4])
        Verdict(path=[2, 3], next_token=4)
    """
    path: list[int] = []
    last, token = 0, targets[0]
    nodes = zip(tree.tokens, tree.parents, strict=True)
    for node, (drafted, parent) in enumerate(nodes):  # parents stand before children, so one pass sees the whole path
        if parent == last and drafted == token:
            path.append(node)
            last, token = node, targets[node]
    return Verdict(path, token)


def without(probs: Tensor, token: int) -> Tensor:  # [vocab] -> [vocab]
    """The distribution of the next sibling: `probs` with `token` removed, renormalised; zero if nothing is left.

    Drafters draw from this row and rules test against it, so that the q of a token is, bit for bit, what it was drawn
    from (algorithms.md 2.3, principle P1).

    Example:
        >>> without(torch.tensor([0.5, 0.25, 0.25]), 0)
        tensor([0.0000, 0.5000, 0.5000])
    """
    rest = probs.clone()
    rest[token] = 0
    return rest / rest.sum().clamp_min(torch.finfo(rest.dtype).tiny)


def residual(target: Tensor, proposal: Tensor) -> Tensor:  # [vocab], [vocab] -> [vocab]
    """What is left of the target after a token of the proposal failed: (p - q)+ normalised, or p if nothing is left.

    Leviathan et al. 2211.17192, section 2.3. Equal p and q can differ by rounding, and only rounding is left then.

    Example:
        >>> residual(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25]))
        tensor([1., 0., 0.])
    """
    rest = (target - proposal).clamp_min(0)
    total = float(rest.sum())
    return rest / total if total > negligible(rest) else target


def negligible(probs: Tensor) -> float:
    """The mass below which a difference of two distributions of this precision is only rounding."""
    return torch.finfo(probs.dtype).eps


def likelihood_ratios(draft: Draft, target: Tensor) -> list[float]:  # target [n, vocab] -> [n]
    """p(x) / q(x) of each node's token given its parent, 1 for the pending one; a chosen token has q(x) = 1.

    Raises:
        ValueError: a token counts as sampled, but has no row of probs or no probability in it.
    """
    sampled, tree = draft.sampled, draft.tree
    parents, tokens = tree.parents[1:], tree.tokens[1:]
    p = entries(target, parents, tokens)
    if not any(sampled):
        return [1.0, *p]
    if draft.probs is None:
        raise ValueError("expected draft.probs for the sampled nodes, got None; report the rows or mark them as chosen")
    q = entries(draft.probs, parents, tokens)
    nodes = enumerate(zip(p, q, strict=True), start=1)
    return [1.0, *(ratio(*pair, node) if sampled[node] else pair[0] for node, pair in nodes)]


def ratio(p: float, q: float, node: int) -> float:
    """p / q of a sampled node's token.

    Raises:
        ValueError: q is zero, so that the token cannot have been drawn from it.
    """
    if not q > 0:
        raise ValueError(
            f"expected node {node}, marked as sampled, to have probability in its parent's row of draft.probs once its "
            f"earlier siblings are removed, got {q}; report the row it was drawn from or mark it as chosen"
        )
    return p / q
