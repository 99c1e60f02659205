"""What the rows of `kernel_bench` come to: ratios that have a goal, and a table."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

Row = Mapping[str, Any]
MIN_BYTES = 256e6  # of keys and values: below, starting and ending weigh more than reading
GOALS = {
    "smallest share of the read ceiling, 1 node, from 256 MB on": ">= 0.88",
    "largest T(16) / T(1)": "<= 1.10",
    "largest T(64) / T(1)": "<= 1.8",
    "speed-up over flashinfer, geometric mean": ">= 1.2",
    "speed-up over flex_attention, geometric mean": ">= 1.5",
    "speed-up over sdpa, geometric mean": None,
}


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The figures that can be worked out from the rows of one and the same run, with their goals.

    Example:
        >>> case = {"name": "specdec", "run": 0, "batch": 1, "prefix": 1024, "bytes": 4e6, "share": 0.5}
        >>> rows = [{**case, "num_nodes": 1, "us": 4.0}, {**case, "num_nodes": 16, "us": 5.0}]
        >>> [(figure["figure"], figure["value"]) for figure in figures(rows)]
        [('largest T(16) / T(1)', 1.25)]
    """
    timed = {(row["name"], row["run"], _key(row)): row for row in rows if "us" in row}
    ours = [row for row in timed.values() if row["name"] == "specdec"]

    def ratios(other: Callable[[Row], Row | None]) -> list[float]:
        """Of the other row's time and ours."""
        return [found["us"] / row["us"] for row in ours if (found := other(row)) is not None]

    def with_nodes(count: int) -> Callable[[Row], Row | None]:
        def other(row: Row) -> Row | None:
            key = ("specdec", row["run"], (row["batch"], row["prefix"], count))
            return timed.get(key) if row["num_nodes"] == 1 else None

        return other

    def by(name: str) -> Callable[[Row], Row | None]:
        return lambda row: timed.get((name, row["run"], _key(row)))

    shares = [row["share"] for row in ours if row["num_nodes"] == 1 and row["bytes"] >= MIN_BYTES]
    values = [
        (min(shares, default=None)),
        *(max(ratios(with_nodes(count)), default=None) for count in (16, 64)),
        *(_geometric_mean(ratios(by(name))) for name in ("flashinfer", "flex_attention", "sdpa")),
    ]
    return [
        {"figure": name, "value": value, "goal": goal}
        for (name, goal), value in zip(GOALS.items(), values, strict=True)
        if value is not None
    ]


def table(found: Mapping[str, Any]) -> Table:
    """A line per case: the floor, then each contender's time with its share of the bandwidth."""
    names = list(dict.fromkeys(row["name"] for row in found["rows"]))
    shown = Table(title="microseconds (share of the read ceiling)" + (": DRY RUN" if found["dry"] else ""))
    for column in ("batch", "prefix", "nodes", "floor", *names):
        shown.add_column(column, justify="right")
    by_case: dict[tuple[int, int, int], dict[str, Row]] = {}
    for row in found["rows"]:
        by_case.setdefault(_key(row), {})[row["name"]] = row
    for key, rows in by_case.items():
        floor = next((f"{row['floor_us']:.1f}" for row in rows.values() if "us" in row), "")
        shown.add_row(*map(str, key), floor, *(_cell(rows.get(name)) for name in names))
    if found["absent"]:
        shown.caption = "; ".join(f"{name}: {reason}" for name, reason in found["absent"].items())
    return shown


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    return f"{row['us']:.1f} ({row['share']:.2f})" if "us" in row else "skipped"


def _key(row: Row) -> tuple[int, int, int]:
    return row["batch"], row["prefix"], row["num_nodes"]


def _geometric_mean(values: Sequence[float]) -> float | None:
    return statistics.geometric_mean(values) if values else None
