"""The plots of a benchmark: one line for each drafter."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..differences import TIE_ULPS
from .arms import Arm, by_series, fastest, point
from .blocks import Plot
from .plots import PARTS, Frame, Line, Mark, Point, lines, margins, rows_plot, stacked
from .words import Estimate, is_number

MAX_ROWS = 40  # of a plot with a row for each arm; the tables have them all
POSITIONS = {
    "survival_at_pos": ("survival", "Survival: share of the steps that drafted so deep and accepted so deep."),
    "conditional_acceptance_at_pos": (
        "conditional",
        "Conditional acceptance: share accepted at a depth, of those accepted one before.",
    ),
    "acceptance_at_pos": ("unconditional", "Unconditional acceptance by position: share of all steps with a draft."),
}


def bench_plots(arms: Sequence[Arm], numbers: dict[str, int], prefix: str) -> dict[str, list[Plot]]:
    """The plots of one cell by what they tell: speed, acceptance, time, text; `prefix` makes their names unique."""
    return {
        "speed": [*_forest(arms, numbers, prefix), *_over_length(arms, numbers, prefix)],
        "acceptance": [*_by_position(arms, numbers, prefix), *_by_category(arms, numbers, prefix)],
        "time": [*_time(arms, prefix)],
        "text": [*_margins(arms, numbers, prefix)],
    }


def _forest(arms: Sequence[Arm], numbers: dict[str, int], prefix: str) -> Iterator[Plot]:
    rows = sorted((arm for arm in arms if not arm.is_baseline and arm.ratio), key=lambda arm: -(arm.ratio or 0.0))
    marks = [(arm.label, _marks({arm.series: arm.speedup}, numbers)) for arm in rows[:MAX_ROWS]]
    caption = "Speed-up over plain decoding, fastest first, with 95 % intervals."
    if marks:
        yield rows_plot(Frame(f"{prefix}-forest", caption, "speed-up", "", 1.0), marks, {})


def _marks(found: Mapping[str, Estimate], numbers: Mapping[str, int]) -> list[Mark]:
    """Figures of series as marks in a row."""
    points = [(numbers[name], point(0.0, each)) for name, each in found.items()]
    return [Mark(number, Point(p.y, 0.0, p.low, p.high)) for number, p in points if p is not None]


def _over_length(arms: Sequence[Arm], numbers: dict[str, int], prefix: str) -> Iterator[Plot]:
    names: dict[str, tuple[str, float | None]] = {
        "speedup": ("speed-up", 1.0),
        "tokens_per_step": ("tokens per step", None),
    }
    for name, (words, reference) in names.items():
        series = _series(arms, numbers, name)
        caption = f"{words[0].upper()}{words[1:]} against draft length, with 95 % intervals."
        frame = Frame(f"{prefix}-{name}", caption, "draft length", words, reference, dodge=0.05)
        if series:
            yield lines(frame, series)


def _series(arms: Sequence[Arm], numbers: dict[str, int], figure: str) -> list[Line]:
    """A line over the draft lengths for each series that has one."""
    found = []
    for name, own in by_series(arms).items():
        points = [point(arm.length, arm.overall.get(figure)) for arm in own if arm.length is not None]
        if any(points):
            found.append(Line(name, numbers[name], [each for each in points if each is not None]))
    return found


def _by_position(arms: Sequence[Arm], numbers: dict[str, int], prefix: str) -> Iterator[Plot]:
    """Of each series the arm that drafts deepest."""
    for name, (word, caption) in POSITIONS.items():
        series = []
        for label, own in by_series(arms).items():
            rates = [point(depth, each) for depth, each in enumerate(own[-1].overall.get(name) or (), 1)]
            if any(rates):
                series.append(Line(label, numbers[label], [each for each in rates if each is not None]))
        if series:
            shown = f"{caption} The longest draft of each drafter."
            yield lines(Frame(f"{prefix}-{word}", shown, "depth of the drafted token", word, None, True), series)


def _by_category(arms: Sequence[Arm], numbers: dict[str, int], prefix: str) -> Iterator[Plot]:
    """Tokens per step by category, of each series its fastest arm; the drafters' marks stand in a category's row."""
    best = {name: fastest(own) or own[-1] for name, own in by_series(arms).items()}
    categories = list(dict.fromkeys(category for arm in best.values() for category in arm.by_category))
    if len(categories) < 2:
        return

    def of(category: str) -> dict[str, Estimate]:
        return {name: (arm.by_category.get(category) or {}).get("tokens_per_step") for name, arm in best.items()}

    rows = [(category, _marks(of(category), numbers)) for category in categories]
    caption = "Tokens per step by category, each drafter at its fastest length."
    drawn = {mark.number for _, marks in rows for mark in marks}
    if drawn:
        frame = Frame(f"{prefix}-category", caption, "tokens per step", "")
        yield rows_plot(frame, rows, {name: numbers[name] for name in best if numbers[name] in drawn})


def _time(arms: Sequence[Arm], prefix: str) -> Iterator[Plot]:
    rows = []
    for arm in arms[:MAX_ROWS]:
        seconds, num_tokens = arm.overall.get("seconds") or {}, arm.overall.get("num_tokens")
        known = {part: float(seconds[part]) for part in PARTS if is_number(seconds.get(part))}
        if known and num_tokens:
            rows.append((arm.label, {part: 1000.0 * value / num_tokens for part, value in known.items()}))
    caption = "Where the time of a token goes: draft, target's forward pass, rule, cache, host, outside of the rounds."
    if rows:
        yield stacked(f"{prefix}-time", caption, "milliseconds per token", rows)


def _margins(arms: Sequence[Arm], numbers: dict[str, int], prefix: str) -> Iterator[Plot]:
    rows: list[tuple[str, int, list[float]]] = []
    for arm in arms:
        found: Sequence[dict[str, Any]] = (arm.overall.get("text") or {}).get("differences") or ()
        values = [each["margin"] / each["resolution"] for each in found if each.get("resolution")]
        if values:
            rows.append((arm.label, numbers.get(arm.series, 0), values))
    caption = "Where texts part: margin in units of the dtype's resolution; left of the line, a tie."
    if rows:
        yield margins(f"{prefix}-margins", caption, rows[:MAX_ROWS], TIE_ULPS)
