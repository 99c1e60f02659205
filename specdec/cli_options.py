"""What commands share: options, a bar that shows progress, the console."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

PIPE_WIDTH = 120
MOST_THREADS = 8  # per core: with thousands the system refuses, and torch dies of it

Target = Annotated[str | None, typer.Option(help="Folder or hub id of the model; the embedded one by default.")]
DraftOption = Annotated[str | None, typer.Option("--draft", help="Folder or hub id of a draft model.")]
HeadOption = Annotated[
    list[str] | None, typer.Option("--head", help="Folder or hub id of a self-draft head; may be repeated.")
]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16, float32 or float64; the checkpoint's by default.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch on the CPU.")]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts",
        help="A .jsonl, .json, .parquet, .csv or .txt file, or hub:NAME[:[CONFIG/]SPLIT[[:COUNT]]]; those of the "
        "package by default.",
    ),
]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here as well.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest continuation.")]
NumDraft = Annotated[int, typer.Option("--num-speculative-tokens", min=1, help="Drafted tokens per step.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 decodes greedily.")]
TopP = Annotated[float | None, typer.Option(min=0.0, max=1.0, help="Sample from the likeliest tokens of this mass.")]
TopK = Annotated[int | None, typer.Option(min=0, help="Sample from so many tokens.")]
Graphs = Annotated[
    bool | None,
    typer.Option("--graphs/--no-graphs", help="Replay forward passes as CUDA graphs, which is usual on a GPU."),
]
Seed = Annotated[int, typer.Option(min=0, help="Same seed, same text.")]


@contextmanager
def progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, and the function that moves it: (done, total, what is going on)."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def advance(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield advance


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' notes and bars out of the output; what matters of them is checked and raised."""
    verbosity, shows_bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if shows_bars:
            transformers_logging.enable_progress_bar()


def console(no_color: bool = False) -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    console = Console(color_system=None if no_color or os.environ.get("NO_COLOR") else "auto", highlight=False)
    return console if console.is_terminal else Console(color_system=None, width=PIPE_WIDTH, highlight=False)


def use_threads(threads: int | None) -> None:
    most = MOST_THREADS * (os.cpu_count() or 1)
    if threads is None:
        return
    if threads > most:
        raise ValueError(f"expected at most {most} threads on this machine, got {threads}; pass --threads of its cores")
    torch.set_num_threads(threads)
