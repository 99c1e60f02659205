"""What a machine with a GPU is to run: `python -m specdec.experiments.gpu_run --out FOLDER`, from a checkout.

First the tests that need a GPU, then the kernel benchmark, then the system benchmark. Each step writes one JSON file
with hardware, versions and commit, and is skipped once that file is complete; a benchmark that was cut short goes on
where it stopped. Where a call may only take so long, give each step its seconds: none leaves it to another call.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from xml.etree import ElementTree

import torch
import typer

from .results_file import write_json
from .stamp import environment

ROOT = Path(__file__).resolve().parents[1]  # of the checkout
TESTS = "gpu_tests.json"
# Benchmarks, and the seconds in which one that has been told its limit may end what it is at: a model is compiled.
GRACE = {"kernel_bench": 90, "system_bench": 180}
TAIL_LINES = 60
OWN_CHOICES = ("SPECDEC_KERNELS", "TRITON_INTERPRET")  # variables that would choose other kernels than usual


class Report(NamedTuple):
    """What became of the tests."""

    num_passed: int
    failed: list[dict[str, str]]
    skipped: dict[str, int]  # reason -> number


def run_tests(path: Path, is_dry: bool, limit: float) -> str | None:
    """Runs the gpu-marked tests and writes what became of them; returns what is wrong, if anything."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        where = "tests/gpu" if is_dry else "tests"  # in a dry run all are skipped
        options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
        code, output = _run(["pytest", *options, where], limit)
        found = _read_report(report) if report.exists() else Report(0, [], {})
    problem = None
    if code is None:
        problem = f"the tests took more than {limit:.0f} s"
    elif found.failed:
        problem = f"{len(found.failed)} tests failed"
    elif code or not (found.num_passed or is_dry):
        problem = f"no test passed, and pytest ended with code {code}"
    result = {
        "complete": code in (0, 1),
        "dry": is_dry,
        "problem": problem,
        "environment": environment(),
        "seconds": time.monotonic() - began,
        **found._asdict(),
        "output": output,
    }
    write_json(path, result)
    return problem


def run_bench(name: str, path: Path, is_dry: bool, limit: float) -> str | None:
    """Runs a benchmark, which writes its own file; returns what is wrong, if anything."""
    options = ["--json", str(path.resolve()), "--time-limit", str(limit), *(["--dry"] if is_dry else [])]
    code, output = _run([f"specdec.experiments.{name}", *options], limit + GRACE[name])
    typer.echo(output)
    if code == 0:
        return None
    return f"{name} ended with code {code}" if code is not None else f"{name} did not end in time"


def _run(arguments: Sequence[str], limit: float) -> tuple[int | None, str]:
    """Runs a module; exit code, None past the limit, and the end of what it printed."""
    variables = {name: value for name, value in os.environ.items() if name not in OWN_CHOICES}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as printed:  # a pipe could be kept open by its children
        try:
            command = [sys.executable, "-m", *arguments]
            done = subprocess.run(command, cwd=ROOT, env=variables, stdout=printed, stderr=printed, timeout=limit)
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = None
        printed.seek(0)
        return code, "\n".join(printed.read().splitlines()[-TAIL_LINES:])


def _read_report(report: Path) -> Report:
    passed, failed, skipped = 0, [], dict[str, int]()
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        if outcome is None:
            passed += 1
            continue
        message = outcome.get("message", "")
        if outcome.tag == "skipped":
            skipped[message] = skipped.get(message, 0) + 1
        else:
            name = f"{case.get('classname')}::{case.get('name')}"
            failed.append({"test": name, "message": message, "text": (outcome.text or "")[-4000:]})
    return Report(passed, failed, skipped)


def _done(path: Path, is_dry: bool) -> dict[str, Any] | None:
    """What a step wrote that ended; what a dry run wrote counts in dry runs only."""
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found["complete"] and found["dry"] == is_dry else None


def main(
    out: Annotated[Path, typer.Option(help="folder for the results; made if it is not there")],
    dry: Annotated[bool, typer.Option("--dry", help="tries everything on the CPU; measures nothing")] = False,
    again: Annotated[bool, typer.Option("--again", help="do again what is done")] = False,
    test_limit: Annotated[float, typer.Option(help="seconds for the tests")] = 280.0,
    bench_limit: Annotated[float, typer.Option(help="seconds for the kernel benchmark; it can go on later")] = 200.0,
    system_limit: Annotated[float, typer.Option(help="seconds for the system benchmark; it can go on later")] = 400.0,
) -> None:
    """Runs the tests that need a GPU and both benchmarks; a step of 0 seconds is left out."""
    if not (dry or torch.cuda.is_available()):
        raise SystemExit("error: expected a GPU, got none; pass --dry to try the script on the CPU")
    if not (ROOT / "tests").is_dir():
        raise SystemExit(f"error: expected a checkout with tests, got none in {str(ROOT)!r}; clone the repository")
    out.mkdir(parents=True, exist_ok=True)
    problems = []
    steps: list[tuple[str, Callable[[Path, bool, float], str | None], float]] = [
        (TESTS, run_tests, test_limit),
        ("kernel_bench.json", partial(run_bench, "kernel_bench"), bench_limit),
        ("system_bench.json", partial(run_bench, "system_bench"), system_limit),
    ]
    for name, run, limit in steps:
        path = out / name
        if limit <= 0:
            typer.echo(f"{path}: left out")
            continue
        if again:
            path.unlink(missing_ok=True)
        done = _done(path, dry)
        problem = run(path, dry, limit) if done is None else done.get("problem")
        typer.echo(f"{path}: {problem or 'complete'}{' (done before)' if done else ''}")
        problems += [problem] if problem else []
    if problems:
        raise SystemExit(f"error: {'; '.join(problems)}")


if __name__ == "__main__":
    typer.run(main)
