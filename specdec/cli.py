"""The commands. Each says what it wants, hands it to `experiments`, and prints."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, NoReturn

import torch
import typer
from typer.core import TyperGroup

from . import __version__
from .cache import CacheFull
from .cli_bench import bench_app
from .cli_convert import convert
from .cli_interop import interop_app
from .cli_options import (
    Device,
    DraftOption,
    Dtype,
    Graphs,
    HeadOption,
    Json,
    NewTokens,
    NumDraft,
    Prompts,
    Seed,
    Target,
    Temperature,
    Threads,
    TopK,
    TopP,
    console,
    progress,
    quiet_transformers,
    use_threads,
)
from .cli_profile import profile_app
from .cli_replay import replay_app
from .cli_report import report
from .cli_train import train_app
from .experiments.compare import compare as run_comparison
from .experiments.compare_view import show
from .experiments.contenders import Decoding
from .experiments.doctor import examine, print_examination
from .experiments.loading import load_models
from .experiments.prompts import LEARNT, Prompt, first_per_category, read_prompts
from .experiments.results_file import check_writable, write_json
from .experiments.stamp import environment
from .experiments.stream import stream, summary_line

INTERRUPTED = 130
PROMPT = "Once upon a time, there was a little girl named"
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
app.add_typer(train_app, name="train")
app.add_typer(bench_app)
app.command()(convert)
app.add_typer(replay_app)
app.add_typer(profile_app)
app.command()(report)
app.add_typer(interop_app)


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
    head: HeadOption = None,
    prompts: Prompts = None,
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts per category.")] = 2,
    category: Annotated[
        str | None, typer.Option(help=f"Comma-separated; of the package's prompts {','.join(LEARNT)} by default.")
    ] = None,
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
    chosen = _chosen(prompts, num_prompts, category)
    temperature = temperature or float(do_sample)
    decoding = Decoding(max_new_tokens, num_speculative_tokens, temperature, top_p, top_k, seed)
    use_threads(threads)
    with quiet_transformers():
        models = load_models(target, draft, dtype, device, head)
        decoding = replace(decoding, graphs=models.is_on_gpu if graphs is None else graphs)
        names = None if methods is None else [name.strip() for name in methods.split(",") if name.strip()]
        with progress() as advance:
            result = run_comparison(models, chosen, decoding, names, repeats, advance)
    show(result, models, chosen, decoding, console())
    settings = {**decoding.as_dict(), "repeats": repeats, "prompts": [prompt.id for prompt in chosen]}
    about = {"settings": settings, "models": models.as_dict(), "environment": environment()}
    write_json(json_file, {"kind": "compare", "version": 1, **result.as_dict(), **about})


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to continue.")] = PROMPT,
    target: Target = None,
    draft: DraftOption = None,
    head: HeadOption = None,
    drafter: Annotated[
        str | None, typer.Option(help="ngram, draft_model, none, or the last part of a head's path.")
    ] = None,
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
    use_threads(threads)
    with quiet_transformers():
        models = load_models(target, draft, dtype, device, head)
        decoding = replace(decoding, graphs=models.is_on_gpu if graphs is None else graphs)
        totals = stream(models, prompt, drafter, decoding, stop or (), console(no_color))
    typer.echo(summary_line(totals))
    about = {"settings": decoding.as_dict(), "models": models.as_dict(), "environment": environment()}
    write_json(json_file, {"prompt": prompt, **totals, **about})


@app.command()
def doctor(
    target: Target = None, draft: DraftOption = None, dtype: Dtype = None, device: Device = None, json_file: Json = None
) -> None:
    """Say what this installation can do, and whether a model can be run."""
    check_writable(json_file)
    with quiet_transformers():
        found = examine(target, draft, dtype, device)
    print_examination(found, console())
    write_json(json_file, found)
    raise typer.Exit(0 if found["target"]["passed"] else 1)


def _chosen(source: str | None, num_prompts: int, category: str | None) -> list[Prompt]:
    """Some prompts of each category; without a wish, those of the package that the embedded models can write on."""
    found = read_prompts() if source is None else read_prompts(source)
    if category is None:
        return first_per_category(found, num_prompts, LEARNT if source is None else None)
    return first_per_category(found, num_prompts, [name.strip() for name in category.split(",") if name.strip()])


def main() -> None:
    """The console script."""
    app()
