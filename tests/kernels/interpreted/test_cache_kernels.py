"""Rows to slots and between slots: the kernels against their twins, bit for bit, whatever lies in unused rows."""

import random

import pytest
import torch

from specdec.kernels import cache_kernels, reference_cache
from specdec.kernels.layers import Layers

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
