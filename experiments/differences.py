"""Where two texts part, and how close the target's call was there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

# A logit ends a long chain of roundings, whose order differs between forward passes over one row and over several. In
# bfloat16 (eps 0.008) the load-time self-check sees 0.01 to 0.03 of the logits' size, up to 4 units in the last place;
# a margin is the difference of two of them.
TIE_ULPS = 8


@dataclass(frozen=True, slots=True)
class Difference:
    """The first place where a text leaves its reference."""

    prompt: str  # id of the prompt
    position: int  # new tokens before it
    expected: int | None  # token of the reference; None: it ended here
    got: int | None
    margin: float  # difference of the two largest logits there, both texts' common beginning given
    resolution: float  # distance of neighbouring numbers of the model's dtype at the largest logit

    @property
    def is_tie(self) -> bool:
        """Whether arithmetic, not a rule, may have decided: the margin is of the order of rounding."""
        return self.margin <= TIE_ULPS * self.resolution


@torch.no_grad()
def first_difference(
    model: PreTrainedModel,
    prompt_id: str,
    prompt: Tensor,  # [1, length] int64
    expected: Sequence[int],
    got: Sequence[int],
) -> Difference | None:
    """Where `got` leaves `expected`, both continuations of the prompt; None if they are equal.

    The margin comes from one forward pass of the unpatched model over the common beginning.
    """
    if tuple(expected) == tuple(got):
        return None
    shorter = min(len(expected), len(got))
    position = next((i for i in range(shorter) if expected[i] != got[i]), shorter)
    common = torch.tensor([list(expected[:position])], dtype=torch.int64, device=prompt.device)
    logits = model(torch.cat([prompt, common], dim=1), use_cache=False).logits[0, -1]  # [vocab]
    first, second = logits.topk(2).values
    return Difference(
        prompt_id,
        position,
        expected[position] if position < len(expected) else None,
        got[position] if position < len(got) else None,
        margin=float(first - second),
        resolution=float(torch.finfo(logits.dtype).eps * first.abs()),
    )
