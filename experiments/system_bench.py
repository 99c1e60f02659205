"""Whole models of real shapes, random weights: `python -m specdec.experiments.system_bench --help`.

Plain decoding against transformers, what wider passes and commits cost, what speculation with replayed drafts gains
against what it should, and how much of a round heads draft for. What belongs together is measured in turns and written
at once, and a run that was cut short goes on where it stopped.
"""

import gc
import time
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from .bench_results import BenchResults, Row, print_figures, progress_on
from .results_file import check_writable
from .shapes import SHAPES, TINY
from .system_bench_heads import HEADS, head_rows
from .system_bench_passes import commit_rows, score_rows
from .system_bench_subject import DRY, MODES, REAL, Sizes, Subject, absent
from .system_bench_texts import compiled_rows, decoding_rows, replay_rows, static_rows
from .system_bench_view import figures, table

DEFINITIONS = {
    "ms": "texts: of a new token, from the first one's arrival on the host to the last one's, greedy, batch 1, median "
    "over repeats that take turns; ms_low and ms_high are the fastest and the slowest. Passes (score): between events "
    "of the device around several passes in a row, none waited for, over their number, median over repeats. Commits: "
    "between events around one",
    "ms_between": "plain texts: median time between two arrivals, without what a call does once (as where a new static "
    "cache has graphs recorded anew)",
    "waited_ms": "of a pass alone, what the host does before the device can begin included",
    "share": "texts and passes: of the weight-read floor, which is the time of reading the weights once (embeddings "
    "not, unless they are the head) at the fastest reading of memory in the same run (read_gb_s). Commits: of scoring "
    "a tree and keeping a path of it whose rows have to be moved, all requests of the batch",
    "waits": "whether torch sees a commit wait for the device",
    "ratio": "T(n) / T(1): ms of a pass over n nodes per request over that of one node, same batch and prefix",
    "speedup": "plain ms / replay ms, same unit",
    "formula": "E / (draft / T(1) + T(length + 1) / T(1)), with tokens_per_round for E and the host's draft_ms",
    "formula_expected": "the same with expected_tokens for E",
    "expected_tokens": "E if drafted tokens are accepted independently, (1 - a^(length + 1)) / (1 - a)",
    "shares": "of the rounds behind the prompt's, by the host's clock: what the device does is waited for where its "
    "result is read, in score or rule",
    "draft_share": "of heads: drafting, of the rounds behind the prompt's, by the host's clock; a draft is waited for "
    "before the target's pass begins",
    "floor_share": "of heads: the head's part of the weights that a round must read, a chain's once per token",
    "same_text": "whether all repeats gave the tokens of plain decoding",
}


class Unit(NamedTuple):
    """What is measured together."""

    name: str
    measure: Callable[[Subject], list[Row]]


class Results(BenchResults):
    """The file of results: what earlier runs measured, and what this one adds."""

    def __init__(self, path: Path | None, is_dry: bool, is_new: bool) -> None:
        super().__init__(path, is_dry, is_new, (DRY if is_dry else REAL)._asdict(), DEFINITIONS)

    def unit(self, row: Row) -> Hashable:
        """Shape and unit: ratios are of rows measured together."""
        return row["shape"], row["unit"]

    def figures(self) -> list[dict[str, Any]]:
        """See `system_bench_view`."""
        return figures(self.rows)


def units(sizes: Sizes) -> list[Unit]:
    """What is measured of a shape; what compiles comes last, for it takes most of the time."""
    replays = product(sizes.acceptances, sizes.lengths)
    return [
        Unit("decoding", decoding_rows),
        *(Unit(f"passes, batch {batch}", partial(score_rows, batch=batch)) for batch in sizes.batches),
        *(Unit(f"commit, batch {batch}", partial(commit_rows, batch=batch)) for batch in sizes.batches),
        *(Unit(f"replay {a} x {k}", partial(replay_rows, acceptance=a, length=k)) for a, k in replays),
        *(Unit(f"head {name}", partial(head_rows, name=name)) for name in HEADS),
        Unit("static cache", static_rows),
        Unit("torch.compile", compiled_rows),
    ]


def measure_all(results: Results, shapes: Sequence[str], deadline: float, progress: Progress) -> bool:
    """Adds the units that are missing, shape by shape; False if the time was up before."""
    is_dry = results.value["dry"]
    sizes, device = (DRY if is_dry else REAL), torch.device("cpu" if is_dry else "cuda")
    ceiling = results.begin(device)
    reasons = {f"specdec {mode}": absent(mode, device) for mode in MODES}
    results.value["absent"] = {name: reason for name, reason in reasons.items() if reason}
    for shape in shapes:
        subject: Subject | None = None
        for unit in progress.track(units(sizes), description=shape):
            if results.has_unit((shape, unit.name)):
                continue
            if time.monotonic() > deadline:
                return False
            try:
                subject = subject or Subject(shape, device, sizes, ceiling)
                rows = unit.measure(subject)
            except torch.OutOfMemoryError as error:
                rows = [{"name": unit.name, "skipped": f"out of memory: {str(error).split('. ')[0]}"}]
            results.add(*({"shape": shape, "unit": unit.name, **row} for row in rows))
        del subject
        _free()
    results.finish()
    return True


def _free() -> None:
    """Gives memory back that nobody uses, before the next model is made."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write results here; go on with those there")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(SHAPES)} or {TINY}; the first three if not given")
    ] = None,
    dry: Annotated[bool, typer.Option("--dry", help="a tiny shape on the CPU: to try the script")] = False,
    again: Annotated[bool, typer.Option("--again", help="measure what is in the file anew")] = False,
    time_limit: Annotated[float, typer.Option(help="seconds after which nothing further is begun")] = float("inf"),
) -> None:
    """Measures whole models, prints a table and the figures, and writes a row for all that was measured."""
    deadline, console = time.monotonic() + time_limit, Console()
    if not (dry or torch.cuda.is_available()):
        raise SystemExit("error: expected a GPU, got none; pass --dry to try the script on the CPU")
    shapes = [TINY] if dry else list(dict.fromkeys(shape or SHAPES))
    try:
        unknown = [name for name in shapes if name not in (*SHAPES, TINY)]
        if unknown:
            raise ValueError(f"expected a known shape, got {unknown[0]!r}; pass one of {', '.join((*SHAPES, TINY))}")
        check_writable(json_file)
        results = Results(json_file, dry, again)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    with progress_on(console) as progress:
        is_complete = measure_all(results, shapes, deadline, progress)
    console.print(table(results.value))
    print_figures(console, results.value["figures"])
    if not is_complete:
        raise SystemExit("error: the time was up before all was measured; run it once more to go on")


if __name__ == "__main__":
    typer.run(main)
