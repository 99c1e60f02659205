"""Known mistakes planted in a copy of the kernels that verify drafts; each must change a decision in a few batches."""

import importlib
import random

import pytest
import torch

from specdec.kernels import reference_verify
from tests.toys.packed import drawn_chains, far_apart
from tests.toys.planted import copy_kernels

REJECTION, BLOCK = "verify_rejection", "verify_block"
TREE_MUTANTS = [
    ("siblings share a uniform", "trees", "<< 16 | draws", "<< 16"),
    ("a test goes by the node, not by its parent", "trees", "(tl.maximum(parents, 0) <<", "(node <<"),
    ("a second sibling is passed over", "trees", "node > child)", "node > child + 1)"),
    ("only the first sibling is tested", "trees", "is_refused = child < NODES\n", "is_refused = child < 0\n"),
    ("p of the later tests is not normalised", "trees", "tl.where(mass > 0, mass, 1.0)), p)", "1.0), p)"),
    ("q of the later tests is not normalised", "trees", "tl.div_rn(q, others)", "q"),
    ("a refused token stays in q", "trees", "tl.load(refused_ptr + each), 0.0,", "-1, 0.0,"),
    ("the second refusal leaves p alone", "trees", "for each in range(num_refused)", "for each in range(1)"),
    ("a correction is drawn from p", "trees", "& (num_refused > 0)", "& (num_refused > 9)"),
    ("noise is drawn from", "trees", "if mass == 0:", "if mass == -1:"),
    ("rounding counts as something left", "parts", "2.0**-23", "0.0"),
    ("a chosen child ends the path", "trees", "(is_sampled == 0) & (tokens", "(last < 0) & (tokens"),
    ("chosen children of others count", "trees", "is_chosen = (parents == last)", "is_chosen = (parents >= 0)"),
    ("draws are keyed by the node", "parts", "tl.load(depths_ptr + row)", "node"),
    ("a path may come to what was refused", "trees", "is_first == is_passed", "is_first"),
]
PASSES, LEFT = "(node <= last) & (uniform < passes)", "left_of(p, q, tl.load(weights_ptr + row))"
BLOCK_MUTANTS = [
    ("weights exceed one", "parts", "node == step, ratios, 0.0), 0), 1.0)", "node == step, ratios, 0.0), 0), 9.0)"),
    ("what is left has no weight", "parts", LEFT, "left_of(p, q, total * 0 + 1)"),
    ("a test forgets what was missed", "parts", "masses + 1 - weights", "masses"),
    ("the last test is like the others", "parts", "passes = tl.where(node == last, weights, passes)", "pass"),
    ("the deepest test alone decides", "parts", PASSES, PASSES.replace("<= last", "== last")),
]
MUTANTS = [(REJECTION, *mutant) for mutant in TREE_MUTANTS] + [(BLOCK, *mutant) for mutant in BLOCK_MUTANTS]


def batches(rule):
    """Small ones that between them take every path."""
    if rule == REJECTION:
        yield hopeless()
    for seed in range(4):
        generator = random.Random(seed)
        if rule == BLOCK:
            scores, *rest = drawn_chains(generator, [4] * 8, [6, 70][seed % 2], [True, True, False])
            yield scores + torch.randn_like(scores), *rest
        else:
            yield far_apart(generator, 16, 12, [6, 6, 70, 6][seed], [[True], [True, False]][seed % 2])


def hopeless():
    """Two siblings that the target never says; behind the second refusal only rounding would be left."""
    scores, probs, trees, sampled, seeds, starts = far_apart(random.Random(0), 0, 8, 130, [True])
    torch.manual_seed(0)
    trees = trees._replace(
        tokens=torch.tensor([5, 1, 2] * 8),
        parents=torch.tensor([-1, 0, 0] * 8, dtype=torch.int32),
        depths=torch.tensor([0, 1, 1] * 8, dtype=torch.int32),
        cu_nodes=torch.arange(0, 27, 3, dtype=torch.int32),
        max_nodes=3,
        max_depth=1,
    )
    scores = torch.randn(24, 130).index_fill(1, torch.tensor([1, 2]), -torch.inf)
    probs = scores.softmax(-1) * 0.5
    probs[:, 1], probs[:, 2] = 0.5, 1e-8
    return scores, probs, trees, torch.tensor([False, True, True] * 8), seeds, starts


def differs(name, rule, monkeypatch):
    kernels = importlib.import_module(f"{name}.verify_kernels")
    monkeypatch.setattr(kernels, "TILE", 64)
    torch.use_deterministic_algorithms(True)  # memory that nobody has written is NaN
    try:
        for batch in batches(rule):
            found, wanted = (getattr(module, rule)(*batch) for module in (kernels, reference_verify))
            if not all(torch.equal(*pair) for pair in zip(found, wanted, strict=True)):
                return True
    finally:
        torch.use_deterministic_algorithms(False)
    return False


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("rule", [REJECTION, BLOCK])
def test_the_kernels_themselves_pass(rule, on_path, monkeypatch):
    assert not differs(copy_kernels(on_path, f"sound_{rule}"), rule, monkeypatch)


@pytest.mark.parametrize(("rule", "mistake", "part", "old", "new"), MUTANTS, ids=[mutant[1] for mutant in MUTANTS])
def test_a_planted_mistake_shows(rule, mistake, part, old, new, on_path, monkeypatch):
    name = f"planted_verify_{MUTANTS.index((rule, mistake, part, old, new))}"
    assert differs(copy_kernels(on_path, name, f"verify_{part}", old, new), rule, monkeypatch)
