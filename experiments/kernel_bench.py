"""Tree attention against other libraries and against the memory: `python -m specdec.experiments.kernel_bench --help`.

One layer of Llama-3.1-8B in bfloat16. Every row is written as soon as it is measured, and a run that was cut short
goes on where it stopped.
"""

import time
from collections.abc import Hashable
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress

from .attention_case import PAGE, Case, Heads, Problem, largest_error, problem_of
from .attention_contenders import ATTENTIONS, OURS, Attention
from .bench_results import BenchResults, Row, print_figures, progress_on
from .device_timing import free_bytes, time_calls
from .kernel_bench_view import figures, table
from .results_file import check_writable

LLAMA_8B = Heads(heads=32, kv_heads=8, dim=128)  # meta-llama/Llama-3.1-8B, config.json
CASES = [Case(b, p, n) for b, p, n in product((1, 8, 64), (1024, 8192, 32768), (1, 2, 4, 8, 16, 32, 64))]
DRY_HEADS, DRY_CASES = Heads(4, 2, 16), [Case(b, p, n) for b, p, n in product((1, 3), (5, 40), (1, 4))]
REPLAYED_BYTES, MAX_CALLS = 1 << 33, 256  # of one replay: long enough for its start not to count
DEFINITIONS = {
    "bytes": "keys, values and queries read once, the output written once",
    "floor_us": "bytes / the fastest reading of memory in the same run (read_gb_s; of copy: read and written)",
    "us": "median over replays of a CUDA graph of many calls, one layer each; layers have keys of their own and take "
    "turns, so that none are in the L2; us_low and us_high are the fastest and the slowest replay",
    "share": "floor_us / us: of the memory's bandwidth",
    "error": "largest relative error (Euclidean norm) of a row's head against float64, first requests of the batch",
    "outside": "not in the time: the plans of specdec and flashinfer, all masks, gathering keys for the others",
}


class Results(BenchResults):
    """The file of results: what earlier runs measured, and what this one adds."""

    def __init__(self, path: Path | None, is_dry: bool, is_new: bool) -> None:
        heads, cases = (DRY_HEADS, DRY_CASES) if is_dry else (LLAMA_8B, CASES)
        settings = {"heads": heads._asdict(), "dtype": "bfloat16", "page": PAGE, "num_cases": len(cases)}
        super().__init__(path, is_dry, is_new, settings, DEFINITIONS)

    def unit(self, row: Row) -> Hashable:
        """Contender and case: each row is measured by itself."""
        return row["name"], row["batch"], row["prefix"], row["num_nodes"]

    def figures(self) -> list[dict[str, Any]]:
        """See `kernel_bench_view`."""
        return figures(self.rows)

    def has(self, name: str, case: Case, run: int | None = None) -> bool:
        """Whether there is such a row, of this run or of any."""
        return self.has_unit((name, *case), run)


def measure(attention: Attention, case: Case, heads: Heads, device: torch.device) -> Row:
    """The row of one case, without what depends on the ceiling; or why there is none."""
    num_layers = case.num_layers(heads) if device.type == "cuda" else 2
    needed, free = case.needed_bytes(heads, num_layers, attention.is_gathered), free_bytes(device)
    if free is not None and needed > free:
        return {"skipped": f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} are free"}
    problem = problem_of(case, heads, num_layers, device)
    try:
        return _timed(attention, problem)
    except torch.OutOfMemoryError:
        return {"skipped": f"out of memory: {needed / 1e9:.1f} GB and what it takes itself"}
    except Exception as error:  # of somebody else's code: the others go on, and the row says why this one did not
        if attention.name == OURS:
            raise
        return {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _timed(attention: Attention, problem: Problem) -> Row:
    case, heads = problem.case, problem.heads
    prepared = attention.prepare(problem)
    output = prepared.arranged(prepared.calls[0]())
    num_layers = len(prepared.calls)
    rounds = max(1, min(REPLAYED_BYTES // (num_layers * case.min_bytes(heads)), MAX_CALLS // num_layers))
    row = {"num_layers": num_layers, "error": largest_error(problem, output), "bytes": case.min_bytes(heads)}
    timing = time_calls(prepared.calls, rounds if problem.device.type == "cuda" else 1, problem.device)
    return {**row, "us": timing.median, "us_low": timing.low, "us_high": timing.high}


def measure_all(results: Results, device: torch.device, deadline: float, progress: Progress) -> bool:
    """Adds the rows that are missing, contender by contender; False if the time was up before."""
    heads, cases = (DRY_HEADS, DRY_CASES) if results.value["dry"] else (LLAMA_8B, CASES)
    ceiling = results.begin(device)
    run, ours = results.run, ATTENTIONS[0]

    def add(attention: Attention, case: Case) -> Row:
        row = measure(attention, case, heads, device)
        if "us" in row:
            floor = row["bytes"] / ceiling / 1e3
            row |= {"floor_us": floor, "share": floor / row["us"]}
        results.add({"name": attention.name, **case._asdict(), **row})
        return row

    for attention in ATTENTIONS:
        reason = attention.absent(device)
        for case in progress.track([] if reason else cases, description=attention.name):
            if results.has(attention.name, case):
                continue
            if time.monotonic() > deadline:
                return False
            if not results.has(OURS, case, run):  # an earlier run's is not compared with
                add(ours, case)
            if attention is not ours and "failed" in (row := add(attention, case)) and case == cases[0]:
                reason = row["failed"]  # and so it would go on
                break
        if reason:
            results.value["absent"][attention.name] = reason
    results.finish()
    return True


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="write results here; go on with those there")] = None,
    dry: Annotated[bool, typer.Option("--dry", help="tiny sizes on the CPU: to try the script")] = False,
    again: Annotated[bool, typer.Option("--again", help="measure what is in the file anew")] = False,
    time_limit: Annotated[float, typer.Option(help="seconds after which no further row is begun")] = float("inf"),
) -> None:
    """Measures tree attention, prints a table and writes a row for each contender and case."""
    deadline, console = time.monotonic() + time_limit, Console()
    if not (dry or torch.cuda.is_available()):
        raise SystemExit("error: expected a GPU, got none; pass --dry to try the script on the CPU")
    try:
        check_writable(json_file)
        results = Results(json_file, dry, again)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error
    with progress_on(console) as progress, torch.inference_mode():
        is_complete = measure_all(results, torch.device("cpu" if dry else "cuda"), deadline, progress)
    console.print(table(results.value))
    print_figures(console, results.value["figures"])
    if not is_complete:
        raise SystemExit("error: the time was up before all rows were measured; run it once more to go on")


if __name__ == "__main__":
    typer.run(main)
