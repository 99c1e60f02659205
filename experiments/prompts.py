"""Prompts, from files or datasets of many layouts: `{"id": "story-01", "category": "story", "turns": ["Once"]}`."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from .prompt_files import Row, rows_of, stem_of
from .prompt_schemas import read_row

PROMPTS = Path(__file__).parent / "prompts.jsonl"  # written for this toolkit, in six categories
LEARNT = ("story", "prose", "code")  # categories of PROMPTS that the embedded models saw texts of in training


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a user says, in one or more turns; answers come between them."""

    id: str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()  # answers that a data set gives, if any
    source: str | None = None  # where the text comes from, if its file says so
    system: str | None = None  # what a chat tells the model before the first turn

    @property
    def text(self) -> str:
        """The first turn."""
        return self.turns[0]


def read_prompts(source: str | Path = PROMPTS) -> list[Prompt]:
    """The prompts of a file or dataset, in its order.

    The layout is recognised by the fields: ours, Spec-Bench, SPEED-Bench, ShareGPT, chats of messages, HumanEval,
    GSM8K, MBPP, or just `turns`, `prompt` or `text`. A row without an id is called by the source and its number, a row
    without a category by the source.

    Args:
        source: a .jsonl, .json, .parquet, .csv or .txt file (one prompt per line), or `hub:org/name[:[config/]split]`.

    Raises:
        ValueError: the source cannot be read, a row follows no known schema or is empty, or an id occurs twice.

    Example:
        >>> sorted({prompt.category for prompt in read_prompts()})
        ['chat', 'code', 'math', 'prose', 'story', 'summary']
    """
    places: dict[str, str] = {}
    prompts = []
    for number, (where, row) in enumerate(rows_of(source), 1):
        prompt = _prompt(row, where, stem_of(source), number)
        if prompt.id in places:
            raise ValueError(
                f"expected each id once, got {prompt.id!r} at {where} and at {places[prompt.id]}; rename one, or leave "
                "out the ids: rows are numbered then"
            )
        places[prompt.id] = where
        prompts.append(prompt)
    if not prompts:
        raise ValueError(f"expected at least one prompt, got none in {str(source)!r}; add a line to it")
    return prompts


def first_per_category(
    prompts: Iterable[Prompt], count: int, categories: Collection[str] | None = None
) -> list[Prompt]:
    """The first `count` prompts of each category, or of each of these, in the order of their first prompt.

    Raises:
        ValueError: a category has no prompt.

    Example:
        >>> [prompt.id for prompt in first_per_category(read_prompts(), 1, ["code", "story"])]
        ['story-01', 'code-01']
    """
    groups: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        groups[prompt.category].append(prompt)
    unknown = [name for name in categories or () if name not in groups]
    if unknown:
        raise ValueError(f"expected categories of {', '.join(groups)}, got {unknown[0]!r}; pick some of them")
    chosen = [group for name, group in groups.items() if categories is None or name in categories]
    return [prompt for group in chosen for prompt in group[:count]]


def _prompt(row: Row, where: str, stem: str, number: int) -> Prompt:
    said = read_row(row, where)
    turns = said.turns
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, str) for turn in turns):
        raise ValueError(f"expected turns that are texts, got {str(turns)[:60]} at {where}; make it a list of strings")
    if not turns or not all(turn.strip() for turn in turns):
        raise ValueError(f"expected some text in every turn, got an empty prompt at {where}; drop the row or fill it")
    found = Prompt(
        id=f"{stem}-{number}" if said.id is None else str(said.id),
        category=stem if said.category is None else str(said.category),
        turns=tuple(turns),
        reference=_texts(said.reference),
        source=None if said.source is None else str(said.source),
        system=None if said.system is None else str(said.system),
    )
    try:
        "".join(
            (found.id, found.category, *found.turns, *found.reference, found.source or "", found.system or "")
        ).encode()
    except UnicodeEncodeError as error:  # JSON can name half of a character, which no tokenizer and no file takes
        raise ValueError(
            f"expected text, got {error.object[error.start]!r} at {where}, half of a character; drop it"
        ) from error
    return found


def _texts(reference: object) -> tuple[str, ...]:
    if reference is None:
        return ()
    return tuple(map(str, reference)) if isinstance(reference, list | tuple) else (str(reference),)
