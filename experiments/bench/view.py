"""A benchmark for people: what is planned, and the figures that records give at a glance."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .arms import Plan
from .session import Work

MAX_LINES = 12  # of notes that are shown


def show_plan(plan: Plan, works: Sequence[Work], repeats: int, console: Console) -> None:
    """Prints cells, arms, prompts and runs; what is left out, and what is measured once."""
    table = Table(title="plan", box=SIMPLE_HEAD)
    for heading in ("cell", "arms"):
        table.add_column(heading)
    for heading in ("groups", "runs"):
        table.add_column(heading, justify="right")
    for work in works:
        names = ", ".join(arm["label"] for arm in work.arms)
        num_runs = len(work.arms) * len(work.groups) * repeats
        table.add_row(work.cell, names, str(len(work.groups)), str(num_runs))
    console.print(table)
    for what, lines in (("left out", plan.left_out), ("note", plan.notes)):
        for line in lines[:MAX_LINES]:
            console.print(f"{what}: {line}", highlight=False)
        if len(lines) > MAX_LINES:
            console.print(f"{what}: {len(lines) - MAX_LINES} more, in bench.json", highlight=False)


def plan_line(plan: Plan, works: Sequence[Work], num_prompts: int, repeats: int) -> str:
    """The plan in one line."""
    num_runs = sum(len(work.arms) * len(work.groups) for work in works) * repeats
    return f"{len(plan.arms)} arms in {len(works)} cells, {num_prompts} prompts, {repeats} repeats: {num_runs} runs"


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(42), duration(90), duration(9000)
        ('42 s', '1.5 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def show_records(header: Mapping[str, Any], records: Iterable[Mapping[str, Any]], console: Console) -> None:
    """Prints a row per arm: tokens per step and per second, and the speed-up over the runs of its baseline."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        runs.setdefault(record["arm"], []).append(record)
    table = Table(box=SIMPLE_HEAD)
    table.add_column("arm", no_wrap=True)
    for heading in ("tokens/step", "tokens/s", "speed-up", "same text"):
        table.add_column(heading, justify="right")
    speeds = {arm: _speed(each) for arm, each in runs.items()}
    cell = None
    for arm in header["arms"]:
        if arm["id"] not in runs:
            continue
        if arm["cell"] != cell:
            cell = arm["cell"]
            table.add_section()
            table.add_row(f"[bold]{cell}")
        own, speed = runs[arm["id"]], speeds[arm["id"]]
        ratio = f"{speed / speeds[arm['baseline']]:.2f}x" if arm["baseline"] in speeds else ""
        table.add_row(arm["label"], _tokens_per_step(own), f"{speed:.1f}", ratio, _same(own))
    console.print(table)


def _speed(records: Sequence[Mapping[str, Any]]) -> float:
    """Tokens per second, the median run of each group."""
    groups: dict[int, list[float]] = {}
    tokens: dict[int, int] = {}
    for record in records:
        groups.setdefault(record["group"], []).append(record["seconds"])
        tokens[record["group"]] = sum(len(request["tokens"]) for request in record["requests"])
    return sum(tokens.values()) / sum(median(seconds) for seconds in groups.values())


def _tokens_per_step(records: Sequence[Mapping[str, Any]]) -> str:
    requests = [request for record in records for request in record["requests"] if request["steps"] is not None]
    num_steps = sum(len(request["steps"]["emitted"]) for request in requests)
    return f"{sum(len(request['tokens']) for request in requests) / num_steps:.2f}" if num_steps else ""


def _same(records: Sequence[Mapping[str, Any]]) -> str:
    found = [request["difference"] for each in records for request in each["requests"] if "difference" in request]
    differing = [each for each in found if each is not None]
    if not found:
        return ""
    if not differing:
        return "yes"
    num_ties = sum(each["is_tie"] for each in differing)
    return f"{num_ties} ties of {len(found)}" if num_ties == len(differing) else f"NO, {len(differing)} of {len(found)}"
