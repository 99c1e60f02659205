"""Where two texts part, and how close the target's call was there."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.noise import PhiloxNoise

# A logit ends a long chain of roundings, whose order differs between forward passes over one row and over several. In
# bfloat16 (eps 0.008) the load-time self-check sees 0.01 to 0.03 of the logits' size, up to 4 units in the last place;
# a margin is the difference of two of them.
TIE_ULPS = 8
# Beyond such a rise nothing is near, and a token that a processor forbids is never chosen.
FAR = 1024.0
HALVINGS = 20  # of the interval that holds a rise


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where a text leaves its reference."""

    prompt: str  # id of the prompt
    position: int  # new tokens before it
    expected: int | None  # token of the reference; None: it ended here
    got: int | None
    margin: float  # by how much one logit would have to rise for the other token, both texts' common beginning given
    resolution: float  # distance of neighbouring numbers of the model's dtype at the largest logit

    @property
    def is_tie(self) -> bool:
        """Whether arithmetic, not a rule, may have decided: the margin is of the order of rounding."""
        return self.margin <= TIE_ULPS * self.resolution


@dataclass(frozen=True, slots=True)
class Choosing:
    """How tokens were chosen, if not by the largest logit alone."""

    options: Mapping[str, Any]  # of `generate`, max_new_tokens among them
    seed: int  # of the request's noise

    def after(self, model: Any, prefix: Tensor, position: int) -> Callable[[Tensor], int]:
        """From logits [vocab] to the token at this position of a text, which stands behind the prefix [1, n]."""
        taken: list[tuple[Any, bool]] = []

        def take(_: Any, input_ids: Tensor, logits_processor: Any, generation_config: Any, **rest: Any) -> Tensor:
            taken.append((logits_processor, generation_config.do_sample))
            return input_ids

        left = {**self.options, "max_new_tokens": self.options["max_new_tokens"] - position}
        model.generate(prefix, attention_mask=torch.ones_like(prefix), custom_generate=take, **left)
        ((processors, do_sample),) = taken
        noise = PhiloxNoise(self.seed)

        def chosen(logits: Tensor) -> int:
            scores = processors(prefix, logits[None].to(torch.float32))
            return noise.target_tokens(scores, [prefix.shape[1]])[0] if do_sample else int(scores.argmax())

        return chosen


@torch.no_grad()
def first_difference(
    model: PreTrainedModel,
    prompt_id: str,
    prompt: Tensor,  # [1, length] int64
    expected: Sequence[int],
    got: Sequence[int],
    choosing: Choosing | None = None,
) -> Difference | None:
    """Where `got` leaves `expected`, both continuations of the prompt; None if they are equal.

    The margin comes from one forward pass of the unpatched model over the common beginning: it is the difference of the
    two largest logits, or, where processors and noise have their say, of what these make of the logits.
    """
    if tuple(expected) == tuple(got):
        return None
    shorter = min(len(expected), len(got))
    position = next((i for i in range(shorter) if expected[i] != got[i]), shorter)
    common = torch.tensor([list(expected[:position])], dtype=torch.int64, device=prompt.device)
    prefix = torch.cat([prompt, common], dim=1)
    logits = model(prefix, use_cache=False).logits[0, -1]  # [vocab]
    first, second = logits.topk(2).values
    margin = float(first - second)
    if choosing is not None and position < shorter:
        chosen = choosing.after(model, prefix, position)
        margin = max(rise(chosen, logits, token) for token in (expected[position], got[position]))
    return Difference(
        prompt_id,
        position,
        expected[position] if position < len(expected) else None,
        got[position] if position < len(got) else None,
        margin=margin,
        resolution=float(torch.finfo(logits.dtype).eps * first.abs()),
    )


def rise(chosen: Callable[[Tensor], int], logits: Tensor, token: int) -> float:
    """By how much the logit of a token would have to rise for it to be chosen: of the one that is chosen, 0.

    Example:
        >>> logits = torch.tensor([2.0, 0.5, 1.0])
        >>> round(rise(lambda logits: int(logits.argmax()), logits, 1), 3)
        1.5
    """

    def is_chosen(by: float) -> bool:
        raised = logits.to(torch.float32, copy=True)
        raised[token] += by
        return chosen(raised) == token

    if is_chosen(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < FAR and not is_chosen(high):
        low, high = high, 2 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if is_chosen(middle) else (middle, high)
    return high
