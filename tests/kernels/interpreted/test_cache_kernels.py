"""Rows to slots and between slots: the kernels against their twins, bit for bit, whatever lies in unused rows."""

import random

import pytest
import torch
import triton
import triton.language as tl

from specdec.kernels import bodies, cache_kernels, reference_cache
from specdec.kernels.e4m3 import HALF_SCALE, e4m3_of, numbers
from specdec.kernels.fp8 import quantized
from specdec.kernels.layers import Layers
from specdec.pool import KVPool

NAN = float("nan")


def pool(num_slots, shape, dtype):
    """Rows that are NaN until written."""
    return torch.full((num_slots, *shape), NAN, dtype=dtype)


def same(one, other):
    return torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "k_dim", "v_dim"), [(1, 16, 16), (2, 24, 24), (3, 64, 8), (1, 72, 64)])
def test_rows_are_written_to_their_slots_and_nowhere_else(dtype, heads, k_dim, v_dim):
    slots = torch.tensor([3, 17, -1, 30, 0, -1])
    # As a model hands them over: [1, heads, T, dim] seen as [T, heads, dim]; and every second entry of wider rows.
    keys = torch.randn(1, heads, 6, k_dim).to(dtype)[0].transpose(0, 1)
    values = torch.randn(6, heads, 2 * v_dim).to(dtype)[..., ::2]
    keys[2], values[5] = NAN, NAN
    wanted = pool(31, (heads, k_dim), dtype), pool(31, (heads, v_dim), dtype)
    found = wanted[0].clone(), wanted[1].clone()
    reference_cache.kv_write(*wanted, keys, values, slots)
    cache_kernels.kv_write(*found, keys, values, slots.to(torch.int32))
    assert same(found[0], wanted[0]) and same(found[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rows_are_written_in_eight_bits(dtype):
    """Among them what is too large, infinite or no number, and numbers between two others."""
    scales = torch.tensor([[0.5, 0.013, 3.0], [0.25, 1.0, 7.1]])
    rows = torch.randn(2, 40, 3, 24) * torch.logspace(-4, 4, 40)[:, None, None]
    rows[0, :3, 0, 5], rows[1, 9:, 1, 3:6] = torch.tensor([NAN, -torch.inf, torch.inf]), NAN
    keys, values = rows.to(dtype)
    wanted = [pool(64, (3, 24), torch.float8_e4m3fn) for _ in range(2)]
    found = [tensor.clone() for tensor in wanted]
    slots = torch.randperm(64)[:40]
    slots[7] = -1
    reference_cache.kv_write(*wanted, keys, values, slots, scales)
    cache_kernels.kv_write(*found, keys, values, slots, scales)
    for one, other in zip(found, wanted, strict=True):
        is_number = ~one.float().isnan()  # the sign of a NaN is anything
        assert torch.equal(is_number, ~other.float().isnan()) and same(one.float()[is_number], other.float()[is_number])


@pytest.mark.parametrize("kept_as", [None, torch.float8_e4m3fn])
def test_a_pool_writes_and_moves_by_kernels(monkeypatch, kept_as):
    """A launch a layer to write, and one for all layers to move; and again after the storage has grown."""
    pools = [KVPool("target", 20, kept_as) for _ in range(2)]
    launches = []
    for name in ("kv_write", "move_rows"):
        kernel = getattr(cache_kernels, name)
        monkeypatch.setattr(
            cache_kernels, name, lambda *given, kernel=kernel: launches.append(kernel) or kernel(*given)
        )
    slots, sources, targets = torch.randperm(20)[:9], [3, 5, 7, 9, 12], [2, 3, 5, 9, 19]
    for body, each in zip(("reference", "triton"), pools, strict=True):
        monkeypatch.setattr(bodies, "ASKED_FOR", body)
        generator = torch.Generator().manual_seed(1)
        for num_slots in (20, 40):
            each.grow(num_slots)
            for layer, heads in enumerate((2, 1)):
                rows = torch.randn(2, 9, heads, 24, generator=generator).bfloat16()
                each.write(layer, *rows, slots)
            each.move(sources, targets)
    for layer in range(2):
        assert all(same(*pair) for pair in zip(pools[0].stored(layer)[:2], pools[1].stored(layer)[:2], strict=True))
    assert len(launches) == 2 * (2 + 1)


@triton.jit
def _numbers_kernel(codes, found, dtype: tl.constexpr):
    places = tl.arange(0, 256)
    tl.store(found + places, numbers(tl.load(codes + places), dtype))


@triton.jit
def _codes_kernel(given, codes, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(codes + places, e4m3_of(tl.load(given + places), 1.0))


@pytest.mark.parametrize(("dtype", "name"), [(torch.float16, tl.float16), (torch.float32, tl.float32)])
def test_every_number_of_eight_bits_is_what_it_is(dtype, name):
    codes, found = torch.arange(256, dtype=torch.uint8), torch.full((256,), 7.0, dtype=dtype)
    _numbers_kernel[(1,)](codes, found, name)
    found = found.float() * HALF_SCALE.value
    torch.testing.assert_close(found, codes.view(torch.float8_e4m3fn).float(), rtol=0, atol=0, equal_nan=True)


def test_every_float16_and_what_lies_between_is_rounded_to_the_nearest():
    """All float16 with and without a bit more: so each middle of two numbers, and what is next to it."""
    exact = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    given = torch.cat([(exact.view(torch.int32) + step).view(torch.float32) for step in (-1, 0, 1)])
    given = given[given.isfinite()]
    given = given[: len(given) // 1024 * 1024]
    codes = torch.zeros(len(given), dtype=torch.uint8)
    _codes_kernel[(len(given) // 1024,)](given, codes, 1024)
    assert torch.equal(codes, quantized(given[:, None, None], torch.ones(1)).flatten())


def test_no_rows_and_only_padding_change_nothing():
    found = pool(4, (1, 8), torch.float32), pool(4, (1, 8), torch.float32)
    for count in (0, 3):
        rows = torch.zeros(count, 1, 8)
        cache_kernels.kv_write(*found, rows, rows, torch.full((count,), -1))
    cache_kernels.move_rows(Layers(found), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    cache_kernels.move_rows(Layers(found), torch.tensor([[2], [-1]]), torch.tensor([[-1], [3]]))
    assert all(tensor.isnan().all() for tensor in found)


SHAPES = {
    "like": [((2, 24), torch.float16)] * 4,
    "keys and values differ": [((1, 40), torch.bfloat16), ((1, 32), torch.bfloat16)],
    "layers differ": [((2, 16), torch.float32), ((1, 8), torch.float16), ((4, 4), torch.bfloat16)],
    "odd rows": [((1, 3), torch.float16), ((1, 5), torch.uint8)],
    "wide rows": [((8, 128), torch.float32)],
    "eight bits": [((2, 24), torch.float8_e4m3fn)] * 2,
}


def check_move(tensors, sources, targets):
    wanted = [tensor.clone() for tensor in tensors]
    reference_cache.move_rows(Layers(wanted), sources, targets)
    cache_kernels.move_rows(Layers(tensors), sources, targets)
    assert all(same(found, right) for found, right in zip(tensors, wanted, strict=True))


@pytest.mark.parametrize("case", SHAPES)
def test_accepted_rows_move_together_in_all_layers(case):
    """Chains of targets that are sources of others, in both directions, a cycle, and rows that stay."""
    tensors = [torch.randint(0, 255, (40, *shape)).to(dtype) for shape, dtype in SHAPES[case]]
    sources = torch.tensor([[3, 5, 7, 9, 12, -1], [20, 22, 21, 24, 24, 4], [31, 32, 33, 34, 35, 30]])
    targets = torch.tensor([[3, 4, 5, 6, 7, 2], [22, 21, 20, 23, 24, -1], [30, 31, 32, 33, 34, 35]])
    check_move(tensors, sources, targets)
    check_move(tensors, sources[2].to(torch.int32), targets[2].to(torch.int32))


def test_pages_are_copied_by_the_same_launch(monkeypatch):
    """Copy-on-write: whole pages to fresh ones, a group a page; few columns a program, so that there are several."""
    monkeypatch.setattr(cache_kernels, "ELEMENTS", 64)
    tensors = [torch.randn(64, 2, 24).half() for _ in range(4)]
    pages = torch.tensor([[0, 2], [3, 1]])[..., None] * 16 + torch.arange(16)
    check_move(tensors, pages[0], pages[1])


@pytest.mark.parametrize("seed", range(6))
def test_random_moves(seed, monkeypatch):
    generator = random.Random(seed)
    monkeypatch.setattr(cache_kernels, "ELEMENTS", generator.choice([256, 4096]))
    shapes = generator.choice(list(SHAPES.values()))
    num_groups, num_moves = generator.randint(1, 4), generator.randint(1, 9)
    tensors = [torch.randint(0, 255, (num_groups * 16, *shape)).to(dtype) for shape, dtype in shapes]
    sources, targets = torch.full((2, num_groups, num_moves), -1)
    for group in range(num_groups):  # each has 16 slots of its own
        count = generator.randint(0, num_moves)
        sources[group, :count] = torch.tensor(generator.choices(range(16), k=count)) + group * 16
        targets[group, :count] = torch.tensor(generator.sample(range(16), count)) + group * 16
    check_move(tensors, sources, targets)


def test_a_group_that_no_program_can_hold_is_refused():
    slots = torch.zeros(cache_kernels.MAX_MOVES + 1, dtype=torch.int64)
    with pytest.raises(ValueError, match="expected groups of at most 1024 moves, got 1025; move them in several"):
        cache_kernels.move_rows(Layers([torch.zeros(4, 1, 4)]), slots, slots)
