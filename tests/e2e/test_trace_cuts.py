"""A cut that counts as the same is the same: drafts of a large setting, cut, against those of the small one.

Drafters with random weights, at every position of a text; nearly all they draft is wrong, and compared all the same.
"""

import pytest
import torch

from specdec.draft_models.dflash import DFlash
from specdec.draft_models.eagle import Eagle
from specdec.draft_models.eagle3 import Eagle3
from specdec.draft_models.medusa import Medusa
from specdec.draft_models.peagle import PEagle
from specdec.experiments.trace.cuts import Setting, cut
from specdec.experiments.trace.schema import read_trace, write_trace
from specdec.experiments.trace.tracing import Tracing, trace_arm
from specdec.methods import paged
from tests.toys.heads import ONE_PASS, STEPPING, tiny_target
from tests.toys.parallel_heads import PARALLEL

PROMPT = torch.tensor([[4, 1, 7, 2, 4, 1]])
HEADS = {
    "eagle": (Eagle, STEPPING["eagle"]),
    "eagle3": (Eagle3, STEPPING["eagle3"]),
    "medusa": (Medusa, ONE_PASS["medusa"]),
    "peagle": (PEagle, PARALLEL["peagle"]),
    "dflash": (DFlash, ONE_PASS["block"]),
    "dspark": (DFlash, ONE_PASS["block with a Markov head"]),
}
SAMPLED = {"do_sample": True, "top_k": 0, "eos_token_id": None, "pad_token_id": 0}
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def target():
    return paged(tiny_target())


def traced(target, drafter, sampling, path):
    tracing = Tracing({"max_new_tokens": 10, **sampling}, seeds=3)
    write_trace(path / "a.parquet", trace_arm(target, drafter, "sample_and_match", tracing, [PROMPT]), {})
    return read_trace(path / "a.parquet")


def compared(large, small, setting):
    """Of every position: whether the cut counts as the same, and whether it is."""
    for one, other in zip(large.drafts, small.drafts, strict=True):
        found = cut(one, setting, large.header)
        places = {node: place for place, node in enumerate(found.nodes)} | {-1: -1}
        nodes = [(one.tokens[node], places[one.parents[node]]) for node in found.nodes]
        yield found.is_same, nodes == list(zip(other.tokens, other.parents, strict=True))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("method", ["greedy", "coupled", "probabilistic"])
def test_chains(target, tmp_path, name, method):
    kind, network = HEADS[name]
    network, options = network(), {"draft_sample_method": method}
    large = traced(target, kind(network, 5, **options), SAMPLED, tmp_path)
    for length in (1, 3, 4):
        small = traced(target, kind(network, length, **options), SAMPLED, tmp_path)
        found = list(compared(large, small, Setting(length)))
        assert all(is_equal for is_same, is_equal in found if is_same)
        assert kind is DFlash or all(is_same for is_same, _ in found)


@pytest.mark.parametrize("name", HEADS)
def test_trees(target, tmp_path, name):
    kind, network = HEADS[name]
    network = network()
    large = traced(target, kind(network, 4, num_tree_nodes=14, tree_width=3), GREEDY, tmp_path)
    num_same = 0
    for depth, size, width in ((4, 6, 3), (4, 13, 3), (2, 5, 3), (2, 14, 3), (1, 3, 3), (4, 8, 2), (3, 9, 3)):
        small = traced(target, kind(network, depth, num_tree_nodes=size, tree_width=width), GREEDY, tmp_path)
        setting = Setting(depth if depth < 4 else None, size, width if width < 3 else None)
        found = list(compared(large, small, setting))
        assert all(is_equal for is_same, is_equal in found if is_same)
        num_same += sum(is_same for is_same, _ in found)
        assert depth < 4 or width < 3 or all(is_same for is_same, _ in found), "fewer nodes can always be told"
    assert num_same > (19 if kind is DFlash else 25)


def test_a_shorter_block_is_another(target, tmp_path):
    """Otherwise calling it an approximation would be too careful."""
    network = ONE_PASS["block"]()
    large = traced(target, DFlash(network, 5), GREEDY, tmp_path)
    small = traced(target, DFlash(network, 3), GREEDY, tmp_path)
    assert not all(is_equal for _, is_equal in compared(large, small, Setting(3)))
