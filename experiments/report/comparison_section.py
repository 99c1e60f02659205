"""Two benchmarks held against each other: what changed, by how much, and whether that is more than chance."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from ..figures.compare_sets import KIND, SAME_MACHINE, compare_folders
from ..figures.summary import MALFORMED
from ..figures.verdicts import LEVEL, is_change
from .bench_section import facts
from .blocks import Answers, Block, Notes, Section, Table
from .sources import Skipped, Source, reason
from .words import estimate, interval, listing, number, plain, short

Row = Mapping[str, Any]
WORDS = {
    "tokens_per_step": "tokens per step",
    "draft_acceptance_rate": "drafts accepted",
    "tokens_per_second": "tokens per second",
    "speedup": "speed-up",
}
TIMES = {"tokens_per_second"}  # which another machine changes; a speed-up is over a baseline of its own machine
NOTE = (
    "in brackets: 95 % interval over prompts. p: how often chance alone would make so large a ratio; Holm: corrected "
    f"over the arms. Marked: beyond chance, by the interval and by a corrected p of at most {LEVEL}."
)
MAX_NAMED = 6  # changes that are told in words


def comparisons(sources: Sequence[Source]) -> tuple[list[Source], list[Skipped]]:
    """Every further benchmark against the first, and those that cannot be: a summary alone has no single prompts.

    Example:
        >>> summaries = [Source(path, "bench-summary", {}) for path in ("a.json", "b.json")]
        >>> comparisons(summaries)[1][0].reason
        'no comparison: a.json is a summary without its records, and prompts are compared one by one'
    """
    benches = [source for source in sources if source.kind == "bench-summary"]
    found, left_out = [], []
    for other in benches[1:]:
        name = f"{other.path} against {benches[0].path}"
        try:
            found.append(Source(name, KIND, _compared(benches[0], other)))
        except MALFORMED as error:
            left_out.append(Skipped(name, f"no comparison: {reason(error)}"))
    return found, left_out


def _compared(first: Source, second: Source) -> Row:
    for source in (first, second):
        if source.records is None:
            raise ValueError(f"{source.path} is a summary without its records, and prompts are compared one by one")
    assert first.records is not None and second.records is not None, "just looked at"
    return compare_folders(first.records, second.records)


def comparison_section(value: Row, title: str, prefix: str) -> Section:
    """The section of what `compare_sets` tells of two benchmarks: the second over the first."""
    rows: Sequence[Row] = value["arms"]
    shared = [f"in every arm another setting, first → second: {setting}"] if (setting := _shared(rows)) else []
    blocks: list[Block] = [Notes("note", [*map(str, value["notes"]), *shared, *([NOTE] if rows else [])])]
    blocks += _tables(rows, value["are_times_comparable"])
    only = {f"only in the {which}": value[name] for which, name in (("first", "only_a"), ("second", "only_b"))}
    blocks += [facts("Arms without a partner", only)] if any(only.values()) else []
    blocks += [facts("What differs in the environment", changed)] if (changed := _changed(value)) else []
    answers = Answers("The second over the first", tuple(_pairs(value)))
    return Section(title, blocks, [answers], definitions=value["definitions"])


def _changed(value: Row) -> dict[str, str]:
    """What differs in the environment, with both values."""
    return {name: f"{plain(a)} → {plain(b)}" for name, (a, b) in value["environment_differs"].items()}


def _figures(rows: Sequence[Row]) -> Iterator[tuple[Row, str, Row]]:
    """(arm, name, figure) of all that both sets have; not what is 1 in both, as a baseline's speed-up over itself."""
    for row in rows:
        told = ((row, name, found) for name in WORDS if (found := row["figures"].get(name)) is not None)
        yield from (each for each in told if not each[2]["a"] == each[2]["b"] == 1)


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The arm, with its cell and the setting that differs where these are not the same for all."""
    cell = f", {row['cell']}" if len({each["cell"] for each in rows}) > 1 else ""
    changed = f" ({_setting(row)})" if row["difference"] and _shared(rows) is None else ""
    return f"{row['label']}{cell}{changed}"


def _setting(row: Row) -> str:
    return "; ".join(f"{name}: {plain(a)} → {plain(b)}" for name, (a, b) in row["difference"].items())


def _shared(rows: Sequence[Row]) -> str | None:
    """The setting that differs in every arm alike; empty if none does."""
    settings = {_setting(row) for row in rows}
    return settings.pop() if len(settings) == 1 else None


def _tables(rows: Sequence[Row], are_times_comparable: bool) -> Iterator[Table]:
    for name, words in WORDS.items():
        told = [(row, found) for row, each, found in _figures(rows) if each == name]
        is_foreign = name in TIMES and not are_times_comparable
        cells = [
            (
                _name(row, rows),
                estimate(found),
                *(number(found[p], 4) for p in ("p_value", "p_holm")),
                *(short(found[side]) for side in ("a", "b")),
            )
            for row, found in told
        ]
        marked = frozenset(i for i, (_, found) in enumerate(told) if is_change(found) and not is_foreign)
        columns = ("arm", "second / first", "p", "p, Holm", "first", "second")
        note = "These times do not compare: see the notes." if is_foreign else ""
        if cells:
            yield Table(f"{words[0].upper()}{words[1:]}", columns, cells, note, frozenset(), marked, is_foreign)


def _pairs(value: Row) -> Iterator[tuple[str, str]]:
    rows: Sequence[Row] = value["arms"]
    if not value["is_comparable"]:
        yield "What changed?", f"Not known: {listing(map(str, value['notes']))}."
        return
    are_alike = value["are_times_comparable"]
    told = [each for each in _figures(rows) if are_alike or each[1] not in TIMES]
    sure = sorted((each for each in told if is_change(each[2])), key=lambda each: -abs(each[2]["ratio"] - 1))
    yield "What changed?", " ".join(chain(_changes(sure, rows), _doubts(told, sure, value["num_prompts"])))
    if not are_alike:
        other = listing(name for name in SAME_MACHINE if name in {each.split(".")[0] for each in _changed(value)})
        yield "Do times compare?", f"No: {other} differ. Speed-ups do, each over a baseline of its own machine."


def _changes(sure: Sequence[tuple[Row, str, Row]], rows: Sequence[Row]) -> Iterator[str]:
    for row, name, found in sure[:MAX_NAMED]:
        around = f" ({interval(found)})" if interval(found) else ""
        yield f"{_name(row, rows)}: {number(found['ratio'])} times the {WORDS[name]}{around}."
    if len(sure) > MAX_NAMED:
        yield f"{len(sure) - MAX_NAMED} more figures."


def _doubts(told: Sequence[Any], sure: Sequence[Any], num_prompts: int) -> Iterator[str]:
    rest = len(told) - len(sure)
    if not told:
        yield "Not known: no arm was measured in both."
    if rest:
        which = "the other" if sure else "any of the"
        yield f"No change beyond chance is shown in {which} {rest} figures, on {num_prompts} prompts."
