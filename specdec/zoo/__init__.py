"""The embedded models: a small target, a draft model distilled from it, heads trained for it, and the tokenizer."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..checkpoints import load_model, load_tokenizer

FOLDER = Path(__file__).parent


def load_embedded(dtype: torch.dtype = torch.bfloat16) -> tuple[PreTrainedModel, PreTrainedModel, Any]:
    """The embedded target, its draft model and their tokenizer.

    They exist so that everything runs on a fresh machine; they say nothing about speed-ups on large models.

    Example:
        >>> target, draft_model, tokenizer = load_embedded()
        >>> target.num_parameters() > 8 * draft_model.num_parameters()
        True
    """
    target, draft_model = (load_model(str(FOLDER / name), dtype) for name in ("target", "draft"))
    return target, draft_model, load_tokenizer(str(FOLDER / "tokenizer"))


def embedded_heads() -> dict[str, str]:
    """The folders of the self-draft heads that were trained for the embedded target, by name.

    Example:
        >>> from specdec import load_drafter
        >>> target, _, tokenizer = load_embedded()
        >>> sorted(embedded_heads())
        ['block', 'eagle3', 'medusa']
        >>> load_drafter(embedded_heads()["eagle3"], target, num_speculative_tokens=4).name
        'eagle3'
    """
    return {folder.name: str(folder) for folder in sorted((FOLDER / "heads").iterdir())}
