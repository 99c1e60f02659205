"""Heads that are written in speculators format: the package of that name takes them, and computes what we compute.

It wants an older transformers than the pinned one, so it runs in a Python of its own: a virtual environment in which
`pip install speculators==0.9.0` was run, named in SPECDEC_SPECULATORS_PYTHON. Without one these tests are skipped.
"""

import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config

from specdec.draft_models.eagle3 import Norms
from specdec.draft_models.head_network import Vocabulary
from specdec.draft_models.head_writing import write_head
from specdec.target import PagedModel
from tests.toys.heads import DRAFT_TOKENS, HIDDEN, SHAPE, block, eagle3, tiny_target
from tests.toys.parallel_heads import peagle
from tests.toys.sessions import VOCAB

pytestmark = pytest.mark.slow
NAME = "SPECDEC_SPECULATORS_PYTHON"
SPECULATORS = os.environ.get(NAME) or (sys.executable if find_spec("speculators") else None)
CHECK = Path(__file__).parents[1] / "toys" / "speculators_check.py"


def theirs(network, folder, inputs):
    """What the package speculators makes of a head that was written for it and of these inputs."""
    if SPECULATORS is None:
        pytest.skip(
            "speculators 0.9.0 wants transformers 5.19 at most, older than the pinned one: install it in a virtual "
            f"environment and name its python in {NAME}"
        )
    target = tiny_target(dtype=torch.float32)
    target.save_pretrained(folder / "target")
    target.config._name_or_path = str(folder / "target")
    write_head(network, folder / "head", "speculators", target.config)
    save_file(inputs, folder / "in.safetensors")
    words = [SPECULATORS, CHECK, folder / "head", folder / "in.safetensors", folder / "out.safetensors"]
    finished = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return target, load_file(folder / "out.safetensors")


def features(count):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(VOCAB, (1, count), generator=generator)
    return tokens, torch.randn(1, count, 3 * HIDDEN, generator=generator)


def causal(layer, queries, keys, values):  # [1, rows, heads, dim]
    parts = [part.transpose(1, 2) for part in (queries, keys, values)]
    return F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True).transpose(1, 2)


EAGLE3 = {
    "eagle3": eagle3,
    "eagle3 of all tokens": lambda: eagle3(draft_tokens=None, has_embeddings=True),
    "eagle3 with norms and biases": lambda: eagle3(
        norms=Norms(True, True, False, True), attention_bias=True, mlp_bias=True
    ),
    "eagle3 of two layers, EAGLE 3.1": lambda: eagle3(num_hidden_layers=2, norms=Norms(fc_norm=True, norm_output=True)),
}
PEAGLE = {
    "peagle": peagle,
    "peagle with embeddings": lambda: peagle(draft_tokens=None, has_embeddings=True),
    "peagle of three layers of Qwen3, with norms": lambda: peagle(Qwen3Config, 3, Norms(True, False, True, True)),
    "peagle of one layer, with another norm": lambda: peagle(num_hidden_layers=1, norms=Norms(norm_before_fc=True)),
}
BLOCKS = {
    "block": block,
    "block of few tokens": lambda: block(draft_tokens=DRAFT_TOKENS),
    "block with a Markov head": lambda: block(markov=(3, "vanilla")),
    "block with heads": lambda: block(
        shape=replace(SHAPE, sample_from_anchor=True), markov=(3, "gated"), confidence="markov"
    ),
}


@pytest.mark.parametrize("name", EAGLE3)
@torch.no_grad()
def test_speculators_takes_an_eagle3_head_and_drafts_the_same(name, tmp_path):
    """Its schema takes the config, its model every tensor, and its likeliest token after each row is ours."""
    network, (tokens, rows) = EAGLE3[name]().float(), features(12)
    positions = torch.arange(12)[None]
    target, found = theirs(network, tmp_path, {"tokens": tokens, "features": rows, "positions": positions})
    embedded = Vocabulary(network, PagedModel(target, check=False)).embedded(tokens)
    _, read = network(embedded, network.fused(rows), positions, causal)
    assert torch.equal(network.lm_head(read).argmax(-1), found["result"])


@pytest.mark.parametrize("name", PEAGLE)
@torch.no_grad()
def test_speculators_takes_a_peagle_head_and_says_the_same_of_masks(name, tmp_path):
    """Its schema takes the config, its model every tensor; in a pass of its training, which sees a text go on with
    masks at every place, its logits are ours."""
    network, (tokens, rows), num_masks = PEAGLE[name]().float(), features(12), 3
    target, found = theirs(network, tmp_path, {"tokens": tokens, "features": rows})
    vocabulary = Vocabulary(network, PagedModel(target, check=False))
    places = list(zip(found["last"].tolist(), found["masks"].tolist(), strict=True))
    assert len(set(places)) == len(places) > 12 + 2 * num_masks and {count for _, count in places} == {0, 1, 2, 3}
    for (last, count), theirs_of_row in zip(places, found["result"], strict=True):
        given = torch.cat((tokens[:, : last + 1], torch.full((1, count), network.mask_token_id)), 1)
        states = torch.cat((rows[:, : last + 1], network.mask_hidden.expand(1, count, -1)), 1)
        positions = torch.arange(last + 1 + count)[None]
        _, read = network(vocabulary.embedded(given), network.fused(states), positions, causal)
        torch.testing.assert_close(network.lm_head(read[0, -1]), theirs_of_row)


@pytest.mark.parametrize("name", BLOCKS)
@torch.no_grad()
def test_speculators_takes_a_block_head_and_fills_in_the_same(name, tmp_path):
    """Its schema takes the config, its model every tensor, and its logits of a block are ours."""
    network, (tokens, rows) = BLOCKS[name]().float(), features(15)
    tokens, rows, positions = tokens[:, 9:], rows[:, :9], torch.arange(15)[None]
    target, found = theirs(network, tmp_path, {"tokens": tokens, "features": rows, "positions": positions})
    context = network.context(rows, positions[:, :9])

    def attend(layer, queries, keys, values):
        pairs = [torch.cat(pair, 1).transpose(1, 2) for pair in zip(context[layer], (keys, values), strict=True)]
        return F.scaled_dot_product_attention(queries.transpose(1, 2), *pairs, enable_gqa=True).transpose(1, 2)

    vocabulary = Vocabulary(network, PagedModel(target, check=False))
    ours = vocabulary.outputs(network(vocabulary.embedded(tokens), positions[:, 9:], attend))
    torch.testing.assert_close(ours, found["result"])
