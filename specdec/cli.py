"""The commands. Each says what it wants, hands it to `experiments`, and prints."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging
from typer.core import TyperGroup

from . import __version__
from .cache import CacheFull
from .experiments.compare import compare as run_comparison
from .experiments.compare_view import show
from .experiments.contenders import Decoding
from .experiments.doctor import examine, print_examination
from .experiments.lm_run import LmFiles, train_on_files
from .experiments.loading import load_models
from .experiments.prompts import PROMPTS, first_per_task, read_prompts
from .experiments.results_file import check_writable, write_json
from .experiments.stamp import environment
from .experiments.stream import stream, summary_line
from .experiments.train_lm import LmConfig

INTERRUPTED = 130
PROMPT = "Once upon a time, there was a little girl named"
PIPE_WIDTH = 120
LM = LmConfig()
DECODING = Decoding()


class OneLineErrors(TyperGroup):
    """A group whose commands answer mistakes with one line and an exit code; `--debug` shows the traceback."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> NoReturn:
        given = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in given
        options["standalone_mode"] = False
        try:
            code = super().main([arg for arg in given if arg != "--debug"], *rest, **options)
        except (KeyboardInterrupt, typer.Abort):
            code = INTERRUPTED
        except Exception as error:
            usage = getattr(error, "format_message", None)  # of typer's own, in whichever class this version keeps it
            if debug or not (usage or isinstance(error, ValueError | OSError | CacheFull | torch.OutOfMemoryError)):
                raise
            message = usage() if usage else str(error) or type(error).__name__
            sys.stderr.write(f"error: {' '.join(message.split())}\n")
            code = getattr(error, "exit_code", 1)
        if code == INTERRUPTED:
            sys.stderr.write("interrupted\n")
        sys.exit(code)


app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False, add_completion=False, rich_markup_mode=None)
train_app = typer.Typer(help="Train models.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(train_app, name="train")

Target = Annotated[str | None, typer.Option(help="Folder or hub id of the model; the embedded one by default.")]
DraftOption = Annotated[str | None, typer.Option("--draft", help="Folder or hub id of a draft model.")]
Dtype = Annotated[str | None, typer.Option(help="bfloat16, float16, float32 or float64; the checkpoint's by default.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...; a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch on the CPU.")]
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


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,  # taken by OneLineErrors
) -> None:
    """Speculative decoding: the same text, sooner."""
    if version:
        typer.echo(__version__)
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def compare(
    target: Target = None,
    draft: DraftOption = None,
    prompts: Annotated[Path, typer.Option(help='JSON lines: {"id", "task", "turns": [text]}.')] = PROMPTS,
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts per task.")] = 2,
    methods: Annotated[str | None, typer.Option(help="Comma-separated; all by default.")] = None,
    max_new_tokens: NewTokens = DECODING.max_new_tokens,
    num_speculative_tokens: NumDraft = DECODING.num_speculative_tokens,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per method and prompt.")] = 3,
    temperature: Temperature = DECODING.temperature,
    do_sample: Annotated[bool, typer.Option("--do-sample", help="Sample, at temperature 1 unless given.")] = False,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = DECODING.seed,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    graphs: Graphs = None,
    json_file: Json = None,
) -> None:
    """Run the same prompts by every method, beside transformers' own; compare texts and times."""
    check_writable(json_file)
    chosen = first_per_task(read_prompts(prompts), num_prompts)
    temperature = temperature or float(do_sample)
    decoding = Decoding(max_new_tokens, num_speculative_tokens, temperature, top_p, top_k, seed)
    _use_threads(threads)
    with _quiet_transformers():
        models = load_models(target, draft, dtype, device)
        decoding = replace(decoding, graphs=models.is_on_gpu if graphs is None else graphs)
        names = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
        with _progress() as advance:
            result = run_comparison(models, chosen, decoding, names, repeats, advance)
    show(result, models, chosen, decoding, _console())
    settings = {**decoding.as_dict(), "repeats": repeats, "prompts": [prompt.id for prompt in chosen]}
    about = {"settings": settings, "models": models.as_dict(), "environment": environment()}
    write_json(json_file, {**result.as_dict(), **about})


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to continue.")] = PROMPT,
    target: Target = None,
    draft: DraftOption = None,
    drafter: Annotated[str | None, typer.Option(help="ngram, draft_model or none.")] = None,
    max_new_tokens: NewTokens = 128,
    num_speculative_tokens: NumDraft = DECODING.num_speculative_tokens,
    temperature: Temperature = DECODING.temperature,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = DECODING.seed,
    stop: Annotated[list[str] | None, typer.Option(help="End before this string is passed; may be repeated.")] = None,
    no_color: Annotated[bool, typer.Option("--no-color", help="Plain text; also with NO_COLOR.")] = False,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    graphs: Graphs = None,
    json_file: Json = None,
) -> None:
    """Continue a text as it is generated, coloured by who proposed each token."""
    check_writable(json_file)
    decoding = Decoding(max_new_tokens, num_speculative_tokens, temperature, top_p, top_k, seed)
    _use_threads(threads)
    with _quiet_transformers():
        models = load_models(target, draft, dtype, device)
        decoding = replace(decoding, graphs=models.is_on_gpu if graphs is None else graphs)
        totals = stream(models, prompt, drafter, decoding, stop or (), _console(no_color))
    typer.echo(summary_line(totals))
    about = {"settings": decoding.as_dict(), "models": models.as_dict(), "environment": environment()}
    write_json(json_file, {"prompt": prompt, **totals, **about})


@app.command()
def doctor(
    target: Target = None, draft: DraftOption = None, dtype: Dtype = None, device: Device = None, json_file: Json = None
) -> None:
    """Say what this installation can do, and whether a model can be run."""
    check_writable(json_file)
    with _quiet_transformers():
        found = examine(target, draft, dtype, device)
    print_examination(found, _console())
    write_json(json_file, found)
    raise typer.Exit(0 if found["target"]["passed"] else 1)


@train_app.command("lm")
def train_lm(
    corpora: Annotated[Path, typer.Option(help="Folder with books/*.md and tinystories_*.txt.")],
    run: Annotated[Path, typer.Option(help="Folder of the run; one that exists is continued.")],
    teacher: Annotated[Path | None, typer.Option(help="Folder of a model to distil.")] = None,
    self_text: Annotated[int, typer.Option(min=0, help="Tokens the teacher writes to be learnt on.")] = 0,
    tokenizer: Annotated[Path | None, typer.Option(help="Folder of a tokenizer; one is trained by default.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens to train on.")] = LM.max_tokens,
    vocab_size: Annotated[int, typer.Option(min=257)] = LM.vocab_size,
    hidden_size: Annotated[int, typer.Option(min=1)] = LM.hidden_size,
    num_layers: Annotated[int, typer.Option(min=1)] = LM.num_layers,
    num_heads: Annotated[int, typer.Option(min=1, help="Of 64 dimensions each.")] = LM.num_heads,
    num_kv_heads: Annotated[int, typer.Option(min=1)] = LM.num_kv_heads,
    intermediate_size: Annotated[int, typer.Option(min=1)] = LM.intermediate_size,
    context: Annotated[int, typer.Option(min=1)] = LM.context,
    sequence_length: Annotated[int, typer.Option(min=1)] = LM.sequence_length,
    batch_size: Annotated[int, typer.Option(min=1)] = LM.batch_size,
    learning_rate: Annotated[float, typer.Option(help="Of Muon, for the matrices.")] = LM.learning_rate,
    embedding_rate: Annotated[float, typer.Option(help="Of AdamW, for the rest.")] = LM.embedding_rate,
    temperature: Annotated[float, typer.Option(help="Of the teacher.")] = LM.temperature,
    seed: Seed = LM.seed,
    threads: Threads = None,
) -> None:
    """Train a small Llama on stories, prose and code, or distil one; a killed run continues where it was."""
    given = {name: value for name, value in locals().items() if name in LmConfig.__dataclass_fields__}
    config = replace(LM, **given)
    _use_threads(threads)
    with _quiet_transformers(), _progress() as advance:
        files = LmFiles(corpora, run, tokenizer, teacher)
        train_on_files(config, files, self_text, lambda done, loss: advance(done, config.num_steps, f"loss {loss:.3f}"))
    typer.echo(f"trained: {run / 'model'}")


def main() -> None:
    """The console script."""
    app()


@contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr, and the function that moves it: (done, total, what is going on)."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def advance(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield advance


@contextmanager
def _quiet_transformers() -> Iterator[None]:
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


def _console(no_color: bool = False) -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    console = Console(color_system=None if no_color or os.environ.get("NO_COLOR") else "auto", highlight=False)
    return console if console.is_terminal else Console(color_system=None, width=PIPE_WIDTH, highlight=False)


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
