"""A prompt of one or more turns as token ids, the answers included."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .loading import Models
from .prompts import Prompt


class Conversation:
    """What a model reads, turn by turn.

    Example:
        >>> from specdec.experiments.loading import load_models
        >>> talk = Conversation(Prompt("a", "story", "Once"), load_models())
        >>> talk.next_input().shape, talk.answer([5]), talk.next_input()
        (torch.Size([1, 2]), None, None)
    """

    def __init__(self, prompt: Prompt, models: Models, use_chat_template: bool | None = None) -> None:
        self._turns, self._models = list(prompt.turns), models
        self._tokens: list[int] = []

    def next_input(self) -> Tensor | None:  # [1, n] int64
        """The conversation up to the next turn; None if there is none."""
        if not self._turns:
            return None
        said = self._models.encode(self._turns.pop(0))
        self._tokens += said[0].tolist()
        return torch.tensor([self._tokens], device=said.device)

    def answer(self, tokens: Sequence[int]) -> None:
        """What the model said."""
        self._tokens += tokens
