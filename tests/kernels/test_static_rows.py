"""Tables that are filled again and again give what exact ones give, whatever was in them before."""

import random

import pytest
import torch

from specdec.kernels import ops
from specdec.kernels.rows import Scoring
from specdec.kernels.tree_tables import Bucket, StaticRows
from tests.toys.ragged import CONTIGUOUS, Shape, batch_of, chain, error_of, random_tree

ROUNDING = 1e-12  # float64: sums of up to 300 terms of size 1
BUCKET = Bucket(num_rows=48, num_requests=4, num_nodes=16, num_pages=24, page=16)
SCORINGS = {
    "plain": (Scoring(None), False),
    "window": (Scoring(0.3, window=20), False),
    "chunk": (Scoring(0.3, chunk=33), False),
    "all": (Scoring(0.2, window=90, chunk=64, softcap=5.0), True),
}


def ragged(rng):
    described = []
    for _ in range(rng.randint(1, BUCKET.num_requests)):
        size = rng.randint(1, 12)
        parents = chain(size) if rng.random() < 0.4 else random_tree(size, rng)
        layout = rng.choice([CONTIGUOUS, 16, 32])
        described.append((rng.choice([0, 1, rng.randint(0, 180)]), parents, layout, rng.choice([0, size // 2])))
    return described


def padded(query, num_rows):
    """Rows of padding, which may hold anything."""
    return torch.nn.functional.pad(query, (0, 0, 0, num_rows - query.shape[2]), value=torch.nan)


@pytest.mark.parametrize("in_fp8", [False, True], ids=["wide", "fp8"])
@pytest.mark.parametrize("name", SCORINGS)
def test_each_load_serves_another_batch(name, in_fp8):
    scoring, has_sinks = SCORINGS[name]
    rng, rows = random.Random(3), StaticRows(BUCKET)
    for _ in range(25):
        case = batch_of(ragged(rng), Shape(dtype=torch.float64), scoring, rng, has_sinks)
        case = case.in_eight_bits() if in_fp8 else case
        rows.load(case.rows.requests)
        query = padded(case.query, BUCKET.num_rows)
        got = ops.tree_attention(query, case.keys, case.values, rows, scoring, case.sinks, case.scales)
        assert error_of(got[:, : case.rows.num_rows], case) < ROUNDING


def test_nothing_is_attended_before_the_first_load():
    rows, shape = StaticRows(BUCKET), Shape()
    query, pool = torch.zeros(1, shape.heads, BUCKET.num_rows, 32), torch.zeros(9, shape.kv_heads, 32)
    assert ops.tree_attention(query, pool, pool, rows, Scoring(None)).isnan().all()
