"""End to end, the distribution: specdec's sampled texts against those of `model.generate(do_sample=True)`.

A tiny Llama whose vocabulary is cut to 4 tokens, so that three new tokens have 64 outcomes. Two-sample chi-square at
level 1e-6, cells with fewer than 5 expected merged; seeds are fixed, so a correct build fails with probability 1e-6
per test only when a seed is changed. 14,000 samples find a total variation of 0.05 with probability 0.999.
"""

from collections import Counter

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import LogitsProcessorList, SuppressTokensLogitsProcessor

import specdec
from specdec.draft_models.draft_model import DraftModel
from tests.toys.models import tiny_model

LEVEL = 1e-6
NUM_TOKENS = 3
BATCH = 500
NUM_BATCHES = 28
PROMPT = [5, 9, 7, 5]
KEPT = [4, 5, 6, 7]


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", std=0.05)


@pytest.fixture(scope="module")
def options() -> dict:
    suppress = SuppressTokensLogitsProcessor([token for token in range(160) if token not in KEPT])
    return {
        "do_sample": True,
        "top_k": 0,
        "temperature": 1.3,
        "max_new_tokens": NUM_TOKENS,
        "eos_token_id": None,
        "pad_token_id": 0,
        "logits_processor": LogitsProcessorList([suppress]),
    }


@pytest.fixture(scope="module")
def wanted(model, options) -> Counter:
    torch.manual_seed(0)
    inputs = torch.tensor([PROMPT] * (8 * BATCH))  # eight times ours: nearly the power of a known law
    batches = [model.generate(inputs, **options) for _ in range(NUM_BATCHES)]
    return Counter(tuple(row[len(PROMPT) :].tolist()) for batch in batches for row in batch)


def p_value(first: Counter, second: Counter) -> float:
    cells = sorted(first.keys() | second.keys(), key=lambda cell: first[cell] + second[cell])
    table = np.array([[first[cell], second[cell]] for cell in cells])
    expected = table.sum(1) * min(table.sum(0)) / table.sum()
    rare = expected < 5
    table = np.concatenate([table[~rare], table[rare].sum(0, keepdims=True)]) if rare.any() else table
    table = table[table.sum(1) > 0]
    return float(scipy.stats.chi2_contingency(table).pvalue)


@pytest.mark.parametrize(
    ("method", "verifier"),
    [
        (None, "sample_and_match"),
        ({"draft_sample_method": "coupled"}, "sample_and_match"),
        ({"draft_sample_method": "probabilistic"}, "rejection"),
        ({"draft_sample_method": "probabilistic"}, "block"),
        ({"draft_sample_method": "probabilistic", "num_tree_nodes": 6, "tree_width": 2}, "rejection"),
    ],
)
def test_texts_have_the_law_of_transformers(model, options, wanted, method, verifier) -> None:
    draft_model = tiny_model("llama", std=0.05, seed=1, num_hidden_layers=1)
    drafter = None if method is None else DraftModel(draft_model, num_speculative_tokens=2, **method)
    inputs = torch.tensor([PROMPT] * BATCH)
    got: Counter = Counter()
    for batch in range(NUM_BATCHES):
        out = specdec.generate(model, inputs, drafter=drafter, verifier=verifier, seed=100 + batch, **options)
        got.update(tuple(row[len(PROMPT) :].tolist()) for row in out)
    assert p_value(got, wanted) > LEVEL


def test_the_test_sees_a_small_bias(wanted) -> None:
    """A law 0.05 in total variation away is found: one token in twenty replaced by the commonest text."""
    generator = np.random.default_rng(0)
    common = wanted.most_common(1)[0][0]
    biased = Counter({cell: generator.binomial(count // 8, 0.94) for cell, count in wanted.items()})
    biased[common] += wanted.total() // 8 - biased.total()
    assert p_value(biased, wanted) < LEVEL
