"""The tables of a benchmark."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .answers import best_lengths
from .arms import Arm, fastest
from .blocks import Table
from .plots import PARTS
from .words import (
    ABSENT,
    Estimate,
    central,
    estimate,
    is_number,
    milliseconds,
    number,
    percent,
    plain,
    rate,
    short,
    size,
)

POSITIONS = {
    "acceptance_at_pos": "Unconditional acceptance by position: accepted so deep / all steps with a draft, in per cent",
    "survival_at_pos": "Survival: accepted so deep / steps that drafted so deep, in per cent",
    "conditional_acceptance_at_pos": "Conditional acceptance: of those accepted one position before, in per cent",
}
LATENCIES = {
    "ttft_seconds": "time to first token",
    "tpot_seconds": "time per output token",
    "itl_seconds": "between emissions",
    "itl_per_token_seconds": "between emissions, per token",
    "e2e_seconds": "whole request",
}
CATEGORY_FIGURES: dict[str, tuple[str, Callable[[Estimate], str]]] = {
    "speedup": ("Speed-up by category", estimate),
    "tokens_per_step": ("Tokens per step by category", estimate),
    "draft_acceptance_rate": ("Draft acceptance rate by category, in per cent", rate),
}


def summary_table(arms: Sequence[Arm]) -> Table:
    """A row for each arm; the fastest that competes stands out."""
    best = fastest([arm for arm in arms if arm.can_win])
    rows = [
        (
            arm.label,
            estimate(arm.speedup) if not arm.is_baseline else "1, the baseline",
            estimate(arm.overall.get("tokens_per_second"), 1),
            estimate(arm.overall.get("tokens_per_step")),
            rate(arm.overall.get("draft_acceptance_rate")),
            _verdict(arm),
        )
        for arm in arms
    ]
    columns = ("arm", "speed-up", "tokens per second", "tokens per step", "drafts accepted, %", "same text")
    note = "In brackets: 95 % interval over prompts. The fastest arm that keeps the target's text is marked."
    marked = frozenset({index for index, arm in enumerate(arms) if arm is best})
    return Table("Summary", columns, rows, note, frozenset({"same text"}), marked)


def _verdict(arm: Arm) -> str:
    text = arm.overall.get("text")
    if arm.is_baseline:
        return ABSENT
    if not text or not text["num_compared"]:
        return "not compared" if arm.is_lossless else "lossy"
    differing = text["num_compared"] - text["num_identical"]
    if not differing:
        return "yes"
    ties = "all ties" if text["num_ties"] == differing else "NOT ALL TIES"
    return f"{differing} of {text['num_compared']} differ, {ties}"


def lengths_table(arms: Sequence[Arm]) -> Table:
    """The best draft length of each drafter."""
    rows = [
        (name, plain(best.length), estimate(best.speedup), estimate(best.overall.get("tokens_per_step")), ties)
        for name, best, ties in best_lengths(arms)
    ]
    columns = ("drafter", "best length", "speed-up", "tokens per step", "a tie with length")
    return Table("The best draft length of each drafter", columns, rows)


def counts_table(arms: Sequence[Arm]) -> Table:
    """Counts, and the rates that the summary has no room for."""
    counts = ("num_prompts", "num_runs", "num_tokens", "num_steps", "num_steps_without_draft", "num_drafted")
    rates = ("mean_acceptance_length", "accepted_per_step", "node_acceptance_rate", "target_calls_per_token", "waste")
    rows = [
        (
            arm.label,
            *(short(arm.overall.get(name)) for name in (*counts, "num_accepted")),
            *(estimate(arm.overall.get(name)) for name in rates),
            *(number((arm.overall.get(name) or {}).get("macro")) for name in ("tokens_per_step", "speedup")),
            estimate(arm.overall.get("speedup_tpot")),
            percent(central((arm.overall.get("degeneracy") or {}).get("repetition"))),
            percent((arm.overall.get("degeneracy") or {}).get("eos_rate")),
        )
        for arm in arms
    ]
    more = ("macro tokens_per_step", "macro speedup", "speedup_tpot", "repetition", "eos_rate")
    return Table("Counts and further rates", ("arm", *counts, "num_accepted", *rates, *more), rows, is_folded=True)


def position_tables(arms: Sequence[Arm]) -> Iterator[Table]:
    """Acceptance by position, in its three meanings."""
    for name, caption in POSITIONS.items():
        drafting = [arm for arm in arms if arm.overall.get(name)]
        deepest = max((len(arm.overall[name]) for arm in drafting), default=0)
        if drafting:
            rows = [(arm.label, *_padded([rate(each) for each in arm.overall[name]], deepest)) for arm in drafting]
            yield Table(caption, ("arm", *map(str, range(1, deepest + 1))), rows, is_folded=True)


def _padded(cells: Sequence[str], width: int) -> list[str]:
    return [*cells, *[ABSENT] * (width - len(cells))]


def histogram_table(arms: Sequence[Arm]) -> Table | None:
    """How many steps accepted how many drafted tokens."""
    drafting = [arm for arm in arms if not arm.is_baseline and arm.overall.get("accepted_histogram")]
    if not drafting:
        return None
    counts = sorted({int(count) for arm in drafting for count in arm.overall["accepted_histogram"]})
    rows = [
        (arm.label, *(short(arm.overall["accepted_histogram"].get(str(count), 0)) for count in counts))
        for arm in drafting
    ]
    return Table("Steps by accepted drafts", ("arm", *map(str, counts)), rows, is_folded=True)


def rank_tables(arms: Sequence[Arm]) -> Iterator[Table]:
    """Of trees: accepted / offered by depth and by rank among siblings."""
    for arm in arms:
        depths = arm.overall.get("acceptance_by_depth_and_rank") or []
        widest = max(map(len, depths), default=0)
        if widest > 1:
            rows = [
                (str(depth), *_padded([_of(each) for each in ranks], widest)) for depth, ranks in enumerate(depths, 1)
            ]
            columns = ("depth", *(f"rank {rank}" for rank in range(1, widest + 1)))
            yield Table(f"{arm.label}: accepted by depth and rank, of those offered", columns, rows, is_folded=True)


def _of(found: Mapping[str, Any]) -> str:
    if not found.get("offered"):
        return ABSENT
    return f"{percent(found['accepted'] / found['offered'])} of {found['offered']:,}"


def source_table(arms: Sequence[Arm]) -> Table | None:
    """Who proposed, where a drafter has several sources."""
    rows = [
        (arm.label, name, *(short(found.get(each)) for each in ("num_steps", "num_drafted", "num_accepted")))
        for arm in arms
        if len(arm.overall.get("by_source") or {}) > 1
        for name, found in arm.overall["by_source"].items()
    ]
    columns = ("arm", "source", "steps", "drafted", "accepted")
    return Table("Drafts by source", columns, rows, words=frozenset({"source"})) if rows else None


def category_tables(arms: Sequence[Arm]) -> Iterator[Table]:
    """The main figures by category of prompts."""
    categories = list(dict.fromkeys(category for arm in arms for category in arm.by_category))
    if len(categories) < 2:
        return
    for name, (caption, shown) in CATEGORY_FIGURES.items():
        rows = [
            (arm.label, *(shown((arm.by_category.get(category) or {}).get(name)) for category in categories))
            for arm in arms
            if not arm.is_baseline
        ]
        yield Table(caption, ("arm", *categories), rows, is_folded=name != "speedup")


def latency_table(arms: Sequence[Arm]) -> Table | None:
    """Latencies of each arm in milliseconds."""
    rows = [
        (arm.label, words, estimate(found.get("mean"), 2, 1000.0), *(milliseconds(found.get(p)) for p in _QUANTILES))
        for arm in arms
        for name, words in LATENCIES.items()
        if (found := arm.overall.get(name))
    ]
    columns = ("arm", "latency", "mean, ms", "p50", "p90", "p99")
    return Table("Latencies", columns, rows, words=frozenset({"latency"}), is_folded=True) if rows else None


_QUANTILES = ("p50", "p90", "p99")


def first_token_table(arms: Sequence[Arm]) -> Table:
    """Time to first token and per output token: the two that users feel."""
    rows = []
    for arm in arms:
        cells = [arm.label]
        for name in ("ttft_seconds", "tpot_seconds"):
            found = arm.overall.get(name) or {}
            cells += [estimate(found.get("mean"), 2, 1000.0), *(milliseconds(found.get(p)) for p in ("p50", "p99"))]
        rows.append(cells)
    columns = ("arm", "TTFT mean, ms", "TTFT p50", "TTFT p99", "TPOT mean, ms", "TPOT p50", "TPOT p99")
    return Table("Time to first token (TTFT) and per output token (TPOT)", columns, rows)


def time_table(arms: Sequence[Arm]) -> Table:
    """Where the time goes, in per cent."""
    rows = []
    for arm in arms:
        seconds = arm.overall.get("seconds") or {}
        total = seconds.get("total")
        shares = (seconds[p] / total if total and is_number(seconds.get(p)) else None for p in PARTS)
        rows.append((arm.label, *(percent(share, 1) for share in shares), number(total)))
    return Table("Where the time goes", ("arm", *PARTS, "total, s"), rows, is_folded=True)


def memory_table(arms: Sequence[Arm]) -> Table | None:
    """Peak memory."""
    names = {
        "target_kv_bytes": "target's keys and values",
        "drafter_kv_bytes": "drafter's",
        "device_peak_bytes": "device",
    }
    rows = [
        (arm.label, *(size(arm.overall["memory"].get(name)) for name in names))
        for arm in arms
        if arm.overall.get("memory")
    ]
    return Table("Peak memory", ("arm", *names.values()), rows, is_folded=True) if rows else None


def difference_table(arms: Sequence[Arm]) -> Table | None:
    """Where texts leave that of plain decoding."""
    rows = [
        (
            arm.label,
            str(each.get("prompt")),
            *(short(each.get(name)) for name in ("turn", "position", "margin", "resolution")),
            "a tie" if each.get("is_tie") else "NOT A TIE",
        )
        for arm in arms
        for each in (arm.overall.get("text") or {}).get("differences") or ()
    ]
    columns = ("arm", "prompt", "turn", "tokens before", "margin", "resolution", "verdict")
    note = "Margin: rise of a logit that chooses the other token. Resolution: of the dtype at the largest logit."
    words = frozenset({"prompt", "verdict"})
    return Table("Texts that differ from plain decoding's", columns, rows, note, words) if rows else None
