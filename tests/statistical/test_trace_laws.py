"""Drawn drafts end to end: steps of live runs against those that replay expects on other texts of the same law.

Two-sample z-test at level 1e-6 (|z| < 4.9) of the mean number of steps, seeds fixed.
"""

import pytest
import torch

import specdec
from specdec.draft_models.draft_model import DraftModel
from specdec.experiments.trace.cuts import Setting
from specdec.experiments.trace.replay import Costs, replay
from specdec.experiments.trace.schema import trace_of
from specdec.experiments.trace.tracing import Tracing, trace_arm
from specdec.methods import paged
from tests.toys.models import tiny_model

LIMIT = 4.9
NUM_TEXTS, NUM_RUNS, NEW_TOKENS = 100, 400, 12
PROMPT = [5, 9, 7, 5]
OPTIONS = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def models():
    return paged(tiny_model("llama", std=0.05)), tiny_model("llama", std=0.05, seed=1, num_hidden_layers=1)


def drawn(draft, length):
    return DraftModel(draft, num_speculative_tokens=length, draft_sample_method="probabilistic")


@pytest.fixture(scope="module")
def trace(models, tmp_path_factory):
    target, draft = models
    prompts = [torch.tensor([PROMPT])] * NUM_TEXTS
    table = trace_arm(target, drawn(draft, 4), "block", Tracing(OPTIONS, seeds=1), prompts)
    path = tmp_path_factory.mktemp("trace") / "none"
    settings = {"num_speculative_tokens": 4, "draft_sample_method": "probabilistic"}
    return trace_of(table, {"do_sample": True, "drafter_name": "draft_model", "settings": settings}, path)


@pytest.mark.parametrize("length", [2, 4])
@pytest.mark.parametrize("rule", ["sample_and_match", "rejection", "block"])
def test_expected_steps_are_those_of_live_runs(models, trace, rule, length):
    target, draft = models
    output = specdec.generate(
        target, torch.tensor([PROMPT] * NUM_RUNS), drafter=drawn(draft, length), verifier=rule, seed=2,
        return_dict_in_generate=True, **OPTIONS,
    )  # fmt: skip
    counts = torch.zeros(NUM_RUNS, dtype=torch.float64)
    for each in output.speculation.rounds:
        for step in each.steps:
            counts[step.request_id] += 1
    found = replay(trace, Setting(length), rule, Costs())
    expected = torch.tensor([sums.num_steps for sums in found], dtype=torch.float64)
    spread = (counts.var() / len(counts) + expected.var() / len(expected)).sqrt()
    assert abs(counts.mean() - expected.mean()) < LIMIT * spread
    assert expected.var() < counts.var(), "replay averages the draws out"
