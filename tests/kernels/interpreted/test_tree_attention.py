"""Tree attention in Triton against the reference in float64, interpreted; what is not written or not used is NaN."""

import math
import random

import pytest
import torch

from specdec.kernels import bodies, ops, tree_attention, tree_plan
from specdec.kernels.rows import Scoring
from specdec.kernels.tree_tables import Bucket, StaticRows
from tests.toys.ragged import CONTIGUOUS, Shape, batch_of, chain, error_of, random_tree

# Largest relative error of a row's output. float32: sums in another order. The others: weights and output are rounded
# to 11 and 8 bits. In 1850 random batches the largest were 2.5e-6, 5.6e-4 and 4.7e-3.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TREE = [-1, 0, 0, 1, 1, 2, 3, 3, 6]
PAGED, SCATTERED = 16, 1
SMALL = {"tile": 16, "block_m": 16}


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nobody has written is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(False)


def set_shape(monkeypatch, plan=tree_plan, num_processors=4, min_keys=16, **shape):
    """As if the table of launch shapes said `shape`, on a GPU with so many processors."""
    pick = plan.pick

    def picked(tree_rows, chain_rows, kind, capability):
        found = pick(tree_rows, chain_rows, kind, capability)._replace(**shape)
        strip_rows = max(1, tree_rows, min(chain_rows, found.block_m // kind.group))
        return found._replace(strip_rows=strip_rows, num_blocks=-(-strip_rows * kind.group // found.block_m))

    monkeypatch.setattr(plan, "facts_of", lambda device: (num_processors, 90))
    monkeypatch.setattr(plan, "MIN_KEYS", min_keys)
    if shape:
        monkeypatch.setattr(plan, "pick", picked)


def check(case):
    got = tree_attention.tree_attention(*case)
    assert error_of(got, case) < TOLERANCE[case.query.dtype]


@pytest.mark.parametrize("layout", [CONTIGUOUS, PAGED, SCATTERED, 48, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(monkeypatch, layout, dtype):
    set_shape(monkeypatch)
    described = [(100, TREE, layout, 0), (7, chain(1), CONTIGUOUS, 0), (33, chain(4), layout, 2)]
    check(batch_of(described, Shape(dtype=dtype), Scoring(0.2), random.Random(layout)))


@pytest.mark.parametrize("start", [0, 1, 15, 16, 17, 64])
def test_prefixes(monkeypatch, start):
    set_shape(monkeypatch, **SMALL)
    described = [(start, TREE, PAGED, 0), (start, chain(1), PAGED, 0), (start, TREE, CONTIGUOUS, 4)]
    check(batch_of(described, Shape(), Scoring(0.2), random.Random(start)))


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 2), (3, 1), (7, 1), (16, 2), (40, 1)])
def test_heads_that_share_keys(monkeypatch, heads, kv_heads):
    set_shape(monkeypatch, **SMALL)
    described = [(20, TREE, PAGED, 0), (40, chain(1), PAGED, 0)]
    check(batch_of(described, Shape(heads, kv_heads), Scoring(0.2), random.Random(heads)))


@pytest.mark.parametrize(
    ("k_dim", "v_dim"), [(64, 64), (80, 80), (96, 96), (128, 128), (256, 256), (24, 8), (192, 128), (64, 256)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_head_sizes(k_dim, v_dim, dtype):
    described = [(70, TREE, PAGED, 0), (3, chain(2), PAGED, 0)]
    check(batch_of(described, Shape(2, 1, k_dim, v_dim, dtype), Scoring(None), random.Random(k_dim)))


@pytest.mark.parametrize("size", [63, 64, 65, 128, 150])
@pytest.mark.parametrize("first", [0, 61])
def test_large_trees(monkeypatch, size, first):
    """Ancestor words of several kinds, at every offset to the tiles; and nodes that were computed before."""
    set_shape(monkeypatch, tile=64)
    rng = random.Random(size + first)
    described = [(rng.randrange(100), random_tree(size, rng, 40), PAGED, first), (5, TREE, PAGED, 0)]
    check(batch_of(described, Shape(2, 2, 16, 16), Scoring(0.3), rng))


def test_a_tree_larger_than_the_blocks_that_walk_side_by_side(monkeypatch):
    set_shape(monkeypatch)
    monkeypatch.setattr(tree_plan, "MAX_BLOCKS", 2)
    monkeypatch.setattr(tree_plan, "_tiling", lambda *_: (16, 32, 4, 3, 2))
    rng = random.Random(3)
    case = batch_of([(50, random_tree(70, rng), PAGED, 0), (9, TREE, PAGED, 1)], Shape(), Scoring(0.2), rng)
    check(case)
    assert {plan.shape.strip_rows for plan in case.rows.plans.values() if hasattr(plan, "shape")} == {8}


@pytest.mark.parametrize("start", [0, 30])
@pytest.mark.parametrize("scoring", [Scoring(0.2), Scoring(0.2, window=20), Scoring(0.2, chunk=32)])
def test_long_prompts_beside_single_rows(monkeypatch, start, scoring):
    """A chain is cut into strips, which see less than their request has; there is no table of who sees whom."""
    set_shape(monkeypatch, **SMALL)
    described = [(start, chain(100), PAGED, 0), (60, chain(1), PAGED, 0), (start, chain(90), CONTIGUOUS, 37)]
    case = batch_of(described, Shape(3, 1), scoring, random.Random(start))
    check(case)
    (plan,) = [plan for plan in case.rows.plans.values() if hasattr(plan, "shape")]
    assert plan.tables.words.numel() == 0 and plan.bounds.num_strips > 30


@pytest.mark.parametrize("window", [None, 1, 2, 7, 40, 1000])
@pytest.mark.parametrize("chunk", [None, 1, 12, 64])
def test_windows_and_chunks(monkeypatch, window, chunk):
    """Within the tree, positions are depths: nodes side by side are as far from the prefix as each other."""
    set_shape(monkeypatch, **SMALL)
    described = [(70, TREE, PAGED, 0), (13, TREE, PAGED, 5), (30, chain(20), PAGED, 3), (0, TREE, PAGED, 0)]
    check(batch_of(described, Shape(), Scoring(0.2, window=window, chunk=chunk), random.Random(5)))


@pytest.mark.parametrize("num_processors", [1, 8])  # nothing is cut, or much is
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_softcap_and_sinks(monkeypatch, num_processors, softcap, has_sinks):
    set_shape(monkeypatch, num_processors=num_processors, num_resident=1, **SMALL)
    described = [(90, TREE, PAGED, 0), (20, chain(1), PAGED, 0)]
    scoring = Scoring(1.5, window=50, softcap=softcap)
    check(batch_of(described, Shape(4, 1), scoring, random.Random(6), has_sinks))


def test_requests_without_rows_and_forwards_without_any(monkeypatch):
    set_shape(monkeypatch, **SMALL)
    described = [(20, [], PAGED, 0), (9, TREE, PAGED, 0), (0, [], PAGED, 0), (3, chain(2), PAGED, 2), (4, [-1], 16, 0)]
    check(batch_of(described, Shape(), Scoring(0.2), random.Random(7)))
    case = batch_of([(20, [], PAGED, 0)], Shape(), Scoring(0.2), random.Random(8))
    assert tree_attention.tree_attention(*case).shape == (1, 0, 4, 32)


def random_case(rng):
    kv_heads, group = rng.choice([(1, 1), (2, 1), (1, 3), (2, 2), (1, 4)])
    k_dim = rng.choice([16, 24, 32, 64])
    shape = Shape(kv_heads * group, kv_heads, k_dim, rng.choice([k_dim, k_dim, 16]), rng.choice(list(TOLERANCE)))
    described = []
    for _ in range(rng.randint(1, 5)):
        size = rng.choice([1, 1, 2, 5, 8, rng.randint(1, 70)])
        parents = chain(size) if rng.random() < 0.3 else random_tree(size, rng)
        first = rng.choice([0, 0, rng.randrange(size)])
        described.append((rng.choice([0, 1, 16, rng.randint(0, 200)]), parents, rng.choice([0, 1, 4, 16, 32]), first))
    scoring = Scoring(
        rng.choice([0.1, 0.3, None]),
        window=rng.choice([None, None, 1, 3, 40]),
        chunk=rng.choice([None, None, None, 5, 64]),
        softcap=rng.choice([None, None, 3.0]),
    )
    return batch_of(described, shape, scoring, rng, rng.random() < 0.3)


@pytest.mark.parametrize("seed", range(40))
def test_random_batches(monkeypatch, seed):
    rng = random.Random(seed)
    shape = {"tile": rng.choice([16, 32, 64, 128]), "block_m": rng.choice([16, 32, 64])}
    set_shape(monkeypatch, num_processors=rng.choice([1, 2, 8]), min_keys=rng.choice([1, 32, 64]), **shape)
    check(random_case(rng))


@pytest.fixture(params=[90, 80], ids=["converted", "by integers"])
def capability(request, monkeypatch):
    """Of the GPU that is stood for: older ones have no instruction that makes numbers of e4m3."""
    monkeypatch.setattr(tree_attention, "facts_of", lambda device: (4, request.param))
    return request.param


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("k_dim", "v_dim"), [(64, 64), (24, 8), (128, 128)])
def test_pages_of_eight_bits(monkeypatch, capability, dtype, k_dim, v_dim):
    set_shape(monkeypatch)
    described = [(100, TREE, PAGED, 0), (7, chain(1), CONTIGUOUS, 0), (33, chain(4), PAGED, 2)]
    case = batch_of(described, Shape(4, 2, k_dim, v_dim, dtype), Scoring(0.2), random.Random(k_dim), True)
    check(case.in_eight_bits())


@pytest.mark.parametrize("seed", range(12))
def test_random_batches_of_eight_bits(monkeypatch, capability, seed):
    rng = random.Random(100 + seed)
    set_shape(monkeypatch, num_processors=rng.choice([1, 8]), tile=rng.choice([16, 64]), block_m=16)
    check(random_case(rng).in_eight_bits(seed))


def test_eight_bits_and_scales_belong_together():
    case = batch_of([(3, TREE, PAGED, 0)], Shape(), Scoring(0.2), random.Random(15))
    small = case.in_eight_bits()
    for wrong in (small._replace(scales=None), case._replace(scales=small.scales)):
        with pytest.raises(ValueError, match="expected queries, keys and values of .* all the same but for e4m3 with"):
            tree_attention.tree_attention(*wrong)


def test_layers_of_a_kind_share_their_plan_and_other_kinds_the_tables():
    case = batch_of([(30, TREE, PAGED, 0)], Shape(), Scoring(0.2), random.Random(9))
    for scoring in (Scoring(0.2), Scoring(0.3, softcap=4.0), Scoring(0.2, window=8)):
        check(case._replace(scoring=scoring))
    plans = [plan for plan in case.rows.plans.values() if hasattr(plan, "shape")]
    assert len(plans) == 2 and plans[0].tables is plans[1].tables


def test_tables_that_are_filled_again_and_again(monkeypatch):
    """With room to spare: strips without rows get no items, and rows of padding may be anything."""
    set_shape(monkeypatch, **SMALL)
    rows, rng = StaticRows(Bucket(num_rows=40, num_requests=3, num_nodes=16, num_pages=10, page=16)), random.Random(14)
    batches = [
        [(30, TREE, PAGED, 0), (50, chain(1), PAGED, 0)],
        [(0, chain(5), PAGED, 0)],
        [(100, TREE, CONTIGUOUS, 3), (3, chain(16), PAGED, 0), (77, TREE, PAGED, 0)],
    ]
    for described in batches:
        case = batch_of(described, Shape(), Scoring(0.2, window=40), rng)
        rows.load(case.rows.requests)
        rows.plans.clear()  # a graph has the planner in it
        query = torch.nn.functional.pad(case.query, (0, 0, 0, 40 - case.query.shape[2]), value=math.nan)
        got = tree_attention.tree_attention(query, *case[1:3], rows, case.scoring)
        assert error_of(got[:, : case.rows.num_rows], case) < TOLERANCE[torch.float32]


def test_queries_of_any_strides():
    case = batch_of([(30, TREE, PAGED, 0)], Shape(), Scoring(0.2), random.Random(10))
    wanted = tree_attention.tree_attention(*case)
    for query in (case.query.contiguous(), case.query.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(tree_attention.tree_attention(*case._replace(query=query)), wanted)


def test_the_body_is_chosen_by_name(monkeypatch):
    case = batch_of([(30, TREE, PAGED, 0)], Shape(), Scoring(0.2), random.Random(11))
    monkeypatch.setattr(bodies, "ASKED_FOR", "triton")
    ops.tree_attention(*case)
    assert case.rows.plans
    monkeypatch.setattr(bodies, "ASKED_FOR", None)
    case = case.again()
    ops.tree_attention(*case)
    assert not case.rows.plans


@pytest.mark.parametrize(
    ("k_dim", "dtype", "scaling", "message"),
    [
        (16, torch.float64, None, "expected queries, keys and values of float16, bfloat16 or float32, all .*64"),
        (576, torch.float32, None, "expected heads of up to 256 numbers, got keys of 576 and values of 16"),
        (16, torch.float32, 0.0, "expected a positive scaling, got 0.0"),
    ],
)
def test_what_the_kernels_do_not_know_is_refused(k_dim, dtype, scaling, message):
    case = batch_of([(3, TREE, PAGED, 0)], Shape(2, 1, k_dim, 16, dtype), Scoring(scaling), random.Random(12))
    with pytest.raises(ValueError, match=f"{message}; set SPECDEC_KERNELS=reference"):
        tree_attention.tree_attention(*case)


def test_pools_with_gaps_are_refused():
    case = batch_of([(3, TREE, PAGED, 0)], Shape(), Scoring(0.2), random.Random(13))
    with pytest.raises(ValueError, match="expected contiguous keys and values, got strides .*SPECDEC_KERNELS=ref"):
        tree_attention.tree_attention(*case._replace(keys=case.keys[::2]))
