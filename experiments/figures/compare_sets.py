"""Two sets of results side by side: what changed, by how much, and whether that is more than chance."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..statistics import MIN_PROMPTS, Measure, Vector, holm, interval, resampled, swap_p_value
from .columns import Run, steps_of
from .matching import Match, differing, matched, shared_prompts
from .runs import by_arm, counted, num_tokens, pairs, requests_of, timed

KIND = "bench-comparison"
# Two environments whose times can be held against each other agree in these.
SAME_MACHINE = ("platform", "cpu", "num_threads", "devices")
MEASURES: dict[str, Measure] = {
    "tokens_per_step": lambda sums: _over(sums, 0, 1),
    "draft_acceptance_rate": lambda sums: _over(sums, 2, 3),
    "tokens_per_second": lambda sums: _over(sums, 0, 1),
    "speedup": lambda sums: _over(sums, 0, 1) / _over(sums, 2, 3),
}
DEFINITIONS = {
    "ratio": "the figure of set b / that of set a, ratios of sums over the prompts both have; the interval is the 95 % "
    "percentile bootstrap over prompts, or over groups of prompts that ran together for times, paired",
    "p_value": "how probable so large a ratio is, up or down, if each prompt's values had been exchanged between the "
    "sets by chance (paired permutation test); p_holm: corrected over the arms by Holm's method, one figure at a time",
    "speedup": "each set's tokens per second over its own baseline's: without what a faster machine gives both",
}


def compare_folders(first: Path, second: Path) -> dict[str, Any]:
    """Two result folders of `specdec bench`, compared; see `compare_sets`."""
    from ..bench.store import read_header, read_records

    found, more = read_records(first), read_records(second)
    result = compare_sets(read_header(first), found[0], read_header(second), more[0])
    read = [f"{folder}: {warning}" for folder, (_, told) in ((first, found), (second, more)) for warning in told]
    return result | {"notes": [*read, *result["notes"]]}


def compare_sets(
    header_a: Mapping[str, Any], records_a: Sequence[Run], header_b: Mapping[str, Any], records_b: Sequence[Run]
) -> dict[str, Any]:
    """What set b does differently from set a: `bench-comparison`, version 1.

    Returns:
        `is_comparable`: whether there is anything to compare; `are_times_comparable`: whether the machines are alike;
        `notes`: why not, and what else to know; `environment` (of b) and `environment_a`; `num_prompts` of both;
        `arms`: for each arm of both, `label`, `cell`, `arm_a`, `arm_b`, `difference` (setting -> both values; empty for
        the same configuration), `num_prompts` and `figures`: by name None or {"a", "b", "ratio", "low", "high",
        "p_value", "p_holm", "num_units"}; `only_a` and `only_b`: labels that have no partner; `definitions`.

    Example:
        >>> header = {"environment": {}, "arms": [], "prompts": [{"id": "p"}]}
        >>> compare_sets(header, [], header, [])["notes"]
        ['not comparable: no arm of one set is in the other']
    """
    arms_a, arms_b = _runs(header_a, records_a), _runs(header_b, records_b)
    prompts, notes = shared_prompts(header_a, records_a, header_b, records_b)
    matches, only_a, only_b = matched(header_a["arms"], header_b["arms"])
    here, there = header_a["environment"], header_b["environment"]
    other = [name for name in SAME_MACHINE if here.get(name) != there.get(name)]
    if other:
        notes.append(f"times are not comparable: other {', '.join(other)}; speed-ups are each over their own baseline")
    rows = [_row(match, arms_a, arms_b, prompts) for match in matches]
    if not matches:
        notes.append("not comparable: no arm of one set is in the other")
    for name in MEASURES:
        _correct([row["figures"][name] for row in rows if row["figures"][name] is not None])
    return {
        "kind": KIND,
        "version": 1,
        "environment": there,
        "environment_a": here,
        "environment_differs": differing(here, there),
        "is_comparable": bool(matches) and bool(prompts),
        "are_times_comparable": not other,
        "notes": notes,
        "num_prompts": len(prompts),
        "arms": rows,
        "only_a": only_a,
        "only_b": only_b,
        "definitions": DEFINITIONS,
    }


def _runs(header: Mapping[str, Any], records: Sequence[Run]) -> dict[str, list[Run]]:
    return by_arm(records, frozenset(arm["baseline"] for arm in header["arms"]))


def _row(
    match: Match, arms_a: Mapping[str, list[Run]], arms_b: Mapping[str, list[Run]], prompts: Sequence[str]
) -> dict[str, Any]:
    """The figures of an arm in both sets."""
    units = {prompt: index for index, prompt in enumerate(prompts)}
    arm_a, arm_b = match.arm_a, match.arm_b
    own_a, own_b = arms_a.get(arm_a["id"], []), arms_b.get(arm_b["id"], [])
    events = _in_both(_event_sums(own_a, units), _event_sums(own_b, units))
    times = _in_both(_time_sums(own_a, units), _time_sums(own_b, units))
    paired = _in_both(
        _pair_sums(own_a, arms_a.get(arm_a["baseline"], []), units),
        _pair_sums(own_b, arms_b.get(arm_b["baseline"], []), units),
    )
    sums = {"tokens_per_step": events, "draft_acceptance_rate": events, "tokens_per_second": times, "speedup": paired}
    return {
        "label": arm_b["label"],
        "cell": arm_b["cell"],
        "arm_a": arm_a["id"],
        "arm_b": arm_b["id"],
        "difference": match.difference,
        "num_prompts": len(events[0]),
        "figures": {name: compared(*sums[name], measure) for name, measure in MEASURES.items()},
    }


def compared(first: Vector, second: Vector, measure: Measure) -> dict[str, Any] | None:
    """A figure of two sets from the sums of each prompt, [num_prompts, n] in both; None where it is undefined.

    Example:
        >>> sums = np.array([[10.0, 5.0], [20.0, 8.0], [30.0, 17.0]])
        >>> found = compared(sums, sums * [2, 1], lambda sums: sums[..., 0] / sums[..., 1])
        >>> found["a"], found["b"], found["ratio"], found["p_value"]
        (2.0, 4.0, 2.0, 0.25)
    """
    if not len(first):
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        value_a, value_b = float(measure(first.sum(0))), float(measure(second.sum(0)))
        if not (np.isfinite([value_a, value_b]).all() and value_a > 0):
            return None
        low = high = None
        if len(first) >= MIN_PROMPTS:
            sums = resampled(np.concatenate([first, second], axis=1))
            ratios = measure(sums[:, first.shape[1] :]) / measure(sums[:, : first.shape[1]])
            low, high = (float(bound) for bound in interval(np.where(np.isfinite(ratios), ratios, np.nan)))
    told = {"a": value_a, "b": value_b, "ratio": value_b / value_a, "low": low, "high": high}
    return {**told, "p_value": swap_p_value(first, second, measure), "p_holm": None, "num_units": len(first)}


def _correct(found: Sequence[dict[str, Any]]) -> None:
    """Puts the corrected p-values beside those of one figure over the arms."""
    told = [each for each in found if each["p_value"] is not None]
    for each, adjusted in zip(told, holm([each["p_value"] for each in told]), strict=True):
        each["p_holm"] = adjusted


def _over(sums: Vector, above: int, below: int) -> Vector:
    quotient: Vector = sums[..., above] / sums[..., below]
    return quotient


Sums = Mapping[Any, tuple[float, ...]]  # by prompt, or by the prompts that ran together


def _in_both(first: Sums, second: Sums) -> tuple[Vector, Vector]:
    """The rows that both have, in one order."""
    keys = [key for key in first if key in second]
    return np.array([first[key] for key in keys], float), np.array([second[key] for key in keys], float)


def _event_sums(runs: Sequence[Run], units: Mapping[str, int]) -> Sums:
    """Emitted tokens, steps, accepted and drafted tokens of each prompt that has steps."""
    steps = steps_of(requests_of(counted(runs), units), len(units))
    num_steps = steps.per_unit(np.ones_like(steps.unit))
    columns = [steps.per_unit(steps.emitted), num_steps, steps.per_unit(steps.accepted), steps.per_unit(steps.drafted)]
    return {unit: tuple(column[unit] for column in columns) for unit in range(len(units)) if num_steps[unit]}


def _time_sums(runs: Sequence[Run], units: Mapping[str, int]) -> Sums:
    """Tokens and seconds of each group of prompts that are in both sets."""
    return {key: (num_tokens(run), run["seconds"]) for run in timed(runs) if (key := _group(run, units))}


def _pair_sums(runs: Sequence[Run], baseline: Sequence[Run], units: Mapping[str, int]) -> Sums:
    """Tokens and seconds of each group, and of the baseline on it."""
    return {
        key: (num_tokens(run), run["seconds"], num_tokens(other), other["seconds"])
        for run, other in pairs(runs, baseline).values()
        if (key := _group(run, units))
    }


def _group(run: Run, units: Mapping[str, int]) -> tuple[str, ...] | None:
    """The prompts of a run, its name across sets; None if one of them is not in both."""
    names = tuple(sorted({request["prompt"] for request in run["requests"]}))
    return names if all(name in units for name in names) else None
