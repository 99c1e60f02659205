"""Generated text on a terminal as it comes, coloured by who proposed each token."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from transformers.generation.stopping_criteria import StopStringCriteria

from specdec.events import Round
from specdec.generation import speculate
from specdec.methods import paged

from .contenders import Decoding, drafter_of, drafter_options, head_options
from .loading import Models

TARGET, TARGET_STYLE, PROMPT_STYLE = "target", "default", "dim"
DRAFTER_STYLES = ("green", "cyan", "magenta", "yellow")
CONTEXT = 8  # tokens before the new ones that are decoded with them: spaces and joins depend on what stands before
MAX_HELD = 8  # tokens; a character has at most four bytes, so more of them are no character
INCOMPLETE = "�"


def stream(
    models: Models, prompt: str, drafter: str | None, decoding: Decoding, stop: Sequence[str], console: Console
) -> dict[str, Any]:
    """Totals of a continuation that was printed while it was generated, as plain values.

    Args:
        models: of these the target speaks.
        prompt: what to continue.
        drafter: its name, or a head's; None for the draft model if there is one, and "ngram" otherwise.
        decoding: how.
        stop: strings that end the text.
        console: where to; one without colours gets plain text.

    Raises:
        ValueError: the prompt is empty or too long, or the drafter is unknown or lacks its model.
    """
    ids = models.encode(prompt)
    name = drafter or ("ngram" if models.draft is None else "draft_model")
    printer = TokenPrinter(console, Detokenizer(models.decode, ids[0].tolist()), prompt)
    if name in models.heads:
        options: dict[str, Any] | None = head_options(models.heads[name], decoding.num_speculative_tokens)
    else:
        options = drafter_options({"method": name}, models, decoding.num_speculative_tokens)
    paged_target = paged(models.target, graphs=decoding.graphs)
    loop = speculate(drafter_of(options, paged_target), seed=decoding.seed, on_round=printer.show, target=paged_target)
    kwargs = decoding.generate_kwargs()
    if stop:
        kwargs["stopping_criteria"] = [StopStringCriteria(models.tokenizer, list(stop))]
    target: Any = models.target
    begin = perf_counter()
    try:
        output = target.generate(ids, attention_mask=torch.ones_like(ids), custom_generate=loop, **kwargs)
    finally:
        printer.end()
    seconds = perf_counter() - begin
    totals = loop.last.metrics
    return {
        "text": models.continuation(ids, output[0, ids.shape[1] :].tolist()),
        "drafter": loop.last.drafter,
        "verifier": loop.last.verifier,
        "level": loop.last.level.name,
        "finish_reason": loop.last.rounds[-1].steps[0].finish_reason,
        "tokens_by_source": {source or TARGET: count for source, count in printer.counts.items()},
        "tokens_per_second": totals.num_tokens / seconds,
        "metrics": totals.as_dict(),
        "graphs": None if (report := paged_target.graph_report) is None else asdict(report),
    }


def summary_line(totals: dict[str, Any]) -> str:
    """The totals for people."""
    metrics = totals["metrics"]
    graphs = totals["graphs"]
    captured = (
        ""
        if graphs is None
        else (
            f"; {graphs['num_replayed']} of {graphs['num_replayed'] + graphs['num_eager']} target passes by "
            f"{graphs['num_graphs']} graphs, captured in {graphs['seconds']:.1f} s with {graphs['num_bytes'] >> 20} MiB"
        )
    )
    return (
        f"{metrics['num_tokens']} tokens in {metrics['num_steps']} target calls: "
        f"{metrics['tokens_per_step']:.2f} tokens per step, acceptance rate {metrics['acceptance_rate']:.2f}, "
        f"{totals['tokens_per_second']:.1f} tokens/s (drafter {totals['drafter']}, rule {totals['verifier']})"
        f"{captured}"
    )


class Detokenizer:
    """Pieces of text as tokens arrive; an incomplete character is held back until it is whole.

    The pieces, joined, are what decoding all tokens at once adds to the text of the prompt.

    Example:
        >>> detokenizer = Detokenizer(lambda tokens: bytes(tokens).decode(errors="replace"), [65])
        >>> [detokenizer.push(byte) for byte in "né".encode()], detokenizer.flush()
        (['n', '', 'é'], '')
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int]) -> None:
        self._decode = decode
        self._shown = list(prompt[-CONTEXT:])  # tokens whose text has been handed out
        self._held: list[int] = []

    def push(self, token: int) -> str:
        """The text that this token completes."""
        self._held.append(token)
        piece = self._piece()
        if piece.endswith(INCOMPLETE) and len(self._held) < MAX_HELD:
            return ""
        return self._hand_out(piece)

    def flush(self) -> str:
        """What is left, complete or not."""
        return self._hand_out(self._piece())

    def _piece(self) -> str:
        return self._decode(self._shown + self._held)[len(self._decode(self._shown)) :]

    def _hand_out(self, piece: str) -> str:
        self._shown = [*self._shown, *self._held][-CONTEXT:]
        self._held = []
        return piece


class TokenPrinter:
    """Prints rounds as they happen.

    Args:
        console: where to; one without colours gets plain text.
        detokenizer: tokens -> text.
        prompt: printed before the first of them.
    """

    def __init__(self, console: Console, detokenizer: Detokenizer, prompt: str) -> None:
        self.console, self.detokenizer, self.prompt = console, detokenizer, prompt
        self.counts: dict[str, int] = {}  # tokens by who proposed them; "" is the target itself

    def show(self, event: Round) -> None:
        """Prints what the first request of this round emitted."""
        step = event.steps[0]
        if not self.counts:
            self._print(self.prompt, PROMPT_STYLE)
        for index, token in enumerate(step.tokens):
            source = step.source if index < step.num_accepted else ""
            self.counts[source] = self.counts.get(source, 0) + 1
            self._print(self.detokenizer.push(token), self._style(source))

    def end(self) -> None:
        """Prints what was held back, ends the line, and says which colour was whose."""
        if self.counts:
            self._print(self.detokenizer.flush(), TARGET_STYLE)
            self.console.print("\n", self.legend(), sep="")

    def legend(self) -> Text:
        """Who proposed how many tokens, in the colours used."""
        parts = [(f" {source or TARGET} {count} ", self._style(source)) for source, count in self.counts.items()]
        return Text.assemble("tokens by", *parts)

    def _print(self, piece: str, style: str) -> None:
        if piece:
            self.console.print(Text(piece, style), end="", soft_wrap=True)
            self.console.file.flush()

    def _style(self, source: str) -> str:
        if not source:
            return TARGET_STYLE
        order = [name for name in self.counts if name]
        return DRAFTER_STYLES[order.index(source) % len(DRAFTER_STYLES)]
