"""Blocks whose rows all see each other, in Triton against the reference in float64, interpreted."""

import random

import pytest
import torch

from specdec.kernels import tree_attention
from specdec.kernels.rows import PackedRows, Scoring
from tests.kernels.test_mutual_rows import DESCRIBED, MUTUAL, mutual
from tests.toys.ragged import Shape, batch_of, chain, error_of

TOLERANCE = 1e-5  # float32: sums in another order


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize(
    "described", [DESCRIBED, [(200, chain(8), 16, 0)], [(3, chain(70), 16, 0), (90, chain(9), 1, 0)]], ids=len
)
def test_rows_of_a_block_see_all_of_it(described, window):
    case = batch_of(described, Shape(), Scoring(0.2, window), random.Random(1))
    requests = [mutual(each) if index in MUTUAL else each for index, each in enumerate(case.rows.requests)]
    case = case._replace(rows=PackedRows(requests))
    got = tree_attention.tree_attention(*case)
    assert error_of(got, case) < TOLERANCE
    causal = tree_attention.tree_attention(
        *case._replace(rows=PackedRows([r._replace(is_mutual=False) for r in requests]))
    )
    assert not torch.allclose(got, causal, atol=1e-3)
