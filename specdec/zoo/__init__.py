"""The embedded models: a small target, a draft model distilled from it, and their tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

FOLDER = Path(__file__).parent
MODELS = ("target", "draft")


def load_embedded(dtype: torch.dtype = torch.bfloat16) -> tuple[PreTrainedModel, PreTrainedModel, Any]:
    """The embedded target, its draft model and their tokenizer.

    They exist so that everything runs on a fresh machine; they say nothing about speed-ups on large models.

    Example:
        >>> target, draft_model, tokenizer = load_embedded()
        >>> target.num_parameters() > 8 * draft_model.num_parameters()
        True
    """
    models = [AutoModelForCausalLM.from_pretrained(FOLDER / name, dtype=dtype, use_safetensors=True) for name in MODELS]
    return models[0].eval(), models[1].eval(), AutoTokenizer.from_pretrained(FOLDER / "tokenizer")
