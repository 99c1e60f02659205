"""What a profile looks at, and on what text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..loading import Models
from ..prompts import read_prompts

NUM_ROUNDS, NUM_ROUNDS_BETWEEN = 6, 2  # of a case, in each repeat, and of passes before each drafter
ROOM = 4  # rounds that a case runs beside those: the prompt's, a drafter's first, and some to spare


@dataclass(frozen=True, slots=True)
class Settings:
    """Sizes of a profile; lengths that the model's context has no room for are refused."""

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8)
    prompt_lengths: tuple[int, ...] = (16, 64, 256, 512)
    widths: tuple[int, ...] = (1, 2, 4, 8, 16)  # tokens of a request in one pass, the pending one included
    context_lengths: tuple[int, ...] = (64, 256)
    draft_lengths: tuple[int, ...] = (1, 3, 7)
    num_tree_nodes: int | None = 12
    repeats: int = 3

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @property
    def all_widths(self) -> list[int]:
        """The widths, one token among them, and those that drafts of these lengths and trees need."""
        nodes = [] if self.num_tree_nodes is None else [self.num_tree_nodes + 1]
        return sorted({1, *self.widths, *(length + 1 for length in self.draft_lengths), *nodes})

    def check(self, max_positions: int) -> None:
        """Raises ValueError if the context is too short for them."""
        wide = max(self.context_lengths) + max(self.all_widths) + NUM_ROUNDS * len(self.all_widths)
        drafted = min(self.context_lengths) + (NUM_ROUNDS + ROOM) * (max(self.draft_lengths) + 1)
        wanted = max(wide, drafted)
        if max(wanted, *self.prompt_lengths) > max_positions:
            raise ValueError(
                f"expected lengths within the model's context of {max_positions}, got prompts of "
                f"{max(self.prompt_lengths)} tokens and rounds up to {wanted}; lower --prompt-lengths, "
                "--context-lengths, --widths or --draft-lengths"
            )


def numbers_of(written: str, option: str) -> tuple[int, ...]:
    """Of an option that lists them, each once, smallest first.

    Raises:
        ValueError: it does not.

    Example:
        >>> numbers_of("1, 8,2", "--widths")
        (1, 2, 8)
    """
    try:
        numbers = tuple(sorted({int(word) for word in written.split(",")}))
    except ValueError as error:
        raise ValueError(f"expected {option} as numbers with commas, got {written!r}; write 1,2,4") from error
    if numbers[0] < 1:
        raise ValueError(f"expected {option} of 1 or more, got {written!r}; leave {numbers[0]} out")
    return numbers


def text_of(models: Models) -> list[int]:
    """The tokens of the prompts that come with the package, one after the other."""
    return [token for prompt in read_prompts() for token in models.encode(prompt.text)[0].tolist()]


def slices(text: Sequence[int], length: int, count: int) -> list[list[int]]:
    """So many pieces of a text, each from another place on; a text that is too short goes on from its beginning.

    Example:
        >>> slices([1, 2, 3, 4], length=3, count=2)
        [[1, 2, 3], [3, 4, 1]]
    """
    step = max(1, len(text) // count)
    pieces = []
    for first in range(0, step * count, step):
        pieces.append([text[(first + offset) % len(text)] for offset in range(length)])
    return pieces
