"""Published heads: each layout is read into the network that it was written from."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import specdec
from specdec.draft_models.head_reading import read_head
from specdec.methods import HEADS
from specdec.target import PagedModel
from tests.toys.heads import tiny_target
from tests.toys.published import PUBLISHED

TARGET = tiny_target()
PAGED = PagedModel(TARGET)
PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
NUM_TOKENS = {"speculators, EAGLE-3": 3, "speculators, EAGLE-3 of Qwen3's kind": 3}
NUM_TOKENS |= {"speculators, P-EAGLE": 7, "speculators, DFlash": 5, "speculators, DSpark": 6}


def written(name, folder, target=TARGET):
    """The folder of a published head, and the network that it holds."""
    return PUBLISHED[name](folder / "head", target)[:2]


def drafted(network, method, target=TARGET):
    """A text, and how much of it was drafted and accepted in each step."""
    drafter = HEADS[method](network, 4)
    options = {"max_new_tokens": 24, "min_new_tokens": 24, "do_sample": False, "return_dict_in_generate": True}
    out = specdec.generate(target, PROMPT, drafter=drafter, **options)
    steps = [step for event in out.speculation.rounds for step in event.steps]
    return out.sequences.tolist(), [(step.num_drafted, step.num_accepted) for step in steps]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_head_is_the_network_that_was_written(name, tmp_path):
    folder, network, method = PUBLISHED[name](tmp_path / "head", TARGET)
    head = read_head(str(folder), PAGED)
    assert head.method == method and head.num_tokens == NUM_TOKENS.get(name)
    assert head.network.feature_layers == network.feature_layers
    expected, found = network.state_dict(), head.network.state_dict()
    assert {key: (part.shape, part.dtype) for key, part in found.items()} == {
        key: (part.shape, part.dtype) for key, part in expected.items()
    }
    assert all(torch.equal(part, expected[key]) for key, part in found.items())
    assert not head.network.training
    assert drafted(head.network, method) == drafted(network, method)


@pytest.mark.parametrize(
    ("fields", "layers"),
    [
        ({"is_causal": True}, (0, 1)),
        ({"is_causal": False}, ()),
        ({"dflash_config": {"mask_token_id": 0, "causal": True}}, (0, 1)),
        ({"is_causal": False, "dflash_config": {"mask_token_id": 0, "causal": True}}, ()),
        ({}, (0,)),
    ],
    ids=str,
)
def test_rows_of_a_block_see_what_the_config_says(fields, layers, tmp_path):
    """vLLM's order: for all layers in one of two places, or those with windows."""
    folder, _ = written("speculators, DFlash", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    assert read_head(str(folder), PAGED).network.shape.causal_layers == layers


@pytest.mark.parametrize("name", ["EAGLE-1", "DFlash", "Medusa", "P-EAGLE, vLLM"])
def test_a_head_takes_precision_of_its_target_and_reaches_as_far(name, tmp_path):
    folder, _ = written(name, tmp_path)
    head = read_head(str(folder), PagedModel(tiny_target(dtype=torch.float32)))
    assert head.network.dtype == torch.float32
    drafter = HEADS[head.method](head.network)
    assert drafter._model.max_positions >= 256  # the head's config says 64, the target's 256


def test_a_head_drafts_no_more_than_it_can_whatever_its_config_proposes(tmp_path):
    folder, network = written("speculators, DFlash", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["speculators_config"]["proposal_methods"][0]["speculative_tokens"] = 99
    (folder / "config.json").write_text(json.dumps(config))
    assert specdec.load_drafter(str(folder), TARGET).num_speculative_tokens == network.depth < 99
    with pytest.raises(ValueError, match=f"at most {network.depth} drafted tokens"):
        specdec.load_drafter(str(folder), TARGET, num_speculative_tokens=99)


def test_tensors_that_are_not_the_targets_are_kept(tmp_path):
    """Embedding and language model head of a head that has some of its own."""
    folder, network = written("DSpark, DeepSpec", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] += 1.0
    save_file(weights, folder / "model.safetensors")
    found = read_head(str(folder), PAGED).network
    assert torch.equal(found.lm_head.weight, weights["lm_head.weight"]) and found.embed_tokens is None
    assert sorted({*found.state_dict()} - {*network.state_dict()}) == ["lm_head.weight"]


def test_what_a_trainer_left_beside_the_weights_is_passed_over(tmp_path):
    """Nobody can tidy up a repository of the hub."""
    folder, network = written("EAGLE-1", tmp_path)
    for name in ("training_args.bin", "optimizer.pt"):
        (folder / name).write_bytes(b"no tensors")
    assert torch.equal(read_head(str(folder), PAGED).network.fc.weight, network.fc.weight)


def test_a_hub_id_is_fetched_config_first_and_no_more_than_is_read(tmp_path, monkeypatch):
    folder, _ = written("Medusa", tmp_path)
    asked = []

    def fetched(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(folder)

    monkeypatch.setattr("specdec.tensor_files.snapshot_download", fetched)
    specdec.load_drafter("some/head", TARGET)
    assert [name for name, _ in asked] == ["some/head"] * 3 and asked[0][1] == ["config.json"]
    assert "*.safetensors" in asked[1][1] and "*.pt" not in asked[1][1] and "*.pt" in asked[2][1]
    asked.clear()
    (folder / "config.json").write_text('{"num_nextn_predict_layers": 1}')  # of a target of hundreds of gigabytes
    with pytest.raises(ValueError, match="expected weights in 'some/head', got none"):
        specdec.load_drafter("some/head", TARGET)
    assert [patterns for _, patterns in asked[:2]] == [["config.json"], ["*.safetensors.index.json"]]


@pytest.mark.parametrize("name", ["Medusa", "EAGLE-1", "EAGLE-3", "DFlash", "P-EAGLE, vLLM"])
def test_a_path_can_stand_in_the_mapping(name, tmp_path):
    folder, _, method = PUBLISHED[name](tmp_path / "head", TARGET)
    drafter = {"method": method, "model": str(folder), "num_speculative_tokens": 2}
    options = {"max_new_tokens": 12, "do_sample": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of random weights either way of counting may be the better one
        text = specdec.generate(TARGET, PROMPT, drafter=drafter, **options)
    assert torch.equal(text, TARGET.generate(PROMPT, **options))


def test_the_method_of_a_mapping_is_that_of_the_head(tmp_path):
    folder, _ = written("Medusa", tmp_path)
    with pytest.raises(ValueError, match="expected a head of the method 'eagle', got one of 'medusa'; name that"):
        specdec.generate(TARGET, PROMPT, drafter={"method": "eagle", "model": str(folder)}, max_new_tokens=2)
    with pytest.raises(ValueError, match="expected a known option of medusa, got 'num_tokens'"):
        specdec.load_drafter(str(folder), TARGET, num_tokens=3)


def test_options_come_before_what_the_config_proposes(tmp_path):
    folder, _ = written("Medusa", tmp_path)
    assert specdec.load_drafter(str(folder), TARGET)._max_depth == 5  # as many as it has heads
    assert specdec.load_drafter(str(folder), TARGET, num_speculative_tokens=2)._max_depth == 2
    drafter = specdec.load_drafter(str(folder), TARGET, speculative_token_tree=[(0,), (0, 0)])
    assert drafter._max_depth == 2 and drafter.needs.tree
