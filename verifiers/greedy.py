"""Greedy match: a drafted token stands if it is the target's argmax (algorithms.md 1.1; trees: multi-path)."""

from typing import ClassVar

from torch import Tensor

from specdec.kernels import sampling_ops
from specdec.kernels.ops import argmax
from specdec.protocols import Noise
from specdec.rules import walk
from specdec.types import Draft, DraftBatch, Exactness, TargetRows, Verdict


class Greedy:
    """The text of plain greedy decoding, token for token; the lowest id wins ties, as there.

    Example:
        >>> import torch
        >>> from specdec.tree import TokenTree
        >>> rows = TargetRows(torch.eye(3)[[1, 2]], start=4, depths=[0, 1], is_greedy=True)
        >>> Greedy().verify(Draft.chosen(TokenTree.chain([0, 1])), rows, noise=None)
        Verdict(path=[1], next_token=2)
    """

    name: ClassVar[str] = "greedy"
    level: ClassVar[Exactness] = Exactness.GREEDY_IDENTICAL
    chain_only: ClassVar[bool] = False

    def verify(self, draft: Draft, rows: TargetRows, noise: Noise) -> Verdict:
        """The path of argmax tokens and the first one that was not drafted. Needs neither q nor noise."""
        return walk(draft.tree, argmax(rows.scores).tolist())

    def decide(self, batch: DraftBatch) -> tuple[Tensor, Tensor]:
        """As `verify`, for all requests at once; see `protocols.BatchVerifier`."""
        return sampling_ops.walk(batch.trees, argmax(batch.scores))
