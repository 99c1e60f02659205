"""Acceptance from result files: the summary of `specdec bench`, or what `specdec replay` writes."""

import json
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

from ..bench.store import HEADER
from ..bench.store import SUMMARY as SUMMARY_FILE
from ..figures.summary import summarize_folder
from .acceptance import Known
from .cost import Yield
from .drafters import Setting, longest_chains

SUMMARY, REPLAY = "bench-summary", "replay"
TREE = " tree"  # how bench ends the name of a drafter that drafts trees
CUTS = "tree_width", "confidence_threshold", "budget"  # of a replay, that a plan does not look at


def read_result(path: Path, *kinds: str) -> dict[str, Any]:
    """The value of a result file of one of these kinds; of a folder, the summary that lies there.

    Raises:
        ValueError: it is missing, damaged, or another file.
    """
    file = path / SUMMARY_FILE if path.is_dir() else path
    wanted = " or ".join(kinds)
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"expected a {wanted} result at {str(file)!r}, got {error.strerror}; name another") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a {wanted} result, got no JSON in {str(file)!r}: {error}; write it anew") from error
    kind = value.get("kind") if isinstance(value, dict) else type(value).__name__
    if kind not in kinds or value.get("version") != 1:
        version = value.get("version") if isinstance(value, dict) else None
        raise ValueError(
            f"expected a {wanted} result of version 1, got {kind!r} of version {version} in {str(file)!r}; name another"
        )
    return dict(value)


def read_acceptance(path: Path) -> Known:
    """What drafters yield according to a bench folder, its summary.json, or the JSON of a replay.

    Raises:
        ValueError: there is nothing of the kind in it.
    """
    is_bench = (path / HEADER).exists()
    value = {"kind": SUMMARY} if is_bench else read_result(path, SUMMARY, REPLAY)
    try:
        if is_bench:  # made anew: a summary that lies there may be older than the last records
            value = summarize_folder(path)
        known = _of_summary(value, path) if value["kind"] == SUMMARY else _of_replay(value, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected the fields of a {value['kind']} result, got none that fits in {str(path)!r}: "
            f"{type(error).__name__} {error}; write it anew"
        ) from error
    if not known.yields:
        raise ValueError(f"expected drafters with drafts in {str(path)!r}, got none; run bench or replay with some")
    return known


def _of_summary(value: Mapping[str, Any], path: Path) -> Known:
    """Of the first cell of a sweep: acceptance does not depend on the batch, but on target, dtype and sampling."""
    arms = [
        arm
        for arm in value["arms"]
        if _setting(arm) is not None and (arm["overall"]["num_steps"] or 0) > arm["overall"]["num_requests"]
    ]
    cells = list(dict.fromkeys(arm["cell"] for arm in arms))
    chosen = {setting: arm["overall"] for arm in arms if arm["cell"] == cells[0] and (setting := _setting(arm))}
    longest = longest_chains(chosen)
    yields = {setting: _yield(figures) for setting, figures in chosen.items()}
    curves = {name: _curve(chosen[setting]) for name, setting in longest.items()}
    shares = {name: yields[setting].drafted_share for name, setting in longest.items()}
    where = f", {cells[0]}" + (f", the first of {len(cells)} cells" if len(cells) > 1 else "") if cells else ""
    return Known(f"{path}{where}", yields, curves, shares)


def _curve(figures: Mapping[str, Any]) -> list[float]:
    """Conditional acceptance by position, up to the first that no draft was accepted to."""
    known = takewhile(lambda each: each and each["value"] is not None, figures["conditional_acceptance_at_pos"])
    return [each["value"] for each in known]


def _setting(arm: Mapping[str, Any]) -> Setting | None:
    """Of an arm of ours that drafts a set number of tokens."""
    length, name = arm.get("num_speculative_tokens"), arm.get("drafter_name")
    if arm.get("system") != "specdec" or not name or not length:
        return None
    return Setting(name.removesuffix(TREE), length, arm.get("num_tree_nodes"))


def _yield(figures: Mapping[str, Any]) -> Yield:
    """Without the first step of each request, which is its prompt's."""
    firsts = figures["num_requests"]
    steps = figures["num_steps"] - firsts
    tokens = (figures["num_tokens"] - firsts) / steps
    found = figures["tokens_per_step"]
    low, high = (None if found[end] is None else tokens * found[end] / found["value"] for end in ("low", "high"))
    return Yield(tokens, (figures["num_steps"] - figures["num_steps_without_draft"]) / steps, low, high)


def _of_replay(value: Mapping[str, Any], path: Path) -> Known:
    """Of each setting its first row; rows that are no approximation come first."""
    yields: dict[Setting, Yield] = {}
    for row in sorted(value["rows"], key=lambda row: not row.get("is_exact", True)):
        name, length = str(row.get("label") or row["drafter"]).split()[0], row["num_speculative_tokens"]
        has_drafts = length and row["num_steps"] > row["num_texts"]
        if has_drafts and all(row.get(name) is None for name in CUTS):
            yields.setdefault(Setting(name, length, row.get("num_tree_nodes")), _replayed(row, length))
    return Known(str(path), yields)


def _replayed(row: Mapping[str, Any], length: int) -> Yield:
    """Without the first step of each text, which is its prompt's."""
    steps = row["num_steps"] - row["num_texts"]
    tokens = (row["num_tokens"] - row["num_texts"]) / steps
    nodes = row["nodes_per_step"] * row["num_steps"] / steps
    low, high = (
        None if row.get(end) is None else tokens * row[end] / row["tokens_per_step"] for end in ("low", "high")
    )
    return Yield(tokens, min(1.0, nodes / (row.get("num_tree_nodes") or length)), low, high)
