"""The command that draws results."""

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import console, quiet_transformers
from .experiments.figures.view import print_comparison
from .experiments.report.comparison_section import comparisons
from .experiments.report.page import build_page
from .experiments.report.sources import read_sources
from .experiments.results_file import check_writable, write_text

HERE = Path("specdec-bench")  # where `specdec bench` writes


def report(
    results: Annotated[
        list[Path] | None,
        typer.Argument(help=f"Result files of any command, and folders of them; ./{HERE} if there is one."),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page to write.")] = Path("report.html"),
) -> None:
    """Draw results: one HTML file with answers, tables and plots that needs nothing else."""
    if not results and not HERE.exists():
        raise ValueError(
            f"expected result files or folders, got none, and there is no ./{HERE}; run `specdec bench` first, or name "
            "what it wrote"
        )
    check_writable(out, "--out")
    chosen = results or [HERE]
    if out.resolve() in {path.resolve() for path in chosen}:
        raise ValueError(
            f"expected --out FILE beside the results, got {str(out)!r}, which is one of them; pass another"
        )
    with quiet_transformers():
        sources, skipped = read_sources(chosen)
        compared, incomparable = comparisons(sources)
        page, left_out = build_page([*sources, *compared], [*skipped, *incomparable])
    for source in compared:
        typer.echo(f"{source.path}:")
        print_comparison(source.value, console())
    for each in left_out:
        typer.echo(f"skipped: {each.path}: {each.reason}", err=True)
    write_text(out, page)
    typer.echo(f"written: {out}, {len(page.encode()) / 1024:.0f} KiB")
