"""What a profile and a plan become in the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .bench_section import facts
from .blocks import Answers, Block, Plot, Plots, Section, Table
from .plots import Frame, Line, Point, Roof, lines, roofline
from .words import billions, interval, is_number, milliseconds, number, percent, plain, short, size

Row = Mapping[str, Any]
MAX_ROWS = 20  # of a table that is shown unasked
Figure = tuple[str, str]  # the field of y, and that of x
DECODE = ("tokens_per_second", "batch_size")


def profile_section(profile: Row, title: str, prefix: str) -> Section:
    """The section of a profile: prompts, plain decoding by batch, wider passes, drafts and the roofline."""
    model, machine = profile.get("model") or {}, profile.get("machine") or {}
    blocks: list[Block] = [Plots(list(_plots(profile, prefix)))]
    blocks += [_table(caption, profile.get(name) or ()) for name, caption in TABLES.items() if profile.get(name)]
    blocks += [facts("Model", model), facts("Machine", machine), facts("Settings", profile.get("settings") or {})]
    blocks += [facts("Environment", profile.get("environment") or {})]
    return Section(title, blocks, warnings=profile.get("warnings") or (), definitions=profile.get("definitions") or {})


TABLES = {
    "prefill": "Prompts: time to the first token",
    "decode": "Plain decoding by batch size",
    "verify": "Passes over several rows of each request",
    "draft": "Drafts",
}
COLUMNS = {  # field -> (heading, how it is shown); in the order of the tables, of those that a row has
    "drafter": ("drafter", plain),
    "num_speculative_tokens": ("draft length", short),
    "num_tree_nodes": ("tree nodes", short),
    "prompt_length": ("prompt", short),
    "width": ("rows", short),
    "batch_size": ("batch", short),
    "context_length": ("context", short),
    "ttft_seconds": ("TTFT, ms", milliseconds),
    "seconds_per_round": ("ms per step", milliseconds),
    "pass_seconds": ("pass, ms", milliseconds),
    "seconds": ("ms", milliseconds),
    "overhead_seconds": ("overhead, ms", milliseconds),
    "ratio": ("× one row", number),
    "tokens_per_second": ("tokens/s", short),
    "tokens_per_second_per_request": ("tokens/s per request", short),
    "transformers_seconds": ("transformers, ms", milliseconds),
    "kv_bytes": ("keys and values", size),
    "intensity": ("operations per byte", short),
    "flops_per_second": ("10⁹ operations/s", billions),
    "roofline_share": ("of the roof", percent),
    "bound": ("bound by", plain),
    "slowdown": ("slowdown behind it", number),
    "drafted_share": ("steps with a draft", percent),
}
SPREAD = ("ttft_seconds", "seconds_per_round", "pass_seconds", "seconds")  # what seconds_low and seconds_high belong to


def _table(caption: str, rows: Sequence[Row]) -> Table:
    fields = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    cells = [[_cell(row, name) for name in fields] for row in rows]
    headings = [COLUMNS[name][0] for name in fields]
    return Table(caption, headings, cells, words=frozenset({"bound by"}), is_folded=len(rows) > MAX_ROWS)


def _cell(row: Row, name: str) -> str:
    shown = COLUMNS[name][1](row.get(name))
    if name in SPREAD and is_number(row.get("seconds_low")) and is_number(row.get("seconds_high")):
        return f"{shown} ({milliseconds(row['seconds_low'])}–{milliseconds(row['seconds_high'])})"
    return shown


def _plots(profile: Row, prefix: str) -> Iterator[Plot]:
    machine, groups = profile.get("machine") or {}, list(_points(profile))
    if is_number(machine.get("peak_flops")) and is_number(machine.get("bandwidth_bytes_per_second")) and groups:
        cached = machine.get("cached_bandwidth_bytes_per_second")
        roof = Roof(machine["peak_flops"], machine["bandwidth_bytes_per_second"], cached)
        caption = (
            "Roofline, measured (dashed: of what caches hold), and where prompts, decoding and verification stand."
        )
        yield roofline(f"{prefix}-roofline", caption, roof, groups)
    for name, caption, y, x, scale, frame in (
        ("prefill", "Time to the first token against prompt length.", "ttft_seconds", "prompt_length", 1000.0, "ms"),
        ("decode", "Plain decoding: tokens per second of the whole batch.", *DECODE, 1.0, "tokens per second"),
        ("verify", "Cost of a pass over several rows, in passes over one.", "ratio", "width", 1.0, "T(rows) / T(1)"),
    ):
        series = _series(profile.get(name) or (), (y, x), scale)
        if series:
            yield lines(Frame(f"{prefix}-{name}", caption, x.replace("_", " "), frame), series)


def _series(rows: Sequence[Row], figure: Figure, scale: float) -> list[Line]:
    """A line for each context length, and where a batch is not what it is drawn over, for each batch size."""
    y, x = figure
    found: dict[str, list[Point]] = {}
    for row in rows:
        if is_number(row.get(x)) and is_number(row.get(y)):
            others = [name for name in ("batch_size", "context_length") if name != x and name in row]
            label = ", ".join(f"{name.split('_')[0]} {row[name]}" for name in others)
            found.setdefault(label or "one request", []).append(Point(float(row[x]), scale * float(row[y])))
    return [
        Line(label, index, sorted(points, key=lambda point: point.x))
        for index, (label, points) in enumerate(found.items())
    ]


def _points(profile: Row) -> Iterator[Line]:
    for index, name in enumerate(("prefill", "decode", "verify")):
        points = [
            Point(float(row["intensity"]), float(row["flops_per_second"]))
            for row in profile.get(name) or ()
            if is_number(row.get("intensity")) and is_number(row.get("flops_per_second"))
        ]
        if points:
            yield Line(name, index, points)


def plan_section(plan: Row, title: str, prefix: str) -> Section:
    """The section of a plan: its advice for each batch size, and every way with its prediction."""
    advice = plan.get("advice_by_batch") or [plan["advice"]]
    sizes = [f"Batch {row.get('batch_size')}" for row in plan.get("best") or ()]
    told = [words.removeprefix(f"{size}: ") for size, words in zip(sizes, advice, strict=False)]
    is_each = len(sizes) == len(advice)
    pairs = tuple(zip(sizes, told, strict=True)) if is_each else (("Advice", " ".join(advice)),)
    rows = [
        (
            str(row["label"]),
            short(row.get("batch_size")),
            _with_interval(row),
            number(row.get("speedup")),
            number(row.get("tokens_per_step")),
            number(row.get("break_even_tokens_per_step")),
            percent(row.get("break_even_acceptance")),
            *(milliseconds((row.get("seconds") or {}).get(part)) for part in ("draft", "verify", "overhead")),
        )
        for row in plan["rows"]
    ]
    columns = ("way", "batch", "predicted tokens/s", "predicted speed-up", "tokens per step", "breaks even at")
    more = ("acceptance to break even", "draft, ms", "verify, ms", "overhead, ms")
    best = {(row.get("label"), row.get("batch_size")) for row in plan.get("best") or ()}
    marked = {i for i, row in enumerate(plan["rows"]) if (row["label"], row.get("batch_size")) in best}
    blocks: list[Block] = [Answers(f"Predicted from {plan.get('acceptance') or 'a profile'}", pairs)]
    table = Table("Every way to decode, as predicted", (*columns, *more), rows, marked=frozenset(marked))
    blocks += [*_plan_plots(plan, prefix), replace(table, is_folded=len(rows) > MAX_ROWS)]
    blocks += list(_checks(plan))
    blocks += [facts("Model", plan.get("model") or {}), facts("Environment", plan.get("environment") or {})]
    return Section(title, blocks, definitions=plan.get("definitions") or {})


def _with_interval(row: Row) -> str:
    around = interval(row, 1)
    return f"{number(row.get('tokens_per_second'), 1)}{f' ({around})' if around else ''}"


def _plan_plots(plan: Row, prefix: str) -> Iterator[Plots]:
    """Speed-up over draft length at the smallest batch size."""
    sizes = [row.get("batch_size") for row in plan["rows"] if is_number(row.get("batch_size"))]
    found: dict[str, list[Point]] = {}
    for row in plan["rows"]:
        length, ratio = row.get("num_speculative_tokens"), row.get("speedup")
        if is_number(length) and is_number(ratio) and row.get("batch_size") == min(sizes, default=None):
            name = f"{row.get('drafter')} tree" if row.get("num_tree_nodes") else str(row.get("drafter"))
            found.setdefault(name, []).append(Point(float(length), float(ratio)))
    series = [Line(name, i, sorted(points, key=lambda p: p.x)) for i, (name, points) in enumerate(found.items())]
    if series:
        caption = f"Predicted speed-up against draft length, batch {min(sizes)}."
        yield Plots([lines(Frame(f"{prefix}-speedup", caption, "draft length", "speed-up", 1.0), series)])


def _checks(plan: Row) -> Iterator[Table]:
    rows = plan.get("live") or plan.get("check") or ()
    if isinstance(rows, Sequence) and rows and not isinstance(rows, str):
        names = ("predicted_tokens_per_second", "measured_tokens_per_second", "ratio", "speedup_ratio")
        cells = [
            (plain(row["label"]), plain(row.get("batch_size")), *(short(row.get(name)) for name in names))
            for row in rows
        ]
        columns = (
            "way",
            "batch",
            "predicted tokens/s",
            "measured tokens/s",
            "predicted / measured",
            "same of speed-ups",
        )
        yield Table("Predictions beside live runs", columns, cells)
