"""Two benchmarks held against each other: what changed, by how much, and whether that is more than chance."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from ..figures.compare_sets import KIND, compare_folders
from ..figures.verdicts import LEVEL, is_change
from .bench_section import facts
from .blocks import Answers, Block, Notes, Section, Table
from .sources import MALFORMED, Skipped, Source, reason
from .words import estimate, interval, listing, number, plain, short

Row = Mapping[str, Any]
WORDS = {
    "tokens_per_step": "tokens per step",
    "draft_acceptance_rate": "drafts accepted",
    "tokens_per_second": "tokens per second",
    "speedup": "speed-up",
}
TIMES = {"tokens_per_second"}  # which another machine changes; a speed-up is over a baseline of its own machine
MAX_NAMED = 6  # changes that are told in words


def comparisons(sources: Sequence[Source]) -> tuple[list[Source], list[Skipped]]:
    """Every further benchmark against the first, and those that cannot be: a summary alone has no single prompts."""
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
    blocks: list[Block] = [Notes("note", notes)] if (notes := list(map(str, value["notes"]))) else []
    blocks += [_table(rows, value["are_times_comparable"])] if rows else []
    only = {f"only in the {which}": plain(value[name]) for which, name in (("first", "only_a"), ("second", "only_b"))}
    blocks.append(facts("Arms without a partner", only))
    changed = {name: f"{plain(a)} → {plain(b)}" for name, (a, b) in value["environment_differs"].items()}
    blocks += [facts("What differs in the environment", changed)] if changed else []
    answers = Answers("The second over the first", tuple(_pairs(value)))
    return Section(title, blocks, [answers], definitions=value["definitions"])


def _figures(rows: Sequence[Row]) -> Iterator[tuple[Row, str, Row]]:
    """(arm, name, figure) of all that both sets have."""
    for row in rows:
        yield from ((row, name, found) for name in WORDS if (found := row["figures"].get(name)) is not None)


def _name(row: Row, rows: Sequence[Row]) -> str:
    """The arm, with the setting that differs, and with its cell where there are several."""
    changed = "; ".join(f"{name}: {plain(a)} → {plain(b)}" for name, (a, b) in row["difference"].items())
    cell = f", {row['cell']}" if len({each["cell"] for each in rows}) > 1 else ""
    return f"{row['label']}{cell}{f' ({changed})' if changed else ''}"


def _table(rows: Sequence[Row], are_times_comparable: bool) -> Table:
    cells: list[tuple[str, ...]] = []
    marked = set()
    for row, name, found in _figures(rows):
        is_foreign = name in TIMES and not are_times_comparable
        if is_change(found) and not is_foreign:
            marked.add(len(cells))
        cells.append(
            (
                _name(row, rows),
                WORDS[name],
                *(short(found[side]) for side in ("a", "b")),
                estimate(found),
                *(number(found[p], 4) for p in ("p_value", "p_holm")),
                "other machine" if is_foreign else "",
            )
        )
    columns = ("arm", "figure", "first", "second", "second / first", "p", "p, Holm", "note")
    note = (
        "In brackets: 95 % interval over prompts. p: how often chance alone would make so large a ratio; Holm: "
        f"corrected over the arms. Marked: beyond chance, by the interval and by a corrected p of at most {LEVEL}."
    )
    return Table("The second over the first", columns, cells, note, frozenset({"figure", "note"}), frozenset(marked))


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
        yield "Do times compare?", "No: the machines or their settings differ; speed-ups are over their own baselines."


def _changes(sure: Sequence[tuple[Row, str, Row]], rows: Sequence[Row]) -> Iterator[str]:
    for row, name, found in sure[:MAX_NAMED]:
        around = f" ({interval(found)})" if interval(found) else ""
        yield f"{_name(row, rows)}: {number(found['ratio'])} times the {WORDS[name]}{around}."
    if len(sure) > MAX_NAMED:
        yield f"{len(sure) - MAX_NAMED} more figures."


def _doubts(told: Sequence[Any], sure: Sequence[Any], num_prompts: int) -> Iterator[str]:
    rest = len(told) - len(sure)
    if rest:
        which = "the other " if sure else "any of the "
        yield f"For {which}{rest} figures no change beyond chance is shown on {num_prompts} prompts."
