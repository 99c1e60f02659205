"""A profile and a plan for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]
SHOWN = 6  # ways to decode of each batch size that a plan shows, and plain decoding
ROOF = "FLOP/B", "GFLOP/s", "GB/s", "of roof"
THEIRS = "transformers, ms"


def show_profile(found: Row, console: Console) -> None:
    """Prints its tables and what they say in a line each."""
    for line in about(found):
        console.print(line, highlight=False)
    console.print(_prefill(found["prefill"]), _decode(found["decode"]), _verify(found["verify"]))
    console.print(_draft(found["draft"]))
    for line in found["warnings"]:
        console.print(f"warning: {line}", highlight=False)


def about(found: Row) -> Iterator[str]:
    """The model, the machine, and how the two meet."""
    model, machine = found["model"], found["machine"]
    weights, ridge = model["weight_bytes"], machine["ridge_flop_per_byte"]
    per_token = scaled(model["kv_bytes_per_token"], "B")
    at = ", ".join(f"{scaled(size, 'B')} at {length}" for length, size in model["kv_bytes_at_context"].items())
    yield (
        f"{model['target']}, {model['dtype']} on {model['device']}: weights {scaled(weights, 'B')}, "
        f"{scaled(model['flops_per_token'], 'FLOP')} per token; KV {per_token} per token, {at}"
    )
    cached = machine["cached_bandwidth_bytes_per_second"]
    beside = "" if cached is None else f" ({scaled(cached, 'B/s')} of as much as the weights, which caches may hold)"
    speed = scaled(machine["bandwidth_bytes_per_second"], "B/s")
    yield (
        f"This machine: {scaled(machine['peak_flops'], 'FLOP/s')}, reads {speed}{beside}; "
        f"memory is the limit below {ridge:.0f} FLOP per byte"
    )


def scaled(value: float, unit: str) -> str:
    """With a prefix of the SI.

    Example:
        >>> scaled(24132096, "B"), scaled(7168, "B"), scaled(512, "B"), scaled(1.36e12, "FLOP/s")
        ('24.1 MB', '7.17 kB', '512 B', '1.36 TFLOP/s')
    """
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def _prefill(rows: Sequence[Row]) -> Table:
    table = _table("prefill: one prompt, to its first token", "tokens", "TTFT, ms", "tokens/s", *ROOF, THEIRS)
    for row in rows:
        cells = _ms(row["ttft_seconds"]), f"{row['tokens_per_second']:.0f}"
        table.add_row(str(row["prompt_length"]), *cells, *_roof(row), _ms(row["transformers_seconds"]))
    return table


def _decode(rows: Sequence[Row]) -> Table:
    head = "batch", "context", "ms per token", "tokens/s", "each", "KV", *ROOF, THEIRS
    table = _table("decoding without drafts", *head)
    for row in rows:
        table.add_row(
            str(row["batch_size"]),
            str(row["context_length"]),
            _ms(row["seconds_per_round"]),
            f"{row['tokens_per_second']:.0f}",
            f"{row['tokens_per_second_per_request']:.0f}",
            scaled(row["kv_bytes"], "B"),
            *_roof(row),
            _ms(row["transformers_seconds"]),
        )
    return table


def _verify(rows: Sequence[Row]) -> Table:
    head = "width", "batch", "context", "pass, ms", "T(n)/T(1)", "rest, ms", *ROOF
    table = _table("verification: so many rows of each request in one pass", *head)
    for row in rows:
        places = (str(row[name]) for name in ("width", "batch_size", "context_length"))
        cells = _ms(row["pass_seconds"]), f"{row['ratio']:.2f}", _ms(row["overhead_seconds"])
        table.add_row(*places, *cells, *_roof(row))
    return table


def _draft(rows: Sequence[Row]) -> Table:
    """By batch size in columns: a line for each drafter and length."""
    batches = list(dict.fromkeys(row["batch_size"] for row in rows))
    head = "drafter", *(f"batch {batch}, ms (/ T(1))" for batch in batches)
    table = _table("drafts: one call of the drafter", *head)
    by_setting: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = row["drafter"], row["num_speculative_tokens"], row["num_tree_nodes"]
        by_setting.setdefault(key, []).append(row)
    for (name, length, nodes), found in by_setting.items():
        tree = "" if nodes is None else f", tree of {nodes}"
        table.add_row(f"{name} k={length}{tree}", *(f"{_ms(row['seconds'])} ({row['ratio']:.2f})" for row in found))
    return table


def _roof(row: Row) -> Iterator[str]:
    yield f"{row['intensity']:.1f}"
    yield f"{row['flops_per_second'] / 1e9:.3g}"
    yield f"{row['bytes_per_second'] / 1e9:.3g}"
    yield f"{100 * row['roofline_share']:.0f} % {row['bound']}"


def show_plan(found: Row, console: Console) -> None:
    """Prints the fastest ways by batch size, the advice, and the check if there was one."""
    console.print(f"acceptance: {found['acceptance']}; context: {found['context_length']:.0f} tokens", highlight=False)
    head = "batch", "", "tokens/s (95 %)", "x plain", "tokens/step", "needed", "draft", "verify", "rest, ms"
    table = _table("predicted, the fastest first", *head)
    for batch in dict.fromkeys(row["batch_size"] for row in found["rows"]):
        ways = [row for row in found["rows"] if row["batch_size"] == batch]
        for row in [way for rank, way in enumerate(ways) if rank < SHOWN or way["drafter"] is None]:
            table.add_row(*_way(row), style="bold" if row is ways[0] else "")
    console.print(table)
    for each in found["advice_by_batch"]:
        console.print(each, highlight=False)
    for line in found["warnings"]:
        console.print(f"warning: {line}", highlight=False)
    if found.get("check"):
        console.print(_check(found["check"]))


def _way(row: Row) -> Iterator[str]:
    yield str(row["batch_size"])
    yield row["label"]
    interval = "" if row["low"] is None or row["drafter"] is None else f" ({row['low']:.0f}-{row['high']:.0f})"
    yield f"{row['tokens_per_second']:.0f}{interval}"
    yield f"{row['speedup']:.2f}"
    yield f"{row['tokens_per_step']:.2f}"
    needed = row["break_even_tokens_per_step"]
    yield "" if needed is None else f"{needed:.2f}"
    yield from (_ms(row["seconds"][name]) for name in ("draft", "verify", "overhead"))


def _check(rows: Sequence[Row]) -> Table:
    head = "batch", "", "predicted tokens/s", "measured", "predicted / measured", "x plain predicted", "measured"
    table = _table("predictions beside live runs", *head)
    for row in rows:
        speeds = f"{row['predicted_tokens_per_second']:.1f}", f"{row['measured_tokens_per_second']:.1f}"
        gains = f"{row['predicted_speedup']:.2f}", f"{row['measured_speedup']:.2f}"
        table.add_row(str(row["batch_size"]), row["label"], *speeds, f"{row['ratio']:.3f}", *gains)
    return table


def _table(title: str, *head: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left")
    for name in head:
        table.add_column(name, justify="left" if name in ("", "drafter") else "right", no_wrap=name in ("", "drafter"))
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}"
