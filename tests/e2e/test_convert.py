"""Heads that are written: read again they are the same, and half of one is never left behind."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, LlamaConfig, Qwen3Config

from specdec.draft_models.eagle3 import Eagle3Network, Norms
from specdec.draft_models.head_reading import read_head
from specdec.draft_models.head_writing import LAYOUTS, write_head
from specdec.features import LAST
from specdec.target import PagedModel
from tests.toys.heads import DRAFT_TOKENS, HIDDEN, SHAPE, block, eagle, eagle3, medusa, randomised, tiny_target
from tests.toys.parallel_heads import peagle
from tests.toys.published import PUBLISHED
from tests.toys.sessions import VOCAB

TARGET = tiny_target()
PAGED = PagedModel(TARGET)
WINDOWS = {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True, "sliding_window": 4}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}
HEADS = {
    "eagle": eagle,
    "eagle of two layers without bias": lambda: eagle(2, has_bias=False),
    "eagle3": eagle3,
    "eagle3 of all tokens": lambda: eagle3(draft_tokens=None, has_embeddings=True, rope_parameters=LINEAR),
    "eagle3 with norms and biases": lambda: eagle3(
        norms=Norms(True, True, False, True), attention_bias=True, mlp_bias=True
    ),
    "peagle": peagle,
    "peagle of all tokens with norms": lambda: peagle(Qwen3Config, 3, Norms(True, False, True, True), None, True),
    "medusa": medusa,
    "medusa, shared output": lambda: medusa(num_layers=2, has_outputs=False),
    "block": block,
    "block of few tokens with windows": lambda: block(
        draft_tokens=DRAFT_TOKENS, shape=replace(SHAPE, causal_layers=(0,)), max_window_layers=0, **WINDOWS
    ),
    "block with windows that are not causal": lambda: block(max_window_layers=0, **WINDOWS),
    "block with heads": lambda: block(
        shape=replace(SHAPE, sample_from_anchor=True), markov=(3, "gated"), confidence="markov"
    ),
    "block with a confidence head": lambda: block(confidence=True),
}
WRITTEN = {
    "eagle": ["eagle", "eagle of two layers without bias"],
    "eagle3": ["eagle3", "eagle3 of all tokens", "eagle3 with norms and biases"],
    "medusa": [name for name in HEADS if name.startswith("medusa")],
    "speculators": [name for name in HEADS if name.startswith(("eagle3", "peagle", "block"))],
}
CASES = [(layout, name) for layout, names in WRITTEN.items() for name in names]


def described(network):
    """All that a network is."""
    config = network.config.to_dict()
    about = {
        name: getattr(network, name, None)
        for name in ("feature_layers", "norms", "shape", "num_layers", "mask_token_id")
    }
    sizes = ("rope_parameters", "rms_norm_eps", "hidden_act", "head_dim", "num_key_value_heads", "attention_bias")
    windows = ("layer_types", "sliding_window") if "sliding_attention" in (config.get("layer_types") or ()) else ()
    return about | {name: config.get(name) for name in (*sizes, *windows)}


def assert_same(one, other):
    expected, found = one.state_dict(), other.state_dict()
    assert type(one) is type(other) and sorted(expected) == sorted(found)
    assert all(torch.equal(found[key], part) and found[key].dtype == part.dtype for key, part in expected.items())
    assert described(one) == described(other)


@pytest.mark.parametrize(("layout", "name"), CASES, ids=str)
def test_what_was_written_is_read_as_it_was(layout, name, tmp_path):
    network = HEADS[name]()
    write_head(network, tmp_path / "head", layout, TARGET.config)
    head = read_head(str(tmp_path / "head"), PAGED)
    assert_same(network, head.network)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_head_survives_every_layout(name, tmp_path):
    """Read, written, read: those that the network can be written in."""
    folder, *_ = PUBLISHED[name](tmp_path / "published", TARGET)
    network, count = read_head(str(folder), PAGED).network, 0
    for layout in LAYOUTS:
        place = tmp_path / layout
        try:
            write_head(network, place, layout, TARGET.config)
        except ValueError as error:
            assert str(error).startswith("expected a ") and not place.exists()
            continue
        assert_same(network, read_head(str(place), PAGED).network)
        count += 1
    assert count or LAST in network.feature_layers


UNSAID = {
    "eagle3 behind the last norm": (
        lambda: reading(eagle3(), (0, 2, LAST)),
        "speculators",
        r"got feature_layers \[0, 2, -1\], of which -1 is behind the last norm; write it in another layout",
    ),
    "eagle3 of Qwen3": (
        lambda: eagle3(Qwen3Config),
        "eagle3",
        "got 1 layers of the kind of 'qwen3', not one of Llama's",
    ),
    "eagle3 of two layers": (lambda: eagle3(num_hidden_layers=2), "eagle3", "got 2 layers of the kind of 'llama'"),
    "block of Llama": (lambda: block(LlamaConfig), "speculators", "got layers of the kind of 'llama', not Qwen3's"),
    "block that is causal": (
        lambda: block(shape=replace(SHAPE, causal_layers=(1,))),
        "speculators",
        r"got causal_layers \(1,\), of which \(\) have windows",
    ),
    "block with a head of its own": (lambda: with_head(block()), "speculators", "language model head of its own"),
    "peagle by another name": (peagle, "eagle3", r"a layout for a PEagleNetwork \(speculators\), got 'eagle3'"),
    "layout of another": (
        medusa,
        "speculators",
        r"expected a layout for a MedusaNetwork \(medusa\), got 'speculators'",
    ),
    "no layout": (eagle, "bogus", r"expected a layout for a EagleNetwork \(eagle\), got 'bogus'; pick one of them"),
}


def reading(network, layers):
    network.feature_layers = layers
    return network


def with_head(network):
    network.lm_head = torch.nn.Linear(HIDDEN, VOCAB, bias=False)
    return network


@pytest.mark.parametrize("what", UNSAID)
def test_what_a_layout_cannot_say_is_refused(what, tmp_path):
    build, layout, message = UNSAID[what]
    with pytest.raises(ValueError, match=message):
        write_head(build(), tmp_path / "head", layout, TARGET.config)
    assert list(tmp_path.iterdir()) == []


def test_a_head_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """Whatever goes wrong, the folder is not there; what a killed run left behind is no hindrance."""
    (tmp_path / "head.partial").mkdir()
    (tmp_path / "head.partial" / "config.json").write_text("{")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            write_head(medusa(), tmp_path / "head", "medusa", TARGET.config)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "head.partial").mkdir()
    write_head(medusa(), tmp_path / "head", "medusa", TARGET.config)
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    for place in (tmp_path / "head", tmp_path / "no" / "where"):
        with pytest.raises(ValueError, match="expected a new folder in one that exists, got .*; name another"):
            write_head(medusa(), place, "medusa", TARGET.config)


# ---- the command


@pytest.fixture
def head(folders, tmp_path):
    """A head of EAGLE-3 for the target of the tests of commands, and where it is."""
    target = AutoConfig.from_pretrained(folders / "target")
    sizes = {"vocab_size": target.vocab_size, "hidden_size": 32, "intermediate_size": 8, "num_attention_heads": 2}
    network = randomised(
        Eagle3Network(LlamaConfig(**sizes, num_hidden_layers=1), [0, 1], range(3, 40)), dtype=torch.float32
    )
    write_head(network, tmp_path / "published", "eagle3", target)
    return network


def test_the_command_writes_a_head_in_another_layout(specdec, head, tmp_path):
    finished = specdec(f"convert {tmp_path}/published {tmp_path}/written --to speculators --target @target")
    assert finished.exit_code == 0, finished.output
    assert re.search(
        r"^written: .*/written, 15 tensors, from eagle3; reads the target's layers \d, \d", finished.stdout
    )
    config = json.loads((tmp_path / "written" / "config.json").read_text())
    assert config["speculators_config"]["verifier"]["architectures"] == ["LlamaForCausalLM"]
    written = load_file(tmp_path / "written" / "model.safetensors")
    assert all(torch.equal(written[name], part) for name, part in head.state_dict().items())


MISTAKES = {
    "layout": ("{published} {out} --to bogus", "expected --to eagle, eagle3, medusa, speculators, got 'bogus'"),
    "layout of another head": (
        "{published} {out} --to medusa",
        "expected a layout for a Eagle3Network (speculators, eagle3), got 'medusa'",
    ),
    "folder that exists": ("{published} {published} --to eagle3", "expected a new folder in one that exists"),
    "no head": ("@nowhere {out} --to eagle3", "there is no such folder"),
    "model": ("@target {out} --to eagle3", "without its marks"),
    "another target": ("{published} {out} --to eagle3 --target @other", "expected a draft model with the target's"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line(specdec, head, tmp_path, what):
    line, message = MISTAKES[what]
    line = line.format(published=tmp_path / "published", out=tmp_path / "out")
    finished = specdec(f"convert {line}" + ("" if "--target" in line else " --target @target"))
    assert finished.exit_code == 1, finished.output
    assert finished.stderr.strip().splitlines()[-1].startswith("error: ") and message in finished.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["published"]
