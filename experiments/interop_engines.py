"""What servers say of all requests together: metrics of vLLM and SGLang for Prometheus, and the lines they log."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from .interop_figures import DEEPEST, Figures, Found, value

Samples: TypeAlias = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]  # name -> labels and number of each
SAMPLE = re.compile(r"(?P<name>[a-zA-Z_:][\w:]*)(\{(?P<labels>.*)\})?\s+(?P<value>\S+)(\s+-?\d+)?")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
PREFIXES = {"vllm": "vllm:", "sglang": "sglang:"}
# Our figure -> the servers' histograms of seconds that say the same.
TIMES = {
    "ttft_seconds": "time_to_first_token_seconds",
    "tpot_seconds": "request_time_per_output_token_seconds",
    "itl_seconds": "inter_token_latency_seconds",
    "e2e_seconds": "e2e_request_latency_seconds",
}
LOGGED = "SpecDecoding metrics:"
ROUNDED = 0.0051  # of a figure with two decimals, and a little


@dataclass(frozen=True, slots=True)
class Window:
    """One line of vLLM's log: what was drafted since the line before."""

    num_drafts: float
    num_accepted: int
    num_drafted: int
    rates: tuple[float, ...]  # [positions] share of the drafts that accepted so many


def read_prometheus(text: str, path: Path) -> list[Found]:
    """One entry per server kind and model; counters of several engines are summed.

    Raises:
        ValueError: nothing is said of speculation.

    Example:
        >>> counters = {"num_drafts": 4, "num_draft_tokens": 12, "num_accepted_tokens": 6}
        >>> lines = [f'vllm:spec_decode_{name}_total{{model_name="m"}} {n}' for name, n in counters.items()]
        >>> found = read_prometheus(chr(10).join(lines), Path("metrics.txt"))
        >>> found[0].label, found[0].figures[None]["mean_acceptance_length"]["value"]
        ('m', 2.5)
    """
    samples: dict[tuple[str, str], dict[str, list[tuple[Mapping[str, str], float]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    skipped = 0
    for line in text.split("\n"):
        system = next((name for name, prefix in PREFIXES.items() if line.startswith(prefix)), None)
        if system is None:
            continue
        sample = _sample(line)
        if sample is None:
            skipped += 1
            continue
        name, labels, number = sample
        samples[system, labels.get("model_name", path.stem)][name.removesuffix("_total")].append((labels, number))
    found = []
    for (system, model), own in samples.items():
        known = _vllm(own) if system == "vllm" else _sglang(own)
        if known is not None:
            notes = (
                [f"{path.name}: SGLang's acceptance is that of its last interval only"] if system == "sglang" else []
            )
            if skipped:
                notes.append(f"{path.name}: {skipped} lines skipped, no samples")
            depth = len(known.get("acceptance_at_pos") or ()) or None
            found.append(Found(model, system, {None: known}, notes, num_speculative_tokens=depth))
    if not found:
        raise ValueError(
            f"expected metrics of drafts, got none above zero in {str(path)!r}; scrape them after requests"
        )
    return found


def read_vllm_log(text: str, path: Path) -> list[Found]:
    """The sums over all lines on speculation, each of which says what happened since the one before.

    Raises:
        ValueError: no such line can be read.

    Example:
        >>> line = "SpecDecoding metrics: Mean acceptance length: 2.50, Accepted: 6 tokens, Drafted: 12 tokens"
        >>> found = read_vllm_log(f"{line}, Per-position acceptance rate: 0.750, 0.500, 0.250", Path("server.log"))
        >>> [rate["value"] for rate in found[0].figures[None]["acceptance_at_pos"]]
        [0.75, 0.5, 0.25]
    """
    lines = [line.split(LOGGED, 1)[1] for line in text.split("\n") if LOGGED in line]
    windows = [window for window in map(_window, lines) if window is not None]
    num_drafts = sum(window.num_drafts for window in windows)
    if not num_drafts:
        raise ValueError(f"expected lines of vLLM on drafts, got none with counts in {str(path)!r}; pass another log")
    accepted, drafted = sum(one.num_accepted for one in windows), sum(one.num_drafted for one in windows)
    depths = {len(window.rates) for window in windows}
    depth = max(depths)
    reached = [
        sum(one.rates[position] * one.num_drafts for one in windows if position < len(one.rates))
        for position in range(depth)
    ]
    known = {
        "num_drafted": drafted,
        "num_accepted": accepted,
        "mean_acceptance_length": value(1 + accepted / num_drafts),
        "draft_acceptance_rate": value(accepted / drafted),
        "acceptance_at_pos": [value(number / num_drafts) for number in reached],
    }
    skipped = len(lines) - len(windows)
    notes = [f"{path.name}: {skipped} of {len(lines)} lines on speculation skipped, no counts"] if skipped else []
    return [Found(path.stem, "vllm", {None: known}, notes, num_speculative_tokens=depth if len(depths) == 1 else None)]


def read_sglang_log(text: str, path: Path) -> list[Found]:
    """The mean over the lines on decoding, each of which is a mean over the steps since the one before.

    Raises:
        ValueError: no such line can be read.
    """
    lengths, rates, weights = [], [], []
    for line in text.split("\n"):
        length, rate = _number("accept len", line), _number("accept rate", line)
        if length:
            running = _number("#running-req", line)
            lengths.append(length)
            rates.append(rate)
            weights.append(max(running or 0, 1))
    if not lengths:
        raise ValueError(f"expected lines of SGLang with an accept len, got none in {str(path)!r}; pass another log")
    known = {"mean_acceptance_length": value(_mean(lengths, weights))}
    if None not in rates:
        known["node_acceptance_rate"] = value(_mean([rate or 0.0 for rate in rates], weights))
    note = f"{path.name}: means over {len(lengths)} lines of the log, weighted by running requests; it gives no counts"
    return [Found(path.stem, "sglang", {None: known}, [note])]


def _sample(line: str) -> tuple[str, dict[str, str], float] | None:
    found = SAMPLE.fullmatch(line.strip())
    try:
        number = float(found["value"]) if found else math.nan
    except ValueError:
        return None
    return (
        None
        if found is None or not math.isfinite(number)
        else (found["name"], dict(LABEL.findall(found["labels"] or "")), number)
    )


def _vllm(samples: Samples) -> Figures | None:
    def total(name: str) -> float:
        return sum(number for _, number in samples.get(f"vllm:spec_decode_{name}", ()))

    drafts, drafted, accepted = total("num_drafts"), total("num_draft_tokens"), total("num_accepted_tokens")
    if not drafts:
        return None
    reached: dict[int, float] = defaultdict(float)
    for labels, number in samples.get("vllm:spec_decode_num_accepted_tokens_per_pos", ()):
        position = labels.get("position", "")
        if position.isdecimal() and len(position) < 5 and int(position) < DEEPEST:
            reached[int(position)] += number
    return {
        "num_tokens": _tokens(samples, "vllm:generation_tokens"),
        "num_drafted": int(drafted),
        "num_accepted": int(accepted),
        "mean_acceptance_length": value(1 + accepted / drafts),
        "draft_acceptance_rate": value(accepted / drafted if drafted else None),
        "acceptance_at_pos": [value(reached[i] / drafts) for i in range(max(reached) + 1)] if reached else None,
        **_times(samples, "vllm:"),
    }


def _sglang(samples: Samples) -> Figures | None:
    def gauge(name: str) -> float | None:
        """The mean over the ranks that ran something."""
        numbers = [number for _, number in samples.get(f"sglang:spec_{name}", ()) if number > 0]
        return sum(numbers) / len(numbers) if numbers else None

    length = gauge("accept_length")
    if length is None:
        return None
    return {
        "num_tokens": _tokens(samples, "sglang:generation_tokens"),
        "mean_acceptance_length": value(length),
        "node_acceptance_rate": value(gauge("accept_rate")),
        **_times(samples, "sglang:"),
    }


def _tokens(samples: Samples, name: str) -> int | None:
    return int(sum(number for _, number in samples[name])) if name in samples else None


def _times(samples: Samples, prefix: str) -> Figures:
    found = {}
    for figure, name in TIMES.items():
        seconds, count = (
            sum(number for _, number in samples.get(f"{prefix}{name}_{part}", ())) for part in ("sum", "count")
        )
        if count:
            found[figure] = {"mean": value(seconds / count), "p50": None, "p90": None, "p99": None}
    return found


def _window(line: str) -> Window | None:
    length = _number("Mean acceptance length", line)
    accepted, drafted = (re.search(rf"{name}: (\d{{1,12}}) tokens", line) for name in ("Accepted", "Drafted"))
    listed = re.search(r"Per-position acceptance rate: \[?((?:[\d.]+,? ?)+)", line)
    if length is None or accepted is None or drafted is None or listed is None or not int(drafted[1]):
        return None
    try:
        rates = tuple(float(rate) for rate in listed[1].replace(",", " ").split())
    except ValueError:
        return None
    return Window(
        _num_drafts(int(accepted[1]), int(drafted[1]), length, len(rates)), int(accepted[1]), int(drafted[1]), rates
    )


def _num_drafts(accepted: int, drafted: int, length: float, depth: int) -> float:
    """vLLM does not print how many drafts there were: as many as are full ones, if that gives the length it prints."""
    full = drafted / depth
    fits = full == int(full) and abs(1 + accepted / full - length) < ROUNDED
    return full if fits or length <= 1 else float(round(accepted / (length - 1)))


def _number(name: str, line: str) -> float | None:
    found = re.search(rf"{re.escape(name)}: (\d{{1,12}}(?:\.\d+)?)(?![\d.])", line)
    return float(found[1]) if found else None


def _mean(numbers: Sequence[float], weights: Sequence[float]) -> float:
    return sum(number * weight for number, weight in zip(numbers, weights, strict=True)) / sum(weights)
