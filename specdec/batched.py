"""Verification of a whole batch on the device of its scores: nothing is waited for but one small copy to the host."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from .buckets import MAX_ROWS
from .capture import Replayed, power_of_two, rounded
from .kernels.bodies import ASKED_FOR
from .kernels.trees import PackedTrees
from .noise import PhiloxNoise
from .protocols import BatchVerifier, Verifier, is_foreign
from .request import LiveRequest
from .types import Draft, DraftBatch, Verdict

_SIGN = 1 << 63


class Shape(NamedTuple):
    """Room in a batch; with graphs it is that of a bucket, and what is behind the last tree is padding."""

    num_nodes: int  # of all trees, T
    num_requests: int  # B
    max_nodes: int
    max_depth: int

    def sizes(self) -> list[int]:
        """Numbers of each kind, in the order in which they are handed over; see `unpacked`."""
        return [self.num_nodes] * 6 + [self.num_requests + 1, self.num_requests, self.num_requests]


class BatchDecider:
    """Has a rule decide on all drafts of a round at once.

    Args:
        verifier: the rule.
        replayed: captures and replays what it launches, if given.
    """

    def __init__(self, verifier: Verifier, replayed: Replayed | None = None) -> None:
        # The reference of the kernels looks at the host, and a rule of the caller's may have a state.
        is_eager = ASKED_FOR == "reference" or is_foreign(verifier)
        self._verifier, self._replayed = verifier, None if is_eager else replayed

    def verdicts(self, scores: Tensor, drafts: Sequence[Draft], live: Sequence[LiveRequest]) -> list[Verdict] | None:
        """The rule's verdicts by final scores [T, vocab]; None if it is to decide on one request after the other."""
        rule, noises = self._verifier, [each.request.noise for each in live]
        if not pays(scores) or not isinstance(rule, BatchVerifier) or not _is_its_own(rule):
            return None
        if rule.chain_only and not all(draft.tree.is_chain for draft in drafts):
            return None  # the rule itself says what is wrong
        seeds = [noise.seed for noise in noises if type(noise) is PhiloxNoise]
        ways = {each.request.sampler.do_sample for each in live}
        if len(ways) > 1 or len(seeds) < len(drafts):
            return None
        is_greedy, starts = not ways.pop(), [len(each.tokens) for each in live]
        shape = shape_of(drafts, is_bucket=self._replayed is not None)
        numbers = torch.tensor(packed(drafts, starts, seeds, shape), pin_memory=scores.is_cuda)
        inputs = [_filled(scores, shape.num_nodes), numbers.to(scores.device, non_blocking=True)]
        probs = None if is_greedy else _probs(drafts, scores, shape.num_nodes)
        if probs is not None:
            inputs.append(probs)

        def decide(*given: Tensor) -> Tensor:  # [B, 2 * max_depth + 2]
            batch = unpacked(given[0], given[1], given[2] if len(given) > 2 else None, shape, is_greedy)
            return torch.cat(rule.decide(batch), 1)

        key = type(rule), shape, is_greedy, len(inputs), scores.shape[1], scores.dtype
        is_eager = self._replayed is None or shape.num_nodes > MAX_ROWS
        decided = decide(*inputs) if is_eager else cast(Replayed, self._replayed)(key, decide, inputs)
        return self._read(decided.tolist(), drafts, shape.max_depth)

    def _read(self, decided: list[list[int]], drafts: Sequence[Draft], max_depth: int) -> list[Verdict]:
        verdicts = []
        for draft, (count, *numbers) in zip(drafts, decided, strict=False):
            if count < 0:
                raise ValueError(
                    f"expected nodes of {draft.source or 'the drafter'} marked as sampled to have probability in their "
                    "parent's row of draft.probs once earlier siblings are removed, got 0; report the row they were "
                    "drawn from or mark them as chosen"
                )
            verdicts.append(Verdict(numbers[max_depth + 1 :][: count - 1], numbers[count - 1]))
        return verdicts


def _is_its_own(rule: BatchVerifier) -> bool:
    """Whether `decide` belongs to the `verify` of the rule: a subclass may have another `verify` only."""
    decides, verifies = (
        next(kind for kind in type(rule).__mro__ if name in vars(kind)) for name in ("decide", "verify")
    )
    return issubclass(decides, verifies)


def pays(scores: Tensor) -> bool:
    """Whether deciding together is faster: on a CPU there is nothing to wait for."""
    return scores.is_cuda


def shape_of(drafts: Sequence[Draft], is_bucket: bool = False) -> Shape:
    """The shape of a batch, or of the bucket it falls into.

    Example:
        >>> from specdec.tree import TokenTree
        >>> drafts = [Draft.chosen(TokenTree.chain([5, 6, 7])), Draft.empty(8)]
        >>> shape_of(drafts), shape_of(drafts, is_bucket=True)[:3]
        (Shape(num_nodes=4, num_requests=2, max_nodes=3, max_depth=2), (4, 2, 4))
    """
    sizes, depths = [len(draft) for draft in drafts], [max(draft.tree.depths) for draft in drafts]
    shape = Shape(sum(sizes), len(drafts), max(sizes), max(1, *depths))
    if not is_bucket:
        return shape
    num_nodes, num_requests, max_nodes, max_depth = shape
    return Shape(rounded(num_nodes), power_of_two(num_requests), power_of_two(max_nodes), power_of_two(max_depth))


def packed(drafts: Sequence[Draft], starts: Sequence[int], seeds: Sequence[int], shape: Shape) -> list[int]:
    """All numbers of a batch one after the other; trees of padding have no nodes."""
    columns: list[list[int]] = [[] for _ in range(9)]
    tokens, parents, depths, sampled, positions, row_seeds, cu_nodes, all_seeds, all_starts = columns
    cu_nodes.append(0)
    for draft, start, seed in zip(drafts, starts, seeds, strict=True):
        tree, signed = draft.tree, seed - 2 * _SIGN if seed >= _SIGN else seed
        tokens += tree.tokens
        parents += tree.parents
        depths += tree.depths
        sampled += map(int, draft.sampled)
        positions += [start + depth for depth in tree.depths]
        row_seeds += [signed] * len(draft)
        cu_nodes.append(len(tokens))
        all_seeds.append(signed)
        all_starts.append(start)
    cu_nodes += [len(tokens)] * (shape.num_requests - len(drafts))
    return [number for values, size in zip(columns, shape.sizes(), strict=True) for number in _padded(values, size)]


def unpacked(scores: Tensor, numbers: Tensor, probs: Tensor | None, shape: Shape, is_greedy: bool) -> DraftBatch:
    """The batch within numbers, on their device."""
    tokens, parents, depths, sampled, positions, row_seeds, cu_nodes, seeds, starts = numbers.split(shape.sizes())
    trees = PackedTrees(tokens, parents.int(), depths.int(), cu_nodes.int(), shape.max_nodes, shape.max_depth)
    return DraftBatch(scores, trees, sampled.bool(), probs, seeds, starts, row_seeds, positions, is_greedy)


def _padded(values: list[int], size: int) -> list[int]:
    return values + [0] * (size - len(values))


def _filled(rows: Tensor, size: int) -> Tensor:  # [n, vocab] -> [size, vocab]
    """Rows of padding are zeros: they are drawn from like others, and nobody asks what came of it."""
    return rows if rows.shape[0] == size else torch.nn.functional.pad(rows, (0, 0, 0, size - rows.shape[0]))


def _probs(drafts: Sequence[Draft], scores: Tensor, size: int) -> Tensor | None:  # [size, vocab] float32
    """What sampled nodes were drawn from; zeros for drafts without."""
    if all(draft.probs is None for draft in drafts):
        return None
    parts = [scores.new_zeros(len(draft), scores.shape[1]) if draft.probs is None else draft.probs for draft in drafts]
    return _filled(torch.cat(parts).to(scores.device), size)
