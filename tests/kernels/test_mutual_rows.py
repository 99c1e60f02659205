"""Blocks whose rows all see each other, beside trees and chains: by their definition, from rows and from tables."""

import random

import pytest
import torch

from specdec.kernels import reference, reference_static
from specdec.kernels.rows import PackedRows, Scoring
from specdec.kernels.tree_tables import Bucket, StaticRows
from tests.toys.ragged import CONTIGUOUS, Shape, batch_of, chain

SHAPE = Shape(dtype=torch.float64)
TREE = [-1, 0, 0, 1, 1, 2]
DESCRIBED = [(30, chain(6), 16, 0), (7, TREE, 1, 0), (0, chain(5), CONTIGUOUS, 0), (20, chain(1), 16, 0)]
MUTUAL = (0, 2, 3)  # of these


def mutual(request):
    """The chain as a block."""
    nodes = list(range(request.num_nodes))
    return request._replace(parents=[node - 1 for node in nodes], depths=nodes, is_mutual=True)


def blocks(described, indices, scoring, seed=0):
    case = batch_of(described, SHAPE, scoring, random.Random(seed))
    requests = [mutual(each) if index in indices else each for index, each in enumerate(case.rows.requests)]
    return case._replace(rows=PackedRows(requests))


def defined(case):
    """Softmax over what each row of a block sees: all rows of its request, but for those behind a window."""
    output, row = [], 0
    for request in case.rows.requests:
        first = request.first_slot
        slots = request.slots if first is None else torch.arange(first, first + request.stop)
        for node in range(request.num_nodes):
            if request.is_mutual:
                low = 0 if case.scoring.window is None else max(0, request.start + node - case.scoring.window + 1)
                seen = slots[low : request.stop]
                keys, values = (pool[seen].repeat_interleave(2, 1) for pool in (case.keys, case.values))
                scores = torch.einsum("hd,shd->hs", case.query[0, :, row], keys) * case.scoring.scaling
                output.append((row, torch.einsum("hs,shd->hd", scores.softmax(-1), values)))
            row += 1
    return output


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("indices", [(0,), MUTUAL], ids=str)
@pytest.mark.parametrize("described", [DESCRIBED, DESCRIBED[:1], DESCRIBED[2:3]], ids=["four", "paged", "in one run"])
def test_rows_of_a_block_see_all_of_it(described, indices, window):
    case = blocks(described, indices, Scoring(0.2, window))
    got, others = reference.tree_attention(*case), reference.tree_attention(*case._replace(rows=chains(case)))
    wanted, is_block = defined(case), torch.zeros(got.shape[1]).bool()
    for row, value in wanted:
        torch.testing.assert_close(got[0, row], value, rtol=0, atol=1e-12)
        is_block[row] = True
    assert torch.equal(got[0, ~is_block], others[0, ~is_block])  # nothing changes for those beside


def chains(case):
    return PackedRows(
        [each._replace(parents=None, depths=None) if each.is_mutual else each for each in case.rows.requests]
    )


@pytest.mark.parametrize("window", [None, 9])
def test_tables_say_the_same(window):
    case = blocks(DESCRIBED, MUTUAL, Scoring(0.2, window))
    rows = StaticRows(Bucket(num_rows=32, num_requests=4, num_nodes=8, num_pages=64, page=1))
    rows.load(case.rows.requests)
    query = torch.nn.functional.pad(case.query, (0, 0, 0, 32 - case.rows.num_rows))
    got = reference_static.tree_attention(query, case.keys, case.values, rows, case.scoring)
    wanted = reference.tree_attention(*case)
    torch.testing.assert_close(got[:, : case.rows.num_rows], wanted, rtol=0, atol=1e-12)
