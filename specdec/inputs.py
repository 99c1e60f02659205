"""What callers hand in: prompts apart from their padding, and which of them cannot be run."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from .noise import PhiloxNoise
from .request import Request
from .sampling import Sampler
from .stopping import Stopping
from .target import PagedModel


class Prompts:
    """The rows of `input_ids` [batch, length], with their left padding apart."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> None:
        self.rows: list[list[int]] = input_ids.tolist()
        self.padding = [0] * len(self.rows)
        if attention_mask is not None:
            _require_shape("attention_mask", attention_mask, input_ids)
            self.padding = (attention_mask == 0).sum(1).tolist()
            for row, (mask, count) in enumerate(zip(attention_mask.tolist(), self.padding, strict=True)):
                if any(mask[:count]) or count == len(mask):
                    raise ValueError(
                        f"expected left padding and at least one token per row, got attention_mask[{row}] with "
                        f"{count} zeros elsewhere or only zeros; tokenize with padding_side='left', and pass "
                        "attention_mask if the padding token is part of the text"
                    )
        if position_ids is not None and position_ids.dim() == 2:
            if len(position_ids) == 1:
                position_ids = position_ids.expand(len(input_ids), -1)
            _require_shape("position_ids", position_ids, input_ids)
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
        _require_one_rotation(target.model.config.get_text_config(decoder=True), total)
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


def _require_shape(name: str, given: Tensor, input_ids: Tensor) -> None:
    if given.shape != input_ids.shape:
        raise ValueError(
            f"expected {name} of the shape {tuple(input_ids.shape)} of input_ids, got {tuple(given.shape)}; "
            "pass the whole text, also together with past_key_values"
        )


def _require_one_rotation(config: Any, total: int) -> None:
    """Raises if the rotary table of a text of `total` tokens depends on what else is in the forward pass."""
    table = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for part in (table, *table.values()):
        kind = (part.get("rope_type") or part.get("type")) if isinstance(part, Mapping) else None
        if kind not in ("longrope", "dynamic"):
            continue
        limit = config.max_position_embeddings
        if kind == "longrope":
            name = "original_max_position_embeddings"
            limit = part.get(name) or getattr(config, name, None) or limit
        if total > limit:
            raise ValueError(
                f"expected prompt + new tokens within the {limit} that rope_type {kind!r} rotates alike, got {total}; "
                "lower max_new_tokens, or set another rope_type"
            )
