"""The commands that take in what others measured, and hand out what was measured here."""

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from .cli_options import Json, console
from .experiments.interop import import_results
from .experiments.results_file import check_writable, write_json
from .experiments.specbench_export import export_answers

TARGETS = ("spec-bench",)
SHOWN = ("tokens_per_step", "mean_acceptance_length", "draft_acceptance_rate", "tokens_per_second")

interop_app = typer.Typer()


@interop_app.command("import")
def import_files(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Answers of Spec-Bench or EAGLE, metrics or logs of vLLM or SGLang, JSON of their requests."
        ),
    ],
    json_file: Json = None,
) -> None:
    """Read what other systems measured, for reports side by side; what a file does not say stays open."""
    check_writable(json_file)
    result = import_results(files)
    table = Table("system", "label", *(name.replace("_", " ") for name in SHOWN), box=SIMPLE_HEAD)
    table.columns[1].overflow = "fold"
    for arm in result["arms"]:
        found = [arm["overall"][name] for name in SHOWN]
        table.add_row(arm["system"], arm["label"], *("" if one is None else f"{one['value']:.2f}" for one in found))
    console().print(table)
    for warning in result["warnings"]:
        typer.echo(f"warning: {warning}", err=True)
    write_json(json_file, result)


@interop_app.command("export")
def export_folder(
    folder: Annotated[Path, typer.Argument(help="The --out folder of a benchmark.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    layout: Annotated[str, typer.Option("--to", help=f"{', '.join(TARGETS)}.")] = TARGETS[0],
) -> None:
    """Write the results of a benchmark as others' scripts want them: one answer file per arm and repeat."""
    if layout not in TARGETS:
        raise ValueError(f"expected --to {', '.join(TARGETS)}, got {layout!r}; pick one of them")
    files, warnings = export_answers(folder, out)
    for path in files:
        typer.echo(f"written: {path}")
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
