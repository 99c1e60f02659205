"""What the embedded heads are worth: `python -m specdec.experiments.head_acceptance --help`.

Every drafter continues the same prompts greedily, one prompt at a time, in turns within one process. Tokens per step
are ratios of sums over prompts; times are those of the fastest of a drafter's runs on a prompt, without the round over
the prompt itself. The goals are those that the heads were trained for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import Tensor

from specdec.cli_options import Json, Threads, console, progress, quiet_transformers, use_threads
from specdec.events import Round
from specdec.generation import generate
from specdec.methods import build_drafter, load_drafter, paged
from specdec.metrics import summarize_steps
from specdec.protocols import Drafter
from specdec.target import PagedModel

from .assemble_zoo import NEW_TOKENS, NUM_PROMPTS, held_out_prompts
from .bench_results import print_figures, state_of
from .loading import Models, load_models
from .measure import turns
from .prompts import LEARNT, Prompt, read_prompts
from .results_file import check_writable, write_json
from .stamp import environment

DEPTH = 5  # of the chains that are compared
TREE = {"num_tree_nodes": 24, "tree_width": 4}
PROSE, ALL = "prose", "all"
# Name -> the head it runs, if any, and the options of its drafter; without, a head drafts as its config proposes.
DRAFTERS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "ngram": (None, {"method": "ngram", "num_speculative_tokens": 8}),
    "draft_model": (None, {"method": "draft_model", "num_speculative_tokens": DEPTH}),
    "medusa": ("medusa", {}),
    "medusa tree": ("medusa", TREE),
    "eagle3": ("eagle3", {"num_speculative_tokens": DEPTH}),
    "eagle3 tree": ("eagle3", {"num_speculative_tokens": DEPTH, **TREE}),
    "eagle3 long": ("eagle3", {"num_speculative_tokens": 7}),
    "block": ("block", {}),
    "block tree": ("block", TREE),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What a drafter did on one prompt, in the fastest of its runs."""

    category: str
    rounds: tuple[Round, ...]

    @property
    def seconds(self) -> tuple[float, float, int]:
        """Time of drafting, time of all, and number, of the rounds that continue the prompt."""
        later = [each for each in self.rounds if not each.is_prefill]
        return sum(each.seconds.draft for each in later), sum(each.seconds.total for each in later), len(later)


def drafters(models: Models, target: PagedModel) -> dict[str, Drafter | None]:
    """All that are compared, by name."""
    built: dict[str, Drafter | None] = {}
    for name, (head, options) in DRAFTERS.items():
        if head is not None:
            built[name] = load_drafter(models.heads[head], target, **options)
        else:
            given = {"model": models.draft} if options["method"] == "draft_model" else {}
            built[name] = build_drafter({**options, **given}, target)
    return built


def measure(
    models: Models, prompts: Sequence[Prompt], repeats: int, advance: Callable[[int, int, str], None]
) -> dict[str, list[Result]]:
    """The results of every drafter, one per prompt."""
    target = paged(models.target)
    field = drafters(models, target)
    encoded = [models.encode(prompt.text) for prompt in prompts]
    found: dict[tuple[str, int], tuple[Round, ...]] = {}
    order = list(turns(list(field), len(prompts), repeats))
    for done, (name, index) in enumerate(order):
        advance(done, len(order), name)
        rounds = _rounds(target, field[name], encoded[index])
        known = found.get((name, index), rounds)
        found[name, index] = min(known, rounds, key=lambda each: sum(part.seconds.total for part in each))
    return {name: [Result(prompt.category, found[name, i]) for i, prompt in enumerate(prompts)] for name in field}


def row_of(results: Sequence[Result]) -> dict[str, Any]:
    """The figures of one drafter, as plain values."""
    categories = dict.fromkeys(result.category for result in results)
    groups = {
        ALL: results,
        **{category: [result for result in results if result.category == category] for category in categories},
    }
    metrics = {
        category: summarize_steps(step for result in group for each in result.rounds for step in each.steps)
        for category, group in groups.items()
    }
    draft, total, count = (sum(part) for part in zip(*(result.seconds for result in results), strict=True))
    return {
        "tokens_per_step": {category: found.tokens_per_step for category, found in metrics.items()},
        "acceptance_at": [metrics[ALL].acceptance_at(position) for position in range(1, DEPTH + 1)],
        "num_rounds": count,
        "draft_ms_per_round": 1e3 * draft / count,
        "draft_share": draft / total,
    }


def figures_of(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What the rows come to."""

    def tokens(name: str, category: str = ALL) -> float:
        found: float = rows[name]["tokens_per_step"].get(category, float("nan"))
        return found

    def drafting(name: str) -> float:
        found: float = rows[name]["draft_ms_per_round"]
        return found

    values = [
        (
            f"EAGLE-3 / draft model, chains of {DEPTH}: tokens per step",
            tokens("eagle3") / tokens("draft_model"),
            ">= 1",
        ),
        ("EAGLE-3, tree / chain of equal depth: tokens per step", tokens("eagle3 tree") / tokens("eagle3"), ">= 1.2"),
        ("block / EAGLE-3 of 7: tokens per step", tokens("block") / tokens("eagle3 long"), ">= 0.9"),
        ("block / EAGLE-3 of 7: time of drafting", drafting("block") / drafting("eagle3 long"), "<= 0.25"),
        ("Medusa / n-gram on prose: tokens per step", tokens("medusa", PROSE) / tokens("ngram", PROSE), ">= 1"),
        (f"EAGLE-3, chain of {DEPTH}: share of drafting", rows["eagle3"]["draft_share"], "<= 0.35"),
        ("block: share of drafting", rows["block"]["draft_share"], "<= 0.15"),
    ]
    return [
        {"figure": name, "value": value, "goal": goal, "state": state_of(value, goal)} for name, value, goal in values
    ]


def _rounds(target: PagedModel, drafter: Drafter | None, ids: Tensor) -> tuple[Round, ...]:
    output = generate(
        target,
        ids,
        attention_mask=torch.ones_like(ids),
        drafter=drafter,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        return_dict_in_generate=True,
    )
    rounds: tuple[Round, ...] = output.speculation.rounds
    return rounds


def _prompts(corpora: Path | None, count: int) -> Iterator[Prompt]:
    """Of held-out documents, others than those that training was watched on; or those of the package."""
    if corpora is None:
        yield from (prompt for prompt in read_prompts() if prompt.category in LEARNT)
        return
    for category, texts in held_out_prompts(corpora, NUM_PROMPTS + count).items():
        for number, text in enumerate(texts[NUM_PROMPTS:]):
            yield Prompt(f"{category}-{number}", category, (text,))


def _table(rows: Mapping[str, Mapping[str, Any]]) -> Table:
    categories = list(next(iter(rows.values()))["tokens_per_step"])
    table = Table("drafter", *categories, "first accepted", "drafting, ms", "share", title="tokens per step, and time")
    for name, row in rows.items():
        tokens = [f"{row['tokens_per_step'][category]:.2f}" for category in categories]
        times = f"{row['draft_ms_per_round']:.2f}", f"{row['draft_share']:.2f}"
        table.add_row(name, *tokens, f"{row['acceptance_at'][0]:.2f}", *times)
    return table


def main(
    corpora: Annotated[Path | None, typer.Option(help="Folder of corpora, whose held-out texts are continued.")] = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Per domain, of the corpora.")] = 8,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    dtype: str | None = None,
    threads: Threads = None,
    json_file: Json = None,
) -> None:
    """Acceptance and draft time of the embedded heads, beside the draft model and n-grams."""
    check_writable(json_file)
    use_threads(threads)
    prompts = list(_prompts(corpora, num_prompts))
    with quiet_transformers(), progress() as advance:
        models = load_models(dtype=dtype)
        results = measure(models, prompts, repeats, advance)
    rows = {name: row_of(found) for name, found in results.items()}
    figures = figures_of(rows)
    out = console()
    out.print(_table(rows))
    print_figures(out, figures)
    settings = {
        "num_prompts": len(prompts),
        "repeats": repeats,
        "max_new_tokens": NEW_TOKENS,
        "corpora": bool(corpora),
    }
    about = {"settings": settings, "drafters": DRAFTERS, "models": models.as_dict(), "environment": environment()}
    write_json(json_file, {"rows": rows, "figures": figures, **about})


if __name__ == "__main__":
    typer.run(main)
