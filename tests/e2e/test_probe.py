"""Which layers of the target a head reads: what its config means is tried, and the better way of counting is taken."""

import warnings

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import specdec
from specdec import probe
from specdec.draft_models.eagle3 import Eagle3Network
from specdec.draft_models.head_reading import read_head
from specdec.features import LAST
from specdec.target import PagedModel
from tests.e2e.test_heads import fill, powers
from tests.toys.published import put

SIZE, TELLING = 16, 2  # of the vocabulary; the layer behind which rows tell their token a second time, until the next
HALVES = torch.eye(2 * SIZE).split(SIZE)  # a token as it is embedded, and as the telling layer writes it


@torch.no_grad()
def telling_target():
    """A target that says a cycle of tokens, and whose rows tell more behind one layer than in front and behind."""
    sizes = {"vocab_size": SIZE, "hidden_size": 2 * SIZE, "intermediate_size": SIZE, "num_attention_heads": 2}
    target = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=5, bos_token_id=3, eos_token_id=None)).eval()
    fill(target, model__embed_tokens__weight=HALVES[0], lm_head__weight=9 * powers(1) @ HALVES[0])
    # What the telling layer writes, the next one writes over: by then the second half names another token.
    for layer, read, written, size in ((TELLING, *HALVES, 1.0), (TELLING + 1, HALVES[1], powers(1) @ HALVES[1], 9.0)):
        mlp, normed = target.model.layers[layer].mlp, torch.tensor(SIZE**0.5)
        mlp.gate_proj.weight.copy_(read)
        mlp.up_proj.weight.copy_(read)
        mlp.down_proj.weight.copy_(size * written.T / (normed**2 * normed.sigmoid()))
    return target


@torch.no_grad()
def reader(folder, **stated):
    """A head that says what comes after the next token, if it reads the telling layer; with these fields."""
    sizes = {"vocab_size": SIZE, "hidden_size": 2 * SIZE, "intermediate_size": 8, "num_attention_heads": 2}
    config = LlamaConfig(**sizes, num_hidden_layers=1)
    network = Eagle3Network(config, [0])
    fill(network, fc__weight=HALVES[1].T @ HALVES[1], lm_head__weight=powers(2) @ HALVES[1])
    fields = {**sizes, "num_hidden_layers": 1, "draft_vocab_size": SIZE, "architectures": ["LlamaForCausalLMEagle3"]}
    masks = {"mask_hidden": torch.zeros(1, 1, 2 * SIZE)} if "ptd_token_id" in stated else {}  # of a P-EAGLE head
    return str(put(folder, {**fields, **stated}, network.state_dict() | masks))


INPUTS, OUTPUTS = "eagle_aux_hidden_state_layer_ids", "eagle_config"
READINGS = {
    "inputs, rightly": ({INPUTS: [TELLING + 1]}, True),
    "inputs that are outputs": ({INPUTS: [TELLING]}, False),
    "outputs, rightly": ({OUTPUTS: {INPUTS: [TELLING]}}, True),
    "outputs that are inputs": ({OUTPUTS: {INPUTS: [TELLING + 1]}}, False),
    "outputs that are inputs, P-EAGLE": ({OUTPUTS: {INPUTS: [TELLING + 1]}, "ptd_token_id": 0}, False),
    "states that are inputs": ({"target_layer_ids": [TELLING + 1]}, False),
}


@pytest.mark.parametrize("name", READINGS)
def test_the_layers_are_taken_that_are_accepted_more_often(name, tmp_path):
    """Off by one, hardly anything would be."""
    stated, is_right = READINGS[name]
    target, path = telling_target(), reader(tmp_path / "head", **stated)
    if is_right:
        drafter = specdec.load_drafter(path, target, num_speculative_tokens=1)
    else:
        with pytest.warns(
            UserWarning, match=rf"accepted with \[{TELLING}\] and \d+ with those; \[{TELLING}\] are used"
        ):
            drafter = specdec.load_drafter(path, target, num_speculative_tokens=1)
    assert drafter.needs.feature_layers == (TELLING,)
    assert drafter.name == ("peagle" if "ptd_token_id" in stated else "eagle3")
    options = {"max_new_tokens": 20, "do_sample": False, "return_dict_in_generate": True}
    out = specdec.generate(target, torch.tensor([[1, 2]]), drafter=drafter, **options)
    assert out.speculation.metrics.acceptance_rate == 1.0
    assert torch.equal(out.sequences, target.generate(torch.tensor([[1, 2]]), max_new_tokens=20, do_sample=False))


@pytest.mark.parametrize(
    ("counts", "is_stated"),
    [((70, 88), True), ((88, 70), True), ((0, 9), True), ((0, 10), False), ((3, 150), False), ((75, 120), False)],
)
def test_a_difference_that_may_be_chance_is_none(counts, is_stated, monkeypatch):
    """Heads of real models read layer after layer with almost the same success: 17 of 64 tokens, say, and 22."""
    said = dict(zip([(1,), (2,)], counts, strict=True))
    monkeypatch.setattr(probe, "num_accepted", lambda drafter, target: said[drafter])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert probe.better_layers(lambda layers: layers, [(1,), (2,)], None, "a/head") == ((1,) if is_stated else (2,))
    assert len(caught) == (not is_stated)


def test_layers_that_nobody_can_mean_are_not_tried(tmp_path):
    """The other reading of the first layer would be the embeddings."""
    target = telling_target()
    head = read_head(reader(tmp_path / "first", **{OUTPUTS: {INPUTS: [0]}}), PagedModel(target))
    assert head.network.feature_layers == (0,) and head.other_layers is None
    head = read_head(reader(tmp_path / "last", **{INPUTS: [5]}), PagedModel(target))
    assert head.network.feature_layers == (4,) and head.other_layers is None
    head = read_head(reader(tmp_path / "normed", target_layer_ids=[4]), PagedModel(target))
    assert head.network.feature_layers == (LAST,) and head.other_layers == (3,)


def test_equals_stay_with_what_is_stated(tmp_path):
    """Of a head that is never right, neither way of counting is better, and nothing is said."""
    path = reader(tmp_path / "head", **{INPUTS: [TELLING - 1]})
    assert specdec.load_drafter(path, telling_target()).needs.feature_layers == (TELLING - 2,)
