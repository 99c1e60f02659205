"""What a replay of traces becomes in the report: every setting, and the oracles that no setting can pass."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .bench_section import facts
from .blocks import Block, Plot, Plots, Section, Table
from .plots import Frame, Line, Mark, Point, lines, rows_plot
from .words import interval, is_number, listing, number, percent, plain, short

Row = Mapping[str, Any]
SETTINGS = {  # what may be asked of a trace -> heading
    "num_speculative_tokens": "draft length",
    "num_tree_nodes": "tree nodes",
    "tree_width": "tree width",
    "confidence_threshold": "threshold",
    "budget": "budget",
}
PER_ROUND = " per round"  # what all oracles are
MAX_ROWS = 20  # that are shown unasked


def replay_section(value: Row, title: str, prefix: str) -> Section:
    """The section of a replay."""
    rows: Sequence[Row] = value["rows"]
    blocks: list[Block] = [Plots(plots)] if (plots := list(_plots(value, prefix))) else []
    blocks += [_table(rows)] if rows else []
    if value.get("oracles"):
        blocks.append(_oracles(value["oracles"]))
    for trace in value.get("traces") or ():
        blocks.append(facts(f"Trace {trace.get('label') or trace.get('file')}", trace))
    blocks += [
        facts(name.capitalize(), value[name]) for name in ("costs", "settings", "environment") if value.get(name)
    ]
    return Section(title, blocks, warnings=value.get("warnings") or (), definitions=value.get("definitions") or {})


def _table(rows: Sequence[Row]) -> Table:
    asked = [name for name in SETTINGS if any(row.get(name) is not None for row in rows)]
    cells = [
        (
            plain(row.get("label") or row.get("drafter")),
            plain(row.get("verifier")),
            *(short(row.get(name)) for name in asked),
            _steps(row),
            percent(row.get("draft_acceptance_rate")),
            number(row.get("nodes_per_step")),
            number(row.get("tokens_per_cost")),
            plain(row.get("exactness")),
            str(row.get("note") or ""),
        )
        for row in rows
    ]
    figures = ("tokens per step", "drafts accepted", "nodes per step", "tokens per cost", "exactness", "note")
    columns = ("trace", "rule", *(SETTINGS[name] for name in asked), *figures)
    words = frozenset({"rule", "exactness", "note"})
    return Table("Replayed settings", columns, cells, words=words, is_folded=len(rows) > MAX_ROWS)


def _oracles(rows: Sequence[Row]) -> Table:
    cells = [
        (
            str(row.get("oracle")),
            listing(map(str, row.get("labels") or ["all"])),
            _steps(row),
            number(row.get("tokens_per_cost")),
        )
        for row in rows
    ]
    note = "Upper bounds: chosen in hindsight for every round. What a setting lacks to its oracle is what could be won."
    columns = ("oracle", "of", "tokens per step", "tokens per cost")
    return Table("Oracles", columns, cells, note, frozenset({"of"}))


def _steps(row: Row) -> str:
    around = interval(row)
    return f"{number(row.get('tokens_per_step'))}{f' ({around})' if around else ''}"


def _point(x: float, row: Row) -> Point | None:
    figure, low, high = (row.get(name) for name in ("tokens_per_step", "low", "high"))
    if not is_number(figure):
        return None
    return Point(x, figure, low, high) if is_number(low) and is_number(high) else Point(x, figure)


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each line over the draft length, named by what tells it from the others."""
    several = len({row.get("verifier") for row in rows}) > 1
    found: dict[str, list[Row]] = {}
    for row in rows:
        others = [f"{SETTINGS[name]} {short(row[name])}" for name in list(SETTINGS)[1:] if row.get(name) is not None]
        rule = [str(row.get("verifier"))] if several else []
        found.setdefault(", ".join([plain(row.get("drafter") or row.get("label")), *rule, *others]), []).append(row)
    return found


def _plots(value: Row, prefix: str) -> Iterator[Plot]:
    series = _series(value["rows"])
    found = []
    for number_of, (name, rows) in enumerate(series.items()):
        points = [_point(row["num_speculative_tokens"], row) for row in rows if row.get("num_speculative_tokens")]
        known = sorted((each for each in points if each is not None), key=lambda each: each.x)
        if known:
            found.append(Line(name, number_of, known))
    if found:
        caption = "Replayed: tokens per step against draft length, with 95 % intervals."
        yield lines(Frame(f"{prefix}-steps", caption, "draft length", "tokens per step"), found)
    yield from _bounds(value, prefix)


def _bounds(value: Row, prefix: str) -> Iterator[Plot]:
    """The best setting of each line, and the oracles below, in the colour of the line that they bound."""
    rows: list[tuple[str, list[Mark]]] = []
    numbers: dict[str, int] = {}
    for number_of, (name, own) in enumerate(_series(value["rows"]).items()):
        numbers.update({str(row.get("label")): number_of for row in own})
        points = [each for row in own if (each := _point(0.0, row)) is not None]
        if points:
            best = max(points, key=lambda each: each.y)
            rows.append((name, [Mark(number_of, Point(best.y, 0.0, best.low, best.high))]))
    for row in value.get("oracles") or ():
        found, labels = _point(0.0, row), list(map(str, row.get("labels") or ()))
        if found is not None:
            number_of = numbers.get(labels[0], len(numbers)) if len(labels) == 1 else len(numbers)
            whose = f"{labels[0]}: " if len(labels) == 1 else ""
            name = f"{whose}{str(row.get('oracle')).removesuffix(PER_ROUND)}"
            rows.append((name, [Mark(number_of, Point(found.y, 0.0, found.low, found.high))]))
    if value.get("oracles") and rows:
        caption = "The best setting of each drafter, and the oracles, which choose in each round and no policy passes."
        yield rows_plot(Frame(f"{prefix}-oracles", caption, "tokens per step", ""), rows, {})
