"""The whole of `specdec bench`: plan, warm-up, runs, result."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from ..figures.summary import summarize_folder
from ..figures.verdicts import how_many
from ..figures.view import print_summary
from ..measure import OnRun
from ..prompts import PROMPTS, Prompt, first_per_category, read_prompts
from ..results_file import write_json
from .arms import planned, workbench_dtype
from .processes import Processes
from .run import Member, Runner
from .session import Session, Work, header_of, warmed, work_of
from .store import SUMMARY
from .sweep import Sweep
from .traces import FOLDER as TRACES
from .view import duration, plan_line, show_plan
from .workbench import Workbench, workbench


@dataclass(slots=True)
class Loader:
    """The workbench that is in use; another one takes its place, so that one target is in memory at a time."""

    sweep: Sweep
    device: str | None = None
    _latest: list[tuple[str | None, Workbench]] = field(default_factory=list)

    def get(self, target: str | None, dtype: str | None = None) -> Workbench:
        """The models of this target, in any dtype if none is named."""
        for name, bench in self._latest:
            if name == target and dtype in (None, workbench_dtype(bench)):
                return bench
        self._latest.clear()
        self._latest.append((target, workbench(self.sweep, target, dtype or self.sweep.dtype[0], self.device)))
        return self._latest[0][1]


def chosen_prompts(sweep: Sweep) -> list[Prompt]:
    """The prompts of a sweep.

    Raises:
        ValueError: there are none, or none of a category.
    """
    prompts = read_prompts(PROMPTS if sweep.prompts is None else sweep.prompts)
    return first_per_category(prompts, sweep.num_prompts, sweep.category or None)


def run_bench(sweep: Sweep, out: Path | None, processes: Processes, console: Console, on_run: OnRun) -> dict[str, Any]:
    """Measures what a sweep says and the folder lacks; returns the summary. Without a folder, the plan and its time,
    and the header; so do processes other than the first.

    Raises:
        ValueError: the sweep cannot be run, or the folder holds another or is in use.
    """
    prompts = chosen_prompts(sweep)
    loader = Loader(sweep, processes.device)
    plan = planned(sweep, loader.get)
    works = work_of(plan, prompts)
    members = [Member(prompt, index) for index, prompt in enumerate(prompts)]
    for target in reversed(sweep.target):  # the first one stays loaded
        Runner(loader.get(target), sweep.use_chat_template).require_room(members, sweep.max_new_tokens)
    header = header_of(sweep, plan, prompts)
    header["environment"]["num_processes"] = processes.count
    if processes.is_first:
        show_plan(plan, works, sweep.repeats, console)
        console.print(plan_line(plan, works, len(prompts), sweep.repeats))
    if out is None:
        _estimate(loader, works, {work.cell: len(work.groups) * sweep.repeats for work in works}, console, on_run)
        return header
    with Session(out, header, processes) as session:
        reporter = _Reporter(processes, console, on_run)
        for line in session.changes:
            reporter.say(f"warning: {line}")
        _run_all(session, loader, works, sweep, reporter)
        processes.barrier()
    if processes.is_first:
        return _summarized(out, console)
    return header


def _summarized(folder: Path, console: Console) -> dict[str, Any]:
    """Derives the summary of a folder anew, writes and prints it."""
    summary = summarize_folder(folder)
    write_json(folder / SUMMARY, summary)
    print_summary(summary, console)
    sizes = [path.stat().st_size for path in (folder / TRACES).glob("*.parquet")]
    if sizes:
        traces = f"{how_many(len(sizes), 'trace')}, {sum(sizes) / 1e6:.1f} MB"
        console.print(f"{traces}: specdec replay {folder}", highlight=False)
    return summary


@dataclass(slots=True)
class _Reporter:
    """Tells of runs as they end."""

    processes: Processes
    console: Console
    on_run: OnRun
    num_done: int = 0
    total: int = 0

    def tell(self, label: str) -> None:
        self.num_done += 1
        self.on_run(self.num_done, self.total, label)

    def say(self, line: str) -> None:
        if self.processes.is_first:
            self.console.print(line, highlight=False)


def _run_all(session: Session, loader: Loader, works: Sequence[Work], sweep: Sweep, reporter: _Reporter) -> None:
    missing = {work.cell: sum(len(arms) for _, _, arms in session.missing(work, sweep.repeats)) for work in works}
    reporter.total = sum(missing.values())
    for (target, dtype), block in groupby(works, key=lambda work: (work.arms[0]["target"], work.arms[0]["dtype"])):
        here = [work for work in block if missing[work.cell]]
        if not here:
            continue
        bench = loader.get(_path_of(target, sweep), dtype)
        runner = Runner(bench, sweep.use_chat_template)
        seconds = warmed(runner, here, reporter.on_run)
        reporter.say(_estimate_line(here, missing, seconds, f"{target} {dtype}"))
        for work in here:
            session.run(runner, work, sweep.repeats, reporter.tell)


def _estimate(loader: Loader, works: Sequence[Work], turns: dict[str, int], console: Console, on_run: OnRun) -> None:
    """Prints how long the cells of the first target and dtype are likely to take."""
    target, dtype = (works[0].arms[0][name] for name in ("target", "dtype"))
    here = [work for work in works if all(work.arms[0][name] == works[0].arms[0][name] for name in ("target", "dtype"))]
    bench = loader.get(_path_of(target, loader.sweep), dtype)
    seconds = warmed(Runner(bench, loader.sweep.use_chat_template), here, on_run)
    missing = {work.cell: turns[work.cell] * len(work.arms) for work in here}
    console.print(_estimate_line(here, missing, seconds, f"{target} {dtype}"), highlight=False)


def _estimate_line(works: Sequence[Work], missing: dict[str, int], seconds: dict[str, float], what: str) -> str:
    spent = sum(missing[work.cell] * sum(seconds[arm["id"]] for arm in work.arms) / len(work.arms) for work in works)
    num_runs = how_many(sum(missing[work.cell] for work in works), "run")
    return f"{what}: {num_runs} to do, about {duration(spent)} by a short warm-up"


def _path_of(target: str, sweep: Sweep) -> str | None:
    return target if target in sweep.target else None
