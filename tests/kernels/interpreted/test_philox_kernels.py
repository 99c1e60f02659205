"""The random words within kernels, and what is made of them, against the noise of a request."""

import pytest
import torch
import triton
import triton.language as tl

from specdec.kernels.philox import gumbel, noise_of, uniforms
from specdec.noise import PhiloxNoise, Role

# float32 logarithms of float32 numbers, here and there: two units in the last place of values up to 22.2.
ROUNDING = 4e-6
SEEDS = [0, 1, (1 << 64) - 1, 0x0123456789ABCDEF]


@triton.jit
def _gumbel_kernel(seeds_ptr, positions_ptr, noise_ptr, TILE: tl.constexpr):
    row, block = tl.program_id(0), tl.program_id(1)
    noise = gumbel(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), block, TILE)
    tl.store(noise_ptr + (row * tl.num_programs(1) + block) * TILE + tl.arange(0, TILE), noise)


@triton.jit
def _uniform_kernel(seeds_ptr, positions_ptr, nodes_ptr, uniforms_ptr, ROLE: tl.constexpr, COUNT: tl.constexpr):
    node = tl.arange(0, COUNT)
    found = uniforms(tl.load(seeds_ptr), ROLE, tl.load(positions_ptr), tl.load(nodes_ptr + node).to(tl.uint32) << 16)
    tl.store(uniforms_ptr + node, found)


@triton.jit
def _words_kernel(words_ptr, noise_ptr, COUNT: tl.constexpr):
    index = tl.arange(0, COUNT)
    tl.store(noise_ptr + index, noise_of(tl.load(words_ptr + index).to(tl.uint32)))


def signed(seeds):
    return torch.tensor([seed - (1 << 64) if seed >> 63 else seed for seed in seeds])


def test_gumbel_noise_is_that_of_the_request():
    positions, tile, blocks = [0, 7, 1 << 20, (1 << 31) - 1], 1024, 3
    noise = torch.full((4, blocks * tile), float("nan"))
    _gumbel_kernel[4, blocks](signed(SEEDS), torch.tensor(positions, dtype=torch.int32), noise, TILE=tile)
    for seed, position, found in zip(SEEDS, positions, noise, strict=True):
        wanted = PhiloxNoise(seed)._gumbels(torch.zeros(1, blocks * tile), [position])[0]
        assert (found - wanted).abs().max() < ROUNDING


def test_noise_is_finite_and_right_at_both_ends_and_where_its_formula_changes():
    edges = [0, 1, 2, 1000, 1 << 20, (1 << 30) - 200, (1 << 30) - 1, 1 << 30, (1 << 30) + 200, 1 << 31]
    words = torch.tensor(
        [*edges, (1 << 32) - 3000, (1 << 32) - 200, (1 << 32) - 129, (1 << 32) - 128, *[(1 << 32) - 1] * 2]
    )
    noise = torch.full((16,), float("nan"))
    _words_kernel[(1,)](words, noise, COUNT=16)
    uniform = ((words.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24).double()
    wanted = -(-(-uniform).log1p()).log()
    assert (noise.double() - wanted).abs().max() < ROUNDING


@pytest.mark.parametrize("role", [Role.ACCEPT, Role.RESIDUAL])
def test_uniforms_are_those_of_the_request_bit_for_bit(role):
    nodes = torch.tensor([0, 1, 2, 3, 100, 4095, (1 << 15) - 1, (1 << 16) - 1])
    for seed in SEEDS:
        found = torch.full((8,), float("nan"), dtype=torch.float64)
        _uniform_kernel[(1,)](signed([seed]), torch.tensor([99]), nodes, found, ROLE=int(role), COUNT=8)
        assert found.tolist() == [PhiloxNoise(seed)._uniform(role, 99, node, 0) for node in nodes.tolist()]
