"""The models an experiment runs on: the embedded pair, or any other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from specdec.checkpoints import has_tokenizer, load_model, load_tokenizer
from specdec.zoo import FOLDER, embedded_heads

DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}
EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class Models:
    """A target, its tokenizer, and a draft model if there is one; all on one device."""

    target: PreTrainedModel
    tokenizer: Any
    draft: PreTrainedModel | None = None
    target_name: str = EMBEDDED
    draft_name: str | None = None
    heads: Mapping[str, str] = field(default_factory=dict)  # name -> folder or hub id, of self-draft heads

    @property
    def is_on_gpu(self) -> bool:
        return self.target.device.type == "cuda"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shipped = FOLDER / "heads"
        return {
            "target": self.target_name,
            "draft": self.draft_name,
            "heads": {name: EMBEDDED if Path(path).parent == shipped else path for name, path in self.heads.items()},
            "dtype": str(self.target.dtype).removeprefix("torch."),
            "device": str(self.target.device),
            "target_parameters": self.target.num_parameters(),
            "draft_parameters": None if self.draft is None else self.draft.num_parameters(),
        }

    def encode(self, text: str) -> torch.Tensor:  # [1, length] int64
        """The tokens of a text.

        Raises:
            ValueError: there are none.
        """
        ids: torch.Tensor = self.tokenizer(text, return_tensors="pt")["input_ids"]
        if not text or ids.shape[1] == 0:
            raise ValueError("expected a prompt of at least one token, got an empty one; write something to continue")
        return ids.to(self.target.device)

    def decode(self, tokens: Sequence[int]) -> str:
        """Their text as it is: no special tokens, no spaces tidied away."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def continuation(self, prompt: torch.Tensor, tokens: Sequence[int]) -> str:
        """What new tokens add to the text of a prompt [1, length]."""
        before = prompt[0].tolist()
        return self.decode([*before, *tokens])[len(self.decode(before)) :]


def load_models(
    target: str | None = None,
    draft: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    heads: Sequence[str] | None = None,
    spread: Mapping[str, str] | None = None,
) -> Models:
    """The embedded models, or those of these folders or hub ids.

    Args:
        target: None for the embedded one.
        draft: None for the embedded one if the target is embedded, and for none otherwise.
        dtype: None for bfloat16 on the embedded models and for the checkpoint's own otherwise.
        device: None for the GPU if there is one.
        heads: self-draft heads of the target, which are called as the last part of their path; None for the embedded
            ones if the target is embedded. They are not loaded yet.
        spread: how to lay the target over several devices, as `load_model` takes it; instead of a device.

    Raises:
        ValueError: something is missing, damaged, unknown, or does not fit together.
    """
    is_embedded = target is None
    draft_path = str(FOLDER / "draft") if draft is None and is_embedded else draft
    model = load_target(target, dtype, device, spread)
    tokenizer = load_tokenizer(str(FOLDER / "tokenizer") if target is None else target)
    draft_model = None
    if draft_path is not None:
        if draft is not None and has_tokenizer(draft):
            _check_same_tokens(tokenizer, load_tokenizer(draft), draft)
        draft_model = load_model(draft_path, model.dtype, model.device)
    names = (target or EMBEDDED, EMBEDDED if draft is None and is_embedded else draft)
    named = _named(heads) if heads is not None else embedded_heads() if is_embedded else {}
    return Models(model, tokenizer, draft_model, *names, heads=named)


def _named(heads: Sequence[str]) -> dict[str, str]:
    names = [Path(head).name for head in heads]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"expected heads that are called differently, got {twice!r} twice; rename a folder")
    return dict(zip(names, heads, strict=True))


def load_target(
    target: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    spread: Mapping[str, str] | None = None,
) -> PreTrainedModel:
    """The model alone; its options and errors are those of `load_models`."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}; pick one of them")
    kind = DTYPES[dtype] if dtype is not None else torch.bfloat16 if target is None else "auto"
    if device is not None and spread:
        raise ValueError(f"expected a device or {next(iter(spread))}, got both, {device!r} too; drop one")
    place = "cpu" if spread else device_of(device)
    return load_model(str(FOLDER / "target") if target is None else target, kind, place, spread)


def device_of(name: str | None) -> torch.device:
    """The device of this name; None for the GPU if there is one.

    Raises:
        ValueError: this machine has none.

    Example:
        >>> device_of("cpu")
        device(type='cpu')
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"expected a device this machine has, got {name!r}; try cpu") from error
    return torch.device(name)


def _check_same_tokens(tokenizer: Any, other: Any, draft: str) -> None:
    """Raises unless the draft model's tokens are the target's: equal ids must mean equal text."""
    ours, theirs = tokenizer.get_vocab(), other.get_vocab()
    different = sum(ours.get(token) != index for token, index in theirs.items())
    if different:
        raise ValueError(
            f"expected a draft model with the target's {len(ours)} tokens, got {different} others of {len(theirs)} in "
            f"{draft!r}; use a draft model of the same family"
        )
