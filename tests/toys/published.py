"""Heads as they are published, at tiny size: configs and names of tensors of each layout, written out by hand."""

import json
import re
from dataclasses import replace

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config

from specdec.draft_models.eagle import EagleNetwork
from specdec.draft_models.eagle3 import Norms
from specdec.features import LAST
from tests.toys.heads import DRAFT_TOKENS, HIDDEN, SHAPE, block, eagle, eagle3, head_config, medusa, randomised
from tests.toys.parallel_heads import peagle
from tests.toys.sessions import VOCAB

LAYERS = {
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,  # shorter than the target's: heads are cut off nowhere but where the target is
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float64",
}


def put(folder, config, tensors, file="model.safetensors"):
    """Writes a config and weights in one file, or in two with an index if it is called so."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: part.detach().clone().contiguous() for name, part in tensors.items()}
    if file.endswith(".index.json"):
        names = sorted(tensors)
        shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for shard, held in shards.items():
            save_file({name: tensors[name] for name in held}, folder / shard)
        where = {name: shard for shard, held in shards.items() for name in held}
        (folder / file).write_text(json.dumps({"weight_map": where}))
    elif file.endswith(".safetensors"):
        save_file(tensors, folder / file)
    else:
        torch.save(tensors, folder / file)
    return folder


def called(network, *pairs):
    """Its tensors after these substitutions of their names."""
    tensors = dict(network.state_dict())
    for pattern, replacement in pairs:
        tensors = {re.sub(pattern, replacement, name): part for name, part in tensors.items()}
    return tensors


def speculators(kind, num_tokens, num_layers, **over):
    greedy = {"proposal_type": "greedy", "speculative_tokens": num_tokens, "verifier_accept_k": 1}
    return {
        "architectures": ["ASpeculator"],
        "speculators_model_type": kind,
        "speculators_version": "0.9.0",
        "speculators_config": {
            "algorithm": kind,
            "proposal_methods": [{**greedy, "accept_tolerance": 0.0}],
            "default_proposal_method": "greedy",
            "verifier": {"name_or_path": "some/model", "architectures": ["LlamaForCausalLM"]},
        },
        "transformer_layer_config": {**LAYERS, "model_type": over.pop("model_type", "llama")}
        | {"num_hidden_layers": num_layers},
        "tie_word_embeddings": False,
        **over,
    }


def lent(target):
    """Copies of what the target has."""
    model = target.state_dict()
    return {"embed_tokens.weight": model["model.embed_tokens.weight"], "lm_head.weight": model["lm_head.weight"]}


def speculators_eagle3(folder, target):
    """RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3: ids of layers by what goes into them, embeddings of its own."""
    network = eagle3(has_embeddings=True)
    config = speculators("eagle3", 3, 1, draft_vocab_size=len(DRAFT_TOKENS), target_hidden_size=None)
    flags = {"norm_before_residual": False, "eagle_aux_hidden_state_layer_ids": [3, 1, 2]}
    extra = {"verifier_norm.weight": torch.ones(HIDDEN), "verifier_lm_head.weight": torch.ones(VOCAB, HIDDEN)}
    return put(folder, config | flags, called(network) | extra), network, "eagle3"


def speculators_eagle3_normed(folder, target):
    """Of Qwen3's kind, two layers, all tokens, with norms; in two files."""
    norms = Norms(norm_before_residual=True, fc_norm=True, norm_output=True)
    network = eagle3(Qwen3Config, 2, norms, draft_tokens=None)
    config = speculators("eagle3", 3, 2, model_type="qwen3", draft_vocab_size=VOCAB)
    flags = {"norm_before_residual": True, "fc_norm": True, "norm_output": True, "norm_before_fc": False}
    ids = {"eagle_aux_hidden_state_layer_ids": [3, 1, 2]}
    file = "model.safetensors.index.json"
    return put(folder, config | flags | ids, called(network), file), network, "eagle3"


def speculators_dflash(folder, target):
    """RedHatAI's, with a reduced vocabulary and windows."""
    windows = {"layer_types": ["sliding_attention", "full_attention"], "use_sliding_window": True, "sliding_window": 4}
    shape = replace(SHAPE, causal_layers=(0,))
    network = block(shape=shape, draft_tokens=DRAFT_TOKENS, max_window_layers=0, **windows)
    config = speculators("dflash", 5, 2, model_type="qwen3", draft_vocab_size=len(DRAFT_TOKENS), block_size=6)
    config["transformer_layer_config"] |= windows
    flags = {"mask_token_id": 0, "aux_hidden_state_layer_ids": [3, 1, 2], "sliding_window_non_causal": False}
    return put(folder, config | flags | {"sample_from_anchor": False}, called(network)), network, "dflash"


def speculators_dspark(folder, target):
    """All of the target's tokens, whose language model head it does not bring along."""
    network = block(shape=replace(SHAPE, sample_from_anchor=True), markov=(3, "gated"), confidence="markov")
    config = speculators("dspark", 6, 2, model_type="qwen3", draft_vocab_size=VOCAB, block_size=6, mask_token_id=0)
    flags = {"aux_hidden_state_layer_ids": [3, 1, 2], "sample_from_anchor": True, "sliding_window_non_causal": False}
    heads = {"markov_rank": 3, "markov_head_type": "gated", "enable_confidence_head": True}
    heads["confidence_head_with_markov"] = True
    return put(folder, config | flags | heads, called(network)), network, "dflash"


def speculators_peagle(folder, target):
    """A head of speculators' own training: embeddings of its own, a mask token, the hidden state of masks."""
    network = peagle(Qwen3Config, norms=Norms(fc_norm=True), has_embeddings=True)
    config = speculators("peagle", 7, 2, model_type="qwen3", draft_vocab_size=len(DRAFT_TOKENS), mask_token_id=0)
    flags = {"norm_before_residual": False, "fc_norm": True, "norm_output": False, "norm_before_fc": False}
    flags |= {"eagle_aux_hidden_state_layer_ids": [3, 1, 2], "embed_requires_grad": True, "target_hidden_size": None}
    return put(folder, config | flags, called(network)), network, "peagle"


def peagle_vllm(folder, target):
    """As vLLM runs it, by the name of EAGLE-3: the mask token has another name, the hidden state a dimension less; the
    target's embeddings."""
    network = peagle()
    network.feature_layers = (1, 1, 0)  # of four: what goes into layers 2, 4 // 2 and 4 - 3
    config = {**LAYERS, "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 2}
    config |= {"draft_vocab_size": len(DRAFT_TOKENS), "ptd_token_id": 0}
    tensors = called(network, (r"^layers\.0\.", "midlayer."))
    tensors |= {"mask_hidden": network.mask_hidden[0], "embed_tokens.weight": lent(target)["embed_tokens.weight"]}
    return put(folder, config, tensors), network, "peagle"


def peagle_specforge(folder, target):
    """SpecForge's (configs/qwen3-8b-peagle.json), and a mask token, of which its config does not tell; no ids of
    layers; all tokens, so the maps say nothing."""
    network = peagle(draft_tokens=None, has_embeddings=True)
    network.feature_layers = (1, 1, 0)
    config = {**LAYERS, "architectures": ["PEagleDraftModel"], "model_type": "llama", "num_hidden_layers": 2}
    config |= {"draft_vocab_size": VOCAB, "mask_token_id": 0}
    maps = {"d2t": torch.zeros(VOCAB, dtype=torch.int64), "t2d": torch.ones(VOCAB, dtype=torch.bool)}
    return put(folder, config, called(network) | maps), network, "peagle"


def eagle1(folder, target):
    """yuhuili/EAGLE-llama2-chat-7B: pickled, with the target's embeddings, and buffers of an older transformers."""
    network = eagle()
    config = {**LAYERS, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1}
    copied = {"embed_tokens.weight": lent(target)["embed_tokens.weight"]}
    buffers = {"layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}
    return put(folder, config, called(network) | copied | buffers, "pytorch_model.bin"), network, "eagle"


def eagle1_qwen2(folder, target):
    """yuhuili/EAGLE-Qwen2-7B-Instruct: biases, but none behind the attention; a projection without."""
    network = randomised(EagleNetwork(head_config(attention_bias=True), has_bias=False))
    torch.nn.init.zeros_(network.layers[0].self_attn.o_proj.bias)
    config = {**LAYERS, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "bias": False, "qkv_bias": True}
    tensors = called(network)
    del tensors["layers.0.self_attn.o_proj.bias"]
    return put(folder, config | {"num_hidden_layers": 1}, tensors), network, "eagle"


def eagle3_original(folder, target):
    """yuhuili/EAGLE3-LLaMA3.1-Instruct-8B: no ids of layers, which are those of EAGLE's code; a wrong number of own."""
    network = eagle3()
    network.feature_layers = (1, 1, 0)  # of four: what goes into layers 2, 4 // 2 and 4 - 3
    config = {**LAYERS, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 40}
    config["draft_vocab_size"] = len(DRAFT_TOKENS)
    tensors = called(network, (r"^layers\.0\.", "midlayer."))
    return put(folder, config, tensors, "pytorch_model.bin"), network, "eagle3"


def eagle3_sglang(folder, target):
    """SpecForge's for gpt-oss: ids of layers by what comes out of them; all tokens, so the maps say nothing."""
    network = eagle3(norms=Norms(fc_norm=True, norm_output=True), draft_tokens=None)
    config = {**LAYERS, "architectures": ["LlamaForCausalLMEagle3"], "model_type": "llama", "num_hidden_layers": 1}
    config |= {"draft_vocab_size": VOCAB, "fc_norm": True, "norm_output": True}
    config["eagle_config"] = {"eagle_aux_hidden_state_layer_ids": [2, 0, 1]}
    maps = {"d2t": torch.zeros(VOCAB, dtype=torch.int64), "t2d": torch.ones(VOCAB, dtype=torch.bool)}
    return put(folder, config, called(network, (r"^layers\.0\.", "model.midlayer.")) | maps), network, "eagle3"


def eagle3_deepspec(folder, target):
    """DeepSpec's: ids by `hidden_states[i + 1]`, the last of which are normed; embeddings and head of the target."""
    network = eagle3(Qwen3Config, draft_tokens=None)
    network.feature_layers = (0, 2, LAST)
    config = {**LAYERS, "architectures": ["Qwen3Eagle3Model"], "model_type": "qwen3", "num_hidden_layers": 1}
    config |= {"target_layer_ids": [0, 2, 3], "num_target_layers": 4, "ttt_length": 7}
    copied = {"embed_tokens.weight": lent(target)["embed_tokens.weight"]}
    return put(folder, config, called(network) | copied), network, "eagle3"


def medusa1(folder, target):
    """FasterDecoding/medusa-vicuna-7b-v1.3: an output matrix per head, pickled; its config tells of too few heads."""
    network = medusa()
    config = {"base_model_name_or_path": "some/model", "medusa_num_heads": 2, "medusa_num_layers": 1}
    tensors = called(network, (r"^medusa_head\.", ""))
    return put(folder, config, tensors, "medusa_lm_head.pt"), network, "medusa"


def medusa_shared(folder, target):
    """The legacy layout: heads read the target's language model head."""
    network = medusa(num_layers=2, has_outputs=False)
    config = {"base_model_name_or_path": "some/model", "medusa_num_heads": 5, "medusa_num_layers": 2, "version": "2"}
    tensors = called(network, (r"^medusa_head\.", ""))
    return put(folder, config, tensors, "medusa_lm_head.safetensors"), network, "medusa"


def zlab(architecture, **over):
    fields = {"architectures": [architecture], "model_type": "qwen3", "num_hidden_layers": 2, "num_target_layers": 4}
    return {**LAYERS, **fields, "layer_types": ["full_attention"] * 2, "use_sliding_window": False, **over}


def dflash(folder, target):
    """z-lab/Qwen3-8B-DFlash-b16: nothing of the target's."""
    network = block()
    config = zlab("DFlashDraftModel", block_size=6, dflash_config={"mask_token_id": 0, "target_layer_ids": [2, 0, 1]})
    return put(folder, config, called(network)), network, "dflash"


def dflash_newer(folder, target):
    """z-lab's for Qwen3.5: the size of blocks is inside, layers are left to the default."""
    network = block()
    network.feature_layers = (1, 1)  # two of four layers: 1, and 4 - 3
    network.fc = torch.nn.Linear(2 * HIDDEN, HIDDEN, bias=False).double()
    config = zlab("DFlashDraftModel", dflash_config={"mask_token_id": 0, "block_size": 6})
    return put(folder, config, called(network)), network, "dflash"


def dspark_deepspec(folder, target):
    """DeepSpec's: all fields at the top, embeddings and head of the target."""
    network = block(shape=replace(SHAPE, sample_from_anchor=True), markov=(3, "vanilla"), confidence="markov")
    config = zlab("Qwen3DSparkModel", block_size=6, mask_token_id=0, target_layer_ids=[2, 0, 1], num_anchors=512)
    config |= {"markov_rank": 3, "markov_head_type": "vanilla", "enable_confidence_head": True}
    config["confidence_head_with_markov"] = True
    return put(folder, config, called(network) | lent(target)), network, "dflash"


def dspark_specforge(folder, target):
    """SpecForge's: fields inside, and the older names of its heads."""
    network = block(shape=replace(SHAPE, sample_from_anchor=True), markov=(3, "vanilla"), confidence=True)
    inside = {"mask_token_id": 0, "target_layer_ids": [2, 0, 1], "projector_type": "dspark", "markov_rank": 3}
    inside |= {"markov_head_type": "vanilla", "enable_confidence_head": True, "confidence_head_with_markov": False}
    config = zlab("DFlashDraftModel", block_size=6, dflash_config=inside)
    tensors = called(network, (r"^(markov_head|confidence_head)\.", r"logit_head.\1."))
    return put(folder, config, tensors), network, "dflash"


PUBLISHED = {
    "speculators, EAGLE-3": speculators_eagle3,
    "speculators, EAGLE-3 of Qwen3's kind": speculators_eagle3_normed,
    "speculators, P-EAGLE": speculators_peagle,
    "speculators, DFlash": speculators_dflash,
    "speculators, DSpark": speculators_dspark,
    "EAGLE-1": eagle1,
    "EAGLE-1 of Qwen2's kind": eagle1_qwen2,
    "EAGLE-3": eagle3_original,
    "EAGLE-3, SGLang": eagle3_sglang,
    "EAGLE-3, DeepSpec": eagle3_deepspec,
    "P-EAGLE, vLLM": peagle_vllm,
    "P-EAGLE, SpecForge": peagle_specforge,
    "Medusa": medusa1,
    "Medusa, shared output": medusa_shared,
    "DFlash": dflash,
    "DFlash, newer": dflash_newer,
    "DSpark, DeepSpec": dspark_deepspec,
    "DSpark, SpecForge": dspark_specforge,
}
