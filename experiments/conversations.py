"""A prompt of one or more turns as the token ids a model reads, with its own answers between them."""

from collections.abc import Sequence

import torch
from jinja2 import TemplateError
from torch import Tensor

from specdec.checkpoints import first_line

from .loading import Models
from .prompts import Prompt

SEPARATOR = "\n\n"  # between an answer and the next turn, and behind what a system is told, without a chat template


class Conversation:
    """What a model reads, turn by turn: ask for the next input, give the answer, and so on.

    With the tokenizer's chat template, turn t is the template over all messages so far, the answers as text, as in
    Spec-Bench. Without one, tokens are strung together: those of the first turn, those of the answer as the model
    wrote them (an end-of-text token at its end is left out), those of a blank line and the next turn, and so on; the
    history is never tokenised again, so a cache of it stays valid.

    Args:
        prompt: the turns of the user.
        models: the tokenizer, and the target on whose device the inputs lie.
        use_chat_template: None for yes if the tokenizer has one.

    Raises:
        ValueError: a chat template is wanted where there is none, or it refuses the messages.

    Example:
        >>> from specdec.experiments.loading import load_models
        >>> models = load_models()
        >>> talk = Conversation(Prompt("a", "story", ("Once", "The end")), models)
        >>> models.decode(talk.next_input()[0].tolist())
        'Once'
        >>> talk.answer(models.tokenizer(" upon a time")["input_ids"])
        >>> models.decode(talk.next_input()[0].tolist())
        'Once upon a time\\n\\nThe end'
    """

    def __init__(self, prompt: Prompt, models: Models, use_chat_template: bool | None = None) -> None:
        has_template = bool(getattr(models.tokenizer, "chat_template", None))
        if use_chat_template and not has_template:
            raise ValueError("expected a tokenizer with a chat template, got none; leave the template off")
        self._prompt, self._models = prompt, models
        self._uses_template = has_template if use_chat_template is None else use_chat_template
        self._answers: list[list[int]] = []

    def next_input(self) -> Tensor | None:  # [1, n] int64
        """The conversation up to the turn that is to be answered next; None when all turns are answered."""
        if len(self._answers) == len(self._prompt.turns):
            return None
        return self._chat() if self._uses_template else self._strung()

    def answer(self, tokens: Sequence[int]) -> None:
        """Takes the new tokens of the model's answer to the latest input."""
        assert len(self._answers) < len(self._prompt.turns), "every turn is answered"
        self._answers.append(list(tokens))

    def _strung(self) -> Tensor:
        first, *later = self._prompt.turns
        system = "" if self._prompt.system is None else self._prompt.system + SEPARATOR
        pieces = [self._models.encode(system + first)]
        for tokens, turn in zip(self._answers, later, strict=False):
            asked = self._models.tokenizer(SEPARATOR + turn, add_special_tokens=False)["input_ids"]
            pieces.append(torch.tensor([[*self._without_end(tokens), *asked]], device=pieces[0].device))
        return torch.cat(pieces, dim=1)

    def _without_end(self, tokens: list[int]) -> list[int]:
        """Behind the end of a text another text begins; the conversation goes on instead."""
        ends = self._models.target.generation_config.eos_token_id
        known = set(ends) if isinstance(ends, list) else {ends}
        return tokens[:-1] if tokens and tokens[-1] in known else tokens

    def _chat(self) -> Tensor:
        system = self._prompt.system
        messages = [] if system is None else [{"role": "system", "content": system}]
        for index, turn in enumerate(self._prompt.turns[: len(self._answers) + 1]):
            messages.append({"role": "user", "content": turn})
            if index < len(self._answers):
                messages.append({"role": "assistant", "content": self._models.decode(self._answers[index])})
        try:
            written = self._models.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )
        except TemplateError as error:
            raise ValueError(
                f"expected a chat that the tokenizer's template takes, got {first_line(error)!r} for prompt "
                f"{self._prompt.id!r}; leave the template off or change the prompt"
            ) from error
        ids: Tensor = written["input_ids"].to(self._models.target.device)
        return ids
