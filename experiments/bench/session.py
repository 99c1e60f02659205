"""A benchmark from its plan to its last record: resumable, in one process or several."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

from ..measure import OnRun, rotated
from ..prompts import Prompt
from ..results_file import write_json
from ..stamp import environment
from .arms import DEFINITIONS, Arm, Plan
from .processes import Processes
from .run import Finished, Member, Runner, with_differences
from .store import HEADER, KIND, VERSION, RecordFile, key_of, read_header, read_records, sync_folder
from .sweep import Sweep
from .traces import trace_group, traced_arms, write_group

WARM_TOKENS = 16  # of each of the two runs that warm an arm up; the second says how long it takes
NOT_COMPARED = ("environment", "definitions")  # of the header, when a run is resumed


@dataclass(frozen=True, slots=True)
class Work:
    """The runs of one cell: which arms on which groups."""

    cell: str
    arms: Sequence[Arm]  # baseline first
    groups: Sequence[Sequence[Member]]


def header_of(sweep: Sweep, plan: Plan, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """What bench.json says."""
    groups = {str(size): [[p.id for p in group] for group in _batches(prompts, size)] for size in sweep.batch_size}
    first = groups[str(sweep.batch_size[0])]
    group_of = {name: index for index, group in enumerate(first) for name in group}
    listed = [
        {
            "id": prompt.id,
            "category": prompt.category,
            "num_turns": len(prompt.turns),
            "group": group_of[prompt.id],
            "sha256": sha256("\0".join(prompt.turns).encode()).hexdigest()[:16],
        }
        for prompt in prompts
    ]
    return {
        "kind": KIND,
        "version": VERSION,
        "settings": sweep.as_dict(),
        "arms": plan.arms,
        "left_out": plan.left_out,
        "notes": plan.notes,
        "prompts": listed,
        "groups": groups,
        "environment": environment(),
        "definitions": DEFINITIONS,
    }


def work_of(plan: Plan, prompts: Sequence[Prompt]) -> list[Work]:
    """The runs of every cell, in the order of the plan."""
    members = [Member(prompt, index) for index, prompt in enumerate(prompts)]
    return [Work(cell, arms, list(_batches(members, arms[0]["batch_size"]))) for cell, arms in plan.cells.items()]


class Session:
    """Runs what is missing in a result folder, and writes a line for each run.

    Args:
        folder: made if it is not there.
        header: of the sweep; a folder that has one must have the same.
        processes: this process among the others.

    Raises:
        ValueError: another run writes to the folder, or it holds another sweep.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], processes: Processes) -> None:
        self._folder, self._header, self._processes = folder, header, processes
        self._process = uuid.uuid4().hex[:12]
        folder.mkdir(parents=True, exist_ok=True)
        self._open = ExitStack()
        self._file = None
        if processes.writes:
            self._file = self._open.enter_context(RecordFile(folder / f"records-{processes.rank}.jsonl"))
        try:
            if processes.is_first:
                _begin(folder, header)
            processes.barrier()
            found = read_header(folder)
            _require_same(found, header)
            records, _ = read_records(folder)
        except BaseException:
            self._open.close()
            raise
        self.changes = _changes(found["environment"], header["environment"])
        self._done = {key_of(record) for record in records}
        processes.barrier()  # nobody writes before everybody has read

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def missing(self, work: Work, repeats: int) -> Iterator[tuple[int, int, list[Arm]]]:
        """(group, repeat, arms) of what this process has yet to run, the baseline among them, in turns."""
        for repeat in range(repeats):
            for group in self._processes.share(len(work.groups)):
                wanted = [arm for arm in work.arms[1:] if (arm["id"], group, repeat) not in self._done]
                baseline = work.arms[0]
                if wanted or (baseline["id"], group, repeat) not in self._done:
                    yield group, repeat, rotated([baseline, *wanted], repeat + group)

    def run(self, runner: Runner, work: Work, repeats: int, on_run: Callable[[str], None]) -> None:
        """Runs what is missing of a cell. The arms of a group are written when its baseline has run."""
        settings = self._header["settings"]
        traced = {arm["id"] for arm in traced_arms(work.arms)} if settings["trace"] else set()
        for group, repeat, arms in self.missing(work, repeats):
            key = {"group": group, "repeat": repeat, "process": self._process}
            held: list[tuple[Arm, Finished]] = []
            baseline: Finished | None = None
            for arm in arms:
                finished = runner.run(arm, work.groups[group])
                held.append((arm, finished))
                if arm["id"] == arm["baseline"]:
                    baseline = finished
                    held.insert(0, held.pop())  # its line comes first
                if baseline is not None:
                    for ready, run in held:
                        if repeat == 0 and ready["id"] in traced:
                            self._trace(runner, ready, work.groups[group], (run, baseline), group)
                        self._keep(runner, ready, run, baseline, key)
                    held.clear()
                on_run(arm["label"])

    def _trace(
        self, runner: Runner, arm: Arm, members: Sequence[Member], runs: tuple[Finished, Finished], group: int
    ) -> None:
        """Traces a run and that of its baseline; every process that shares the target takes part in it."""
        table = trace_group(runner, arm, members, *runs, self._header["settings"]["trace_top_m"])
        if self._file is not None:
            write_group(self._folder, arm, group, members, table)

    def _keep(self, runner: Runner, arm: Arm, run: Finished, baseline: Finished, key: Mapping[str, Any]) -> None:
        """Writes a run. Its line says that it is done, so it comes after everything else that is made of the run."""
        record = with_differences(runner.bench, arm, run, baseline)
        if self._file is not None:
            self._file.append({"arm": arm["id"], **key, **record})


def warmed(runner: Runner, works: Sequence[Work], on_run: OnRun) -> dict[str, float]:
    """Seconds that a run of each arm is likely to take, from the second of two short ones; the first warms it up."""
    seconds: dict[str, float] = {}
    total = sum(len(work.arms) for work in works)
    for work in works:
        num_turns = sum(len(member.prompt.turns) for group in work.groups for member in group)
        per_run = num_turns / max(1, sum(map(len, work.groups)))
        for arm in work.arms:
            num_tokens = min(arm["max_new_tokens"], WARM_TOKENS)
            runner.run(arm, work.groups[0], num_tokens)
            began = perf_counter()
            turns = runner.run(arm, work.groups[0], num_tokens).record["calls"]
            spent = (perf_counter() - began) / len(turns)
            seconds[arm["id"]] = spent * per_run * arm["max_new_tokens"] / num_tokens
            on_run(len(seconds), total, f"warm-up: {arm['label']}")
    return seconds


def _begin(folder: Path, header: Mapping[str, Any]) -> None:
    """Writes the header of a new folder."""
    if (folder / HEADER).is_file():
        return
    strays = [path.name for path in folder.glob("records-*.jsonl") if path.stat().st_size]
    if strays:
        raise ValueError(
            f"expected {HEADER} beside {strays[0]}, got none in {str(folder)!r}; pass another --out FOLDER"
        )
    write_json(folder / HEADER, header)
    sync_folder(folder)


def _require_same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises for a folder of another sweep, with the first difference."""
    for name, value in wanted.items():
        if name in NOT_COMPARED or found.get(name) == value:
            continue
        where, before, now = _difference(name, found.get(name), value)
        raise ValueError(
            f"expected the sweep that the folder holds, got another: {where} is {before!r} there and {now!r} now; "
            "pass another --out FOLDER"
        )


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was when the folder was begun: times of its runs may not compare."""
    names = [name for name in now if before.get(name) != now[name]]
    return [f"the folder was begun with {name} {before.get(name)}, and goes on with {now[name]}" for name in names]


def _difference(where: str, before: Any, now: Any) -> tuple[str, Any, Any]:
    """The first place where two values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
        return _difference(f"{where}.{names[0]}", before.get(names[0]), now.get(names[0]))
    if isinstance(before, list) and isinstance(now, list) and any(isinstance(each, dict) for each in (*before, *now)):
        for index, (one, other) in enumerate(zip(before, now, strict=False)):
            if one != other:
                return _difference(f"{where}[{index}]", one, other)
        return f"the number of {where}", len(before), len(now)
    return where, before, now


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
