"""MTP modules: whatever happened before, their rows are those of a computation from scratch."""

import copy
import random

import pytest
import torch

from specdec.draft_models.mtp import Mtp
from specdec.draft_models.paged_head import PagedHead
from tests.toys.heads import HeadSession
from tests.toys.models import tiny_model
from tests.toys.mtp import TARGETS, made_exact, mtp, mtp_row
from tests.toys.recomputed import compare_rows
from tests.toys.sessions import PROMPTS, VOCAB, sampling

OPTIONS: list[dict] = [
    {},
    {"num_tree_nodes": 7, "tree_width": 3},
    {"draft_sample_method": "probabilistic"},
    {"draft_sample_method": "coupled", "num_tree_nodes": 6},
]
CASES: list[tuple[str, dict, dict]] = [("llama", {}, options) for options in OPTIONS]
CASES += [(family, {}, options) for family in TARGETS if family != "llama" for options in OPTIONS[:2]]
CASES += [("llama", {"is_state_first": True}, OPTIONS[1]), ("llama", {"is_own": True}, OPTIONS[1])]


@pytest.fixture(scope="module")
def targets():
    return {family: build() for family, build in TARGETS.items()}


def compared(monkeypatch, target):
    """From here on every row of a module is compared; how many rows each call gave."""
    twin = copy.deepcopy(target)  # transformers leaves hooks on a model that was asked for hidden states
    return compare_rows(monkeypatch, PagedHead, lambda head, tokens, count: mtp_row(head.network, twin, tokens, count))


@pytest.mark.parametrize(("family", "kind", "options"), CASES, ids=str)
def test_rows_are_those_of_a_computation_from_scratch_after_any_history(family, kind, options, targets, monkeypatch):
    """Ragged budgets with zeros, any accepted path, skipped rounds, shared and copied pages."""
    target, chance = targets[family], random.Random(str(options))
    made_exact(monkeypatch, target)
    counts = compared(monkeypatch, target)
    session = HeadSession(Mtp(mtp(target, **kind), 4, **options), target, sampler=sampling())
    for _ in range(8):
        present = [index for index in range(3) if chance.random() < 0.8]
        budgets = [chance.choice([0, 1, 2, 4, 9]) for _ in present]
        for index, budget, draft in zip(present, budgets, session.propose(budgets, present), strict=True):
            assert draft.tree.tokens[0] == session.tokens[index][-1] and max(draft.tree.depths) <= min(budget, 4)
            nodes = [0]
            while children := [node for node, parent in enumerate(draft.tree.parents) if parent == nodes[-1]]:
                if chance.random() < 0.4:
                    break
                nodes.append(chance.choice(children))
            session.settle(index, draft, nodes[1:], chance.randrange(VOCAB))
    assert sum(counts) > 20
    session.cache.check()


def test_a_chain_at_once_is_the_modules_own_greedy_continuation(targets):
    for target in targets.values():
        network, twin = mtp(target), copy.deepcopy(target)
        (draft,) = HeadSession(Mtp(network, 4), target, PROMPTS[:1]).propose([9])
        tokens = list(PROMPTS[0])
        for _ in range(4):
            tokens.append(int(mtp_row(network, twin, tokens, len(PROMPTS[0])).argmax()))
        assert draft.tree.is_chain and draft.tree.tokens == tokens[-5:]


def test_classes_are_those_of_the_target(targets):
    for target in targets.values():
        network, last = mtp(target), target.model.layers[-1]
        assert type(network.layer) is type(last)
        assert {type(part) for part in (network.enorm, network.hnorm, network.norm)} == {type(last.input_layernorm)}
    deepseek = mtp(targets["deepseek_v3"]).layer
    assert deepseek.mlp.experts.gate_up_proj.shape[0] == 4  # the target's first layer has no experts


def test_what_a_layer_asks_of_its_attention_is_honoured(targets):
    scorings = {}
    for family, target in targets.items():
        drafter = Mtp(mtp(target), 1)
        HeadSession(drafter, target, PROMPTS[:1]).propose([1])
        (scorings[family],) = drafter._head.network.scorings
    assert scorings["gemma2"].softcap == 2.0 and scorings["gemma2"].scaling == 1 / 16
    assert scorings["deepseek_v3"].scaling == pytest.approx(24**-0.5)
    assert {scoring.window for scoring in scorings.values()} == {None}


def test_sinks_are_refused():
    network = mtp(tiny_model("gpt_oss"))
    with pytest.raises(ValueError, match="GptOssAttention attends to sinks"):
        network(torch.ones(2, 64).double(), torch.ones(2, 64).double(), torch.arange(2), lambda *_: None)
