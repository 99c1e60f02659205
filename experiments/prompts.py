"""Prompts in JSON lines: `{"id": "story-01", "task": "story", "turns": ["Once upon a time"]}`."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

PROMPTS = Path(__file__).parent / "prompts.jsonl"  # written for this toolkit: stories, prose, code


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to continue."""

    id: str
    task: str
    text: str

    @property
    def category(self) -> str:
        """Another word for its task."""
        return self.task

    @property
    def turns(self) -> tuple[str, ...]:
        """What the user says."""
        return (self.text,)


def read_prompts(source: str | Path = PROMPTS) -> list[Prompt]:
    """The prompts of a file, in its order.

    Raises:
        ValueError: a line does not follow the schema, has several turns, or an id occurs twice.

    Example:
        >>> sorted({prompt.task for prompt in read_prompts()})
        ['code', 'prose', 'story']
    """
    path = Path(source)
    if not path.is_file():
        raise ValueError(f"expected a file of prompts, got {str(path)!r}; pass --prompts FILE in JSON lines")
    lines = path.read_text(encoding="utf-8").splitlines()
    prompts = [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ValueError(f"expected at least one prompt, got none in {str(path)!r}; add a line to it")
    ids = [prompt.id for prompt in prompts]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"expected each id once, got {twice!r} again in {str(path)!r}; rename it")
    return prompts


def first_per_task(prompts: Iterable[Prompt], count: int) -> list[Prompt]:
    """The first `count` prompts of each task, tasks in the order of their first prompt.

    Example:
        >>> [prompt.id for prompt in first_per_task(read_prompts(), 1)]
        ['story-01', 'prose-01', 'code-01']
    """
    tasks: dict[str, list[Prompt]] = defaultdict(list)
    for prompt in prompts:
        tasks[prompt.task].append(prompt)
    return [prompt for group in tasks.values() for prompt in group[:count]]


def first_per_category(
    prompts: Iterable[Prompt], count: int, categories: Collection[str] | None = None
) -> list[Prompt]:
    """The first `count` prompts of each category, or of each of these.

    Raises:
        ValueError: a category has no prompt.
    """
    listed = list(prompts)
    there = dict.fromkeys(prompt.category for prompt in listed)
    unknown = [name for name in categories or () if name not in there]
    if unknown:
        raise ValueError(f"expected categories of {', '.join(there)}, got {unknown[0]!r}; pick some of them")
    return first_per_task([prompt for prompt in listed if not categories or prompt.category in categories], count)


def _parsed(line: str, where: str) -> Prompt:
    try:
        record = json.loads(line)
        name, task, turns = str(record["id"]), str(record["task"]), list(record["turns"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'expected {{"id": ..., "task": ..., "turns": [...]}}, got {line[:60]!r} at {where}; '
            f"{type(error).__name__}: {error}"
        ) from error
    if len(turns) != 1 or not isinstance(turns[0], str):
        raise ValueError(f"expected one turn, a string, got {len(turns)} turns at {where}; make one prompt of each")
    if not turns[0].strip():
        raise ValueError(f"expected some text, got an empty prompt at {where}; drop the line or fill it")
    return Prompt(name, task, turns[0])
