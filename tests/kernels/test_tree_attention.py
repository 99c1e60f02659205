"""Tree attention against its definition, one row at a time in float64; whatever no row may see is NaN."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.kernels import bodies, ops
from specdec.kernels.fp8 import E4M3, by_head, quantized
from specdec.kernels.rows import MAX_PADDED_ROWS, PackedRows, RequestRows, Scoring

ROUNDING = 1e-12  # float64: sums of up to 1000 terms of size 1


def slots_of(num_rows, is_contiguous, generator, taken):
    """Free slots for a request, in one run or anywhere."""
    if is_contiguous:
        first = max(taken, default=-1) + 1
        slots = list(range(first, first + num_rows))
    else:
        free = [slot for slot in range(max(taken, default=0) + 2 * num_rows + 5) if slot not in taken]
        slots = [free[i] for i in torch.randperm(len(free), generator=generator)[:num_rows].tolist()]
    taken.update(slots)
    return slots


def request_of(start, parents, first, is_contiguous, generator, taken):
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    is_chain = parents == list(range(-1, len(parents) - 1))
    slots = slots_of(start + len(parents), is_contiguous, generator, taken)
    rows = RequestRows(
        start,
        len(parents),
        first,
        None if is_chain else parents,
        None if is_chain else depths,
        slots[0] if is_contiguous else None,
        None if is_contiguous else torch.tensor(slots),
    )
    return rows, parents, depths, slots


def visible_rows(node, start, parents, depths, scoring):
    """Rows that a node attends, from the definition."""
    nodes = []
    at = node
    while at >= 0:
        nodes.append(at)
        at = parents[at]
    positions = {row: row for row in range(start)} | {start + at: start + depths[at] for at in nodes}
    here = start + depths[node]
    if scoring.window is not None:
        positions = {row: p for row, p in positions.items() if p > here - scoring.window}
    if scoring.chunk is not None:
        positions = {row: p for row, p in positions.items() if p // scoring.chunk == here // scoring.chunk}
    return sorted(positions)


def defined(query, keys, values, requests, scoring, sinks):
    """Softmax over the visible keys of each row and head."""
    num_heads, repeats = query.shape[1], query.shape[1] // keys.shape[1]
    output, row = query.new_zeros(query.shape[2], num_heads, values.shape[2]), 0
    for rows, parents, depths, slots in requests:
        for node in range(rows.first, len(parents)):
            seen = [slots[i] for i in visible_rows(node, rows.start, parents, depths, scoring)]
            for head in range(num_heads):
                scores = keys[seen, head // repeats] @ query[0, head, row] * scoring.scaling
                if scoring.softcap is not None:
                    scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head : head + 1]])
                weights = scores.softmax(0)[: len(seen)]
                output[row, head] = weights @ values[seen, head // repeats]
            row += 1
    return output[None]


def check(requests, taken, generator, scoring=None, heads=(4, 2), dims=(6, 6), has_sinks=False, in_fp8=False):
    scoring, dtype = scoring or Scoring(0.5), torch.float64
    num_slots = max(taken) + 3
    keys = torch.full((num_slots, heads[1], dims[0]), math.nan, dtype=dtype)
    values = torch.full((num_slots, heads[1], dims[1]), math.nan, dtype=dtype)
    used = sorted(taken)
    keys[used] = torch.randn(len(used), heads[1], dims[0], generator=generator, dtype=dtype)
    values[used] = torch.randn(len(used), heads[1], dims[1], generator=generator, dtype=dtype)
    packed = PackedRows([rows for rows, *_ in requests])
    shape = (1, packed.num_rows, heads[0], dims[0])
    query = torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2)  # as models hand it over
    sinks = torch.randn(heads[0], generator=generator, dtype=dtype) if has_sinks else None
    pools, scales = (keys, values), None
    if in_fp8:
        scales = torch.rand(2, heads[1], generator=generator) + 0.01
        pools = [quantized(*pair).view(E4M3) for pair in zip(pools, scales, strict=True)]
        keys, values = (by_head(pool.to(dtype), scale) for pool, scale in zip(pools, scales, strict=True))
    got = ops.tree_attention(query, *pools, packed, scoring, sinks, scales)
    want = defined(query, keys, values, requests, scoring, sinks)
    assert got.shape == want.shape and got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=0, atol=ROUNDING)
    return packed


@st.composite
def trees(draw):
    size = draw(st.integers(1, 9))
    if draw(st.booleans()):
        return list(range(-1, size - 1))
    return [-1, *(draw(st.integers(0, node - 1)) for node in range(1, size))]


@settings(max_examples=150)
@given(data=st.data())
def test_ragged_batches_of_random_trees(data):
    draw = data.draw
    generator, taken, requests = torch.Generator().manual_seed(draw(st.integers(0, 999))), set(), []
    for _ in range(draw(st.integers(1, 4))):
        start, parents = draw(st.integers(0, 12)), draw(trees())
        first = draw(st.integers(0, len(parents) - 1))
        requests.append(request_of(start, parents, first, draw(st.booleans()), generator, taken))
    scoring = Scoring(
        draw(st.sampled_from([0.25, 1.0])),
        window=draw(st.sampled_from([None, 1, 2, 4, 50])),
        chunk=draw(st.sampled_from([None, 1, 3, 8])),
        softcap=draw(st.sampled_from([None, 1.5])),
    )
    heads, dims = draw(st.sampled_from([(1, 1), (4, 2), (6, 1), (3, 3)])), draw(st.sampled_from([(4, 4), (5, 3)]))
    check(requests, taken, generator, scoring, heads, dims, draw(st.booleans()), draw(st.booleans()))


@pytest.mark.parametrize("scoring", [Scoring(0.5), Scoring(0.5, window=30), Scoring(0.5, softcap=2.0)])
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_many_keys_and_few_rows(scoring, is_contiguous):
    """Over MIN_KEYS_TO_FOLD keys, heads become rows."""
    generator = torch.Generator().manual_seed(3)
    for parents in ([-1], [-1, 0, 1, 2], [-1, 0, 0, 1]):
        for in_fp8 in (False, True):
            taken = set()
            requests = [request_of(230, parents, 0, is_contiguous, generator, taken)]
            check(requests, taken, generator, scoring, in_fp8=in_fp8)


def test_a_decode_batch_is_one_group_and_a_long_prefill_its_own():
    generator, taken = torch.Generator().manual_seed(4), set()
    long = list(range(-1, MAX_PADDED_ROWS + 5))
    shapes = [(40, [-1, 0, 0]), (0, long), (3, [-1]), (90, [-1, 0, 1, 2]), (700, [-1]), (5, long)]
    requests = [request_of(start, tree, 0, i % 2 == 0, generator, taken) for i, (start, tree) in enumerate(shapes)]
    packed = check(requests, taken, generator)
    members = [[request.start for request in group.requests] for group in packed.groups]
    assert sorted(map(tuple, members)) == [(0,), (5,), (40, 3, 90), (700,)]


def test_rows_of_equal_count_are_reshaped_not_gathered():
    generator, taken = torch.Generator().manual_seed(5), set()
    requests = [request_of(start, [-1, 0, 0], 0, True, generator, taken) for start in (9, 2, 14)]
    (group,) = check(requests, taken, generator).groups
    assert group.pick is None and group.keep is None and group.is_all


def test_views_are_made_once_per_kind_of_layer():
    generator, taken = torch.Generator().manual_seed(6), set()
    request = request_of(9, [-1, 0, 0], 0, True, generator, taken)
    (group,) = PackedRows([request[0]]).groups
    like = torch.zeros(1, dtype=torch.float64)
    full = group.view(None, None, like, 1, True)
    assert group.view(None, None, like, 1, True) is full
    assert group.view(12, None, like, 1, True) is full and group.view(None, 12, like, 1, True) is full  # 12 rows in all
    assert group.view(4, None, like, 1, True) is not full


def test_a_single_row_needs_no_mask_and_a_prompt_none_either():
    generator = torch.Generator().manual_seed(7)
    like = torch.zeros(1, dtype=torch.float64)
    for start, size, window, is_causal, num_keys in (
        (20, 1, None, False, 21),
        (20, 1, 4, False, 4),
        (0, 6, None, True, 6),
    ):
        rows, *_ = request_of(start, list(range(-1, size - 1)), 0, True, generator, set())
        (group,) = PackedRows([rows]).groups
        view = group.view(window, None, like, 1, True)
        assert view.mask is None and view.slots is None
        assert (view.is_causal, view.num_keys) == (is_causal, num_keys)


def test_no_scaling_means_the_usual_one():
    generator, taken = torch.Generator().manual_seed(8), set()
    requests = [request_of(4, [-1, 0, 0], 0, True, generator, taken)]
    rows = PackedRows([requests[0][0]])
    query, keys = torch.randn(1, 4, 3, 16, dtype=torch.float64), torch.randn(8, 2, 16, dtype=torch.float64)
    for softcap in (None, 3.0):
        results = [ops.tree_attention(query, keys, keys, rows, Scoring(s, softcap=softcap)) for s in (None, 0.25)]
        torch.testing.assert_close(*results, rtol=0, atol=ROUNDING)


def test_arguments_that_do_not_fit_are_refused():
    rows = PackedRows([RequestRows(0, 3, 0, None, None, 0, None)])
    keys = torch.zeros(4, 2, 8)
    for shape in ((1, 4, 2, 8), (1, 3, 3, 8), (1, 4, 3, 6)):
        with pytest.raises(ValueError, match=r"expected queries \[1, multiple of 2, 3, 8\], got"):
            ops.tree_attention(torch.zeros(shape), keys, keys, rows, Scoring(1.0))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("triton", "expected tensors on a GPU for SPECDEC_KERNELS=triton, got cpu; set TRITON_INTERPRET=1"),
        ("fast", "expected SPECDEC_KERNELS=reference or triton, got 'fast'"),
    ],
)
def test_a_body_that_cannot_run_is_refused(monkeypatch, body, message):
    monkeypatch.setattr(bodies, "ASKED_FOR", body)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    rows = PackedRows([RequestRows(0, 1, 0, None, None, 0, None)])
    keys = torch.zeros(4, 2, 8)
    with pytest.raises(ValueError, match=message):
        ops.tree_attention(torch.zeros(1, 2, 1, 8), keys, keys, rows, Scoring(1.0))
