"""Philox noise: the published words, pure functions of the key, roles apart, and draws with the right law."""

import math

import pytest
import torch
from scipy import stats

from specdec.kernels import ops, reference
from specdec.noise import PhiloxNoise, Role, philox_words, request_seed, round_keys

FALSE_ALARM = 1e-6  # of each statistical test; seeds are fixed, so it bounds the odds of a failure after a seed change
KNOWN_ANSWERS = [  # Random123, kat_vectors: counter, key, words of philox4x32-10
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF, 0xFFFFFFFF), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SCORES = torch.randn(9, 37, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words):
    seed = key[1] << 32 | key[0]
    assert tuple(ops.philox(seed, *map(torch.tensor, counter)).tolist()) == words
    assert philox_words(round_keys(seed), counter) == words


def test_philox_on_tensors_and_on_integers_are_the_same_words():
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(0, 1 << 32, (4, 50), generator=generator)
    for seed in (0, 1, 0x0123456789ABCDEF, (1 << 64) - 1):
        words = ops.philox(seed, *counters).tolist()
        assert [tuple(row) for row in words] == [philox_words(round_keys(seed), tuple(c)) for c in counters.T.tolist()]


def test_philox_broadcasts_and_leaves_its_arguments_alone():
    rows, blocks, zero = torch.arange(3)[:, None], torch.arange(5), torch.zeros((), dtype=torch.int64)
    words = reference.philox(9, rows, zero, zero, blocks)
    assert words.shape == (3, 5, 4)
    assert tuple(words[2, 3].tolist()) == philox_words(round_keys(9), (2, 0, 0, 3))
    assert rows.flatten().tolist() == [0, 1, 2] and blocks.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", [-1, 1 << 64])
def test_a_seed_of_more_than_64_bits_is_refused(seed):
    zero = torch.zeros((), dtype=torch.int64)
    for use in (PhiloxNoise, lambda s: request_seed(s, 0), lambda s: ops.philox(s, zero, zero, zero, zero)):
        with pytest.raises(ValueError, match="expected a seed of 64 bits, got .*; pass an int"):
            use(seed)


def test_target_draws_depend_on_seed_position_and_row_alone():
    """Any grouping, any order, before and after other draws: what a round, a tree or a batch may do."""
    positions = [40, 41, 41, 43, 42, 100, 7, 8, 40]
    once = PhiloxNoise(3).target_tokens(SCORES, positions)
    noise = PhiloxNoise(3)
    for order in ([8, 3, 1], [0], [5, 6], [2, 4, 7], [7, 6, 5, 4, 3, 2, 1, 0]):
        tokens = noise.target_tokens(SCORES[order], [positions[row] for row in order])
        assert tokens == [once[row] for row in order]
        noise.draft_token(SCORES[0].exp(), 40, 0, 0)
        noise.residual_token(SCORES[0].exp(), 41)
        noise.accept(0.5, 40, 1, 0)
    assert PhiloxNoise(4).target_tokens(SCORES, positions) != once
    assert noise.target_tokens(SCORES, [position + 1 for position in positions]) != once


@pytest.mark.parametrize("vocab", [3, 37, 20_000])
def test_the_window_of_noise_is_the_noise_and_stays_small(vocab):
    """Rounds that walk forward, step back, jump and look far ahead all see the rows of a fresh request."""
    noise, scores = PhiloxNoise(11), torch.zeros(1, vocab)
    starts = [5, 6, 5, 9, 12, 11, 300, 290, 301, 2, 340, 341]
    for start, count in zip(starts, [3, 5, 1, 6, 20, 2, 4, 4, 4, 2, 3, 40], strict=True):
        positions = list(range(start, start + count))
        tokens = noise.target_tokens(scores.expand(count, -1), positions)
        assert tokens == [PhiloxNoise(11).target_tokens(scores, [position])[0] for position in positions]
        assert noise._window.numel() <= max(1 << 14, vocab * 40) + vocab * 60
    noise.target_tokens(torch.zeros(1, vocab + 1), [341])
    assert noise._window.shape[1] == vocab + 1, "another vocabulary starts another window"


def test_float32_and_float64_scores_draw_the_same_tokens():
    scores = torch.randn(400, 50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    positions = list(range(400))
    assert PhiloxNoise(0).target_tokens(scores, positions) == PhiloxNoise(0).target_tokens(scores.float(), positions)


def test_tokens_without_probability_never_win_and_ties_go_to_the_lowest_id():
    noise = PhiloxNoise(1)
    lonely = torch.full((500, 21), -torch.inf)
    lonely[:, 13] = -1e4
    assert set(noise.target_tokens(lonely, range(500))) == {13}
    assert noise.coupled_tokens(lonely[0], 4, 3) == [13]
    assert noise.target_tokens(torch.full((1, 9), torch.inf), [3]) == [0]
    probs = torch.zeros(21)
    probs[13] = 1e-30
    assert {noise.draft_token(probs, start, 2, 1) for start in range(500)} == {13}
    assert {noise.residual_token(probs, start) for start in range(500)} == {13}


def test_the_exponentials_are_finite_and_not_zero_at_both_ends(monkeypatch):
    """A word of all zeros or all ones: with -log(u) or without the clamp one of them decides every race."""
    for word in (0, 1, 0xFFFFFF7F, 0xFFFFFFFF):
        monkeypatch.setattr("specdec.noise.philox", lambda *key, w=word: torch.full((1, 1, 4), w))
        gumbel = PhiloxNoise(0)._gumbels(torch.zeros(1, 4), [0])
        assert gumbel.isfinite().all()
        uniform = min((word + 0.5) * 2.0**-32, 1 - 2.0**-24)
        assert gumbel[0, 0].item() == pytest.approx(-math.log(-math.log1p(-uniform)), rel=1e-5)


def test_accept_is_strict_and_monotone():
    noise = PhiloxNoise(2)
    for node in range(200):
        assert not noise.accept(0.0, 5, node, 0) and not noise.accept(-1.0, 5, node, 0)
        assert not noise.accept(math.nan, 5, node, 0)
        assert noise.accept(1.0, 5, node, 0) and noise.accept(math.inf, 5, node, 0)
        passes = [noise.accept(step / 64, 5, node, 0) for step in range(65)]
        assert passes == sorted(passes), "one uniform, whatever it is compared with"
        uniform = noise._uniform(Role.ACCEPT, 5, node, 0)
        assert not noise.accept(uniform, 5, node, 0) and noise.accept(math.nextafter(uniform, 1), 5, node, 0)


def test_keys_and_roles_are_disjoint_streams():
    noise = PhiloxNoise(6)
    keys = [(role, start, node, draw) for role in Role for start in (0, 1, 9) for node in range(4) for draw in range(3)]
    uniforms = [noise._uniform(*key) for key in keys]
    assert len(set(uniforms)) == len(keys)
    assert all(0 <= uniform < 1 for uniform in uniforms)


def test_request_seeds_are_distinct_and_repeatable():
    seeds = {request_seed(seed, row) for seed in (0, 1, 2, 1 << 63, (1 << 64) - 1) for row in range(2000)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 1 << 64 for seed in seeds)
    assert request_seed(7, 3) == request_seed(7, 3)


PROBS = torch.tensor([0.3, 0.0, 0.25, 0.2, 0.15, 0.07, 0.02, 0.01])
DRAWS = 20_000


def chi_square(counts, probs):
    live = probs > 0
    assert counts[~live].sum() == 0
    return stats.chisquare(counts[live], counts.sum() * probs[live] / probs[live].sum()).pvalue


def counted(tokens):
    return torch.bincount(torch.as_tensor(tokens), minlength=len(PROBS)).double().numpy()


def target_draws(seed):
    return PhiloxNoise(seed).target_tokens(PROBS.log().expand(DRAWS, -1), range(DRAWS))


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_of_every_role_have_the_law_of_the_row(seed):
    noise = PhiloxNoise(seed)
    drawn = {
        "target": target_draws(seed),
        "coupled": [noise.coupled_tokens(PROBS.log(), position, 1)[0] for position in range(DRAWS)],
        "draft": [noise.draft_token(PROBS, start, 3, 1) for start in range(DRAWS)],
        "draft, by node": [noise.draft_token(PROBS * 7, 12, node, 0) for node in range(DRAWS)],
        "residual": [noise.residual_token(PROBS, start) for start in range(DRAWS)],
    }
    assert drawn["coupled"] == drawn["target"]
    for role, tokens in drawn.items():
        assert chi_square(counted(tokens), PROBS.double().numpy()) > FALSE_ALARM, role
    accepted = sum(noise.accept(0.3, start, 0, 0) for start in range(DRAWS))
    assert stats.binomtest(accepted, DRAWS, 0.3).pvalue > FALSE_ALARM


@pytest.mark.parametrize("other", ["next position", "next seed", "next row", "draft", "residual", "accept"])
def test_draws_of_different_keys_are_independent(other):
    noise, positions = PhiloxNoise(0), range(DRAWS)
    drawn = {
        "next position": lambda: [*target_draws(0)[1:], 0],
        "next seed": lambda: target_draws(1),
        "next row": lambda: target_draws(request_seed(0, 1)),
        "draft": lambda: [noise.draft_token(PROBS, position, 0, 0) for position in positions],
        "residual": lambda: [noise.residual_token(PROBS, position) for position in positions],
        "accept": lambda: [int(noise.accept(0.5, position, 0, 0)) for position in positions],
    }[other]()
    table = torch.zeros(8, 8).index_put_(
        (torch.tensor(target_draws(0)), torch.tensor(drawn)), torch.ones(()), accumulate=True
    )
    table = table[table.sum(1) > 500][:, table.sum(0) > 500]  # expected counts of at least 12
    assert stats.chi2_contingency(table.numpy()).pvalue > FALSE_ALARM


@pytest.mark.parametrize("seed", range(3))
def test_coupled_draws_agree_as_often_as_the_formula_says(seed):
    """Sum over x of 1 / sum over v of max(p(v)/p(x), q(v)/q(x)) (algorithms.md 1.7); within 5 standard deviations."""
    p, q = torch.randn(2, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(-1)
    noise, positions = PhiloxNoise(seed), range(DRAWS)
    targets = noise.target_tokens(p.log().expand(DRAWS, -1), positions)
    drafts = noise.target_tokens(q.log().expand(DRAWS, -1), positions)
    expected = sum(1 / float(torch.maximum(p / p[token], q / q[token]).sum()) for token in range(8))
    matches = sum(target == draft for target, draft in zip(targets, drafts, strict=True))
    assert stats.binomtest(matches, DRAWS, expected).pvalue > FALSE_ALARM


def test_coupled_tokens_are_a_sample_without_replacement_best_first():
    noise = PhiloxNoise(8)
    first = [noise.coupled_tokens(PROBS.log(), position, 2) for position in range(DRAWS)]
    assert all(len(set(pair)) == 2 for pair in first)
    after_zero = counted([second for top, second in first if top == 0])
    rest = PROBS.clone()
    rest[0] = 0
    assert chi_square(after_zero, rest.double().numpy()) > FALSE_ALARM
    assert len(noise.coupled_tokens(PROBS.log(), 5, 99)) == 7, "as many as have a probability"
    assert noise.coupled_tokens(torch.full((5,), -torch.inf), 5, 1) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_words_on_a_gpu_are_the_words_on_a_cpu():
    counters = torch.randint(0, 1 << 32, (4, 1000), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ops.philox(77, *counters.cuda()).cpu(), ops.philox(77, *counters))
    scores = SCORES.float()
    assert PhiloxNoise(0).target_tokens(scores.cuda(), range(9)) == PhiloxNoise(0).target_tokens(scores, range(9))
