"""Models of real shapes with random weights, made where they run: for how long things take, not for what they say."""

import math
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

DTYPE = torch.bfloat16
TINY = "tiny"


def _llama_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


# What each model's published config.json says, but for the ids of special tokens: a random text has no end.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_parameters": _llama_rope(8.0),
        "tie_word_embeddings": False,
    },
    "qwen3-8b": {
        "model_type": "qwen3",
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05,
        "rope_parameters": _llama_rope(32.0),
        "tie_word_embeddings": True,
    },
}
# No model's: to try a script on a CPU.
TINY_SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}


def random_model(shape: str, device: torch.device, seed: int = 0) -> PreTrainedModel:
    """A model of this shape in bfloat16; its weights are drawn on the device and are never anywhere else.

    Weights have a deviation of 0.02, as published models begin with, and those whose product goes to the residual
    stream less, the more layers there are (Radford et al., "Language Models are Unsupervised Multitask Learners",
    2019, section 2.3). The output head is equal to the embeddings, tied or not, and these outweigh what the layers
    add: greedily, the model says its last token again and again, by a margin that no rounding touches. So passes of
    different widths agree, and a replayed text is accepted as often as it is meant to be.

    Example:
        >>> model = random_model("tiny", torch.device("cpu"))
        >>> model(input_ids=torch.tensor([[5, 300, 7]])).logits[0].argmax(-1).tolist()
        [5, 300, 7]
    """
    config = AutoConfig.for_model(**(TINY_SHAPE if shape == TINY else SHAPES[shape]), eos_token_id=None)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(seed)
        with device:
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=DTYPE)
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.normal_(std=0.02 / math.sqrt(2 * config.num_hidden_layers))
            elif weight.dim() == 2:
                weight.normal_(std=0.02)
        embeddings = _weight(model.get_input_embeddings())
        embeddings.normal_()
        head = _weight(model.get_output_embeddings())
        if head is not embeddings:
            head.copy_(embeddings)
    model.eval()
    return model


def weight_bytes(model: PreTrainedModel) -> int:
    """What a pass over few tokens must read of the weights: all of them, but of embeddings next to nothing.

    Example:
        >>> model = random_model("tiny", torch.device("cpu"))
        >>> sum(weight.nbytes for weight in model.parameters()) - weight_bytes(model)
        65536
    """
    embeddings = _weight(model.get_input_embeddings())
    is_tied = _weight(model.get_output_embeddings()) is embeddings
    return sum(weight.nbytes for weight in model.parameters()) - (0 if is_tied else embeddings.nbytes)


def _weight(module: Any) -> nn.Parameter:
    weight: nn.Parameter = module.weight
    return weight
