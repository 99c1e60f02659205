"""The ops behind the target's and the draft model's scores: checks their rows and picks the body, see `body_of`."""

from torch import Tensor

from . import reference_sampling, reference_verify
from .bodies import body_of, current, is_reference
from .trees import PackedTrees


def gumbel_argmax(scores: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:  # [n, vocab], [n], [n] -> [n] int64
    """The keyed draw of each row from softmax(scores); see `reference_sampling.gumbel_argmax`."""
    if is_reference(scores):
        return reference_sampling.gumbel_argmax(scores, seeds, positions)
    from . import draw_kernels

    with current(scores):
        return draw_kernels.gumbel_argmax(scores, seeds, positions)


def walk(trees: PackedTrees, targets: Tensor) -> tuple[Tensor, Tensor]:
    """What each request emits [B, max_depth + 2], and its path [B, max_depth]; see `reference_sampling.walk`."""
    if body_of(targets) == "reference":
        return reference_sampling.walk(trees, targets)
    from . import draw_kernels

    with current(targets):
        return draw_kernels.walk(trees, targets)


def verify_rejection(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """What each tree emits by token rejection [B, max_depth + 2], and the path; see `reference_verify`."""
    if is_reference(scores):
        return reference_verify.verify_rejection(scores, draft_probs, trees, sampled, seeds, starts)
    from . import verify_kernels

    with current(scores):
        return verify_kernels.verify_rejection(scores, draft_probs, trees, sampled, seeds, starts)


def verify_block(
    scores: Tensor, draft_probs: Tensor | None, trees: PackedTrees, sampled: Tensor, seeds: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """What each chain emits by block verification [B, max_depth + 2], and the path; see `reference_verify`."""
    if is_reference(scores):
        return reference_verify.verify_block(scores, draft_probs, trees, sampled, seeds, starts)
    from . import verify_kernels

    with current(scores):
        return verify_kernels.verify_block(scores, draft_probs, trees, sampled, seeds, starts)


def warp(scores: Tensor, temperatures: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Temperature, top-k, top-p and min-p of each row; see `reference_sampling.warp`."""
    if is_reference(scores):
        return reference_sampling.warp(scores, temperatures, top_k, top_p, min_p)
    from . import warp_kernels

    with current(scores):
        return warp_kernels.warp(scores, temperatures, top_k, top_p, min_p)


def mark_seen(seen: Tensor, tokens: Tensor, starts: Tensor, counts: Tensor, ignored: Tensor) -> None:
    """Notes committed tokens for `penalize`; see `reference_sampling.mark_seen`."""
    if body_of(seen) == "reference":
        return reference_sampling.mark_seen(seen, tokens, starts, counts, ignored)
    from . import penalty_kernels

    with current(seen):
        penalty_kernels.mark_seen(seen, tokens, starts, counts, ignored)


def penalize(
    scores: Tensor, trees: PackedTrees, seen: Tensor, lengths: Tensor, penalties: Tensor, ignored: Tensor
) -> Tensor:
    """Repetition and presence penalties of each node's own prefix; see `reference_sampling.penalize`."""
    if is_reference(scores):
        return reference_sampling.penalize(scores, trees, seen, lengths, penalties, ignored)
    from . import penalty_kernels

    with current(scores):
        return penalty_kernels.penalize(scores, trees, seen, lengths, penalties, ignored)


def draft_topk(logits: Tensor, count: int, temperatures: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The best tokens of each row and their log-probabilities; see `reference_sampling.draft_topk`."""
    if not 0 < count <= logits.shape[-1]:
        raise ValueError(f"expected a count from 1 to the vocabulary of {logits.shape[-1]}, got {count}")
    if is_reference(logits):
        return reference_sampling.draft_topk(logits, count, temperatures)
    from . import draft_kernels

    with current(logits):
        return draft_kernels.draft_topk(logits, count, temperatures)


def draft_draw(probs: Tensor, seeds: Tensor, starts: Tensor, nodes: Tensor) -> Tensor:  # [n] int64
    """A token drawn from each row of what a draft model says; see `reference_sampling.draft_draw`."""
    if is_reference(probs):
        return reference_sampling.draft_draw(probs, seeds, starts, nodes)
    from . import draft_kernels

    with current(probs):
        return draft_kernels.draft_draw(probs, seeds, starts, nodes)
