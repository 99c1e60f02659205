"""The plots: each function takes plain numbers and returns a drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .blocks import Plot
from .svg import BAR_MARK, INK, MARKS, PAPER, colour, draw, swatch

MARKERS = "".join(MARKS)  # of the series in turn, so that they differ without colour
DASHES = ("-", "--", ":", "-.")
MAX_LABEL = 26
BAR = 0.27  # inches
PARTS = ("draft", "score", "rule", "cache", "host", "outside")  # of the time, in the order they are stacked
TALL = 4.4  # inches: from here on a plot takes the room of two


def marker_of(number: int) -> str:
    """The marker of a series: where colours begin again, it is another one.

    Example:
        >>> [marker_of(number) for number in (0, 1, 8)]
        ['o', 's', 's']
    """
    return MARKERS[(number + number // len(MARKERS)) % len(MARKERS)]


@dataclass(frozen=True, slots=True)
class Point:
    """A figure with its interval, if there is one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """A named series; `number` decides colour, marker and dashes."""

    name: str
    number: int
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Frame:
    """What stands around the lines."""

    name: str  # of the drawing: unique in the page
    caption: str
    x: str
    y: str
    reference: float | None = None  # a horizontal line
    is_share: bool = False  # from 0 to 1
    dodge: float = 0.0  # how far neighbouring lines stand apart, so that their intervals can be seen


def lines(frame: Frame, series: Sequence[Line]) -> Plot:
    """Figures over a quantity, one line for each series, with intervals."""

    def paint(axes: Any) -> None:
        for index, each in enumerate(series):
            _line(axes, each, frame.dodge * (index - (len(series) - 1) / 2))
        if frame.reference is not None:
            axes.axhline(frame.reference, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        axes.set(xlabel=frame.x, ylabel=frame.y)
        if frame.is_share:
            axes.set_ylim(0, 1.02)
        _ticks(axes, sorted({point.x for each in series for point in each.points}))

    markup = draw(frame.name, f"{frame.caption} {_told(series)}", paint)
    return Plot(markup, frame.caption, legend({each.name: each.number for each in series}))


def legend(numbers: Mapping[str, int]) -> list[tuple[str, str]]:
    """The legend of series by their numbers; only a page breaks it where a line is full."""
    return [(name, swatch(number, MARKS[marker_of(number)])) for name, number in numbers.items()]


def _line(axes: Any, line: Line, shift: float = 0.0) -> None:
    style = {"color": colour(line.number), "marker": marker_of(line.number)}
    dashes = DASHES[line.number // len(MARKERS) % len(DASHES)]
    axes.plot([p.x + shift for p in line.points], [p.y for p in line.points], linestyle=dashes, **style)
    known = [p for p in line.points if p.low is not None and p.high is not None]
    if known:
        axes.vlines([p.x + shift for p in known], [p.low for p in known], [p.high for p in known], color=style["color"])


def _ticks(axes: Any, values: Sequence[float]) -> None:
    """Ticks where there are figures, if they are few and whole."""
    if values and len(values) <= 12 and all(value == int(value) for value in values):
        axes.set_xticks(values, [f"{int(value)}" for value in values], minor=False)
        if len(values) == 1:
            axes.set_xlim(values[0] - 1, values[0] + 1)


def _told(series: Sequence[Line]) -> str:
    """The figures in words, for those who cannot see the lines."""
    ends = [(each.name, each.points[0], each.points[-1]) for each in series if each.points]
    return "; ".join(f"{name}: {a.y:.3g} at {a.x:g}, {b.y:.3g} at {b.x:g}" for name, a, b in ends)


@dataclass(frozen=True, slots=True)
class Mark:
    """A figure of a series in a row of a plot; its x counts."""

    number: int
    point: Point


def rows_plot(frame: Frame, rows: Sequence[tuple[str, Sequence[Mark]]], numbers: Mapping[str, int]) -> Plot:
    """Figures with their intervals, some in each row; the first row on top, `frame.reference` a vertical line."""

    def paint(axes: Any) -> None:
        for place, (_, marks) in enumerate(rows):
            for index, mark in enumerate(marks):
                y = place + 0.1 * (index - (len(marks) - 1) / 2)
                style = {"color": colour(mark.number), "marker": marker_of(mark.number)}
                axes.plot([mark.point.x], [y], linestyle="", **style)
                if mark.point.low is not None and mark.point.high is not None:
                    axes.hlines(y, mark.point.low, mark.point.high, color=style["color"])
        if frame.reference is not None:
            axes.axvline(frame.reference, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        _row_labels(axes, [label for label, _ in rows], frame.x)

    told = "; ".join(f"{label}: {', '.join(f'{mark.point.x:.3g}' for mark in marks)}" for label, marks in rows)
    height = _height(sum(max(1.0, 0.1 * len(marks) + 0.8) for _, marks in rows))
    markup = draw(frame.name, f"{frame.caption} {told}", paint, height)
    return Plot(markup, frame.caption, legend(numbers), height > TALL)


def _row_labels(axes: Any, labels: Sequence[str], x: str) -> None:
    axes.set_yticks(range(len(labels)), [_cut(label) for label in labels])
    axes.set(xlabel=x, ylim=(len(labels) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)


def stacked(name: str, caption: str, x: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> Plot:
    """The parts of a time, stacked: (label, seconds by part); the first row on top."""
    shown = [part for part in PARTS if any(values.get(part) for _, values in rows)]

    def paint(axes: Any) -> None:
        left = [0.0] * len(rows)
        for part in shown:
            widths = [values.get(part) or 0.0 for _, values in rows]
            style = {"color": colour(PARTS.index(part)), "edgecolor": PAPER, "linewidth": 0.5}
            axes.barh(range(len(rows)), widths, left=left, height=0.72, **style)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        _row_labels(axes, [label for label, _ in rows], x)

    told = "; ".join(f"{label}: {sum(values.get(part) or 0.0 for part in shown):.3g}" for label, values in rows)
    height = _height(len(rows))
    markup = draw(name, f"{caption} {told}", paint, height)
    return Plot(markup, caption, [(part, swatch(PARTS.index(part), BAR_MARK)) for part in shown], height > TALL)


@dataclass(frozen=True, slots=True)
class Roof:
    """A machine: at most so many operations and bytes per second."""

    flops: float
    bytes: float
    cached_bytes: float | None = None  # from caches, for what fits into them


def roofline(name: str, caption: str, roof: Roof, groups: Sequence[Line]) -> Plot:
    """Measured points under the machine's roof: x is operations per byte, y operations per second."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    def paint(axes: Any) -> None:
        ridge = roof.flops / roof.bytes
        found = [point.x for group in groups for point in group.points]
        low, high = min([ridge, *found]) / 3, max([ridge, *found]) * 3
        for speed, dashes in ((roof.bytes, "-"), (roof.cached_bytes, (0, (4, 3)))):
            if speed:
                bend = roof.flops / speed
                ends = [min(low, bend / 3), bend, high]
                heights = [ends[0] * speed, roof.flops, roof.flops]
                axes.plot(ends, heights, color=INK, linewidth=1.2, linestyle=dashes)
        for group in groups:
            style = {"color": colour(group.number), "marker": marker_of(group.number), "linestyle": ""}
            axes.plot([p.x for p in group.points], [p.y for p in group.points], **style)
        axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="operations per second")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(EngFormatter(sep=""))
            axis.set_minor_formatter(NullFormatter())

    markup = draw(name, f"{caption} {_told(groups)}", paint)
    return Plot(markup, caption, legend({group.name: group.number for group in groups}))


def margins(name: str, caption: str, rows: Sequence[tuple[str, int, Sequence[float]]], tie: float) -> Plot:
    """Margins over resolutions where texts part: (label, series, margins); a line where ties end."""

    def paint(axes: Any) -> None:
        for place, (_, number, values) in enumerate(rows):
            style = {"marker": marker_of(number), "linestyle": "", "markerfacecolor": "none"}
            axes.plot(values, [place] * len(values), color=colour(number), **style)
        axes.axvline(tie, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        _row_labels(axes, [label for label, _, _ in rows], "margin / resolution of the dtype")
        axes.set_xlim(-0.3, None)

    told = "; ".join(f"{label}: {len(values)}" for label, _, values in rows)
    return Plot(draw(name, f"{caption} {told}", paint, _height(len(rows))), caption)


def _height(num_rows: float) -> float:
    return 0.75 + BAR * max(num_rows, 2)


def _cut(label: str) -> str:
    return label if len(label) <= MAX_LABEL else f"{label[: MAX_LABEL - 1]}…"
