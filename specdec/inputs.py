"""What callers hand in: prompts apart from their padding, other spellings, and what is refused."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .noise import PhiloxNoise
from .request import Request
from .sampling import Sampler
from .stopping import Stopping
from .target import PagedModel

HANDLED_KWARGS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position", "logits_to_keep"}
# Options that choose another decoding method, and the value that leaves them off.
OTHER_METHODS: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "assistant_early_exit": None,
}
UNAVAILABLE_OUTPUTS = ("output_attentions", "output_hidden_states")


def with_aliases(drafter: Any, kwargs: dict[str, Any]) -> Any:
    """The drafter that Hugging Face's own options describe, if they are used; they are taken out of `kwargs`."""
    assistant = kwargs.pop("assistant_model", None)
    lookup = kwargs.pop("prompt_lookup_num_tokens", None)
    count = kwargs.pop("num_assistant_tokens", None)
    ngram_size = kwargs.pop("max_matching_ngram_size", None)
    if assistant is None and lookup is None:
        if count is not None or ngram_size is not None:
            raise ValueError(
                "expected num_assistant_tokens with assistant_model=, or max_matching_ngram_size with "
                "prompt_lookup_num_tokens=, got the option alone; pass both, or drafter={...}"
            )
        return drafter
    if drafter is not None or (assistant is not None and lookup is not None):
        raise ValueError(
            "expected one drafter, got several; pass one of drafter, assistant_model, prompt_lookup_num_tokens"
        )
    if assistant is not None:
        spec: dict[str, Any] = {"method": "draft_model", "model": assistant}
        return spec if count is None else {**spec, "num_speculative_tokens": count}
    spec = {"method": "ngram", "num_speculative_tokens": lookup}
    return spec if ngram_size is None else {**spec, "prompt_lookup_max": ngram_size, "prompt_lookup_min": 1}


def refuse(config: Any, model_kwargs: Mapping[str, Any], synced_gpus: bool) -> None:
    """Raises for what this loop cannot honour."""
    for name, off in OTHER_METHODS.items():
        value = getattr(config, name, off)
        if value not in (off, None, 0, False):
            raise ValueError(f"expected greedy decoding or sampling, got {name}={value}; call model.generate for it")
    for name in UNAVAILABLE_OUTPUTS:
        if getattr(config, name, False):
            raise ValueError(f"expected {name}=False, got True; paged attention does not return it, run model.forward")
    if config.cache_implementation == "quantized":
        raise ValueError("expected an exact cache, got cache_implementation='quantized'; leave it unset")
    if config.token_healing or synced_gpus:
        name = "token_healing" if config.token_healing else "synced_gpus"
        raise ValueError(f"expected {name}=False, got True; call model.generate for it")
    for name, value in model_kwargs.items():
        if value is not None and name not in HANDLED_KWARGS:
            raise ValueError(f"expected token ids only, got the model input {name!r}; call model.generate for it")


class Prompts:
    """The rows of `input_ids` [batch, length], with their left padding apart."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> None:
        self.rows: list[list[int]] = input_ids.tolist()
        self.padding = [0] * len(self.rows)
        if attention_mask is not None:
            self.padding = (attention_mask == 0).sum(1).tolist()
            for row, (mask, count) in enumerate(zip(attention_mask.tolist(), self.padding, strict=True)):
                if any(mask[:count]) or count == len(mask):
                    raise ValueError(
                        f"expected left padding and at least one token per row, got attention_mask[{row}] with "
                        f"{count} zeros elsewhere or only zeros; tokenize with padding_side='left'"
                    )
        if position_ids is not None and position_ids.dim() == 2:
            for row, (positions, count) in enumerate(zip(position_ids.tolist(), self.padding, strict=True)):
                if positions[count:] != list(range(len(positions) - count)):
                    raise ValueError(
                        f"expected position ids that count from 0 at the first token, got others in row {row}; "
                        "leave position_ids unset"
                    )

    def check(self, target: PagedModel, max_length: int) -> None:
        length = len(self.rows[0])
        longest = length - min(self.padding)
        total = longest + max_length - length
        if length == 0:
            raise ValueError("expected a prompt of at least one token, got an empty one; begin with the bos token")
        if total > target.max_positions:
            raise ValueError(
                f"expected prompt + new tokens within the context of {target.max_positions}, got {longest} + "
                f"{max_length - length}; shorten the prompt or lower max_new_tokens"
            )
        largest = max(max(row) for row in self.rows)
        if largest >= target.vocab_size:
            raise ValueError(
                f"expected token ids below the target's vocabulary of {target.vocab_size}, got {largest}; "
                "use the model's own tokenizer"
            )

    def requests(self, sampler: Sampler, stopping: Stopping, seeds: Sequence[int]) -> Iterator[Request]:
        for row, (tokens, count) in enumerate(zip(self.rows, self.padding, strict=True)):
            noise = PhiloxNoise(seeds[row])
            yield Request(tokens[count:], sampler, stopping, noise, row=row, padding=tokens[:count])
