"""What the other kinds of results become in the report: comparisons and imported figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .arms import point, read_arms
from .bench_section import facts
from .bench_tables import category_tables, latency_table, position_tables
from .blocks import Block, Plot, Plots, Section, Table
from .plots import PARTS, Frame, Line, Mark, Point, lines, rows_plot, stacked
from .sources import Source
from .words import ABSENT, central, estimate, interval, is_number, number, percent, rate, short

Row = Mapping[str, Any]
SIDE_BY_SIDE = ("tokens_per_step", "mean_acceptance_length", "draft_acceptance_rate", "node_acceptance_rate")
MAX_DEPTH = 5  # of the positions that are held side by side


def compare_section(value: Row, title: str, prefix: str) -> Section:
    """The section of `specdec compare --json`."""
    rows = value["rows"]
    blocks: list[Block] = [_methods("All prompts", rows, is_folded=False), Plots(list(_method_plots(rows, prefix)))]
    blocks += [_methods(f"Only {category}", found, is_folded=True) for category, found in value["by_category"].items()]
    differences = _differences(rows)
    if differences.rows:
        blocks.append(differences)
    blocks += [facts(name.capitalize(), value.get(name) or {}) for name in ("settings", "models", "environment")]
    return Section(title, blocks, definitions=value.get("definitions") or {})


def _methods(caption: str, rows: Sequence[Row], is_folded: bool) -> Table:
    cells = [
        (
            str(row["method"]),
            _speedup(row),
            number(row.get("tokens_per_second"), 1),
            number(row.get("tokens_per_step")),
            percent(row.get("acceptance_rate")),
            {True: "yes", False: "no", None: ABSENT}.get(row.get("identical"), ABSENT),
        )
        for row in rows
    ]
    columns = ("method", "speed-up", "tokens per second", "tokens per step", "drafts accepted", "same text")
    return Table(caption, columns, cells, words=frozenset({"same text"}), is_folded=is_folded)


def _speedup(row: Row) -> str:
    around = interval({"low": row.get("speedup_low"), "high": row.get("speedup_high")})
    return f"{number(row.get('speedup'))}{f' ({around})' if around else ''}"


def _method_plots(rows: Sequence[Row], prefix: str) -> Iterator[Plot]:
    marks = [
        (str(row["method"]), [Mark(index, Point(row["speedup"], 0.0, row.get("speedup_low"), row.get("speedup_high")))])
        for index, row in enumerate(rows)
        if is_number(row.get("speedup"))
    ]
    yield rows_plot(Frame(f"{prefix}-speedup", "Speed-up of each method.", "speed-up", "", 1.0), marks, {})
    parts = [
        (str(row["method"]), {part: 1000.0 * row["seconds"][part] / row["num_tokens"] for part in PARTS})
        for row in rows
        if "score" in row["seconds"] and row.get("num_tokens")
    ]
    if parts:
        yield stacked(f"{prefix}-time", "Where the time of a token goes.", "milliseconds per token", parts)


def _differences(rows: Sequence[Row]) -> Table:
    cells = [
        (
            str(row["method"]),
            str(found.get("prompt")),
            *(short(found.get(name)) for name in ("position", "margin", "resolution")),
            "a tie" if found.get("is_tie") else "NOT A TIE",
        )
        for row in rows
        if (found := row.get("first_difference"))
    ]
    columns = ("method", "prompt", "tokens before", "margin", "resolution", "verdict")
    return Table("Where texts first differ", columns, cells, words=frozenset({"prompt", "verdict"}))


def imported_section(value: Row, title: str, prefix: str) -> Section:
    """The section of figures that others measured."""
    arms = read_arms(value)
    numbers = {arm.label: index for index, arm in enumerate(arms)}
    series = []
    for arm in arms:
        found = [point(depth, each) for depth, each in enumerate(arm.overall.get("acceptance_at_pos") or (), 1)]
        if any(found):
            series.append(Line(arm.label, numbers[arm.label], [each for each in found if each is not None]))
    blocks: list[Block] = [side_by_side([Source(title, "imported", value)])]
    if series:
        caption = "Unconditional acceptance by position: share of all steps with a draft."
        frame = Frame(f"{prefix}-positions", caption, "depth of the drafted token", "unconditional", None, True)
        blocks.append(Plots([lines(frame, series)]))
    blocks += [*position_tables(arms), *category_tables(arms)]
    latencies = latency_table(arms)
    blocks += [latencies] if latencies else []
    blocks.append(facts("Read from", {str(index): path for index, path in enumerate(value.get("source") or (), 1)}))
    return Section(title, blocks, warnings=value.get("warnings") or (), definitions=value.get("definitions") or {})


def side_by_side(sources: Sequence[Source]) -> Table:
    """The acceptance of every arm of benchmarks and imported results, in the names of vLLM."""
    arms = [(source, arm) for source in sources for arm in read_arms(source.value)]
    rows = [
        (
            arm.label,
            str(arm.about.get("system") or ABSENT),
            *(estimate(arm.overall.get(name)) for name in SIDE_BY_SIDE[:2]),
            *(rate(arm.overall.get(name)) for name in SIDE_BY_SIDE[2:]),
            *_positions(arm.overall.get("acceptance_at_pos") or ()),
            estimate(arm.overall.get("tokens_per_second"), 1),
            estimate(arm.speedup),
        )
        for _, arm in arms
    ]
    names = ("tokens per step", "mean acceptance length", "drafts accepted, %", "nodes accepted, %")
    depths = (f"at {depth}, %" for depth in range(1, MAX_DEPTH + 1))
    columns = ("arm", "system", *names, *depths, "tokens per second", "speed-up")
    note = "What was measured elsewhere was measured on other machines: compare acceptance, not speed."
    return Table("Acceptance side by side", columns, rows, note, frozenset({"system"}))


def _positions(found: Sequence[Row]) -> list[str]:
    return [percent(central(found[depth])) if depth < len(found) else ABSENT for depth in range(MAX_DEPTH)]
