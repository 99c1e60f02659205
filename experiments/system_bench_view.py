"""What the rows of `system_bench` come to: ratios that have a goal, and a table."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from .shapes import SHAPES
from .system_bench_heads import HEADS

Row = Mapping[str, Any]
LARGE = ("llama-3.1-8b", "qwen3-8b")
CAPTURED = "specdec captured"
DRAFT_GOALS = {"eagle3": "<= 0.12", "dflash": "<= 0.08"}
GOALS = {
    "captured plain decoding over transformers, 8B shapes, smallest": ">= 4",
    "captured plain decoding, share of the weight-read floor, 8B shapes, smallest": ">= 0.80",
    "commit, share of scoring and commit, largest": "<= 0.02",
    "commits that wait for the device": "<= 0",
    "replay, measured speed-up over the formula's, smallest": ">= 0.95",
    "captured plain decoding over eager, smallest": None,
    "captured plain decoding over transformers with a static cache, between tokens, smallest": None,
    "largest T(16) / T(1)": None,
    "largest T(64) / T(1)": None,
    "replay, share of staging and commit in rounds by the host's clock, largest": None,
    "gain of torch.compile, smallest": None,
    **{
        f"drafting, share of a round, {name}, 8B shapes, largest": DRAFT_GOALS[head.method]
        for name, head in HEADS.items()
    },
}


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All figures with their goals; None for those that the rows do not give. Each is of rows measured in one run.

    Example:
        >>> row = {"shape": "qwen3-8b", "unit": "decoding"}
        >>> rows = [{**row, "name": "specdec captured", "ms": 4.0, "share": 0.9},
        ...         {**row, "name": "transformers", "ms": 20.0, "share": 0.2}]
        >>> [(figure["value"], figure["goal"]) for figure in figures(rows)][:3]
        [(5.0, '>= 4'), (0.9, '>= 0.80'), (None, '<= 0.02')]
    """
    rows = [row for row in rows if "ms" in row and row["shape"] in SHAPES]
    by_name: dict[tuple[str, str, str], Row] = {(row["shape"], row["unit"], row["name"]): row for row in rows}

    def over(other: str, column: str = "ms", shapes: Iterable[str] = SHAPES) -> list[float]:
        """The other's time over ours, from units that have both."""
        return [
            row[column] / by_name[shape, unit, CAPTURED][column]
            for (shape, unit, name), row in by_name.items()
            if name == other and shape in shapes and (shape, unit, CAPTURED) in by_name
        ]

    def of(column: str, wanted: Callable[[Row], bool]) -> list[float]:
        return [row[column] for row in rows if wanted(row) and row[column] is not None]

    def captured(name: str) -> Callable[[Row], bool]:
        return lambda row: row["name"] == name and row["mode"] == "captured"

    def wide(count: int) -> Callable[[Row], bool]:
        return lambda row: row["name"].startswith("score") and row["mode"] == "captured" and row["num_nodes"] == count

    decoding = of("share", lambda row: (row["name"], row["unit"]) == (CAPTURED, "decoding") and row["shape"] in LARGE)
    waits = of("waits", captured("commit"))
    values = [
        min(over("transformers", shapes=LARGE), default=None),
        min(decoding, default=None),
        max(of("share", captured("commit")), default=None),
        float(sum(waits)) if waits else None,
        min(of("of_formula", captured("replay")), default=None),
        min(over("specdec eager"), default=None),
        min(over("transformers static cache", "ms_between"), default=None),
        max(of("ratio", wide(16)), default=None),
        max(of("ratio", wide(64)), default=None),
        max((row["shares"]["cache"] for row in rows if captured("replay")(row)), default=None),
        min((1 / ratio for ratio in over("specdec compiled")), default=None),
        *(max(of("draft_share", _of_large(captured(f"head {name}"))), default=None) for name in HEADS),
    ]
    return [{"figure": name, "value": value, "goal": GOALS[name]} for name, value in zip(GOALS, values, strict=True)]


def _of_large(wanted: Callable[[Row], bool]) -> Callable[[Row], bool]:
    return lambda row: row["shape"] in LARGE and wanted(row)


def table(found: Mapping[str, Any]) -> Table:
    """A line per row: what was measured, its time, and what that comes to."""
    shown = Table(title="milliseconds" + (": DRY RUN" if found["dry"] else ""))
    for column in ("shape", "unit", "what"):
        shown.add_column(column)
    shown.add_column("ms", justify="right")
    shown.add_column("comes to")
    for row in found["rows"]:
        time = f"{row['ms']:.3f}" if "ms" in row else next(name for name in ("failed", "skipped") if name in row)
        shown.add_row(row["shape"], row["unit"], _what(row), time, _meaning(row))
    if found["absent"]:
        shown.caption = "; ".join(f"{name}: {reason}" for name, reason in found["absent"].items())
    return shown


def _what(row: Row) -> str:
    if "num_nodes" in row:
        return f"{row['name']}, {row['num_nodes']} nodes, batch {row['batch']}"
    return str(row["name"])


def _meaning(row: Row) -> str:
    if "ms" not in row:
        return str(row.get("failed") or row["skipped"])
    if row["name"] == "commit":
        return f"{row['share']:.3f} of scoring and commit" + (", waits for the device" if row["waits"] else "")
    if row["name"] == "replay":
        expected = f"{row['speedup']:.2f} x plain; formula {row['formula']:.2f}, of it {row['of_formula']:.3f}"
        return f"{expected}; {row['tokens_per_round']:.2f} tokens per round"
    if "draft_share" in row:
        return f"{row['draft_share']:.3f} of a round is drafting; of the weights read {row['floor_share']:.3f}"
    if "ratio" in row:
        return f"T(n) / T(1) = {row['ratio']:.2f}"
    notes = [f"{row['share']:.2f} of the weight-read floor", *([] if row["same_text"] else ["another text"])]
    return ", ".join(notes + (["not compiled"] if row.get("is_compiled") is False else []))
