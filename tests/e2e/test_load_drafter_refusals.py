"""What is wrong with a published head is said in one line, before anything is drafted."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import specdec
from tests.toys.heads import DRAFT_TOKENS, tiny_target
from tests.toys.published import PUBLISHED, put

TARGET = tiny_target()


def changed(change):
    """Changes config and tensors of a folder by (config, weights) -> None."""

    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        file = next(folder.glob("*.safetensors"))
        weights = load_file(file)
        change(config, weights)
        file.unlink()
        put(folder, config, weights, file.name)

    return damage


def set_config(**values):
    return changed(lambda config, weights: config.update(values))


def set_layers(**values):
    return changed(lambda config, weights: config["transformer_layer_config"].update(values))


def set_tensor(name, make):
    return changed(lambda config, weights: weights.update({name: make(weights)}))


def drop(name):
    return changed(lambda config, weights: weights.pop(name))


def drop_config(name):
    return changed(lambda config, weights: config.pop(name))


class Evil:
    def __reduce__(self):
        return print, ("run",)


def pickled(folder):
    next(folder.glob("*.safetensors")).unlink()
    torch.save({"fc.weight": Evil()}, folder / "pytorch_model.bin")


def truncated(folder):
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])


def not_tensors(folder):
    next(folder.glob("*.safetensors")).unlink()
    torch.save({"step": 3}, folder / "pytorch_model.bin")


DFLASH, DSPARK, EAGLE3 = "speculators, DFlash", "speculators, DSpark", "speculators, EAGLE-3"
PEAGLE = "speculators, P-EAGLE"
FC = "fc.weight"
DAMAGE = {
    "missing": (EAGLE3, drop(FC), r"weights of a Eagle3Network in .*, got 1 missing \(fc.weight\)"),
    "missing heads": (DSPARK, drop("confidence_head.proj.bias"), "got 1 missing"),
    "surplus": (DFLASH, set_tensor("bogus.weight", lambda w: torch.zeros(2)), r"got 1 unexpected \(bogus.weight\)"),
    "other shape": (EAGLE3, set_tensor(FC, lambda w: w[FC][:, 1:].clone()), r"mismatched \(fc.weight \(16, 47\), not"),
    "integers": (EAGLE3, set_tensor(FC, lambda w: w[FC].to(torch.int8)), r"1 mismatched \(fc.weight torch.int8\)"),
    "NaN": (DFLASH, set_tensor(FC, lambda w: w[FC] / 0.0 * 0.0), "got NaN or infinity in fc.weight"),
    "code": (DFLASH, pickled, "expected tensors only in .*, got a pickle with other things; ask for safetensors"),
    "truncated": (DFLASH, truncated, "expected readable weights in .*; get the file anew"),
    "no tensors": (DFLASH, not_tensors, "expected tensors by their names in .*, got dict"),
    "no weights": (DFLASH, lambda folder: next(folder.glob("*.s*")).unlink(), "expected weights in .*, got none"),
    "no config": (DFLASH, lambda folder: (folder / "config.json").unlink(), "expected a config.json in .*No such"),
    "two files": (
        DFLASH,
        lambda folder: save_file({}, folder / "other.safetensors"),
        "expected one file of weights in .*, got model.safetensors, other.safetensors",
    ),
    "no map": (EAGLE3, drop("d2t"), r"expected d2t \[11\] and t2d \[23\] in .*, got None and \[23\]"),
    "map of another size": (EAGLE3, set_tensor("d2t", lambda w: w["d2t"][1:].clone()), r"got \[10\] and \[23\]"),
    "ids, not offsets": (EAGLE3, set_tensor("d2t", lambda w: torch.tensor(DRAFT_TOKENS)), "got the token ids"),
    "maps that differ": (EAGLE3, set_tensor("t2d", lambda w: w["t2d"].flip(0)), "to name the same ascending tokens"),
    "not ascending": (EAGLE3, set_tensor("d2t", lambda w: w["d2t"].flip(0)), "to name the same ascending tokens"),
    "out of range": (EAGLE3, set_tensor("d2t", lambda w: w["d2t"] + 1), "to name the same ascending tokens"),
    "layers out of range": (
        DFLASH,
        set_config(aux_hidden_state_layer_ids=[3, 1, 5]),
        r"feature layers of a target of 4 layers, got \[3, 1, 5\] \(counted by inputs\)",
    ),
    "embeddings as features": (DFLASH, set_config(aux_hidden_state_layer_ids=[3, 0, 2]), r"got \[3, 0, 2\]"),
    "no layers": (DFLASH, drop_config("aux_hidden_state_layer_ids"), "expected aux_hidden_state_layer_ids in"),
    "two layers": (
        EAGLE3,
        set_config(eagle_config={"eagle_aux_hidden_state_layer_ids": [3, 1, 2]}),
        "expected eagle_aux_hidden_state_layer_ids one above those of eagle_config",
    ),
    "for other hidden states": (EAGLE3, set_config(target_hidden_size=99), "hidden states of 16, got one for 99"),
    "for other tokens": (EAGLE3, set_layers(vocab_size=99), "with the target's vocabulary of 23"),
    "other layers": (EAGLE3, set_layers(model_type="gemma3"), "Llama's or Qwen3's kind .*'gemma3'"),
    "other logits": (EAGLE3, set_layers(logit_scale=0.5), "got logit_scale=0.5; take another head"),
    "no sizes": (EAGLE3, set_layers(hidden_size=None), "expected hidden_size in the config"),
    "no way of norming": (EAGLE3, drop_config("norm_before_residual"), "expected norm_before_residual in the config"),
    "rotation by length": (
        EAGLE3,
        set_layers(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        "expected a rope_type that rotates a row always alike, got 'dynamic'",
    ),
    "a size that is none": (EAGLE3, set_layers(head_dim="x"), "config.json that fits a head in .*'head_dim'"),
    "no heads of attention": (EAGLE3, set_layers(num_attention_heads=0), "config.json that fits a head in"),
    "a block of one": (DFLASH, set_config(block_size=1), "expected block_size of at least 2 in .*, got 1"),
    "no fields": (DFLASH, lambda folder: (folder / "config.json").write_text("[]"), "expected fields in .*, got list"),
    "no mask token": (DFLASH, drop_config("mask_token_id"), "expected mask_token_id in the config of"),
    "window without a size": (DFLASH, set_layers(sliding_window=None), "expected sliding_window in the config"),
    "window without layers": (EAGLE3, set_layers(use_sliding_window=True, sliding_window=4), "expected layer_types in"),
    "windows in another way": (DFLASH, set_config(dflash_config={"use_swa": True}), "got use_swa=True; take another"),
    "scaled embeddings": (DFLASH, set_config(input_embedding_scale=4.0), "got input_embedding_scale=4.0; take another"),
    "recurrent Markov head": (DSPARK, set_config(markov_head_type="rnn"), "Markov head of .*, got 'rnn'"),
    "P-EAGLE without what was learnt for masks": (PEAGLE, drop("mask_hidden"), r"got 1 missing \(mask_hidden\)"),
    "P-EAGLE, masks of another size": (
        PEAGLE,
        set_tensor("mask_hidden", lambda w: w["mask_hidden"][..., 1:].clone()),
        r"1 mismatched \(mask_hidden \(1, 1, 47\), not \(1, 1, 48\)\)",
    ),
    "P-EAGLE without a mask token": (PEAGLE, drop_config("mask_token_id"), "expected mask_token_id in the config of"),
    "P-EAGLE, a mask token that is none": (PEAGLE, set_config(mask_token_id="0"), "mask_token_id of at least 0 .*'0'"),
    "P-EAGLE, a mask token too many": (
        PEAGLE,
        set_config(mask_token_id=23),
        "expected a mask token below the 23 that have embeddings, got 23",
    ),
    "EAGLE-3 by another name": (EAGLE3, set_config(speculators_model_type="peagle"), "expected mask_token_id in"),
    "EAGLE-3 with masks": (PEAGLE, set_config(speculators_model_type="eagle3"), r"1 unexpected \(mask_hidden\)"),
    "Domino": (EAGLE3, set_config(speculators_model_type="domino"), "got a Domino head, which corrects with a GRU"),
    "MTP": (EAGLE3, set_config(speculators_model_type="mtp"), "module of its own; take the checkpoint of the target"),
    "unknown": (EAGLE3, set_config(speculators_model_type="bogus"), "got one of layout 'speculators bogus'"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_what_is_wrong_with_a_head_is_said_in_one_line(what, tmp_path):
    name, damage, message = DAMAGE[what]
    folder, *_ = PUBLISHED[name](tmp_path / "head", TARGET)
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        specdec.load_drafter(str(folder), TARGET)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("expected ")


def test_what_is_no_head_is_refused_by_name(tmp_path):
    TARGET.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"expected a head in .*, got \['LlamaForCausalLM'\] without its marks"):
        specdec.load_drafter(str(tmp_path / "model"), TARGET)
    folder = put(tmp_path / "mtp", {"num_nextn_predict_layers": 1}, {"mtp.fc.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="expected the weights of a MtpNetwork in .*, got .* missing"):
        specdec.load_drafter(str(folder), TARGET)
    with pytest.raises(ValueError, match="expected a model folder or hub id, got '/no/where'; there is no such folder"):
        specdec.load_drafter("/no/where", TARGET)
    with pytest.raises(ValueError, match="expected a folder or hub id, got 'no/where'"):  # nobody is asked in tests
        specdec.load_drafter("no/where", TARGET)
