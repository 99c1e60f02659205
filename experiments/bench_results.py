"""The file of results of a benchmark: every row is written when it is measured, and a run cut short is gone on with."""

import json
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from specdec.kernels.bodies import body_of

from .device_timing import read_ceiling
from .results_file import write_json
from .stamp import environment

Row = dict[str, Any]
REACHED, MISSED, UNKNOWN = "reached", "not reached", "not measured"
NOT_MEASURED = ("skipped", "failed")  # a row that has one of these says why it has no figure


class BenchResults:
    """What earlier runs of a benchmark measured, and what this one adds; the base of each benchmark's own.

    Args:
        path: the file; None for none.
        is_dry: whether sizes are tiny.
        is_new: whether to leave aside what the file holds.
        settings: what has to be equal for results to be gone on with, as plain values.
        definitions: what the columns mean.

    Raises:
        ValueError: the file holds results of another version, device or setting.
    """

    def __init__(
        self,
        path: Path | None,
        is_dry: bool,
        is_new: bool,
        settings: Mapping[str, Any],
        definitions: Mapping[str, str],
    ) -> None:
        self.path = path
        self.value: dict[str, Any] = {
            "complete": False,
            "dry": is_dry,
            "note": "tiny sizes on a CPU: the times say nothing" if is_dry else None,
            "settings": settings,
            "definitions": definitions,
            "runs": [],
            "absent": {},
            "figures": [],
            "rows": [],
        }
        if path is not None and path.exists() and not is_new:
            self._continue(json.loads(path.read_text(encoding="utf-8")))

    def unit(self, row: Row) -> Hashable:
        """What a row belongs to: rows of one unit are measured together."""
        raise NotImplementedError

    def figures(self) -> list[dict[str, Any]]:
        """What the rows come to, each with `figure`, `value` and `goal`."""
        raise NotImplementedError

    @property
    def rows(self) -> list[Row]:
        rows: list[Row] = self.value["rows"]
        return rows

    @property
    def run(self) -> int:
        """The number of the run that is under way."""
        return len(self.value["runs"]) - 1

    def begin(self, device: torch.device) -> float:
        """Notes a run; returns the GB/s at which memory is read."""
        speeds = read_ceiling(device)
        run = {"began": datetime.now(UTC).isoformat(timespec="seconds"), "environment": environment()}
        self.value["runs"].append({**run, "read_gb_s": speeds, "kernels": body_of(torch.empty(0, device=device))})
        return max(speed for name, speed in speeds.items() if name != "copy")

    def add(self, *rows: Row) -> None:
        self.rows.extend({**row, "run": self.run} for row in rows)
        self.write()

    def write(self) -> None:
        is_dry = self.value["dry"]
        self.value["figures"] = [
            {**each, "state": UNKNOWN if is_dry else state_of(each["value"], each["goal"])} for each in self.figures()
        ]
        write_json(self.path, self.value)

    def finish(self) -> None:
        """Notes that all there is to measure was measured."""
        self.value["complete"] = True
        self.write()

    def has_unit(self, unit: Hashable, run: int | None = None) -> bool:
        """Whether there are rows of the unit, of this run or of any."""
        return any(self.unit(row) == unit for row in self.rows if run is None or row["run"] == run)

    def _continue(self, found: dict[str, Any]) -> None:
        """Takes over the units that the same version measured on the same device, but for those with a row to retry."""
        here, there = environment(), found["runs"][-1]["environment"]
        differing = [name for name in ("commit", "devices", "torch", "triton") if here[name] != there[name]]
        differing += [name for name in ("dry", "settings") if found[name] != self.value[name]]
        if differing:
            raise ValueError(
                f"expected results that can be gone on with, got other {', '.join(differing)} in {str(self.path)!r}; "
                f"pass --again to measure all anew"
            )
        again = {self.unit(row) for row in found["rows"] if any(name in row for name in NOT_MEASURED)}
        self.value["runs"] = found["runs"]
        self.value["rows"] = [row for row in found["rows"] if self.unit(row) not in again]


def state_of(value: float | None, goal: str | None) -> str | None:
    """Whether a figure is reached; None if it has no goal.

    Example:
        >>> state_of(0.9, ">= 0.88"), state_of(0.03, "<= 0.02"), state_of(None, "<= 0.02"), state_of(1.0, None)
        ('reached', 'not reached', 'not measured', None)
    """
    if value is None:
        return UNKNOWN
    if goal is None:
        return None
    sign, bound = goal.split()
    is_reached = value >= float(bound) if sign == ">=" else value <= float(bound)
    return REACHED if is_reached else MISSED


def print_figures(console: Console, figures: Sequence[Mapping[str, Any]]) -> None:
    """A line for each figure."""
    for each in figures:
        value = "" if each["value"] is None else f"{each['value']:.3f} "
        said = [f"goal {each['goal']}" if each["goal"] else "", each["state"] or ""]
        notes = ": ".join(note for note in said if note)
        console.print(f"{each['figure']}: {value}{f'({notes})' if notes else ''}", highlight=False, soft_wrap=True)


def progress_on(console: Console) -> Progress:
    """How a benchmark shows how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
