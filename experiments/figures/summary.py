"""The summary of a bench: its arms with their figures, over all prompts and by category, and what to beware of."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..statistics import MIN_PROMPTS
from .cells import rankings
from .columns import Run
from .definitions import DEFINITIONS
from .figures import ArmRuns, figures
from .runs import by_arm, by_group
from .verdicts import how_many

Arm = Mapping[str, Any]

# What a record or a result of another inside makes its readers raise.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError)


def summarize_folder(folder: Path) -> dict[str, Any]:
    """The summary of the results in a folder; what could not be read is among its warnings.

    Raises:
        ValueError: there is no header, or it is not of a bench.
    """
    from ..bench.store import read_header, read_records

    records, warnings = read_records(folder)
    header = read_header(folder)
    try:
        return summarize(header, records, warnings)
    except MALFORMED:
        sound = [record for record in records if _is_sound(header, record)]
    if len(sound) == len(records):
        raise ValueError(f"expected the header of a benchmark and its records, got others in {str(folder)!r}")
    skipped = f"{len(records) - len(sound)} records are not as a run writes them and are left out"
    return summarize(header, sound, [*warnings, skipped])


def _is_sound(header: Mapping[str, Any], record: Run) -> bool:
    """Whether a record can be summarised."""
    try:
        summarize(header, [record])
    except MALFORMED:
        return False
    return True


def summarize(header: Mapping[str, Any], records: Sequence[Run], warnings: Sequence[str] = ()) -> dict[str, Any]:
    """The summary of these records: `bench-summary`, version 1. Records of arms the header does not name are left out.

    Example:
        >>> arms = [{"id": "a", "label": "plain", "cell": "greedy", "baseline": "a", "drafter": None}]
        >>> summary = summarize({"settings": {}, "environment": {}, "arms": arms, "prompts": []}, [])
        >>> summary["arms"][0]["overall"]["num_tokens"], summary["arms"][0]["overall"]["tokens_per_step"]
        (0, None)
        >>> summary["arms"][0]["warnings"]
        ['was not run']
    """
    arms: Sequence[Arm] = header["arms"]
    runs = by_arm(records, frozenset(arm["baseline"] for arm in arms))
    rows = [_row(arm, runs, header["prompts"]) for arm in arms]
    return {
        "kind": "bench-summary",
        "version": 1,
        "settings": header["settings"],
        "environment": header["environment"],
        "definitions": DEFINITIONS,
        "warnings": [*warnings, *_common_warnings(header, runs, rows)],
        "num_runs": sum(len(runs.get(arm["id"], ())) for arm in arms),
        "prompts": header["prompts"],
        "arms": rows,
        "cells": rankings(arms, runs),
    }


def _row(arm: Arm, runs: Mapping[str, Sequence[Run]], prompts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    is_baseline = arm["id"] == arm["baseline"]
    own = ArmRuns.of(runs.get(arm["id"], ()), () if is_baseline else runs.get(arm["baseline"], ()))
    overall = figures(own, [prompt["id"] for prompt in prompts])
    by_category = {}
    for category in dict.fromkeys(prompt["category"] for prompt in prompts):
        part = figures(own, [prompt["id"] for prompt in prompts if prompt["category"] == category])
        if part["num_prompts"]:
            by_category[category] = part
    warnings = list(_warnings(arm, own, overall, len(prompts)))
    return {**arm, "overall": overall, "by_category": by_category, "warnings": warnings}


def _common_warnings(
    header: Mapping[str, Any], runs: Mapping[str, Sequence[Run]], rows: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """What is wrong with the whole, and which arms to read with care."""
    num_prompts = len(header["prompts"])
    if num_prompts < MIN_PROMPTS:
        yield f"{how_many(num_prompts, 'prompt')}: there are no intervals below {MIN_PROMPTS}"
    for baseline, cell in dict.fromkeys((arm["baseline"], arm["cell"]) for arm in header["arms"]):
        if not runs.get(baseline):
            yield f"{cell}: the baseline was not run, so there are no speed-ups"
    shared: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for warning in row["warnings"]:
            shared.setdefault((row["cell"], warning), []).append(row["label"])
    for (cell, warning), labels in shared.items():
        yield f"{cell}: {labels[0] if len(labels) == 1 else f'{len(labels)} arms'}: {warning}"


def _warnings(arm: Arm, runs: ArmRuns, overall: Mapping[str, Any], num_prompts: int) -> Iterator[str]:
    """What to beware of in the figures of an arm."""
    if not runs.all:
        yield "was not run"
        return
    if overall["num_prompts"] < num_prompts:
        yield f"ran on {overall['num_prompts']} of {num_prompts} prompts"
    groups = len(by_group(runs.all))
    if arm["id"] != arm["baseline"] and 0 < len(runs.pairs) < groups:
        yield f"{groups - len(runs.pairs)} of {groups} groups have no baseline of the same process: not in speed-ups"
    if arm["id"] != arm["baseline"] and not runs.pairs:
        yield "no run has a baseline of the same group, repeat and process: no speed-up"
    if overall["degeneracy"]["is_flagged"]:
        flagged = overall["degeneracy"]["flagged"]
        yield f"degenerate texts on {len(flagged)} of {overall['num_prompts']} prompts: that favours drafters that copy"
    wide = [each for each in overall["text"]["differences"] if not each["is_tie"]]
    if wide and arm.get("is_lossless", True):
        first = wide[0]
        yield (
            f"{how_many(len(wide), 'text')} other than the baseline's and no ties, first {first['prompt']} at token "
            f"{first['position']}, margin {first['margin']:.3g}, resolution {first['resolution']:.2g}: "
            "please report this"
        )
