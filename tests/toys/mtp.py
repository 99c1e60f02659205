"""MTP modules with random weights, what they compute written out for one text, and checkpoints that hold them."""

import copy
import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import AttentionInterface

from specdec.draft_models.mtp import MtpNetwork
from tests.toys.heads import features_of, randomised, tiny_target
from tests.toys.models import tiny_model
from tests.toys.sessions import VOCAB

# What each stands for: plain; latent attention and experts; experts and biases; softcap, norms with 1 + weight.
TARGETS = {
    "llama": tiny_target,
    "deepseek_v3": lambda: tiny_model("deepseek_v3", vocab_size=VOCAB),
    "glm4_moe": lambda: tiny_model("glm4_moe", vocab_size=VOCAB, attention_bias=True, use_qk_norm=True),
    "gemma2": lambda: tiny_model("gemma2", vocab_size=VOCAB),
}


def mtp(target, is_state_first=False, is_own=False, seed=1):
    """A module for this target; with embedding and language model head of its own if asked."""
    network = MtpNetwork(target, is_state_first)
    if is_own:
        size = network.config.hidden_size
        network.embed_tokens = torch.nn.Embedding(network.config.vocab_size, size)
        network.lm_head = torch.nn.Linear(size, network.config.vocab_size, bias=False)
    generator = torch.Generator().manual_seed(seed)
    for buffer in network.layer.buffers():  # by which experts are balanced
        buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return randomised(network, seed, target.dtype)


class _Doubled:
    """torch, where float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


def made_exact(monkeypatch, target):
    """From here on, norms and routers of the target's kind do not round to float32 whatever they are given."""
    module = sys.modules[type(target).__module__]
    monkeypatch.setattr(module, "torch", _Doubled())
    if hasattr(module, "Gemma2RMSNorm"):
        monkeypatch.setattr(module.Gemma2RMSNorm, "forward", lambda norm, x: norm._norm(x) * (1 + norm.weight))


def by_hand(module, query, key, value, mask, scaling, softcap=None, **_):
    """Attention as transformers' eager functions compute it, but for the softmax in float32."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return ((scores + mask).softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("by_hand", by_hand)


@torch.no_grad()
def mtp_row(network, target, tokens, num_committed):
    """Logits [vocab] after the last of these tokens, of which the last committed one is pending."""
    twin = copy.deepcopy(network)
    twin.config._attn_implementation = "by_hand"
    embed, head = network.embed_tokens or target.get_input_embeddings(), network.lm_head or target.lm_head
    embedded = embed(torch.tensor(tokens[1:]))
    states = features_of(network, target, tokens[: num_committed - 1])
    for count in range(num_committed - 1, len(tokens)):
        positions = torch.arange(count)[None]
        pair = [network.enorm(embedded[:count]), network.hnorm(states)]
        rows = network.eh_proj(torch.cat(pair[::-1] if network.is_state_first else pair, -1))[None]
        mask = torch.full((count, count), -torch.inf, dtype=rows.dtype).triu(1)[None, None]
        turned = target.model.rotary_emb(rows, positions)
        output = twin.layer(rows, attention_mask=mask, position_ids=positions, position_embeddings=turned)
        read = network.norm((output[0] if isinstance(output, tuple) else output)[0])
        states = torch.cat((states, read[-1:]))
    return head(read[-1])


# ---- as they are published: inside the checkpoints of their targets

OURS = ("enorm", "hnorm", "eh_proj", "norm", "embed_tokens", "lm_head")
EXTRA_LAYER = ("enorm", "hnorm", "eh_proj", "shared_head.norm", "embed_tokens", "shared_head.head")
FC = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc", "norm", "embed_tokens", "lm_head")
MIMO = ("token_layernorm", "hidden_layernorm", "input_proj", "final_layernorm", "", "")
LAYOUTS = {  # what names begin with, those of the layer, and what the parts beside it are called
    "extra layer": ("model.layers.4.", "model.layers.4.", EXTRA_LAYER),
    "fc": ("mtp.", "mtp.layers.0.", FC),
    "mimo": ("model.mtp_layers.0.", "model.mtp_layers.0.", MIMO),
}


def expert_by_expert(tensors):
    """The experts' tensors one by one, as published."""
    found = {}
    for name, part in tensors.items():
        place, _, kind = name.rpartition(".")
        if not place.endswith("experts"):
            found[name] = part
            continue
        kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        for expert, weights in enumerate(part):
            for one, weight in zip(kinds, weights.chunk(len(kinds)), strict=True):
                found[f"{place}.{expert}.{one}.weight"] = weight
    return found


def called(network, layout):
    """The module's tensors by their published names."""
    prefix, layer, names = LAYOUTS[layout]
    renamed, tensors = dict(zip(OURS, names, strict=True)), {}
    for name, part in network.state_dict().items():
        if name.startswith("layer."):
            tensors[layer + name.removeprefix("layer.")] = part
        else:
            place, _, kind = name.rpartition(".")
            tensors[f"{prefix}{renamed[place]}.{kind}"] = part
    return expert_by_expert(tensors)


def put_inside(folder, target, tensors, is_sharded=False):
    """The target, saved with these tensors beside its own, in one file or in three with an index."""
    target.save_pretrained(folder)
    file = folder / "model.safetensors"
    own = load_file(file)
    tensors = {name: part.detach().clone().contiguous() for name, part in tensors.items()}
    if not is_sharded:
        save_file(own | tensors, file, metadata={"format": "pt"})
        return folder
    file.unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": own, "b.safetensors": {name: tensors[name] for name in names[::2]}}
    shards["c.safetensors"] = {name: tensors[name] for name in names[1::2]}
    for shard, held in shards.items():
        save_file(held, folder / shard, metadata={"format": "pt"})
    where = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder
