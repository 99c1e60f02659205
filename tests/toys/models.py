"""Decoders of many families, small, with random weights; and the two tiny real Llamas of ../shared, if there."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB_SIZE = 160
WINDOW = 8  # sliding window and attention chunk: shorter than the prompts of the tests
IDS = torch.tensor([[1, 17, 33, 90, 17, 33, 90, 21, 17, 33]])  # a prompt that repeats itself
GREEDY = {"do_sample": False, "max_new_tokens": 16, "pad_token_id": 0}
SHARED = Path(__file__).parents[3] / "shared"

# One value for every spelling of a size; a config takes those that it knows.
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "sliding_window": WINDOW,
    "use_sliding_window": True,
    "max_window_layers": 0,
    "attention_chunk_size": WINDOW,
    "original_max_position_embeddings": 256,
    # mixtures of experts
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    # multi-head latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 12,
    "qk_head_dim": 24,
    # older spellings
    "ffn_dim": 96,
    "word_embed_proj_dim": 64,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 512,
    "n_inner": 96,
    "d_model": 64,
    "n_heads": 4,
    "n_layers": 4,
    "max_seq_len": 512,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 96,
    "decoder_ffn_dim": 96,
    "vocab_size_per_layer_input": VOCAB_SIZE,
    "hidden_size_per_layer_input": 8,
}
MIXED = ["sliding_attention", "full_attention"]
# What one value does not fit; `...` takes a size away.
SPECIAL = {
    "cohere2": {"layer_types": MIXED * 2},
    "deepseek_v2": {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2},
    "gemma2": {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 8.0, "layer_types": MIXED * 2},
    "gemma3_text": {"layer_types": MIXED * 2},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": MIXED * 3,
        "activation_sparsity_pattern": [0.0] * 6,
        "intermediate_size": [96] * 6,
        "altup_num_inputs": 2,
    },
    "gemma4_text": {
        "num_hidden_layers": 6,
        "num_kv_shared_layers": 2,
        "layer_types": MIXED * 3,
        "num_global_key_value_heads": 1,
        "global_head_dim": 32,
    },
    "gpt_bigcode": {"multi_query": True},
    "gpt_oss": {"layer_types": MIXED * 2},
    "llama4_text": {"layer_types": ["chunked_attention", "full_attention"] * 2, "intermediate_size_mlp": 96},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "olmo3": {"layer_types": MIXED * 2},
    "phi3": {"sliding_window": WINDOW},
    "qwen2": {"layer_types": MIXED * 2},
    "qwen2_moe": {"max_window_layers": 2, "layer_types": MIXED * 2},
    "qwen3": {"layer_types": MIXED * 2},
}
# transformers 5.17 lets SDPA run these, which leaves out the softcap: there is no plain text to compare with.
ONLY_EAGER = ("gemma2",)
# Decoders that must be scored as they score themselves; what makes each of them special.
FAMILIES = (
    "llama",  # grouped queries
    "mistral",  # sliding window in all layers
    "qwen2",  # sliding window in some layers
    "qwen3",
    "gemma",
    "gemma2",  # softcap, sliding window
    "gemma3_text",  # two rotary tables
    "gemma3n_text",  # layers that share K and V
    "gemma4_text",  # the same, with head sizes that differ
    "phi",  # rotates a part of the head
    "phi3",
    "gpt2",  # learned positions
    "opt",  # learned positions, from an offset
    "gpt_neox",
    "gpt_bigcode",  # one key head
    "olmo2",
    "olmo3",
    "mixtral",  # experts
    "qwen2_moe",  # does not hand its window over
    "qwen3_moe",
    "olmoe",
    "deepseek_v2",  # latent attention: K and V of different sizes
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",  # sinks, sliding window, experts
    "cohere",
    "cohere2",  # no positions in full layers
    "granite",
    "starcoder2",
    "stablelm",
    "glm4",
    "llama4_text",  # attention in chunks
    "smollm3",  # no positions in some layers
    "exaone4",
    "nemotron",
    "seed_oss",
)


def tiny_model(name, dtype=torch.float64, seed=0, **over):
    """A model of this type (a name of `AutoConfig`) with random weights, in eval mode.

    Args:
        over: config values, over all others.
    """
    default = AutoConfig.for_model(name)
    values = {key: value for key, value in SIZES.items() if _takes(default, key)}
    if _takes(default, "kv_lora_rank"):
        values["num_key_value_heads"] = 4
        if "head_dim" in values:
            values["head_dim"] = values["qk_rope_head_dim"]
    values |= {**SPECIAL.get(name, {}), **over}
    config = AutoConfig.for_model(name, **{key: value for key, value in values.items() if value is not ...})
    torch.manual_seed(seed)
    experts = {"experts_implementation": "eager"} if dtype == torch.float64 else {}  # the fast ones know no float64
    attention = {"attn_implementation": "eager"} if name in ONLY_EAGER else {}
    model = AutoModelForCausalLM.from_config(config, **experts, **attention).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() >= 2:  # larger than they are initialised, so that what a row sees shows in its logits
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.15)
            elif "sink" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def real_llama(name="stories260K", dtype=torch.float32):
    """A tiny trained Llama of ../shared/models, in eval mode; the test is skipped where there is none."""
    folder = SHARED / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no folder {folder}")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def _takes(config, key):
    """Whether a config knows a value of this name and lets it be set."""
    if key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        return True
    attribute = getattr(type(config), key, None)
    if isinstance(attribute, property) and attribute.fset is None:
        return False
    try:
        return getattr(config, key) is not None or key == "sliding_window"
    except AttributeError:
        return False
    except Exception:  # a value that differs by layer refuses to be read (Gemma 4)
        return True
