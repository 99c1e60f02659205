"""A comparison for people: the texts, the tables, and what follows from them in words."""

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .compare import Comparison, Row
from .contenders import ASSISTED, BASELINE, LOOKUP, OURS, PLAIN, Decoding
from .differences import Difference
from .loading import EMBEDDED, Models
from .prompts import Prompt

EXCERPT = 200  # characters of a text that are shown
PARTS = {"draft": "draft", "target": "score", "rule": "rule", "cache": "cache", "rest": None}  # shown -> measured
RIVALS = {"draft_model": ASSISTED, "ngram": LOOKUP}  # transformers' method with the same source of drafts


def show(
    comparison: Comparison, models: Models, prompts: Sequence[Prompt], decoding: Decoding, console: Console
) -> None:
    """Prints texts, tables and conclusions."""
    for prompt in {prompt.category: prompt for prompt in reversed(prompts)}.values():
        shown = Text.assemble((f"{prompt.id}  ", "bold"), (_excerpt(prompt.text, last=True), "dim"))
        shown.append(_excerpt(comparison.texts[prompt.id]))
        console.print(shown, "")
    console.print(_table(comparison, decoding))
    if len(comparison.by_category) > 1:
        console.print(_category_table(comparison))
    num_longer = sum(len(prompt.turns) > 1 for prompt in prompts)
    if num_longer:
        console.print(f"Of {num_longer} prompts with several turns the first turn was run, not the others.")
    for line in conclusions(comparison, models, decoding):
        console.print(line, highlight=False)


def conclusions(comparison: Comparison, models: Models, decoding: Decoding) -> Iterator[str]:
    """What the figures say, one line each, the unwelcome included."""
    for row in comparison.rows:
        if row.first_difference is not None:
            yield f"{row.method}: {describe(row.first_difference, comparison.reference, models)}"
    yield from _losses(comparison)
    yield from _rivals(comparison.rows)
    if decoding.do_sample:
        yield f"Sampled with seed {decoding.seed}: texts are held against {PLAIN!r}; transformers draws otherwise."
    if models.target_name == EMBEDDED:
        yield (
            "The embedded models are tiny and show that the system works; they say nothing about speed-ups on large "
            "models. Pass --target and --draft for yours."
        )


def describe(difference: Difference, reference: str, models: Models) -> str:
    """The first difference in words."""
    wanted, got = (
        "the end" if token is None else repr(models.decode([token])) for token in (difference.expected, difference.got)
    )
    tie = "a tie in this dtype, so rounding decided" if difference.is_tie else "not a tie: please report this"
    return (
        f"differs on {difference.prompt} after {difference.position} tokens, {got} where {reference} has {wanted}; "
        f"margin of the two largest logits {difference.margin:.3g}, resolution {difference.resolution:.2g}: {tie}"
    )


def _table(comparison: Comparison, decoding: Decoding) -> Table:
    first = comparison.rows[0]
    how = f"temperature {decoding.temperature:g}" if decoding.do_sample else "greedy"
    caption = f"time: {'/'.join(PARTS)} in per cent"
    size = f"{first.num_prompts} prompts, {first.num_tokens} new tokens"
    table = Table(
        title=f"{size}, {how}, {decoding.num_speculative_tokens} drafted per step", caption=caption, box=SIMPLE_HEAD
    )
    headings = ("tokens/s", "speed-up (95 %)", "tokens/step", "accepted", "time", "same text")
    table.add_column("method", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in comparison.rows:
        table.add_row(*_cells(row), _verdict(row), style="bold" if row.speedup.wins else "")
    return table


def _cells(row: Row) -> Iterator[str]:
    interval = f" ({row.speedup.low:.2f}-{row.speedup.high:.2f})" if row.speedup.low is not None else ""
    yield row.method
    yield f"{row.tokens_per_second:.1f}"
    yield f"{row.speedup.ratio:.2f}x{interval if row.method != BASELINE else ''}"
    yield f"{row.tokens_per_step:.2f}"
    yield "" if row.acceptance_rate is None else f"{row.acceptance_rate:.2f}"
    yield "/".join(f"{100 * share:.0f}" for share in _shares(row))


def _shares(row: Row) -> Iterator[float]:
    """The parts of a row's time, in the order of `PARTS`; nothing if they are not known."""
    if "score" in row.seconds:
        rest = row.seconds["host"] + row.seconds["outside"]
        for name in PARTS.values():
            yield (rest if name is None else row.seconds[name]) / row.seconds["total"]


def _verdict(row: Row) -> Text:
    if row.identical is None:
        return Text("")
    if row.identical:
        return Text("yes", "green")
    assert row.first_difference is not None
    return Text("tie" if row.first_difference.is_tie else "NO", "yellow" if row.first_difference.is_tie else "bold red")


def _category_table(comparison: Comparison) -> Table:
    table = Table(title="by category: speed-up, tokens/step, accepted", box=SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for category in comparison.by_category:
        table.add_column(category, justify="right", no_wrap=True)
    for index, row in enumerate(comparison.rows):
        cells = [rows[index] for rows in comparison.by_category.values()]
        table.add_row(row.method, *map(_short, cells))
    return table


def _short(row: Row) -> str:
    rate = "     " if row.acceptance_rate is None else f" {row.acceptance_rate:.2f}"
    return f"{row.speedup.ratio:.2f}x  {row.tokens_per_step:.2f}{rate}"


def _losses(comparison: Comparison) -> Iterator[str]:
    """Where a method of ours does not pay, and what eats the gain."""
    for index, row in enumerate(comparison.rows):
        parts = {"all prompts": row, **{category: rows[index] for category, rows in comparison.by_category.items()}}
        lost = [f"{name} {part.speedup.ratio:.2f}x" for name, part in parts.items() if part.speedup.ratio < 1]
        if not row.method.startswith(OURS) or not lost:
            continue
        reason = ""
        if row.acceptance_rate is not None:
            drafting = 100 * row.seconds["draft"] / row.seconds["total"]
            reason = f": {row.tokens_per_step:.2f} tokens per step, {drafting:.0f} % of the time spent on drafts"
        yield f"{row.method} is no faster than {BASELINE} on {', '.join(lost)}{reason}."


def _rivals(rows: Sequence[Row]) -> Iterator[str]:
    """Ours beside transformers' method with the same drafts."""
    by_name = {row.method: row for row in rows}
    for drafter, rival in RIVALS.items():
        ours, theirs = by_name.get(f"{OURS} {drafter}"), by_name.get(rival)
        if ours is not None and theirs is not None:
            ratio = ours.tokens_per_second / theirs.tokens_per_second
            steps = f"{ours.tokens_per_step:.2f} and {theirs.tokens_per_step:.2f} tokens per step"
            yield f"{ours.method} is {ratio:.2f}x as fast as {theirs.method} ({steps})."


def _excerpt(text: str, last: bool = False) -> str:
    if len(text) <= EXCERPT:
        return text
    return "..." + text[-EXCERPT:] if last else text[:EXCERPT] + "..."
