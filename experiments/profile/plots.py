"""The plots of a profile: roofline, time to the first token, and what wider passes cost. No pyplot, no window."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..results_file import check_writable

Row = Mapping[str, Any]
Colour = Callable[[int], str]  # of a series
SUFFIXES = (".png", ".svg")
DPI = 150
PREFILL, DECODE, VERIFY = "prefill", "decode", "verify"


def check_plot(path: Path | None) -> None:
    """Raises ValueError if a plot cannot be written there: better before the work than after it."""
    if path is not None and path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"expected --plot FILE in {' or '.join(SUFFIXES)}, got {path.name!r}; end it so")
    check_writable(path, "--plot")


def default_colour(series: int) -> str:
    """Matplotlib's own.

    Example:
        >>> default_colour(3)
        'C3'
    """
    return f"C{series}"


def write_plots(path: Path | None, profile: Row) -> None:
    """One picture with all plots, if there is a path: first beside it, then renamed."""
    if path is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    for place, draw in zip(axes.flat, (paint_roofline, paint_ttft, paint_batches, paint_widths), strict=True):
        draw(place, profile)
    model = profile["model"]
    figure.suptitle(f"{model['target']}, {model['dtype']} on {model['device']}")
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        figure.savefig(temporary, dpi=DPI)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def roofline_points(profile: Row) -> Iterator[tuple[str, str, Row]]:
    """Series, what the point is, and its row: prompts, plain steps by batch, and passes by width, shortest context."""
    for row in profile["prefill"]:
        yield PREFILL, f"{row['prompt_length']}", row
    context = min(row["context_length"] for row in profile["decode"])
    for row in profile["decode"]:
        if row["context_length"] == context:
            yield DECODE, f"b{row['batch_size']}", row
    for row in profile["verify"]:
        if row["context_length"] == context and row["batch_size"] == profile["verify"][0]["batch_size"]:
            if row["width"] > 1:
                yield VERIFY, f"w{row['width']}", row


def paint_roofline(axes: Any, profile: Row, colour: Colour = default_colour) -> None:
    """Achieved FLOP/s over FLOP per byte, under the roofs of the machine; the dashed one is of what caches hold."""
    machine, points = profile["machine"], list(roofline_points(profile))
    intensities = [row["intensity"] for _, _, row in points]
    span = [min(intensities) / 2, max(*intensities, machine["ridge_flop_per_byte"]) * 2]
    steps = [span[0] * (span[1] / span[0]) ** (step / 99) for step in range(100)]
    for style, column in (("-", "bandwidth_bytes_per_second"), ("--", "cached_bandwidth_bytes_per_second")):
        if (speed := machine[column]) is not None:
            axes.plot(steps, [min(machine["peak_flops"], step * speed) for step in steps], style, color="gray", lw=1)
    for number, (series, marker) in enumerate({PREFILL: "s", DECODE: "o", VERIFY: "^"}.items()):
        chosen = [(label, row) for name, label, row in points if name == series]
        places = [row["intensity"] for _, row in chosen], [row["flops_per_second"] for _, row in chosen]
        axes.plot(*places, marker, color=colour(number), label=series)
        for label, row in chosen:
            axes.annotate(
                label, (row["intensity"], row["flops_per_second"]), (3, 3), textcoords="offset points", fontsize=7
            )
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="FLOP/s", title="roofline")
    axes.legend()


def paint_ttft(axes: Any, profile: Row, colour: Colour = default_colour) -> None:
    """Milliseconds to the first token over prompt length."""
    rows = profile["prefill"]
    lengths = [row["prompt_length"] for row in rows]
    axes.plot(lengths, [1e3 * row["ttft_seconds"] for row in rows], "o-", color=colour(0), label="specdec")
    theirs = [1e3 * row["transformers_seconds"] for row in rows]
    axes.plot(lengths, theirs, "x:", color=colour(1), label="transformers, its pass alone")
    axes.set(xlabel="prompt tokens", ylabel="ms", title="time to the first token", ylim=(0, None))
    axes.legend()


def paint_batches(axes: Any, profile: Row, colour: Colour = default_colour) -> None:
    """Tokens per second of plain decoding over batch size, by context."""
    for number, (context, rows) in enumerate(_by(profile["decode"], "context_length").items()):
        batches = [row["batch_size"] for row in rows]
        axes.plot(
            batches, [row["tokens_per_second"] for row in rows], "o-", color=colour(number), label=f"context {context}"
        )
    axes.set(xlabel="batch size", ylabel="tokens/s", title="decoding, all requests", ylim=(0, None))
    axes.legend()


def paint_widths(axes: Any, profile: Row, colour: Colour = default_colour) -> None:
    """T(n) / T(1) over the width of a pass, by batch size, at the shortest context."""
    context = min(row["context_length"] for row in profile["verify"])
    rows = [row for row in profile["verify"] if row["context_length"] == context]
    for number, (batch, found) in enumerate(_by(rows, "batch_size").items()):
        widths = [row["width"] for row in found]
        axes.plot(widths, [row["ratio"] for row in found], "o-", color=colour(number), label=f"batch {batch}")
    axes.set(xlabel="rows of each request", ylabel="T(n) / T(1)", title="verification", ylim=(0, None))
    axes.legend()


def _by(rows: Sequence[Row], column: str) -> dict[Any, list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[column], []).append(row)
    return groups
