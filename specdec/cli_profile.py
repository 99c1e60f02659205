"""The commands that say what a target costs on this machine, and what follows for speculation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from torch import nn

from .cli_options import (
    Device,
    DraftOption,
    Dtype,
    Graphs,
    HeadOption,
    Json,
    Target,
    Threads,
    console,
    progress,
    quiet_transformers,
    use_threads,
)
from .experiments.loading import DTYPES, Models, device_of, load_models
from .experiments.profile.acceptance import Acceptance, Assumed
from .experiments.profile.acceptance_files import read_acceptance, read_result
from .experiments.profile.planning import Wanted, make_plan
from .experiments.profile.plots import check_plot, write_plots
from .experiments.profile.profile import profile as run_profile
from .experiments.profile.profile import synthetic_text
from .experiments.profile.settings import Settings, numbers_of
from .experiments.profile.view import show_plan, show_profile
from .experiments.results_file import check_writable, write_json
from .experiments.shapes import SHAPES, TINY, random_model

DEFAULTS = Settings()
WANTED = Wanted()
SYNTHETIC_TOKENS = 1 << 14
profile_app = typer.Typer()
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", metavar="FILE", help="JSON of specdec profile; measured if absent.")
]
AcceptanceFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Folder of specdec bench, its summary.json, or JSON of replay.")
]


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


@profile_app.command()
def profile(
    target: Target = None,
    draft: DraftOption = None,
    head: HeadOption = None,
    shape: Annotated[
        str | None, typer.Option(help=f"Random weights of a real shape instead: {', '.join(SHAPES)}, {TINY}.")
    ] = None,
    prompt_lengths: Annotated[str, typer.Option(help="Of prompts, to their first token.")] = _listed(
        DEFAULTS.prompt_lengths
    ),
    batch_sizes: Annotated[str, typer.Option(help="Requests at a time.")] = _listed(DEFAULTS.batch_sizes),
    context_lengths: Annotated[str, typer.Option(help="Tokens that requests have behind them.")] = _listed(
        DEFAULTS.context_lengths
    ),
    widths: Annotated[str, typer.Option(help="Rows of a request in one pass.")] = _listed(DEFAULTS.widths),
    draft_lengths: Annotated[str, typer.Option(help="Drafted tokens per step.")] = _listed(DEFAULTS.draft_lengths),
    tree_nodes: Annotated[int, typer.Option(min=0, help="Drafted nodes of trees; 0 for chains only.")] = 12,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of each case, some rounds each.")] = DEFAULTS.repeats,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    graphs: Graphs = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it here: .png or .svg.")] = None,
    json_file: Json = None,
) -> None:
    """Measure what prompts, decoding, verification and drafts cost on this machine, beside what it could do."""
    check_writable(json_file)
    check_plot(plot)
    _check_alone(shape, {"--target": target, "--draft": draft, "--head": head})
    lists = {"--prompt-lengths": prompt_lengths, "--batch-sizes": batch_sizes, "--context-lengths": context_lengths}
    lists |= {"--widths": widths, "--draft-lengths": draft_lengths}
    prompts, batches, contexts, wide, lengths = (numbers_of(written, option) for option, written in lists.items())
    settings = Settings(batches, prompts, wide, contexts, lengths, tree_nodes or None, repeats)
    use_threads(threads)
    with quiet_transformers(), progress() as advance:
        models = load_models(target, draft, dtype, device, head) if shape is None else _random(shape, dtype, device)
        text = synthetic_text(models.target.config.vocab_size, SYNTHETIC_TOKENS) if shape else None
        found = run_profile(models, settings, models.is_on_gpu if graphs is None else graphs, advance, text)
    show_profile(found, console())
    write_json(json_file, found)
    write_plots(plot, found)


@profile_app.command()
def plan(
    target: Target = None,
    draft: DraftOption = None,
    head: HeadOption = None,
    profile_file: ProfileFile = None,
    acceptance: AcceptanceFile = None,
    acceptance_rate: Annotated[
        float | None, typer.Option(help="Assume that each drafted token is accepted with this probability.")
    ] = None,
    batch_sizes: Annotated[str | None, typer.Option(help="Requests at a time; those of the profile.")] = None,
    context_length: Annotated[int | None, typer.Option(min=1, help="Tokens that requests have behind them.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Run the best, plain and two others beside it.")] = False,
    num_prompts: Annotated[int, typer.Option(min=1, help="Prompts per task, of live runs.")] = WANTED.num_prompts,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="New tokens of live runs.")] = WANTED.num_tokens,
    repeats: Annotated[int, typer.Option(min=1, help="Timed turns of a check.")] = WANTED.repeats,
    dtype: Dtype = None,
    device: Device = None,
    threads: Threads = None,
    graphs: Graphs = None,
    json_file: Json = None,
) -> None:
    """Predict tokens per second by drafter, length and batch size; say what is best, and when not to speculate."""
    check_writable(json_file)
    known = _known(acceptance, acceptance_rate)
    given = None if profile_file is None else read_result(profile_file, "profile")
    batches = None if batch_sizes is None else numbers_of(batch_sizes, "--batch-sizes")
    wanted = Wanted(batches, context_length, num_prompts, max_new_tokens, repeats, check)
    runs = given is None or known is None or check
    if not runs:
        _check_unnamed({"--target": target, "--draft": draft, "--head": head, "--dtype": dtype, "--device": device})
    use_threads(threads)
    with quiet_transformers(), progress() as advance:
        models = load_models(target, draft, dtype, device, head) if runs else None
        if given is None:
            assert models is not None, "loaded to be profiled"
            settings = Settings() if batches is None else Settings(batch_sizes=batches)
            given = run_profile(models, settings, models.is_on_gpu if graphs is None else graphs, advance)
        needed = models if known is None or check else None
        found = make_plan(given, known, needed, wanted, advance)
    show_plan(found, console())
    write_json(json_file, found)


def _known(path: Path | None, rate: float | None) -> Acceptance | None:
    """What is said of acceptance; None to measure it."""
    if path is not None and rate is not None:
        raise ValueError("expected --acceptance or --acceptance-rate, got both; drop one")
    if rate is not None:
        return Assumed(rate)
    return None if path is None else read_acceptance(path)


def _check_unnamed(options: Mapping[str, object]) -> None:
    """Raises ValueError if a model is named that nothing would run."""
    named = [name for name, given in options.items() if given is not None]
    if named:
        raise ValueError(
            f"expected nothing of models where a profile and acceptance are given, got {named[0]}; drop it, or run "
            "them with --check"
        )


def _check_alone(shape: str | None, others: Mapping[str, object]) -> None:
    """Raises ValueError if there is no such shape, or a model is given beside it that nothing would run."""
    beside = [name for name, given in others.items() if given is not None]
    if shape is not None and (shape not in (*SHAPES, TINY) or beside):
        got = f"{beside[0]} beside it" if beside else repr(shape)
        raise ValueError(f"expected --shape {', '.join((*SHAPES, TINY))} alone, got {got}; pick one of them")


def _random(shape: str, dtype: str | None, device: str | None) -> Models:
    """A model of random weights: it has no tokenizer and no drafter but n-grams."""
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}; pick one of them")
    model = random_model(shape, device_of(device))
    if dtype is not None:
        nn.Module.to(model, DTYPES[dtype])
    return Models(model, None, target_name=f"random {shape}")
