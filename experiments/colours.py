"""Generated text on a terminal, coloured by who proposed each token."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from specdec.events import Round

TARGET_STYLE = "default"
DRAFTER_STYLES = ("green", "cyan", "magenta", "yellow")
CONTEXT = 8  # tokens before the new ones that are decoded with them: spaces and joins depend on what stands before
MAX_HELD = 8  # tokens; a character has at most four bytes, so more of them are no character
INCOMPLETE = "�"


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
    """

    def __init__(self, console: Console, detokenizer: Detokenizer) -> None:
        self.console, self.detokenizer = console, detokenizer
        self.counts: dict[str, int] = {}  # tokens by who proposed them; "" is the target itself

    def show(self, event: Round) -> None:
        """Prints what the first request of this round emitted."""
        step = event.steps[0]
        for index, token in enumerate(step.tokens):
            source = step.source if index < step.num_accepted else ""
            self.counts[source] = self.counts.get(source, 0) + 1
            self._print(self.detokenizer.push(token), source)

    def end(self) -> None:
        """Prints what was held back, and ends the line."""
        self._print(self.detokenizer.flush(), "")
        self.console.print()

    def legend(self) -> Text:
        """Who proposed how many tokens, in the colours used."""
        parts: Iterator[Any] = (
            part
            for source, count in self.counts.items()
            for part in ((f"{source or 'target'} {count}", self._style(source)), "  ")
        )
        return Text.assemble("tokens by ", *parts)

    def _print(self, piece: str, source: str) -> None:
        if piece:
            self.console.print(Text(piece, self._style(source)), end="", soft_wrap=True)
            self.console.file.flush()

    def _style(self, source: str) -> str:
        if not source:
            return TARGET_STYLE
        order = [name for name in self.counts if name]
        return DRAFTER_STYLES[order.index(source) % len(DRAFTER_STYLES)]
