"""The best tokens of a row, and drawn ones: the kernels against their twins; scratch memory is poisoned."""

import random

import pytest
import torch

from specdec.kernels import draft_kernels, reference_sampling
from tests.toys.packed import inside

ROUNDING = 2e-6  # float32: a sum of 400 exponentials, its logarithm, and log-probabilities down to -16


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """What a kernel does not write is NaN, or a rank above all others."""
    empty = torch.empty

    def poisoned(*size, **options):
        tensor = empty(*size, **options)
        return tensor.fill_(float("nan") if tensor.is_floating_point() else (1 << 63) - 1)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.parametrize("tile", [32, 2048])
@pytest.mark.parametrize("seed", range(8))
def test_draft_topk(seed, tile, monkeypatch):
    monkeypatch.setattr(draft_kernels, "TILE", tile)
    generator = random.Random(seed)
    vocab = generator.choice([3, 32, 33, 100, 400])
    count = generator.randint(1, min(vocab, 10))
    rows = torch.randn(5, vocab) * 3
    if seed % 2:
        rows = torch.randint(-2, 2, (5, vocab)).to(torch.bfloat16)  # ties everywhere
        rows[rows == 0] = -0.0
        rows[:, ::3] = 0.0
    rows[2, count:] = -torch.inf
    temperatures = generator.choice([None, torch.tensor([1.0, 0.7, 2.0, 0.1, 1.3], dtype=torch.float64)])
    tokens, log_probs = draft_kernels.draft_topk(inside(rows, 5), count, temperatures)
    wanted, wanted_log_probs = reference_sampling.draft_topk(rows, count, temperatures)
    assert torch.equal(tokens, wanted)
    scale = 1 + wanted_log_probs.abs()
    assert (log_probs.exp() - wanted_log_probs.exp()).abs().max() < ROUNDING
    assert (((log_probs - wanted_log_probs) / scale).abs() < ROUNDING).all()


@pytest.mark.parametrize("tile", [32, 2048])
@pytest.mark.parametrize("vocab", [1, 32, 33, 300])
def test_draft_draw(vocab, tile, monkeypatch):
    monkeypatch.setattr(draft_kernels, "TILE", tile)
    probs = torch.rand(30, vocab) * (torch.rand(30, vocab) < 0.7)
    probs[:, vocab // 2] += 0.1
    probs[3] = torch.eye(vocab)[vocab - 1] * 1e-30
    probs[4] = torch.eye(vocab)[0] * 1e30
    seeds = torch.randint(-(1 << 62), 1 << 62, (30,))
    seeds[:3] = torch.tensor([0, -1, (1 << 63) - 1])
    starts, nodes = torch.randint(1, 1 << 20, (30,), dtype=torch.int32), torch.randint(0, 1 << 16, (30,))
    for rows in (inside(probs, 5), probs.bfloat16(), probs.T.contiguous().T):
        wanted = reference_sampling.draft_draw(rows, seeds, starts, nodes)
        assert torch.equal(draft_kernels.draft_draw(rows, seeds, starts, nodes), wanted)
        assert (rows.gather(1, wanted[:, None]) > 0).all()
    assert torch.equal(draft_kernels.draft_draw(rows, seeds, starts.long(), nodes.int()), wanted)


def test_no_rows():
    tokens, log_probs = draft_kernels.draft_topk(torch.zeros(0, 9), 4)
    assert tokens.shape == log_probs.shape == (0, 4)
    nothing = torch.zeros(0, dtype=torch.int64)
    assert draft_kernels.draft_draw(torch.zeros(0, 9), nothing, nothing, nothing).shape == (0,)
