"""The kernels behind the target's scores against their twins, decision for decision; scratch memory is poisoned."""

import random

import pytest
import torch

from specdec.kernels import draw_kernels, reference, reference_sampling, reference_verify, verify_kernels
from tests.toys.packed import drawn_chains, far_apart, forest, inside

NAN = float("nan")


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Whatever a kernel does not write is NaN, or a number that no result has."""
    empty = torch.empty

    def poisoned(*size, **options):
        tensor = empty(*size, **options)
        return tensor.fill_(NAN if tensor.is_floating_point() else -77)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(params=[64, 4096])
def tile(request, monkeypatch):
    """Many parts a row, or one or two as on a GPU."""
    for module in (draw_kernels, verify_kernels):
        monkeypatch.setattr(module, "TILE", request.param)
    return request.param


@pytest.mark.parametrize("vocab", [1, 5, 64, 65, 127, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_argmax(vocab, dtype, tile):
    rows = torch.randint(-9, 9, (7, vocab)).to(dtype)  # ties everywhere
    rows[1] = -torch.inf
    rows[2, vocab // 2] = torch.inf
    rows[3] = 0.0
    rows[3, : vocab // 2] = -0.0
    rows[4, vocab - 1] = NAN
    rows[5, vocab // 3 :] = -rows[4, vocab - 1]  # with a sign
    rows = inside(rows, 3)
    found = draw_kernels.argmax(rows)
    assert torch.equal(found, reference.argmax(rows)) and found.dtype == torch.int64
    assert torch.equal(draw_kernels.argmax(rows[None, :5]), reference.argmax(rows[None, :5]))
    assert draw_kernels.argmax(rows[:0]).shape == (0,)


def test_argmax_of_a_row_with_several_full_tiles():
    rows = torch.randn(2, 2 * 4096 + 1)
    rows[1, 4096], rows[1, 8192] = 9.0, 9.0
    assert draw_kernels.argmax(rows).tolist() == [int(rows[0].argmax()), 4096]


@pytest.mark.parametrize("vocab", [3, 64, 301])
def test_gumbel_argmax(vocab, tile):
    num_rows = 40 if tile == 4096 else 12
    scores = inside(torch.randn(num_rows, vocab) * 3, 2)
    scores[3, 1:] = -torch.inf
    seeds = torch.randint(-(1 << 62), 1 << 62, (num_rows,))
    seeds[:4] = torch.tensor([0, -1, (1 << 63) - 1, 1 << 32])
    positions = torch.randint(0, 1 << 20, (num_rows,), dtype=torch.int32)
    positions[5] = (1 << 31) - 1
    wanted = reference_sampling.gumbel_argmax(scores, seeds, positions)
    assert torch.equal(draw_kernels.gumbel_argmax(scores, seeds, positions), wanted)
    again = [3, 1, 0]
    found = draw_kernels.gumbel_argmax(scores[again], seeds[again], positions[again].long())
    assert found.tolist() == wanted[again].tolist()


@pytest.mark.parametrize("seed", range(25))
def test_walk(seed):
    generator = random.Random(seed)
    max_nodes = generator.choice([1, 2, 5, 33, 70])
    sizes = [generator.randrange(max_nodes + 1) for _ in range(generator.randint(1, 5))]
    trees = forest(generator, generator.choice([1, 2, 4]), max_nodes, sizes)
    targets = torch.tensor([generator.randrange(3) for _ in trees.tokens])
    wanted = reference_sampling.walk(trees, targets)
    assert_same(draw_kernels.walk(trees, targets), wanted)


@pytest.mark.parametrize("kinds", [[True], [False], [True, True, False]], ids=["sampled", "chosen", "mixed"])
@pytest.mark.parametrize("rule", ["verify_rejection", "verify_block"])
@pytest.mark.parametrize("seed", range(5))
def test_chains_are_verified_as_by_the_twin(rule, kinds, seed, tile):
    generator = random.Random(seed)
    sizes = [generator.randrange(7) for _ in range(5)]
    scores, probs, *rest = drawn_chains(generator, sizes, [4, 65, 128, 200, 30][seed], kinds)
    scores, probs = inside(scores, 3), inside(probs, 6)
    wanted = getattr(reference_verify, rule)(scores, probs, *rest)
    assert_same(getattr(verify_kernels, rule)(scores, probs, *rest), wanted)
    if kinds == [False]:
        assert_same(getattr(verify_kernels, rule)(scores, None, *rest), wanted)


@pytest.mark.parametrize("kinds", [[True], [False], [True, False]], ids=["sampled", "chosen", "mixed"])
@pytest.mark.parametrize("seed", range(6))
def test_trees_are_verified_as_by_the_twin(kinds, seed, tile):
    generator = random.Random(seed)
    scores, probs, *rest = far_apart(generator, [6, 20, 33][seed % 3], 8, [4, 6, 12, 70, 130, 6][seed], kinds)
    wanted = reference_verify.verify_rejection(scores, probs, *rest)
    assert_same(verify_kernels.verify_rejection(inside(scores, 3), inside(probs, 6), *rest), wanted)


def assert_same(found, wanted):
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


@pytest.mark.parametrize("rule", ["verify_rejection", "verify_block"])
def test_equal_p_and_q_accept_everything_and_far_ones_nothing(rule, tile):
    """Of the far ones all of p is left. Where only rounding is left, the token is a draw from p."""
    scores, probs, trees, sampled, seeds, starts = drawn_chains(random.Random(1), [4, 4, 2, 2, 2, 2], 130, [True])
    p = scores.softmax(-1)
    probs[:4], probs[4:8] = p[:4], torch.eye(130)[0]  # which the target never says
    trees.tokens[1:4] = p[:3].argmax(-1)
    trees.tokens[5:8] = 0
    for row in range(8, 16, 2):  # p / q = 1/50: almost always refused, and then q is nowhere less than p
        trees.tokens[row + 1] = p[row].argmax()
        probs[row] = p[row]
        probs[row, p[row].argmax()] *= 50
    args = scores, probs, trees, sampled, seeds, starts
    wanted = getattr(reference_verify, rule)(*args)
    assert wanted[0][:, 0].tolist() == [4, 1, 1, 1, 1, 1] and wanted[0][1, 1] != 0
    assert_same(getattr(verify_kernels, rule)(*args), wanted)


@pytest.mark.parametrize("rule", ["verify_rejection", "verify_block"])
def test_a_sampled_token_without_q_is_reported(rule):
    scores, probs, trees, sampled, seeds, starts = drawn_chains(random.Random(2), [3, 0, 3], 40, [True])
    probs[4, trees.tokens[5]] = 0.0
    for body in (reference_verify, verify_kernels):
        counts = getattr(body, rule)(scores, probs, trees, sampled, seeds, starts)[0][:, 0].tolist()
        assert counts[0] > 0 and counts[1:] == [0, -1]
        counts = getattr(body, rule)(scores, None, trees, sampled, seeds, starts)[0][:, 0].tolist()
        assert counts == [-1, 0, -1]
