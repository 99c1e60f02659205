"""Tree attention on a GPU against the reference in float64, at the sizes of real models."""

import random

import pytest
import torch

from specdec.kernels import ops, tree_attention
from specdec.kernels.rows import Scoring
from specdec.kernels.tree_tables import Bucket, StaticRows
from tests.toys.device import batch_on, captured, poisoned, unwaited
from tests.toys.ragged import CONTIGUOUS, Shape, chain, error_of, random_tree

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
# Largest relative error of a row's head. Weights and the output are rounded to the dtype, half a unit in the last place
# each at most: eps in all, and as much again for sums. float32 is rounded once per addend: 8k keys, 64 at a time, and a
# softcap of 30 loses five bits of a score. With tensor cores it would be 1e-3.
TOLERANCE = {dtype: times * torch.finfo(dtype).eps for dtype, times in
             ((torch.bfloat16, 2), (torch.float16, 2), (torch.float32, 200))}  # fmt: skip
PAGED, SCATTERED = 16, 1
LLAMA = {"heads": 32, "kv_heads": 8, "k_dim": 128, "v_dim": 128}  # Llama-3.1-8B
PREFIXES = (8192, 0, 8191, 17, 4097, 1, 640, 2048)
SIZES = (64, 1, 33, 16, 5, 64, 7, 2)
LAYOUTS = (PAGED, CONTIGUOUS, 64, PAGED, CONTIGUOUS, PAGED, 32, PAGED)
SCORINGS = {
    "plain": (Scoring(None), False),
    "window": (Scoring(None, window=1024), False),
    "softcap": (Scoring(0.1, softcap=30.0), False),
    "sinks": (Scoring(None, window=128), True),
    "all": (Scoring(0.1, window=4096, chunk=3000, softcap=30.0), True),
}


def ragged(rng, sizes=SIZES, prefixes=PREFIXES, layouts=LAYOUTS):
    return [
        (start, random_tree(size, rng, 8), layout, 0)
        for start, size, layout in zip(prefixes, sizes, layouts, strict=True)
    ]


def check(case):
    """Also that a second run gives the same bits."""
    with poisoned():
        got = ops.tree_attention(*case)
        again = ops.tree_attention(*case.again())
    assert case.rows.plans  # the Triton body ran
    assert torch.equal(got, again)
    assert error_of(got, case) < TOLERANCE[case.query.dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SCORINGS)
def test_ragged_batches(dtype, name):
    scoring, has_sinks = SCORINGS[name]
    rng = random.Random(0)
    check(batch_on(DEVICE, ragged(rng), Shape(**LLAMA, dtype=dtype), scoring, rng, has_sinks))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SCORINGS)
@pytest.mark.parametrize("by_integers", [False, True], ids=["converted", "by integers"])
def test_keys_and_values_of_eight_bits(monkeypatch, dtype, name, by_integers):
    """By the GPU's own conversion, if it has one, and as on GPUs that have none."""
    if by_integers:
        monkeypatch.setattr(tree_attention, "E4M3_CAPABILITY", 1000)
    scoring, has_sinks = SCORINGS[name]
    rng = random.Random(4)
    check(batch_on(DEVICE, ragged(rng), Shape(**LLAMA, dtype=dtype), scoring, rng, has_sinks).in_eight_bits())


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64])
@pytest.mark.parametrize("batch", [1, 8])
def test_trees_of_every_size(num_nodes, batch):
    """One request is cut into many shares, eight into few."""
    rng = random.Random(num_nodes)
    described = ragged(rng, (num_nodes,) * batch, PREFIXES[:batch], LAYOUTS[:batch])
    check(batch_on(DEVICE, described, Shape(**LLAMA, dtype=torch.bfloat16), Scoring(None), rng))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "k_dim", "v_dim"),
    [(32, 8, 64, 64), (32, 32, 80, 80), (32, 32, 96, 96), (8, 4, 256, 256), (28, 4, 128, 128), (64, 8, 64, 64),
     (40, 1, 128, 128), (16, 16, 192, 128)],
)  # fmt: skip
def test_heads_of_other_models(heads, kv_heads, k_dim, v_dim, dtype):
    """Llama-3.2-1B, Phi-2, Phi-3, Gemma-2, Qwen2.5-7B, gpt-oss, one head of keys, DeepSeek's decompressed."""
    rng = random.Random(heads)
    described = ragged(rng, (24, 1, 9), (1500, 3000, 33), (PAGED, PAGED, CONTIGUOUS))
    check(batch_on(DEVICE, described, Shape(heads, kv_heads, k_dim, v_dim, dtype), Scoring(None), rng))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scoring", [Scoring(None), Scoring(None, window=512)])
def test_prompts_beside_decoding(dtype, scoring):
    """A whole prompt, a piece of another, single rows, and a level of a tree whose nodes before it are in the pool."""
    rng = random.Random(1)
    described = [(0, chain(700), PAGED, 0), (2000, chain(512), PAGED, 0), (3000, chain(1), CONTIGUOUS, 0)]
    described += [(900, random_tree(100, rng), PAGED, 60), (5, chain(40), SCATTERED, 38)]
    check(batch_on(DEVICE, described, Shape(**LLAMA, dtype=dtype), scoring, rng))


@pytest.mark.parametrize("size", [65, 128, 200, 513])
def test_trees_of_several_words(size):
    rng = random.Random(size)
    described = [(1000, random_tree(size, rng, 40), PAGED, 0), (77, random_tree(20, rng), PAGED, 3)]
    check(batch_on(DEVICE, described, Shape(**LLAMA, dtype=torch.bfloat16), Scoring(None), rng))


@pytest.mark.parametrize("seed", range(30))
def test_random_batches(seed):
    rng = random.Random(seed)
    kv_heads, group, dim = rng.choice([1, 2, 8]), rng.choice([1, 3, 4, 7]), rng.choice([32, 64, 128, 256])
    shape = Shape(kv_heads * group, kv_heads, dim, rng.choice([dim, 64]), rng.choice(list(TOLERANCE)))
    described = []
    for _ in range(rng.randint(1, 20)):
        size = rng.choice([1, 1, 2, 8, rng.randint(1, 100)])
        parents = chain(size) if rng.random() < 0.3 else random_tree(size, rng)
        layout = rng.choice([CONTIGUOUS, SCATTERED, 4, PAGED, 48, 64])
        described.append((rng.choice([0, 1, 16, rng.randint(0, 3000)]), parents, layout, rng.choice([0, size // 2])))
    scoring = Scoring(
        rng.choice([0.05, None]),
        window=rng.choice([None, None, 1, 3, 700]),
        chunk=rng.choice([None, None, None, 5, 640]),
        softcap=rng.choice([None, None, 30.0]),
    )
    check(batch_on(DEVICE, described, shape, scoring, rng, rng.random() < 0.3))


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device():
    rng = random.Random(2)
    case = batch_on(DEVICE, ragged(rng), Shape(**LLAMA, dtype=torch.bfloat16), Scoring(None), rng)
    check(case)
    with unwaited():
        ops.tree_attention(*case.again())


@pytest.mark.parametrize("in_fp8", [False, True], ids=["bfloat16", "fp8"])
def test_a_captured_forward_serves_other_lengths_trees_and_pages(in_fp8):
    """Planner, attention and merge as one graph: what changes lies in tables on the device, which are overwritten."""
    rng = random.Random(3)
    variants = [
        (SIZES, PREFIXES),
        (SIZES[::-1], PREFIXES),
        ((*SIZES[:2], SIZES[2] - 2, 5), PREFIXES[4:]),
        (SIZES[:1], PREFIXES[:1]),
    ]
    num_slots = 4 * sum(PREFIXES)  # pages are anywhere within three times what is used
    cases = [
        batch_on(
            DEVICE,
            ragged(rng, sizes, prefixes, (PAGED,) * len(sizes)),
            Shape(**LLAMA, dtype=torch.bfloat16),
            Scoring(None, window=6000),
            rng,
            has_sinks=True,
            num_slots=num_slots,
        )
        for sizes, prefixes in variants
    ]
    cases = [case.in_eight_bits(seed) if in_fp8 else case for seed, case in enumerate(cases)]
    wanted = [ops.tree_attention(*case.again()) for case in cases]
    rows = StaticRows(Bucket(sum(SIZES) + 5, len(SIZES) + 2, max(SIZES), max(PREFIXES) // 16 + 8, 16))
    first = cases[0]
    names = ("keys", "values", "sinks", "scales") if in_fp8 else ("keys", "values", "sinks")
    copies = {name: getattr(first, name).clone() for name in names}
    query = first.query.new_full((1, LLAMA["heads"], rows.num_rows, LLAMA["k_dim"]), torch.nan)
    fixed = first._replace(query=query, rows=rows, **copies)

    def attend():
        rows.plans.clear()  # the planner is part of the graph; the tables stay
        return ops.tree_attention(*fixed)

    attend()
    replay, output = captured(attend)
    for case, eager in [*zip(cases, wanted, strict=True), (first, wanted[0])]:
        rows.load(case.rows.requests)
        for name in names:
            getattr(fixed, name).copy_(getattr(case, name))
        num_rows = case.rows.num_rows
        query[:, :, :num_rows].copy_(case.query)
        output.fill_(torch.nan)
        replay()
        got = output[:, :num_rows].clone()
        assert torch.equal(got, eager)
        assert error_of(got, case) < TOLERANCE[torch.bfloat16]
