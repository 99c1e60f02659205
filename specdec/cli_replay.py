"""The command that answers from traces what other settings would have given."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .cli_options import Json, console, progress, quiet_transformers
from .experiments.results_file import check_writable, write_json
from .experiments.trace.example import trace_embedded
from .experiments.trace.replay import Costs
from .experiments.trace.sweep import Questions, read_traces, sweep
from .experiments.trace.view import show

FOLDER = Path("specdec-bench")  # where `specdec bench` leaves its results

replay_app = typer.Typer()


@replay_app.command()
def replay(
    traces: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders; ./specdec-bench, or else a small example.")
    ] = None,
    num_speculative_tokens: Annotated[str | None, typer.Option(metavar="N,N,...", help="Depths of the draft.")] = None,
    num_tree_nodes: Annotated[str | None, typer.Option(metavar="N,N,...", help="Drafted nodes of a tree.")] = None,
    tree_width: Annotated[str | None, typer.Option(metavar="N,N,...", help="Children per node.")] = None,
    confidence_threshold: Annotated[
        str | None, typer.Option(metavar="P,P,...", help="Stop behind a token less likely to the drafter.")
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="N,N,...", help="Drafted nodes per round, at most.")] = None,
    verifier: Annotated[str | None, typer.Option(metavar="RULE,RULE,...", help="As traced by default; or all.")] = None,
    draft_cost: Annotated[float, typer.Option(min=0.0, help="Of a pass of the drafter, in target calls.")] = 0.0,
    node_cost: Annotated[float, typer.Option(min=0.0, help="Of a drafted node in the target call.")] = 0.0,
    json_file: Json = None,
) -> None:
    """Say what tokens per step other lengths, trees, rules or thresholds would have had, without the model."""
    check_writable(json_file)
    options = {
        "num_speculative_tokens": _numbers("--num-speculative-tokens", num_speculative_tokens, int),
        "num_tree_nodes": _numbers("--num-tree-nodes", num_tree_nodes, int),
        "tree_width": _numbers("--tree-width", tree_width, int),
        "confidence_threshold": _numbers("--confidence-threshold", confidence_threshold, float),
        "budget": _numbers("--budget", budget, int),
    }
    rules = [] if verifier is None else [name.strip() for name in verifier.split(",") if name.strip()]
    questions = Questions(options, rules, Costs(draft_cost, node_cost))
    with quiet_transformers(), tempfile.TemporaryDirectory() as folder, progress() as advance:
        paths = traces or ([FOLDER] if any(FOLDER.glob("trace/*.parquet")) else [])
        found = read_traces(paths or trace_embedded(Path(folder), advance))
        result = sweep(found, questions, advance)
    show(result, console())
    write_json(json_file, result)
    if not result["rows"]:
        raise typer.Exit(1)


def _numbers(option: str, text: str | None, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [] if text is None else [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"expected numbers with commas between them for {option}, got {text!r}; say 1,2,3") from error
