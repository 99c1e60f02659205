"""What servers say of single requests, in JSON: vLLM's `metrics.speculative_decoding`, SGLang's `meta_info`."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .interop_figures import DEEPEST, MOST, Figures, Found, at_positions, estimate, value

Histogram = dict[int, int]  # accepted tokens -> steps


@dataclass(frozen=True, slots=True)
class Counts:
    """One request. What is not said is None."""

    system: str
    num_steps: int  # of verification
    num_tokens: int  # that they brought, the target's own included
    num_accepted: int | None = None
    num_drafted: int | None = None
    accepted: Histogram | None = None
    by_length: dict[int, Histogram] | None = None  # depth of the draft -> histogram
    max_drafted: int = 0


def read_requests(text: str, path: Path) -> list[Found]:
    """One entry per system, from JSON, JSON lines or a stream of events; what stands around the counts is passed over.

    Raises:
        ValueError: there are no counts.

    Example:
        >>> counts = {"num_spec_steps": 4, "num_accepted_draft_tokens": 3, "num_draft_tokens": 12, "num_spec_tokens": 3}
        >>> block = {**counts, "acceptance_histogram": [2, 1, 1, 0]}
        >>> found = read_requests(json.dumps({"metrics": {"speculative_decoding": block}}), Path("answer.json"))
        >>> found[0].system, found[0].figures[None]["mean_acceptance_length"]["value"]
        ('vllm', 1.75)
    """
    requests, models, skipped = [], set(), 0
    for document in _documents(text):
        skipped += document is None
        for block in _blocks(document):
            try:
                requests.append(_vllm(block) if "num_spec_steps" in block else _sglang(block))
            except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
                skipped += 1
        if isinstance(document, Mapping) and isinstance(document.get("model"), str):
            models.add(document["model"])
    if not requests:
        raise ValueError(f"expected counts of requests, got none in {str(path)!r}; pass another file")
    warnings = [f"{path.name}: {skipped} lines or requests skipped, no counts as they should be"] if skipped else []
    label = models.pop() if len(models) == 1 else path.stem
    systems = dict.fromkeys(request.system for request in requests)
    groups = {name: [request for request in requests if request.system == name] for name in systems}
    return [Found(label, name, {None: _figures(group)}, warnings) for name, group in groups.items()]


def _documents(text: str) -> Iterator[Any]:
    """The whole, or its lines; None for a line that is none."""
    try:
        yield json.loads(text)
        return
    except (ValueError, RecursionError):
        pass
    for line in text.split("\n"):
        line = line.strip().removeprefix("data:").strip()
        if line and line != "[DONE]":
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None


def _blocks(document: Any) -> Iterator[Mapping[str, Any]]:
    """The objects that count steps, wherever they stand."""
    if isinstance(document, Mapping):
        if "num_spec_steps" in document or "spec_verify_ct" in document:
            yield document
        else:
            for part in document.values():
                yield from _blocks(part)
    elif isinstance(document, list):
        for part in document:
            yield from _blocks(part)


def _vllm(block: Mapping[str, Any]) -> Counts:
    steps, accepted, drafted = (
        _count(block[name]) for name in ("num_spec_steps", "num_accepted_draft_tokens", "num_draft_tokens")
    )
    given = block["acceptance_histogram"]
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
    histogram = {int(number): _count(count) for number, count in pairs}
    if accepted > drafted or sum(histogram.values()) != steps:
        raise ValueError("counts that contradict each other")
    by_length: dict[int, Histogram] | None = None
    if block.get("per_step_accepted") is not None:
        by_length = {}
        for number, depth in zip(block["per_step_accepted"], block["per_step_drafted"], strict=True):
            own = by_length.setdefault(_count(depth, DEEPEST), {})
            own[_count(number)] = own.get(number, 0) + 1
    longest = max(_count(depth, DEEPEST) for depth in (block.get("num_spec_tokens") or 0, *histogram))
    return Counts("vllm", steps, steps + accepted, accepted, drafted, histogram, by_length, longest)


def _sglang(block: Mapping[str, Any]) -> Counts:
    return Counts("sglang", _count(block["spec_verify_ct"]), _count(block["completion_tokens"]))


def _count(number: Any, most: int = MOST) -> int:
    if not isinstance(number, int) or not 0 <= number <= most:
        raise ValueError("no count")
    return number


def _figures(group: Sequence[Counts]) -> Figures:
    known: Figures = {
        "num_requests": len(group),
        "mean_acceptance_length": estimate((one.num_tokens, one.num_steps) for one in group),
    }
    if any(one.accepted is None for one in group):
        return known
    accepted = _sum(one.accepted for one in group)
    depth = max(one.max_drafted for one in group)
    known |= {
        "num_drafted": sum(one.num_drafted or 0 for one in group),
        "num_accepted": sum(one.num_accepted or 0 for one in group),
        "draft_acceptance_rate": estimate((one.num_accepted or 0, one.num_drafted or 0) for one in group),
        "acceptance_at_pos": at_positions(accepted, depth),
        "accepted_histogram": _listed(accepted),
    }
    if all(one.by_length is not None for one in group):
        lengths = sorted({length for one in group for length in one.by_length or {}})
        by_length = {length: _sum((one.by_length or {}).get(length) for one in group) for length in lengths}
        known |= _by_length(by_length)
    return known


def _by_length(by_length: Mapping[int, Histogram]) -> Figures:
    """What follows if the depth of every draft is known."""
    reached = [
        (
            sum(count for own in by_length.values() for number, count in own.items() if number >= depth),
            sum(count for length, own in by_length.items() if length >= depth for count in own.values()),
            sum(
                count
                for length, own in by_length.items()
                if length >= depth
                for number, count in own.items()
                if number >= depth - 1
            ),
        )
        for depth in range(1, max(by_length, default=0) + 1)
    ]
    return {
        "acceptance_histogram_by_draft_length": {str(length): _listed(own) for length, own in by_length.items()},
        "survival_at_pos": [value(number / drafted if drafted else None) for number, drafted, _ in reached],
        "conditional_acceptance_at_pos": [value(number / before if before else None) for number, _, before in reached],
    }


def _sum(histograms: Iterator[Histogram | None]) -> Histogram:
    total: Counter[int] = Counter()
    for histogram in histograms:
        total.update(histogram or {})
    return {number: total[number] for number in sorted(total)}


def _listed(histogram: Histogram) -> dict[str, int]:
    return {str(number): count for number, count in histogram.items() if count}
