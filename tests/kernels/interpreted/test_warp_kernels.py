"""Top-k, top-p, min-p and penalties: the kernels against their twins."""

import random

import pytest
import torch

from specdec.kernels import penalty_kernels, reference_sampling, warp_kernels
from tests.toys.packed import forest, inside

ROUNDING = 1e-5  # float32 sums of up to 600 probabilities, added in another order


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """What a kernel does not write is NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(float("nan")))


def parameters(generator, num_rows, vocab):
    """Per row: temperatures, top_k, top_p, min_p; each off now and then."""
    choices = {
        "temperatures": [1.0, 1.0, 0.7, 2.0],
        "top_k": [0, 0, 1, 7, 50, vocab, 10 * vocab],
        "top_p": [1.0, 0.9, 0.5, 0.05, 0.999, 0.0],
        "min_p": [0.0, 0.0, 0.05, 0.3, 1.0],
    }
    drawn = {name: generator.choices(values, k=num_rows) for name, values in choices.items()}
    return {
        name: torch.tensor(values, dtype=torch.int32 if name == "top_k" else torch.float64)
        for name, values in drawn.items()
    }


def borderline(rows, options):
    """Rows [n] in which rounding may decide: a running sum near 1 - p, or a probability near min_p times the best."""
    ones, zeros = torch.ones_like(options["top_p"]), torch.zeros_like(options["top_p"])
    limited = reference_sampling.warp(rows, options["temperatures"], options["top_k"], ones, zeros).double()
    probs = limited.softmax(-1)
    sums = probs.sort()[0].cumsum(-1)
    is_close = ((sums - (1 - options["top_p"])[:, None]).abs() < ROUNDING).any(-1) & (options["top_p"] < 1)
    near = (probs / probs.amax(-1, keepdim=True) - options["min_p"][:, None]).abs() < ROUNDING * options["min_p"][
        :, None
    ]
    return is_close & (options["top_p"] > 0) | (near & (probs < probs.amax(-1, keepdim=True))).any(-1)


@pytest.mark.parametrize("tile", [256, 4096])
@pytest.mark.parametrize("seed", range(9))
def test_warp(seed, tile, monkeypatch):
    monkeypatch.setattr(warp_kernels, "TILE", tile)
    generator = random.Random(seed)
    num_rows, vocab = 4, generator.choice([1, 2, 100, 333, 600])
    rows = torch.randn(num_rows, vocab) * generator.choice([0.1, 3.0, 30.0])
    if seed % 3 == 1:
        rows = rows.bfloat16()  # some ties
    if seed % 3 == 2:
        rows = torch.randint(-3, 3, (num_rows, vocab)).float()  # many
        rows[rows == 0] = -0.0
        rows[:, ::7] = 0.0
        rows[0, 1:] = -torch.inf
    options = parameters(generator, num_rows, vocab)
    wanted = reference_sampling.warp(rows, **options)
    found = warp_kernels.warp(rows, **options)
    clear = ~borderline(rows, options)
    assert clear.sum() >= 1
    assert torch.equal(found[clear], wanted[clear])
    assert (found.isinf() | (found == rows.float() / options["temperatures"].float()[:, None])).all()
    assert found.isfinite().any(-1).all()


@pytest.mark.parametrize("seed", range(8))
def test_penalties(seed, monkeypatch):
    """Committed tokens arrive in two calls; siblings and requests must not see each other's."""
    generator = random.Random(seed)
    monkeypatch.setattr(penalty_kernels, "TILE", generator.choice([32, 1024]))
    sizes = [generator.randrange(1, 7) for _ in range(generator.randint(1, 3))]
    vocab, num_requests = generator.choice([33, 64, 150]), len(sizes)
    trees = forest(generator, vocab, max(sizes) + 1, [*sizes[:-1], 0, sizes[-1]])
    tokens = torch.randint(0, vocab, (num_requests + 1, 20), dtype=torch.int32)
    lengths = torch.tensor(generator.choices(range(1, 21), k=num_requests + 1))
    ignored = torch.tensor([[generator.randrange(24), generator.randrange(24)] for _ in lengths])
    first = torch.minimum(lengths, torch.tensor(7))
    penalties = torch.tensor([[generator.choice([1.0, 1.3, 0.8]), generator.choice([0.0, 0.7])] for _ in lengths])
    scores = inside(torch.randn(len(trees.tokens), vocab), 5)
    scores[0, :9] = -torch.inf
    results = []
    for body in (reference_sampling, penalty_kernels):
        seen = torch.zeros(num_requests + 1, 2, -(-vocab // 32), dtype=torch.int32)
        body.mark_seen(seen, tokens, torch.zeros_like(first), first, ignored)
        body.mark_seen(seen, tokens[:, 7:], first, (lengths - 7).clamp_min(0), ignored)
        results.append((seen, body.penalize(scores, trees, seen, lengths, penalties.double(), ignored)))
    (seen, wanted), (found_seen, found) = results
    assert torch.equal(found_seen, seen)
    live = sum(sizes)  # rows behind the trees are padding of the bucket
    assert torch.equal(found[:live], wanted[:live])
