"""What a benchmark's summary becomes in the report."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .answers import answers, findings
from .arms import Arm, by_cell, read_arms, series_numbers
from .bench_plots import bench_plots
from .bench_tables import (
    category_tables,
    counts_table,
    difference_table,
    first_token_table,
    histogram_table,
    latency_table,
    lengths_table,
    memory_table,
    position_tables,
    rank_tables,
    source_table,
    summary_table,
    time_table,
)
from .blocks import Block, Facts, Heading, Plot, Plots, Section, Table
from .words import estimate, plain


def bench_section(summary: Mapping[str, Any], title: str, prefix: str) -> Section:
    """The section of a summary.json."""
    arms = read_arms(summary)
    if not arms:
        raise ValueError("no arm has a record")
    cells, numbers = by_cell(arms), series_numbers(arms)
    blocks: list[Block] = []
    for index, (cell, own) in enumerate(cells.items()):
        blocks += [Heading(cell), *_cell(own, numbers, f"{prefix}-{index}")]
    blocks += _batches(arms)
    blocks += [facts("Settings", summary.get("settings") or {}), facts("Environment", summary.get("environment") or {})]
    warnings = list(dict.fromkeys([*summary.get("warnings", ()), *findings(arms)]))
    return Section(title, blocks, answers(arms), warnings, summary.get("definitions") or {})


def _cell(arms: Sequence[Arm], numbers: dict[str, int], prefix: str) -> Iterator[Block]:
    plots = bench_plots(arms, numbers, prefix)
    yield summary_table(arms)
    yield lengths_table(arms)
    yield from _side_by_side(plots["speed"])
    yield from _tables(counts_table(arms))
    yield from _side_by_side(plots["acceptance"])
    yield from _tables(*position_tables(arms), *category_tables(arms), histogram_table(arms))
    yield from _tables(*rank_tables(arms), source_table(arms))
    yield from _side_by_side(plots["time"])
    yield from _tables(first_token_table(arms), latency_table(arms), time_table(arms), memory_table(arms))
    yield from _side_by_side(plots["text"])
    yield from _tables(difference_table(arms))


def _side_by_side(plots: Sequence[Plot]) -> Iterator[Plots]:
    if plots:
        yield Plots(plots)


def _tables(*tables: Table | None) -> Iterator[Table]:
    yield from (table for table in tables if table is not None and table.rows)


def _batches(arms: Sequence[Arm]) -> Iterator[Block]:
    """The arms that were measured at several batch sizes: tokens per second and speed-up over the batch size."""
    rows: dict[tuple[str, ...], dict[int, Arm]] = {}
    for arm in arms:
        sampling = arm.about.get("sampling") or {}
        key = (arm.label, str(arm.about.get("target")), str(arm.about.get("dtype")), plain(sampling))
        rows.setdefault(key, {})[arm.about.get("batch_size") or 1] = arm
    sizes = sorted({size for found in rows.values() for size in found})
    if len(sizes) < 2:
        return
    yield Heading("Batch sizes")
    for name, caption, digits in (
        ("tokens_per_second", "Tokens per second of the whole batch, by batch size", 1),
        ("speedup", "Speed-up over plain decoding at the same batch size", 2),
    ):
        cells = [
            (
                " ".join(dict.fromkeys((key[0], *(part for i, part in enumerate(key[1:], 1) if _varies(rows, i))))),
                *(estimate(found[size].overall.get(name) if size in found else None, digits) for size in sizes),
            )
            for key, found in rows.items()
        ]
        yield Table(caption, ("arm", *(f"batch {size}" for size in sizes)), cells)


def _varies(rows: Mapping[tuple[str, ...], Any], index: int) -> bool:
    return len({key[index] for key in rows}) > 1


def facts(caption: str, values: Mapping[str, Any]) -> Facts:
    """Settings and the like, folded.

    Example:
        >>> facts("Settings", {"seed": 0}).values
        {'seed': '0'}
    """
    return Facts(caption, {str(name): plain(value) for name, value in values.items()}, is_folded=True)
