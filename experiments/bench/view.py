"""A benchmark for people: what is planned."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..figures.verdicts import how_many
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
    arms, cells = how_many(len(plan.arms), "arm"), how_many(len(works), "cell")
    prompts, turns = how_many(num_prompts, "prompt"), how_many(repeats, "repeat")
    return f"{arms} in {cells}, {prompts}, {turns}: {how_many(num_runs, 'run')}"


def duration(seconds: float) -> str:
    """Seconds in words.

    Example:
        >>> duration(42), duration(90), duration(9000)
        ('42 s', '1.5 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
