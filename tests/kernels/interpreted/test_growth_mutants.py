"""Known mistakes planted in a copy of the kernels that grow trees; each must change one of a few trees."""

import importlib
import math
import random

import pytest
import torch

from specdec.kernels import reference_growth
from specdec.kernels.trees import Growth
from tests.toys.levels import THRESHOLD, children, grown
from tests.toys.packed import forest
from tests.toys.planted import copy_kernels

SUM, KEPT = "mask=is_new, other=0.0) + log_probs", "mask=is_kept & (node > 0), other=-1)"
MUTANTS = [
    ("scores are not summed up", "growth", SUM, SUM.replace("+", "* 0 +")),
    ("a limit is one level too deep", "growth", "(level < limit)", "(level <= limit)"),
    ("children come up behind the limit", "growth", "level <= limit,", "level <= limit + 1,"),
    ("the threshold is rounded", "growth", "LOG_THRESHOLD)", "tl.zeros((1,), tl.float32) + LOG_THRESHOLD)"),
    ("all of the best are run", "growth", "(num_above < num_nodes)\n", "(num_above < 999)\n"),
    ("nodes with too many equals are run", "growth", "(rivals >= best)", "(rivals > best)"),
    ("the root is a rival", "growth", "is_rival = (node > 0) &", "is_rival = (node >= 0) &"),
    ("the last of equals is run", "growth", "child, CHILDREN), 0)", "-child, 1), 0) * -1"),
    ("the best is run again and again", "growth", "may_run &= child != chosen", "may_run &= child >= 0"),
    ("what is run hangs on the root", "growth", "tl.sum(tl.where(is_chosen, row, 0), 0)", "tl.min(child, 0)"),
    ("the last of equals is kept", "growth", "(other[None, :] < node[:, None])", "(other[None, :] > node[:, None])"),
    ("parents stay where they were", "growth", f"tl.load(places_ptr + base + parents, {KEPT}", "parents"),
    ("one node more is kept", "growth", "(ranks < num_nodes))", "(ranks <= num_nodes))"),
    ("a node does not see itself", "ancestor", "tl.where(is_node, node, -1)", "tl.where(is_node, node - 1, -1)"),
    ("every word is the first one", "ancestor", "(at // 64 == word)", "(at // 64 == 0)"),
]


def cases():
    """Growth, limits, pending tokens and levels of a few batches."""
    for seed in range(12):
        generator = random.Random(seed)
        growth = Growth(3, 4, [5, 9, 14][seed % 3], [-math.inf, math.log(THRESHOLD)][seed % 2])
        limits = torch.tensor([generator.randint(0, growth.depth) for _ in range(4)], dtype=torch.int32)
        yield growth, limits, torch.arange(4), list(children(generator, 4, growth))


def differs(name):
    """Whether the kernels of this package grow other trees than the twins, or see other ancestors."""
    kernels, ancestors = (importlib.import_module(f"{name}.{each}_kernels") for each in ("growth", "ancestor"))
    for growth, limits, pending, levels in cases():
        trees, wanted = (grown(ops, pending, growth, limits, levels) for ops in (kernels, reference_growth))
        pairs = [(trees.counts, wanted.counts), *zip(trees.runs[:3], wanted.runs[:3], strict=True)]
        if all(torch.equal(*pair) for pair in pairs):
            pairs = zip(kernels.prune(trees)[0][:4], reference_growth.prune(wanted)[0][:4], strict=True)
        if not all(torch.equal(*pair) for pair in pairs):
            return True
    trees = forest(random.Random(0), 9, 70, [70, 3])
    tables = [(torch.zeros(76, 2, dtype=torch.int64), torch.zeros(76, dtype=torch.int32)) for _ in range(2)]
    ancestors.write_ancestors(trees, *tables[0])
    reference_growth.write_ancestors(trees, *tables[1])
    return not all(torch.equal(*pair) for pair in zip(*tables, strict=True))


@pytest.fixture(autouse=True)
def on_path(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_the_kernels_themselves_pass(on_path):
    assert not differs(copy_kernels(on_path, "sound_growth"))


@pytest.mark.parametrize(("mistake", "module", "old", "new"), MUTANTS, ids=[mutant[0] for mutant in MUTANTS])
def test_a_planted_mistake_shows(mistake, module, old, new, on_path):
    name = f"planted_growth_{MUTANTS.index((mistake, module, old, new))}"
    assert differs(copy_kernels(on_path, name, f"{module}_kernels", old, new))
