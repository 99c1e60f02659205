"""Sample and match: the target draws its own token at every node, and drafts only save the waiting."""

from typing import ClassVar

from torch import Tensor

from specdec.kernels import sampling_ops
from specdec.kernels.ops import argmax
from specdec.protocols import Noise
from specdec.rules import walk
from specdec.types import Draft, DraftBatch, Exactness, TargetRows, Verdict


class SampleAndMatch:
    """The text of plain sampling with the same seed, token for token, whatever was drafted (algorithms.md 1.2, 2.1).

    The emitted tokens are the target's draws, keyed by position alone; a draft decides only how many are known after
    one pass. So drafts may be chosen, drawn or coupled to the noise (1.7) without any claim about q.

    Example:
        >>> import torch
        >>> from specdec.noise import PhiloxNoise
        >>> from specdec.tree import TokenTree
        >>> rows = TargetRows(torch.eye(3)[[1, 2]].log(), start=4, depths=[0, 1], is_greedy=False)
        >>> SampleAndMatch().verify(Draft.chosen(TokenTree.chain([0, 1])), rows, PhiloxNoise(0))
        Verdict(path=[1], next_token=2)
    """

    name: ClassVar[str] = "sample_and_match"
    level: ClassVar[Exactness] = Exactness.PATHWISE
    chain_only: ClassVar[bool] = False

    def verify(self, draft: Draft, rows: TargetRows, noise: Noise) -> Verdict:
        """The path of the target's own draws and the first of them that was not drafted."""
        if rows.is_greedy:
            return walk(draft.tree, argmax(rows.scores).tolist())
        return walk(draft.tree, noise.target_tokens(rows.scores, rows.positions))

    def decide(self, batch: DraftBatch) -> tuple[Tensor, Tensor]:
        """As `verify`, for all requests at once; see `protocols.BatchVerifier`."""
        if batch.is_greedy:
            return sampling_ops.walk(batch.trees, argmax(batch.scores))
        drawn = sampling_ops.gumbel_argmax(batch.scores, batch.row_seeds, batch.positions)
        return sampling_ops.walk(batch.trees, drawn)
