"""What a report is made of: sections of tables, plots, sentences and facts. The template knows nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Notes:
    """Sentences; `tone` is "warning" or "note"."""

    form: ClassVar[str] = "notes"
    tone: str
    lines: Sequence[str]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts. The first column heads its row; columns named in `words` are aligned as text."""

    form: ClassVar[str] = "table"
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    words: frozenset[str] = frozenset()
    marked: frozenset[int] = frozenset()  # rows that stand out
    is_folded: bool = False  # shown when it is asked for, and on paper


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawing, and what it shows in words."""

    form: ClassVar[str] = "plot"
    svg: str  # markup of our own making: see svg.py
    caption: str
    legend: Sequence[tuple[str, str]] = ()  # name of a series, and the markup of its mark
    is_tall: bool = False


@dataclass(frozen=True, slots=True)
class Plots:
    """Drawings that stand side by side where there is room."""

    form: ClassVar[str] = "plots"
    plots: Sequence[Plot]


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and values."""

    form: ClassVar[str] = "facts"
    caption: str
    values: Mapping[str, str]
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class Heading:
    """Begins a part of a section."""

    form: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True, slots=True)
class Answers:
    """Questions and their answers in words."""

    form: ClassVar[str] = "answers"
    title: str
    pairs: Sequence[tuple[str, str]]


Block = Answers | Facts | Heading | Notes | Plots | Table


@dataclass(frozen=True, slots=True)
class Section:
    """What one source of results says."""

    title: str
    blocks: Sequence[Block]
    answers: Sequence[Answers] = ()  # for the top of the page
    warnings: Sequence[str] = ()  # likewise
    definitions: Mapping[str, str] = field(default_factory=dict)
