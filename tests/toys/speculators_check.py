"""Run by a Python that has the package speculators: whether it takes the heads that were written for it, and computes
the same with them. It knows nothing of ours.

    python speculators_check.py HEAD INPUTS OUTPUTS     (folder, safetensors, safetensors)
"""

import sys
from pathlib import Path

import speculators.models.peagle.core as peagle
import torch
from safetensors.torch import load_file, save_file
from speculators import SpeculatorModel, SpeculatorModelConfig
from speculators.losses import resolve_loss_config

LENT = {"embed_tokens.weight": "model.embed_tokens.weight", "lm_head.weight": "lm_head.weight"}
TRAINED_WITH = {"verifier_lm_head.weight", "verifier_norm.weight"}


def loaded(folder):
    """The model of a folder, after a check of its config and of every tensor."""
    config = SpeculatorModelConfig.from_pretrained(folder)
    config.transformer_layer_config._attn_implementation = "eager"
    model = SpeculatorModel.from_pretrained(folder, config=config).eval()
    state, written = model.state_dict(), load_file(Path(folder) / "model.safetensors")
    missing = state.keys() - written.keys() - TRAINED_WITH
    assert not written.keys() - state.keys(), f"unknown: {sorted(written.keys() - state.keys())}"
    assert missing <= LENT.keys(), f"missing: {sorted(missing - LENT.keys())}"
    lender = load_file(Path(config.speculators_config.verifier.name_or_path) / "model.safetensors")
    for name in missing:  # it finds out by itself whether they are, but not in memory that is not cleared
        state[name].copy_(lender[LENT[name]])
    for name, part in written.items():
        assert torch.equal(state[name], part), name
    return model


def stepped(model, given):
    """The likeliest token after every row."""
    ids = torch.zeros(given["tokens"].shape, dtype=torch.long)
    tokens = model(given["features"], given["tokens"], ids, position_ids=given["positions"], ttt_steps=1)
    return {"result": tokens[0]}


def filled(model, given):
    """Logits of one block that sees all of the context."""
    context = model.hidden_norm(model.fc(given["features"]))
    rows = model.embed_tokens(given["tokens"])
    rotation = model.rotary_emb(rows, given["positions"])
    for layer in model.layers:
        rows = layer(hidden_states=rows, target_hidden=context, position_embeddings=rotation)
    return {"result": model.lm_head(model.norm(rows))}


def masked(model, given):
    """Logits of a pass of its training, in which each text goes on with every number of masks: of all rows that it
    picked, the last row of each text and the number of masks."""
    picked, logits, pick = [], [], peagle.generate_cod_sample_indices

    def remembered(**options):
        picked.extend(pick(**options))
        return picked

    peagle.generate_cod_sample_indices = remembered
    model.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output))
    ids = torch.zeros(given["tokens"].shape, dtype=torch.long)
    states = given["features"][..., : model.hidden_size]  # for a loss that nobody reads
    options = {"verifier_last_hidden_states": states, "num_depths": 4, "down_sample_ratio": 1.0}
    options["loss_config"] = resolve_loss_config("kl_div", "eager")
    model(given["features"], given["tokens"], ids, **options)
    return {"result": logits[0][0], "last": picked[0], "masks": picked[1]}


@torch.no_grad()
def main(folder, inputs, outputs):
    model, given = loaded(folder), load_file(inputs)
    run = filled if hasattr(model, "hidden_norm") else masked if hasattr(model, "mask_hidden") else stepped
    save_file({name: part.contiguous() for name, part in run(model, given).items()}, outputs)


if __name__ == "__main__":
    main(*sys.argv[1:])
