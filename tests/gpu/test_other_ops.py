"""The ops around attention on a GPU against their twins on the CPU, at the sizes of real models."""

import random

import pytest
import torch

from specdec.kernels import (
    cache_ops,
    ops,
    reference,
    reference_cache,
    reference_sampling,
    reference_verify,
    sampling_ops,
)
from specdec.kernels.layers import Layers
from specdec.kernels.trees import PackedTrees
from tests.toys.device import captured, poisoned, unwaited
from tests.toys.packed import drawn_chains, far_apart, forest

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
VOCAB = 128256  # of Llama-3.1
# Sums of VOCAB float32 numbers, in another order: probabilities that differ by less are not told apart.
ROUNDING = 2e-5
NUM_SLOTS, LLAMA_ROW = 512, (8, 128)


def on(device, *values):
    """The same on a device; packed trees as well, and numbers as they are."""
    return [
        type(value)(*on(device, *value))
        if isinstance(value, PackedTrees)
        else value.to(device)
        if torch.is_tensor(value)
        else value
        for value in values
    ]


def on_device(op, *arguments):
    with poisoned():
        return op(*on(DEVICE, *arguments))


def assert_equal(found, wanted):
    assert all(torch.equal(*pair) for pair in zip(on("cpu", *found), wanted, strict=True))


def seeds_of(count):
    return torch.randint(-(1 << 62), 1 << 62, (count,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocab", [1, 1000, 4097, VOCAB])
def test_argmax(vocab, dtype):
    rows = (torch.randn(33, vocab) * 3).to(dtype)  # half of it has ties
    rows[1] = -torch.inf
    rows[2, vocab // 2 :] = torch.nan
    assert torch.equal(on_device(ops.argmax, rows).cpu(), reference.argmax(rows))


@pytest.mark.parametrize("vocab", [5, 1000, 32000, VOCAB])
def test_the_keyed_draw_is_that_of_the_cpu(vocab):
    scores = torch.randn(40, vocab) * 2
    scores[:, 1::3] = -torch.inf
    positions = torch.randint(0, 1 << 20, (40,))
    arguments = scores, seeds_of(40), positions
    wanted = reference_sampling.gumbel_argmax(*arguments)
    assert torch.equal(on_device(sampling_ops.gumbel_argmax, *arguments).cpu(), wanted)


@pytest.mark.parametrize("seed", range(10))
def test_walk(seed):
    generator = random.Random(seed)
    trees = forest(generator, 3, 64, [generator.randrange(65) for _ in range(generator.choice([1, 8, 200]))])
    targets = torch.tensor([generator.randrange(3) for _ in trees.tokens])
    assert_equal(on_device(sampling_ops.walk, trees, targets), reference_sampling.walk(trees, targets))


def few_of_many(drafts, generator):
    """The same drafts in a large vocabulary of which a hundred tokens are left, as top-k leaves them."""
    scores, probs, trees, *rest = drafts
    columns = torch.tensor(sorted(generator.sample(range(VOCAB), scores.shape[1])))
    wide_scores = torch.full((len(scores), VOCAB), -torch.inf)
    wide_probs = torch.zeros(len(scores), VOCAB)
    wide_scores[:, columns], wide_probs[:, columns] = scores, probs
    return wide_scores, wide_probs, trees._replace(tokens=columns[trees.tokens]), *rest


@pytest.mark.parametrize("kinds", [[True], [False], [True, True, False]], ids=["sampled", "chosen", "mixed"])
@pytest.mark.parametrize("rule", ["verify_rejection", "verify_block"])
@pytest.mark.parametrize("seed", range(4))
def test_chains_are_verified_as_by_the_twin(rule, kinds, seed):
    generator = random.Random(seed)
    chains = drawn_chains(generator, [generator.randrange(1, 9) for _ in range(24)], [4, 65, 100, 100][seed], kinds)
    if seed > 1:
        chains = few_of_many(chains, generator)
    assert_equal(on_device(getattr(sampling_ops, rule), *chains), getattr(reference_verify, rule)(*chains))


@pytest.mark.parametrize("kinds", [[True], [False], [True, False]], ids=["sampled", "chosen", "mixed"])
@pytest.mark.parametrize("seed", range(6))
def test_trees_are_verified_as_by_the_twin(kinds, seed):
    generator = random.Random(seed)
    drafted = far_apart(generator, [9, 33, 64][seed % 3], 24, [6, 100][seed % 2], kinds)
    if seed > 2:
        drafted = few_of_many(drafted, generator)
    assert_equal(on_device(sampling_ops.verify_rejection, *drafted), reference_verify.verify_rejection(*drafted))


@pytest.mark.parametrize("seed", range(6))
def test_warp(seed):
    """Which tokens stay, but for those that rounding decides on; and what becomes of their scores."""
    generator, num_rows = random.Random(seed), 12
    vocab = generator.choice([1000, 32000, VOCAB])
    rows = torch.randn(num_rows, vocab) * generator.choice([1.0, 3.0, 10.0])
    if seed % 2:
        rows = rows.bfloat16()
    top_k = torch.tensor(generator.choices([0, 0, 1, 50, 5000], k=num_rows), dtype=torch.int32)
    temperatures, top_p, min_p = (
        torch.tensor(generator.choices(choices, k=num_rows), dtype=torch.float64)
        for choices in ([1.0, 0.7, 2.0], [1.0, 0.9, 0.5, 0.0], [0.0, 0.0, 0.05])
    )
    arguments = rows, temperatures, top_k, top_p, min_p
    found, wanted = on_device(sampling_ops.warp, *arguments).cpu(), reference_sampling.warp(*arguments)
    ones = torch.ones_like(top_p)
    probs = reference_sampling.warp(rows, temperatures, top_k, ones, 0 * ones).double().softmax(-1)
    ascending, tokens = probs.sort(stable=True)
    sums = torch.zeros_like(probs).scatter_(1, tokens, ascending.cumsum(-1))
    is_open = ((sums - (1 - top_p)[:, None]).abs() < ROUNDING) & (top_p < 1)[:, None]
    limits = min_p[:, None] * probs.amax(-1, keepdim=True)
    is_open |= (probs - limits).abs() < ROUNDING * limits
    assert (found.isinf() == wanted.isinf())[~is_open].all()
    assert (found.isinf() | (found == rows.float() / temperatures.float()[:, None])).all()
    assert found.isfinite().any(-1).all()


def test_penalties():
    generator = random.Random(0)
    sizes = [generator.randrange(1, 17) for _ in range(8)]
    trees, num_requests = forest(generator, VOCAB, 17, sizes), len(sizes)
    tokens = torch.randint(0, VOCAB, (num_requests, 900), dtype=torch.int32)
    lengths = torch.tensor(generator.choices(range(1, 901), k=num_requests))
    ignored = torch.tensor([[generator.randrange(999), generator.randrange(999)] for _ in lengths])
    penalties = torch.tensor([[1.3, 0.7], [1.0, 0.5], [0.8, 0.0], [1.7, 0.0]] * 2, dtype=torch.float64)
    scores = torch.randn(len(trees.tokens), VOCAB)
    starts = torch.zeros_like(lengths)
    wanted_seen = torch.zeros(num_requests, 2, -(-VOCAB // 32), dtype=torch.int32)
    seen = wanted_seen.to(DEVICE, copy=True)
    reference_sampling.mark_seen(wanted_seen, tokens, starts, lengths, ignored)
    on_device(sampling_ops.mark_seen, seen, tokens, starts, lengths, ignored)
    assert torch.equal(seen.cpu(), wanted_seen)
    wanted = reference_sampling.penalize(scores, trees, wanted_seen, lengths, penalties, ignored)
    found = on_device(sampling_ops.penalize, scores, trees, seen, lengths, penalties, ignored).cpu()
    assert torch.equal(found[: sum(sizes)], wanted[: sum(sizes)])


@pytest.mark.parametrize("count", [1, 4, 10, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_draft_topk(count, dtype):
    arguments = (torch.randn(20, VOCAB) * 3).to(dtype), count, torch.linspace(0.5, 2.0, 20, dtype=torch.float64)
    tokens, log_probs = on("cpu", *on_device(sampling_ops.draft_topk, *arguments))
    wanted, wanted_log_probs = reference_sampling.draft_topk(*arguments)
    assert torch.equal(tokens, wanted)
    torch.testing.assert_close(log_probs, wanted_log_probs, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("vocab", [5, 4097, VOCAB])
def test_draft_draw(vocab):
    probs = (torch.randn(40, vocab) * 3).softmax(-1)
    arguments = probs, seeds_of(40), torch.randint(1, 1 << 20, (40,)), torch.randint(0, 64, (40,))
    found = on_device(sampling_ops.draft_draw, *arguments).cpu()
    assert torch.equal(found, reference_sampling.draft_draw(*arguments))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_written_to_their_slots(dtype):
    """Keys as a model hands them over, with the heads in front."""
    slots = torch.randperm(NUM_SLOTS)[: NUM_SLOTS // 2]
    slots[::7] = -1
    keys, values = (torch.randn(LLAMA_ROW[0], len(slots), LLAMA_ROW[1]).to(dtype).transpose(0, 1) for _ in range(2))
    wanted = [torch.full((NUM_SLOTS, *LLAMA_ROW), torch.nan, dtype=dtype) for _ in range(2)]
    found = [pool.to(DEVICE, copy=True) for pool in wanted]
    reference_cache.kv_write(*wanted, keys, values, slots)
    cache_ops.kv_write(*found, *on(DEVICE, keys, values, slots))
    assert all(same(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rows_are_written_in_eight_bits(dtype):
    slots = torch.randperm(NUM_SLOTS)
    slots[::7] = -1
    rows = (torch.randn(2, NUM_SLOTS, *LLAMA_ROW) * torch.logspace(-4, 4, NUM_SLOTS)[:, None, None]).to(dtype)
    scales = torch.rand(2, LLAMA_ROW[0]) + 0.01
    wanted = [torch.zeros(NUM_SLOTS, *LLAMA_ROW, dtype=torch.float8_e4m3fn) for _ in range(2)]
    found = [pool.to(DEVICE, copy=True) for pool in wanted]
    reference_cache.kv_write(*wanted, *rows, slots, scales)
    cache_ops.kv_write(*found, *on(DEVICE, *rows, slots, scales))
    assert all(same(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("width", [16, 64])
def test_accepted_rows_of_all_layers_move_together(width):
    wanted = [torch.randn(NUM_SLOTS, *LLAMA_ROW).bfloat16() for _ in range(64)]
    found = [pool.to(DEVICE, copy=True) for pool in wanted]
    groups = torch.arange(NUM_SLOTS).view(-1, width)
    targets = groups[:, : width // 2].clone()
    sources = torch.stack([group[torch.randperm(width)[: width // 2]].sort()[0] for group in groups])
    targets[:, -3:], sources[1, :4] = -1, -1
    reference_cache.move_rows(Layers(wanted), sources, targets)
    cache_ops.move_rows(Layers(found), *on(DEVICE, sources, targets))
    assert all(same(*pair) for pair in zip(found, wanted, strict=True))


def same(found, wanted):
    """Bit for bit, NaN and all."""
    return torch.equal(found.cpu().view(torch.uint8), wanted.view(torch.uint8))


def requests_of(seed):
    """Scores, seeds and positions of trees in a bucket of five requests and at most 17 nodes."""
    generator = random.Random(seed)
    torch.manual_seed(seed)
    trees = forest(generator, 4, 17, generator.sample([1, 9, 17, 0, 5], 5))._replace(max_depth=16)
    count = len(trees.tokens)
    return torch.randn(count, 4), seeds_of(count), torch.randint(0, 999, (count,)), trees


def verified(scores, seeds, positions, trees):
    return sampling_ops.walk(trees, sampling_ops.gumbel_argmax(scores, seeds, positions))


def test_a_captured_verification_serves_other_trees():
    fixed = on(DEVICE, *requests_of(0))
    verified(*fixed)
    replay, output = captured(lambda: verified(*fixed))
    accepted = 0
    for seed in range(1, 9):
        scores, seeds, positions, trees = requests_of(seed)
        for old, new in zip([*fixed[:3], *fixed[3][:4]], [scores, seeds, positions, *trees[:4]], strict=True):
            old.copy_(new)
        replay()
        wanted = reference_sampling.walk(trees, reference_sampling.gumbel_argmax(scores, seeds, positions))
        assert_equal(output, wanted)
        accepted += int((wanted[1] >= 0).sum())
    assert accepted > 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_device():
    requests = on(DEVICE, *requests_of(0))
    chains = on(DEVICE, *drawn_chains(random.Random(0), [3, 7, 1], 100, [True]))
    pools = [torch.zeros(64, *LLAMA_ROW, device=DEVICE) for _ in range(4)]
    layers, slots = Layers(pools), torch.arange(8, device=DEVICE)
    options = torch.ones(len(chains[0]), device=DEVICE, dtype=torch.float64)
    many = [options.long() for _ in range(3)]

    def all_ops():
        verified(*requests)
        sampling_ops.verify_rejection(*chains)
        sampling_ops.verify_block(*chains)
        sampling_ops.warp(chains[0], options, options.int(), options * 0.9, options * 0.1)
        sampling_ops.draft_topk(chains[0], 4)
        sampling_ops.draft_draw(chains[1], *many)
        cache_ops.kv_write(*pools[:2], pools[2][:8], pools[3][:8], slots)
        cache_ops.move_rows(layers, slots, slots + 8)

    all_ops()
    with unwaited():
        all_ops()


def test_the_kernel_that_measures_reading_reads_everything():
    from specdec.experiments.read_kernel import SHAPES, block_sums

    data = torch.randint(-(1 << 31), 1 << 31, (1 << 20,), dtype=torch.int32, device=DEVICE)
    for block, num_warps in SHAPES:
        sums = torch.empty(len(data) // block, dtype=torch.int32, device=DEVICE)
        block_sums(data, sums, block, num_warps)
        assert torch.equal(sums, data.view(-1, block).sum(1, dtype=torch.int64).to(torch.int32))
