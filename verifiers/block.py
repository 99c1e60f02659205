"""Block verification: a sampled chain is tested as a whole, so a strong later token can carry a weak earlier one."""

from typing import ClassVar

import torch
from torch import Tensor

from specdec.kernels import sampling_ops
from specdec.kernels.ops import argmax
from specdec.protocols import Noise
from specdec.rules import likelihood_ratios, negligible, walk
from specdec.types import Draft, DraftBatch, Exactness, TargetRows, Verdict


class Block:
    """The distribution of plain sampling, with the most acceptance any rule of this kind gets from a sampled chain.

    Sun et al. 2403.10444, algorithm 2 (algorithms.md 1.5 has the proof). Position i keeps its prefix with weight
    w[i] = min(1, w[i-1] p(x_i)/q(x_i)), the probability that at least i tokens are accepted given them. All tests are
    made and the deepest that passes counts, which is why the residual carries the weight. A chosen token has a point
    mass as q; a chain of chosen tokens is accepted like by sample and match.

    Example:
        >>> from specdec.noise import PhiloxNoise
        >>> from specdec.tree import TokenTree
        >>> rows = TargetRows(torch.tensor([[0.2, 0.8], [0.5, 0.5]]).log(), start=4, depths=[0, 1], is_greedy=False)
        >>> draft = Draft(TokenTree.chain([0, 1]), [False, True], torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
        >>> Block().verify(draft, rows, PhiloxNoise(0)).path  # p/q = 1.6: always accepted
        [1]
    """

    name: ClassVar[str] = "block"
    level: ClassVar[Exactness] = Exactness.DISTRIBUTION
    chain_only: ClassVar[bool] = True

    def verify(self, draft: Draft, rows: TargetRows, noise: Noise) -> Verdict:
        """The longest prefix of the chain whose test passes, and a draw from what is left of p behind it."""
        if not draft.tree.is_chain:
            raise ValueError("expected a chain, got a tree with branches; use the rule rejection or sample_and_match")
        if rows.is_greedy:  # p is one-hot: every weight is one or zero
            return walk(draft.tree, argmax(rows.scores).tolist())
        length, target = len(draft) - 1, rows.probs
        weights = self._weights(likelihood_ratios(draft, target))
        left = _left(target, _proposal(draft, target), [*weights[:length], 0.0])
        masses = left.sum(-1).tolist()
        accepted = self._deepest(self._tests(weights, masses), noise, rows.start)
        rest = target[accepted]
        if accepted < length and masses[accepted] > negligible(target):
            rest = left[accepted]
        return Verdict(list(range(1, accepted + 1)), noise.residual_token(rest, rows.start + accepted))

    def decide(self, batch: DraftBatch) -> tuple[Tensor, Tensor]:
        """As `verify`, for all requests at once; see `protocols.BatchVerifier`."""
        if batch.is_greedy:
            return sampling_ops.walk(batch.trees, argmax(batch.scores))
        keys = batch.sampled, batch.seeds, batch.starts
        return sampling_ops.verify_block(batch.scores, batch.probs, batch.trees, *keys)

    def _weights(self, ratios: list[float]) -> list[float]:  # [k + 1] -> [k + 1]
        """w[i], the probability that tokens 1 to i are all accepted, given the drafted tokens up to i."""
        weights = [1.0]
        for odds in ratios[1:]:
            weights.append(min(1.0, weights[-1] * odds))
        return weights

    def _tests(self, weights: list[float], masses: list[float]) -> list[float]:  # [k + 1]
        """h[i], the probability that test i passes; the last one is w[k], the zeroth always passes."""
        passes = [1.0]
        for weight, mass in zip(weights[1:-1], masses[1:-1], strict=True):
            missed = mass + 1 - weight
            passes.append(mass / missed if missed > 0 else 1.0)
        return [*passes, *weights[-1:]] if len(weights) > 1 else passes

    def _deepest(self, passes: list[float], noise: Noise, start: int) -> int:
        """The largest i whose test passes. From the back, the tests below it need not be made."""
        for node in range(len(passes) - 1, 0, -1):
            if noise.accept(passes[node], start, node - 1, 0):
                return node
        return 0


def _proposal(draft: Draft, target: Tensor) -> Tensor:  # [k + 1, vocab]
    """What the token after each node was drawn from, a point mass if it was chosen; the last row is never read."""
    sampled = [*draft.sampled[1:], True]
    if draft.probs is not None and all(sampled):
        return draft.probs
    tokens = torch.tensor([*draft.tree.tokens[1:], 0], device=target.device)
    points = torch.zeros_like(target).scatter_(1, tokens[:, None], 1.0)
    if draft.probs is None:
        return points
    return torch.where(torch.tensor(sampled, device=target.device)[:, None], draft.probs, points)


def _left(target: Tensor, proposal: Tensor, weights: list[float]) -> Tensor:  # [k + 1, vocab] each
    """(w p - q)+ of every position: what of p is left to be drawn behind its prefix."""
    scale = torch.tensor(weights, dtype=target.dtype, device=target.device)
    return (scale[:, None] * target).sub_(proposal).clamp_min_(0)
