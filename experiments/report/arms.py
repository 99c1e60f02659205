"""The arms of a benchmark's summary as the report needs them: named, grouped and in order of speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .plots import Point
from .words import Estimate, central, is_number

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """One configuration and its figures."""

    label: str
    cell: str  # what it shares with the arms it can be compared with
    series: str  # what it shares with arms of other draft lengths; the label of one that has no length
    length: int | None
    is_baseline: bool
    is_lossless: bool
    about: Mapping[str, Any]  # the header's entry
    overall: Figures
    by_category: Mapping[str, Figures]
    is_leader: bool = False  # whether it is the fastest of its cell, which the others were held against
    over: Estimate = None  # the leader's speed over its own, paired by prompts, with p_holm

    @property
    def speedup(self) -> Estimate:
        found: Estimate = self.overall.get("speedup")
        return found

    @property
    def ratio(self) -> float | None:
        return central(self.speedup)

    @property
    def is_flagged(self) -> bool:
        return bool((self.overall.get("degeneracy") or {}).get("is_flagged"))

    @property
    def can_win(self) -> bool:
        """Whether it competes: a method that promises the target's distribution, and did not write rubbish."""
        return not self.is_baseline and self.is_lossless and not self.is_flagged and self.ratio is not None


def read_arms(summary: Mapping[str, Any]) -> tuple[Arm, ...]:
    """The arms of a summary, in its order.

    Example:
        >>> row = {"id": "a", "label": "plain", "cell": "c", "baseline": "a", "overall": {}, "by_category": {}}
        >>> [(arm.series, arm.is_baseline) for arm in read_arms({"arms": [row]})]
        [('plain', True)]
    """
    ranked = [each for cell in summary.get("cells") or () for each in cell["arms"]]
    leaders = {cell["arms"][0]["arm"] for cell in summary.get("cells") or () if cell["arms"]}
    over = {each["arm"]: each["over"] for each in ranked}
    return tuple(
        replace(_arm(row, summary["arms"]), is_leader=row["id"] in leaders, over=over.get(row["id"]))
        for row in summary["arms"]
    )


def _arm(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Arm:
    return Arm(
        label=str(row["label"]),
        cell=str(row["cell"]),
        series=_series(row, rows),
        length=row.get("num_speculative_tokens"),
        is_baseline=row["id"] == row["baseline"],
        is_lossless=bool(row.get("is_lossless", True)),
        about=row,
        overall=row["overall"],
        by_category=row.get("by_category") or {},
    )


def _series(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """The drafter, with what else tells this line from the others of its cell."""
    if row.get("num_speculative_tokens") is None or row.get("drafter_name") is None:
        return str(row["label"])
    alike = [each for each in rows if each["cell"] == row["cell"] and each.get("drafter_name") == row["drafter_name"]]
    name = str(row["drafter_name"])
    if row.get("num_tree_nodes") is not None:
        name += f" tree of {row['num_tree_nodes']}"
    if len({each.get("verifier") for each in alike}) > 1:
        name += f", {row.get('verifier')}"
    return name if row.get("system", "specdec") == "specdec" else f"{row['system']} {name}"


def by_cell(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """The arms of each cell, baseline first."""
    found: dict[str, list[Arm]] = {}
    for arm in sorted(arms, key=lambda arm: not arm.is_baseline):
        found.setdefault(arm.cell, []).append(arm)
    return found


def series_numbers(arms: Sequence[Arm]) -> dict[str, int]:
    """A number for each series, the same wherever it is drawn."""
    return {name: index for index, name in enumerate(dict.fromkeys(arm.series for arm in arms if not arm.is_baseline))}


def by_series(arms: Sequence[Arm]) -> dict[str, list[Arm]]:
    """The arms of each series by growing draft length; no baselines."""
    found: dict[str, list[Arm]] = {}
    for arm in sorted(arms, key=lambda arm: arm.length or 0):
        if not arm.is_baseline:
            found.setdefault(arm.series, []).append(arm)
    return {name: found[name] for name in dict.fromkeys(arm.series for arm in arms) if name in found}


def fastest(arms: Sequence[Arm]) -> Arm | None:
    """The arm with the largest speed-up; None if there is none that has one."""
    return max((arm for arm in arms if arm.ratio is not None), key=lambda arm: arm.ratio or 0.0, default=None)


def ties(one: Arm, other: Arm) -> bool:
    """Whether it cannot be said which of two arms is faster, as `figures.verdicts` has it.

    Prompts are the same for both, so their paired ratio tells more than two intervals; it is used where it is known.
    """
    over = other.over if one.is_leader else one.over if other.is_leader else None
    if over and is_number(over.get("low")):
        return bool(over["low"] <= 1)
    return overlap(one.speedup, other.speedup)


def overlap(one: Estimate, other: Estimate) -> bool:
    """Whether two intervals have a point in common; also if one of them is not known.

    Example:
        >>> overlap({"low": 1.0, "high": 1.2}, {"low": 1.1, "high": 1.4})
        True
        >>> overlap({"low": 1.0, "high": 1.2}, {"low": 1.3, "high": 1.4})
        False
    """
    ends = [[(found or {}).get(name) for name in ("low", "high")] for found in (one, other)]
    known = [(low, high) for low, high in ends if is_number(low) and is_number(high)]
    if len(known) < 2:
        return True
    (low, high), (other_low, other_high) = known
    return low <= other_high and other_low <= high


def point(x: float, found: Estimate, scale: float = 1.0) -> Point | None:
    """An estimate as a point of a plot; None if it was not measured."""
    value = central(found)
    if value is None or found is None:
        return None
    low, high = found.get("low"), found.get("high")
    if not (is_number(low) and is_number(high)):
        return Point(x, scale * value)
    return Point(x, scale * value, scale * float(low), scale * float(high))
