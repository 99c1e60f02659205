"""Token rejection sampling: sampled tokens are tested against p/q, chosen ones wait for the draw of what is left."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from specdec.kernels import sampling_ops
from specdec.kernels.ops import argmax
from specdec.protocols import Noise
from specdec.rules import likelihood_ratios, ratio, residual, walk, without
from specdec.types import Draft, DraftBatch, Exactness, TargetRows, Verdict


class Rejection:
    """The distribution of plain sampling, with the most acceptance a single sampled token allows (1 - TV).

    On a chain this is Leviathan et al. 2211.17192, algorithm 1, and Chen et al. 2302.01318. At a tree node the sampled
    children are tested in draw order, without replacement (Sequoia, 2402.12374); then one token is drawn from what is
    left of p, and a chosen child with that token continues the path (algorithms.md 2.5).

    Example:
        >>> import torch
        >>> from specdec.noise import PhiloxNoise
        >>> from specdec.tree import TokenTree
        >>> rows = TargetRows(torch.tensor([[0.2, 0.8], [0.5, 0.5]]).log(), start=4, depths=[0, 1], is_greedy=False)
        >>> draft = Draft(TokenTree.chain([0, 1]), [False, True], torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
        >>> Rejection().verify(draft, rows, PhiloxNoise(0)).path  # p/q = 1.6: always accepted
        [1]
    """

    name: ClassVar[str] = "rejection"
    level: ClassVar[Exactness] = Exactness.DISTRIBUTION
    chain_only: ClassVar[bool] = False

    def verify(self, draft: Draft, rows: TargetRows, noise: Noise) -> Verdict:
        """The accepted path, and a draw from what is left of p after the tests at its last node."""
        if rows.is_greedy:  # p is one-hot: a token passes if it is the argmax, sampled or chosen
            return walk(draft.tree, argmax(rows.scores).tolist())
        target, sampled, tokens = rows.probs, draft.sampled, draft.tree.tokens
        tests = _Tests(draft, target, likelihood_ratios(draft, target), noise, rows.start)
        children = draft.tree.children()
        path: list[int] = []
        node = 0
        while True:
            accepted, rest = tests.run(node, [child for child in children[node] if sampled[child]])
            if accepted is None:
                token = noise.residual_token(rest, rows.start + rows.depths[node])
                chosen = (child for child in children[node] if not sampled[child] and tokens[child] == token)
                accepted = next(chosen, None)
                if accepted is None:
                    return Verdict(path, token)
            path.append(accepted)
            node = accepted

    def decide(self, batch: DraftBatch) -> tuple[Tensor, Tensor]:
        """As `verify`, for all requests at once; see `protocols.BatchVerifier`."""
        if batch.is_greedy:
            return sampling_ops.walk(batch.trees, argmax(batch.scores))
        keys = batch.sampled, batch.seeds, batch.starts
        return sampling_ops.verify_rejection(batch.scores, batch.probs, batch.trees, *keys)


@dataclass(frozen=True, slots=True)
class _Tests:
    """The acceptance tests of one round."""

    draft: Draft
    target: Tensor  # [n, vocab]
    ratios: list[float]  # [n]: p/q of a first draw
    noise: Noise
    start: int

    def run(self, node: int, drawn: list[int]) -> tuple[int | None, Tensor]:
        """The first sampled child of `node` that passes, if any, and what is left of p after those that did not."""
        rest = self.target[node]
        if not drawn:
            return None, rest
        assert self.draft.probs is not None, "likelihood_ratios has seen to it"
        proposal = self.draft.probs[node]
        for draw, child in enumerate(drawn):
            odds = self.ratios[child]
            if draw > 0:  # the earlier siblings changed both sides
                proposal = without(proposal, self.draft.tree.tokens[drawn[draw - 1]])
                token = self.draft.tree.tokens[child]
                odds = ratio(float(rest[token]), float(proposal[token]), child)
            if self.noise.accept(odds, self.start, node, draw):
                return child, rest
            rest = residual(rest, proposal)
        return None, rest
