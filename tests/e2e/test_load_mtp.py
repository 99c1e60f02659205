"""MTP modules inside the checkpoints of their targets: found, read, run, or refused in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import specdec
from specdec import tensor_files
from specdec.checkpoints import load_model
from specdec.draft_models.head_reading import read_head
from specdec.draft_models.mtp import Mtp
from specdec.target import PagedModel
from tests.toys.models import tiny_model
from tests.toys.mtp import TARGETS, called, mtp, put_inside
from tests.toys.sessions import VOCAB

PROMPT = torch.tensor([[3, 1, 4, 1, 5]])
OPTIONS = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
CASES = {  # a target, a layout, whether in several files, and the module
    "DeepSeek-V3": ("deepseek_v3", "extra layer", True, {}),
    "DeepSeek-V3, one file, own embeddings": ("deepseek_v3", "extra layer", False, {"is_own": True}),
    "GLM-4.5": ("glm4_moe", "extra layer", False, {}),
    "Qwen3-Next's way": ("qwen3_moe", "fc", True, {}),
    "Qwen3.5's way": ("llama", "fc", False, {"is_own": True}),
    "MiMo": ("llama", "mimo", False, {"is_state_first": True}),
}


def target_of(family):
    return TARGETS[family]() if family in TARGETS else tiny_model(family, vocab_size=VOCAB)


def written(folder, name):
    """A target, its folder, and the module that it holds."""
    family, layout, is_sharded, kind = CASES[name]
    target = target_of(family)
    network = mtp(target, **kind)
    return target, put_inside(folder, target, called(network, layout), is_sharded), network


def drafted(target, drafter):
    """A text, and how much of it was drafted and accepted in each step."""
    out = specdec.generate(target, PROMPT, drafter=drafter, return_dict_in_generate=True, **OPTIONS)
    steps = [step for event in out.speculation.rounds for step in event.steps]
    return out.sequences.tolist(), [(step.num_drafted, step.num_accepted) for step in steps]


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_the_network_that_was_written(name, tmp_path):
    target, folder, network = written(tmp_path / "model", name)
    head = read_head(str(folder), PagedModel(target), "mtp")
    assert (head.method, head.layout, head.num_tokens) == ("mtp", "mtp", None)
    expected, found = network.state_dict(), head.network.state_dict()
    assert sorted(found) == sorted(expected)
    assert all(torch.equal(part, expected[key]) and part.dtype == expected[key].dtype for key, part in found.items())
    assert head.network.is_state_first == network.is_state_first and not head.network.training
    assert drafted(target, Mtp(head.network, 3)) == drafted(target, Mtp(network, 3))


@pytest.mark.parametrize("name", ["DeepSeek-V3", "GLM-4.5", "MiMo"])
def test_a_target_drafts_with_what_lies_in_its_own_checkpoint(name, tmp_path):
    """Read from disk as users do; by its own path, too, if the mapping names none."""
    _, folder, network = written(tmp_path / "model", name)
    target = load_model(str(folder), dtype=torch.float32)  # in which experts are computed at once
    wanted = drafted(target, Mtp(network.float(), 3))
    assert wanted[0] == target.generate(PROMPT, **OPTIONS).tolist()
    for drafter in (
        specdec.load_drafter(str(folder), target, num_speculative_tokens=3),
        {"method": "mtp", "model": str(folder), "num_speculative_tokens": 3},
        {"method": "mtp", "num_speculative_tokens": 3},
    ):
        assert drafted(target, drafter) == wanted


def test_only_the_modules_tensors_are_read(tmp_path, monkeypatch):
    target, folder, network = written(tmp_path / "model", "DeepSeek-V3")
    (folder / "a.safetensors").unlink()  # the target's own
    head = read_head(str(folder), PagedModel(target))
    assert torch.equal(head.network.eh_proj.weight, network.eh_proj.weight)
    asked = []

    def fetched(name, allow_patterns):
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(tensor_files, "snapshot_download", fetched)
    specdec.load_drafter("some/target", target)
    assert asked == [["config.json"], ["*.safetensors.index.json"], ["b.safetensors", "c.safetensors"]]


def test_a_second_module_is_left_alone(tmp_path):
    target = target_of("deepseek_v3")
    network, other = mtp(target), mtp(target, seed=2)
    more = {name.replace("layers.4.", "layers.5."): part for name, part in called(other, "extra layer").items()}
    folder = put_inside(tmp_path / "model", target, called(network, "extra layer") | more)
    found = read_head(str(folder), PagedModel(target)).network.state_dict()
    assert all(torch.equal(part, found[key]) for key, part in network.state_dict().items())


def test_what_the_target_keeps_precise_stays_precise(tmp_path):
    """The bias by which experts are balanced is float32 in a target of bfloat16."""
    _, folder, network = written(tmp_path / "model", "GLM-4.5")
    target = load_model(str(folder), dtype=torch.bfloat16)
    found = read_head(str(folder), PagedModel(target)).network
    assert found.dtype == torch.bfloat16
    assert found.layer.mlp.gate.e_score_correction_bias.dtype == torch.float32
    assert drafted(target, Mtp(found, 2))[0] == target.generate(PROMPT, **OPTIONS).tolist()


# ---- refusals


def changed(change):
    """Changes all tensors of a folder."""

    def damage(folder):
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file)

    return damage


def set_config(**values):
    def damage(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return damage


def without_module(tensors):
    for name in [name for name in tensors if ".layers.4." in name]:
        del tensors[name]


PREFIX = "model.layers.4."
EXPERT = f"{PREFIX}mlp.experts.2.up_proj.weight"
DAMAGE = {
    "no module": (changed(without_module), "a multi-token-prediction module in .*, got none of its tensors; take a"),
    "missing": (changed(lambda t: t.pop(f"{PREFIX}hnorm.weight")), r"MtpNetwork in .*, got 1 missing \(hnorm.weight\)"),
    "missing in the layer": (
        changed(lambda t: t.pop(f"{PREFIX}self_attn.q_proj.bias")),
        r"got 1 missing \(layer.self_attn.q_proj.bias\)",
    ),
    "a part of an expert": (changed(lambda t: t.pop(EXPERT)), "an MTP module in .* like a layer of the target, got"),
    "other shape": (
        changed(lambda t: t.update({f"{PREFIX}eh_proj.weight": torch.ones(64, 64)})),
        r"got 1 mismatched \(eh_proj.weight \(64, 64\), not \(64, 128\)\)",
    ),
    "surplus": (changed(lambda t: t.update({f"{PREFIX}bogus": torch.ones(1)})), r"got 1 unexpected \(layer.bogus\)"),
    "NaN": (changed(lambda t: t[f"{PREFIX}enorm.weight"].mul_(torch.nan)), "got NaN or infinity in model.layers.4.eno"),
    "eight bits": (
        changed(lambda t: t.update({f"{PREFIX}eh_proj.weight": torch.ones(64, 128).to(torch.float8_e4m3fn)})),
        "weights of 16 bits or more in .*, got torch.float8_e4m3fn .*; take a checkpoint in bfloat16",
    ),
    "speculators' own format": (set_config(speculators_model_type="mtp"), "take the checkpoint of the target"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_with_a_module_is_said_in_one_line(what, tmp_path):
    damage, message = DAMAGE[what]
    target, folder, _ = written(tmp_path / "model", "GLM-4.5")
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        specdec.load_drafter(str(folder), target)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("expected ")


def test_what_cannot_have_a_module_is_refused(tmp_path):
    plain = target_of("llama")
    with pytest.raises(ValueError, match="expected model for the drafter 'mtp', got"):
        specdec.generate(plain, PROMPT, drafter="mtp", **OPTIONS)
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="got none of its tensors"):
        specdec.generate(plain, PROMPT, drafter={"method": "mtp", "model": str(tmp_path / "plain")}, **OPTIONS)
    _, folder, _ = written(tmp_path / "model", "GLM-4.5")
    for target, why in (
        (plain, "MtpNetwork in .*, got 3 missing"),
        (target_of("gpt_oss"), "got"),
        (target_of("phi"), "like a layer of the target, got .*rms_norm_eps"),
    ):
        with pytest.raises(ValueError, match=why) as caught:
            specdec.load_drafter(str(folder), target)
        assert "\n" not in str(caught.value)


def test_sinks_are_refused_when_the_module_is_loaded(tmp_path):
    target = target_of("gpt_oss")
    folder = put_inside(tmp_path / "model", target, sinks(mtp(target)))
    with pytest.raises(ValueError, match="got 'GptOssAttention attends to sinks'; train a head"):
        specdec.load_drafter(str(folder), target)


def sinks(network):
    """Experts as they are, since those of gpt-oss are published in one tensor."""
    inner = {"enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden", "eh_proj": "fc", "norm": "norm"}
    named = {}
    for name, part in network.state_dict().items():
        place, _, kind = name.rpartition(".")
        named[f"mtp.{inner[place]}.{kind}" if place in inner else name.replace("layer.", "mtp.layers.0.", 1)] = part
    return named
