"""A replay for people: a row per setting, the oracles, and what is uncertain about them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..figures.verdicts import how_many

SENSES = {"path": "exact", "law": "in law", "approximation": "approximate"}


def show(result: Mapping[str, Any], console: Console) -> None:
    """Prints tables and notes."""
    console.print(_table(result["rows"], "tokens per step, replayed"))
    if result["oracles"]:
        console.print(_oracles(result["oracles"]))
    for line in notes(result):
        console.print(line, highlight=False)


def notes(result: Mapping[str, Any]) -> Iterator[str]:
    """What is to be known beside the figures, one line each."""
    sizes = [(each["num_bytes"], each["num_tokens"]) for each in result["traces"]]
    num_bytes, num_tokens = (sum(part) for part in zip(*sizes, strict=True))
    per_token = num_bytes / max(num_tokens, 1)
    yield f"{how_many(len(sizes), 'trace')}, {num_bytes:,} bytes, {per_token:.0f} per token of text"
    gaps = [bounds["high"] - bounds["low"] for row in result["rows"] for bounds in row["survival"]]
    if gaps and max(gaps) > 1e-6:
        top_m = min(each["top_m"] for each in result["traces"])
        yield (
            f"Analytic survival is known to within {max(gaps):.2g}: the {top_m} likeliest tokens of p and q were kept. "
            "Tokens per step do not depend on that."
        )
    if any(not row["is_exact"] for row in result["rows"]):
        yield "approximate: cut from larger drafts; a drafter with that setting makes others. Trace it to be sure."
    if any(row["exactness"] == "law" for row in result["rows"]):
        yield "in law: the expectation over the drafts and the rule's draws, given the texts."
    for warning in result["warnings"]:
        yield f"warning: {warning}"


def _table(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    has_costs = any(abs(row["tokens_per_cost"] - row["tokens_per_step"]) > 1e-9 for row in rows)
    columns = ["drafter", "rule", "setting", "tokens per step", "95 %", "accepted", "nodes per step"]
    table = Table(*columns, *(["per cost"] if has_costs else []), "", title=title)
    table.columns[0].overflow = "fold"
    several = len({row["cell"] for row in rows}) > 1
    table.columns[1].no_wrap = table.columns[-1].no_wrap = True
    for row in rows:
        rate = f"{100 * row['draft_acceptance_rate']:.0f} %"
        figures = [f"{row['tokens_per_step']:.3f}", _interval(row), rate, f"{row['nodes_per_step']:.1f}"]
        figures += [f"{row['tokens_per_cost']:.3f}"] if has_costs else []
        label = f"{row['label']}, {row['cell']}" if several else row["label"]
        table.add_row(escape(label), row["verifier"], _setting(row), *figures, SENSES[row["exactness"]])
    return table


def _setting(row: Mapping[str, Any]) -> str:
    names = {
        "num_speculative_tokens": "k",
        "num_tree_nodes": "nodes",
        "tree_width": "width",
        "confidence_threshold": "t",
        "budget": "budget",
    }
    given = [f"{short}={row[name]:g}" for name, short in names.items() if row[name] is not None]
    return " ".join(given)


def _oracles(oracles: Sequence[Mapping[str, Any]]) -> Table:
    table = Table("upper bound", "of", "tokens per step", "95 %", "per cost", title="oracles: no policy reaches them")
    for row in oracles:
        figures = f"{row['tokens_per_step']:.3f}", _interval(row), f"{row['tokens_per_cost']:.3f}"
        table.add_row(row["oracle"], ", ".join(row["labels"]), *figures)
    return table


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"
