"""The command that measures a sweep."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import (
    Device,
    DraftOption,
    Graphs,
    HeadOption,
    Json,
    Threads,
    console,
    progress,
    quiet_transformers,
    use_threads,
)
from .experiments.bench.bench import run_bench
from .experiments.bench.processes import processes
from .experiments.bench.sweep import read_sweep, sweep_of
from .experiments.results_file import check_writable, write_json

Axis = list[str] | None


def axis(what: str) -> Any:
    """An option with several values, comma-separated or repeated."""
    return typer.Option(help=f"{what}; several comma-separated.")


SweepFile = Annotated[Path | None, typer.Argument(metavar="[SWEEP.toml]", help="Settings; flags replace them.")]
Drafters = Annotated[
    Axis, axis("ngram, draft_model, a head's name, transformers, assisted, prompt lookup; all by default")
]
Trees = Annotated[list[str] | None, typer.Option(help="Tree like [(0,), (1,), (0, 0)]; may be repeated.")]
PromptSource = Annotated[str | None, typer.Option(help="Where prompts come from; our own by default.")]
PerCategory = Annotated[int | None, typer.Option("--num-prompts", min=1, help="Prompts per category.")]
ChatTemplate = Annotated[
    bool | None, typer.Option("--chat-template/--no-chat-template", help="Usual if the tokenizer has one.")
]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]
Repeats = Annotated[int | None, typer.Option(min=1, help="Timed runs per arm and group of prompts.")]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Same seed, same text.")]
DeviceMap = Annotated[str | None, typer.Option(help="Spread the target over devices: auto, balanced, ...")]
TpPlan = Annotated[str | None, typer.Option(help="Share the target among the processes of torchrun: auto.")]
Out = Annotated[Path, typer.Option(help="Folder of results; the same sweep goes on there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and its time; write nothing.")]
Trace = Annotated[
    bool | None, typer.Option("--trace", help="Keep what `specdec replay` needs: drafts at every position.")
]
TopM = Annotated[int | None, typer.Option(min=1, help="Likeliest tokens of a distribution that a trace keeps.")]

bench_app = typer.Typer()


@bench_app.command()
def bench(
    sweep: SweepFile = None,
    drafter: Drafters = None,
    num_speculative_tokens: Annotated[Axis, axis("Drafted tokens per step")] = None,
    num_tree_nodes: Annotated[Axis, axis("Nodes of a tree; 0 for a chain")] = None,
    speculative_token_tree: Trees = None,
    verifier: Annotated[Axis, axis("Rules; auto fits the drafter")] = None,
    temperature: Annotated[Axis, axis("0 decodes greedily")] = None,
    top_p: Annotated[Axis, axis("Mass that is sampled from")] = None,
    top_k: Annotated[Axis, axis("Number of tokens that are sampled from")] = None,
    min_p: Annotated[Axis, axis("Least share of the likeliest token's probability")] = None,
    repetition_penalty: Annotated[Axis, axis("Penalty of tokens that were there before")] = None,
    batch_size: Annotated[Axis, axis("Prompts at once")] = None,
    dtype: Annotated[Axis, axis("bfloat16, float16, float32, float64")] = None,
    target: Annotated[Axis, axis("Folder or hub id of the model")] = None,
    draft: DraftOption = None,
    head: HeadOption = None,
    prompts: PromptSource = None,
    num_prompts: PerCategory = None,
    category: Annotated[Axis, axis("Categories of prompts; all by default")] = None,
    use_chat_template: ChatTemplate = None,
    max_new_tokens: NewTokens = None,
    repeats: Repeats = None,
    seed: SeedOption = None,
    device: Device = None,
    device_map: DeviceMap = None,
    tp_plan: TpPlan = None,
    graphs: Graphs = None,
    threads: Threads = None,
    trace: Trace = None,
    trace_top_m: TopM = None,
    out: Out = Path("specdec-bench"),
    dry_run: DryRun = False,
    json_file: Json = None,
) -> None:
    """Measure a sweep of drafters, lengths, rules and ways to sample on the same prompts; resumable."""
    given = {name: value for name, value in locals().items() if name in FLAGS and value is not None}
    _measure(sweep, given, None if dry_run else out, json_file)


FLAGS = tuple(name for name in bench.__annotations__ if name not in ("sweep", "out", "dry_run", "json_file", "return"))
WHOLE = ("speculative_token_tree", "head")  # their values may hold commas


def _measure(sweep: Path | None, given: dict[str, Any], out: Path | None, json_file: Path | None) -> None:
    check_writable(json_file)
    flags = {name: _listed(name, value) for name, value in given.items()}
    wanted = sweep_of({**({} if sweep is None else read_sweep(sweep)), **flags})
    use_threads(wanted.threads)
    here = processes(wanted.device, wanted.tp_plan is not None)
    try:
        with quiet_transformers(), progress() as advance:
            result = run_bench(wanted, out, here, console(), advance if here.is_first else _unseen)
    finally:
        here.close()
    if here.is_first:
        write_json(json_file, result)


def _unseen(done: int, total: int, what: str) -> None:
    """The bar of the first process is enough."""


def _listed(name: str, value: Any) -> Any:
    if not isinstance(value, list) or name in WHOLE:
        return value
    return [part.strip() for each in value for part in each.split(",") if part.strip()]
