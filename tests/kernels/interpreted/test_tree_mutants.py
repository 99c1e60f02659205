"""Known mistakes planted in a copy of the tree-attention kernels; each must show in one of a few batches."""

import importlib
import random

import pytest
import torch

from specdec.kernels.rows import Scoring
from tests.toys.planted import copy_kernels
from tests.toys.ragged import CONTIGUOUS, Shape, batch_of, chain, error_of, random_tree

SOUND, WRONG = 1e-5, 1e-3  # relative errors in float32: rounding, and what no rounding explains
MERGED = "\n        top, total, mixed = sunk("

MUTANTS = [
    ("the window is one narrower", "attention", "+ j)[None, :] >= low", "+ j)[None, :] > low"),
    ("the window of a tree goes by index", "attention", "tl.where(is_node, start + depth, index)", "index"),
    ("the attention chunk is not there", "attention", "position // chunk_size * chunk_size", "0 * position"),
    ("tiles in front of the window are left out too early", "plan", "lowest - window + 1", "lowest - window + 17"),
    ("the second word is not read", "steps", " | ((high << 1) << (63 - shift))", ""),
    ("words are those of the first node", "attention", "line * num_words", "tree * num_words + m * 0"),
    ("ancestors that are far away are not seen", "tables", ".bit_length()):", ".bit_length() - 1):"),
    ("trees share the words of the first one", "tables", "tree += 0 if request.parents is None else", "tree += 0 *"),
    ("nodes computed before are not counted", "tables", "stop, start, node, tree))", "stop, start, 0, tree))"),
    ("a row of a chain sees the next one", "attention", "start - 1, start + node)", "start - 1, start + node + 1)"),
    ("the key behind the last is seen", "attention", "is_key = index < limit", "is_key = index < limit + 1"),
    ("the last tiles are attended twice", "attention", "tl.maximum(begin, full) * TILE", "full * TILE"),
    ("the page is not the next one", "attention", "tl.minimum(tile + 1, final)", "tl.minimum(tile, final)"),
    ("heads are interleaved", "attention", "kv_head * GROUP + m % GROUP\n", "kv_head + m % GROUP * KV_HEADS\n"),
    ("shares overlap", "plan", "tl.minimum(origin + share, high)", "tl.minimum(origin + share + 1, high)"),
    ("items of a strip write to one place", "plan", "place + split)", "place)"),
    ("blocks of rows write to one place", "attention", " * num_blocks + block)", " * num_blocks)"),
    ("sums are not scaled down with the maximum", "steps", "total * decay + tl.sum(weights", "total + tl.sum(weights"),
    ("the merge weighs items alike", "attention", "tl.exp2(weight - shift[None, :])", "(weight > -1e9).to(tl.float32)"),
    ("the merge forgets the sinks", "attention", MERGED, MERGED.replace("top, total", "_, _")),
    ("keys have the scales of the first head", "attention", "keys, scales, kv_head)", "keys, scales, 0)"),
    ("values have the scales of keys", "attention", "scales, KV_HEADS + kv_head)", "scales, kv_head)"),
    ("the softcap forgets the scaling", "steps", "scores * (factor * 2.0 / cap)", "scores * (LOG2E * 2.0 / cap)"),
]  # fmt: skip


def batches():
    """Small ones that between them take every path."""
    rng = random.Random(1)
    two, one = Shape(4, 2, 16, 16), Shape(3, 1, 16, 16)
    tree, large = random_tree(9, rng), random_tree(80, rng)
    yield batch_of([(100, tree, 16, 0), (40, chain(1), CONTIGUOUS, 0)], two, Scoring(0.4), rng)
    yield batch_of([(70, tree, 16, 4), (21, large, 16, 3)], one, Scoring(0.4, window=12, softcap=2.0), rng, True)
    yield batch_of([(5, chain(60), 16, 7), (50, tree, 1, 2)], two, Scoring(0.4, chunk=32), rng)
    yield batch_of([(70, tree, 16, 0), (40, chain(3), 16, 0)], two, Scoring(0.4), rng).in_eight_bits()


def worst_error(kernels, name, monkeypatch):
    """Of the batches, with tiles so small that strips are cut and rows fill several blocks."""
    attention, plan = (importlib.import_module(f"{name}.{each}") for each in ("tree_attention", "tree_plan"))
    monkeypatch.setattr(plan, "MIN_KEYS", 16)
    monkeypatch.setattr(plan, "_tiling", lambda *_: (16, 16, 4, 3, 2))
    torch.use_deterministic_algorithms(True)  # memory that nobody has written is NaN
    worst = 0.0
    try:
        for case in batches():
            worst = max(worst, error_of(attention.tree_attention(*case), case))
            if worst > WRONG:
                break
    finally:
        torch.use_deterministic_algorithms(False)
    return worst


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """Gives a function that copies the kernels with a change, and returns the name of the copy."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def copy(name, changed=None, old="", new=""):
        return copy_kernels(tmp_path, name, changed and f"tree_{changed}", old, new)

    return copy


def test_the_kernels_themselves_pass(copied, monkeypatch):
    assert worst_error(copied("sound"), "sound", monkeypatch) < SOUND


@pytest.mark.parametrize(("mistake", "module", "old", "new"), MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_planted_mistake_shows(copied, monkeypatch, mistake, module, old, new):
    name = f"planted_{MUTANTS.index((mistake, module, old, new))}"
    assert worst_error(copied(name, module, old, new), name, monkeypatch) > WRONG
