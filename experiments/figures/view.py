"""A summary for people: a table for each cell, what to beware of, and what follows in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .verdicts import how_many, interval_text, is_change, name_of, same_text, verdicts

HEADINGS = ("tokens/step", "accepted", "tokens/s", "speed-up", "TPOT ms", "draft", "same text")
MAX_WARNINGS = 12


def print_summary(summary: Mapping[str, Any], console: Console) -> None:
    """Prints the tables, the warnings and the verdicts of a `bench-summary`."""
    arms = {arm["id"]: arm for arm in summary["arms"]}
    for cell in summary["cells"]:
        console.print(cell_table(cell, arms))
    for warning in summary["warnings"][:MAX_WARNINGS]:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    if len(summary["warnings"]) > MAX_WARNINGS:
        console.print(f"warning: and {len(summary['warnings']) - MAX_WARNINGS} more, in the summary", style="yellow")
    for line in verdicts(summary):
        console.print(line, highlight=False, markup=False)
    if not summary["cells"]:
        console.print("nothing was run yet", highlight=False)


def cell_table(cell: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> Table:
    """The arms of a cell, fastest first; bold: surely faster than the baseline."""
    ranked = [arms[row["arm"]] for row in cell["arms"]]
    sizes = ranked[0]["overall"]
    title = f"{cell['cell']}: {how_many(sizes['num_prompts'], 'prompt')}, {sizes['num_tokens']} new tokens"
    caption = r"\[low-high]: 95 % over prompts; accepted: of the drafted depth; draft: share of the time"
    table = Table(title=escape(title), caption=caption, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for arm in ranked:
        speedup = arm["overall"]["speedup"]
        wins = speedup is not None and speedup["low"] is not None and speedup["low"] > 1
        table.add_row(*map(escape, (name_of(arm), *_cells(arm["overall"]))), style="bold" if wins else "")
    return table


def _cells(figures: Mapping[str, Any]) -> Iterator[str]:
    steps, accepted, speed = (
        figures[name] for name in ("tokens_per_step", "draft_acceptance_rate", "tokens_per_second")
    )
    speedup, tpot, seconds = figures["speedup"], figures["tpot_seconds"], figures["seconds"]
    yield "" if steps is None else interval_text(steps["value"], steps["low"], steps["high"])
    yield "" if accepted is None else f"{accepted['value']:.2f}"
    yield "" if speed is None else f"{speed['value']:.1f}"
    yield "" if speedup is None else interval_text(speedup["ratio"], speedup["low"], speedup["high"], unit="x")
    yield "" if tpot is None else f"{1000 * tpot['mean']['value']:.2f}"
    yield "" if not seconds["draft"] else f"{seconds['draft'] / seconds['total']:.0%}"
    yield same_text(figures["text"])


def print_comparison(comparison: Mapping[str, Any], console: Console) -> None:
    """Prints what set b does differently from set a: the ratios of `compare_sets`, bold where they are no chance."""
    table = Table(title=f"set b / set a, {comparison['num_prompts']} prompts of both", box=SIMPLE_HEAD, pad_edge=False)
    table.caption = "*: beyond chance, of all arms together (Holm)"
    table.add_column("arm", overflow="fold")
    for heading in ("tokens/step", "tokens/s", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in comparison["arms"]:
        changed = "".join(f" ({name}: {a} -> {b})" for name, (a, b) in row["difference"].items())
        shown = [row["figures"][name] for name in ("tokens_per_step", "tokens_per_second", "speedup")]
        table.add_row(escape(f"{row['label']}{changed}"), *map(_ratio, shown))
    console.print(table)
    for note in comparison["notes"]:
        console.print(note, style="yellow", highlight=False, markup=False)


def _ratio(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    text = interval_text(found["ratio"], found["low"], found["high"])
    if found["low"] is None:
        return text
    return f"[bold]{escape(text)} *[/bold]" if is_change(found) else escape(text)
