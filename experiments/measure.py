"""Timed runs of several methods on the same prompts, in one process.

Runs alternate over methods, in an order that rotates from prompt to prompt and from repeat to repeat, so that whatever
else the machine does falls on all of them alike.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.metrics import Metrics, summarize

from .contenders import Contender
from .statistics import median_index


@dataclass(frozen=True, slots=True)
class Run:
    """One timed call of one method on one prompt."""

    tokens: tuple[int, ...]  # new ones, up to and including an end-of-text token
    seconds: float  # wall time of the call, prompt included
    metrics: Metrics | None  # None for methods of transformers, which report no events


@dataclass(frozen=True, slots=True)
class TargetCalls:
    """Forward passes of the target, and the drafted tokens they checked, in a run that was not timed."""

    num_calls: int
    num_drafted: int


@dataclass(frozen=True, slots=True)
class Record:
    """Everything measured of one method on one prompt."""

    runs: tuple[Run, ...]
    calls: TargetCalls | None  # of methods that report no events

    @property
    def kept(self) -> Run:
        """The median run: its time, its events and the split of its time belong together."""
        return self.runs[median_index([run.seconds for run in self.runs])]

    @property
    def num_steps(self) -> int:
        """Target calls that emitted tokens, the one over the prompt included."""
        return self.kept.metrics.num_steps if self.kept.metrics is not None else self._calls.num_calls

    @property
    def num_drafted(self) -> int:
        return self.kept.metrics.num_drafted if self.kept.metrics is not None else self._calls.num_drafted

    @property
    def num_accepted(self) -> int:
        """Drafted tokens that were emitted; without events, all tokens but one per call."""
        if self.kept.metrics is not None:
            return self.kept.metrics.num_accepted
        return len(self.kept.tokens) - self._calls.num_calls

    @property
    def _calls(self) -> TargetCalls:
        assert self.calls is not None, "a method without events is counted"
        return self.calls


T = TypeVar("T")
OnRun = Callable[[int, int, str], None]  # told how many runs are done, of how many, and whose was the last


def measure(
    target: PreTrainedModel,
    prompts: Sequence[Tensor],  # each [1, length] int64
    field: Sequence[Contender],
    repeats: int,
    seed: int,
    on_run: OnRun,
) -> dict[str, list[Record]]:
    """Records of every contender by its name, one per prompt.

    First comes one run of each contender that is not timed, to warm it up; methods without events run so on every
    prompt, with their target calls counted.
    """
    counted = [(c, index) for c in field if c.rounds is None for index in range(len(prompts))]
    warmed = [(c, 0) for c in field if c.rounds is not None]
    timed = list(turns(field, len(prompts), repeats))
    total = len(counted) + len(warmed) + len(timed)
    calls: dict[tuple[str, int], TargetCalls] = {}
    runs: dict[tuple[str, int], list[Run]] = {}
    with torch.random.fork_rng():
        for done, (contender, index) in enumerate([*warmed, *counted, *timed], 1):
            key = contender.name, index
            torch.manual_seed(seed)
            if done > len(warmed) + len(counted):
                runs.setdefault(key, []).append(_timed(contender, prompts[index]))
            elif contender.rounds is None:
                calls[key] = _counted(target, contender, prompts[index])
            else:
                contender.run(prompts[index])
            on_run(done, total, contender.name)
    return {
        c.name: [Record(tuple(runs[c.name, index]), calls.get((c.name, index))) for index in range(len(prompts))]
        for c in field
    }


def turns(field: Sequence[T], num_prompts: int, repeats: int) -> Iterator[tuple[T, int]]:
    """Everybody on every prompt so many times; neighbours are of the same prompt, and who begins rotates.

    Example:
        >>> list(turns("ab", num_prompts=2, repeats=1))
        [('a', 0), ('b', 0), ('b', 1), ('a', 1)]
    """
    for repeat in range(repeats):
        for index in range(num_prompts):
            for contender in rotated(field, repeat + index):
                yield contender, index


def rotated(field: Sequence[T], turn: int) -> list[T]:
    """The field with another one first in each turn.

    Example:
        >>> rotated("abc", 4)
        ['b', 'c', 'a']
    """
    first = turn % len(field)
    return [*field[first:], *field[:first]]


def _timed(contender: Contender, prompt: Tensor) -> Run:
    synchronize(prompt.device)
    begin = perf_counter()
    output = contender.run(prompt)
    synchronize(prompt.device)
    seconds = perf_counter() - begin
    metrics = None if contender.rounds is None else summarize(contender.rounds())
    return Run(tuple(output[0, prompt.shape[1] :].tolist()), seconds, metrics)


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done what it was given; nothing to wait for elsewhere.

    Example:
        >>> synchronize(torch.device("cpu"))
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _counted(target: PreTrainedModel, contender: Contender, prompt: Tensor) -> TargetCalls:
    """What the target was called with: a call's tokens are the last emitted one (or the prompt) and the drafted."""
    with _widths(target) as widths:
        contender.run(prompt)
    return TargetCalls(len(widths), sum(widths) - prompt.shape[1] - (len(widths) - 1))


@contextmanager
def _widths(model: PreTrainedModel) -> Iterator[list[int]]:
    """Number of tokens of each forward pass, as they happen; the model is as before at the end."""
    widths: list[int] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        widths.append(kwargs["input_ids"].shape[1])

    hook = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield widths
    finally:
        hook.remove()
