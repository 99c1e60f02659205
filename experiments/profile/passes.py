"""Timed rounds of the engine: over prompts, plain ones, wider ones, and behind drafts; and transformers' own passes."""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch

from specdec.anatomy import options_of
from specdec.protocols import Drafter
from specdec.target import PagedModel

from ..measure import synchronize
from .drafters import Setting
from .running import Guess, Lap, decoding_laps, first_laps, laps_of
from .settings import NUM_ROUNDS, NUM_ROUNDS_BETWEEN, ROOM, Settings, slices

OnRun = Callable[[int, int, str], None]  # told how many runs are done, of how many, and what the next one is


class Case(NamedTuple):
    """Rounds of so many requests behind so much context: plain, with a drafter, or of every width in turn."""

    context_length: int
    batch_size: int
    setting: Setting | None = None
    is_plain: bool = False

    @property
    def label(self) -> str:
        """For people."""
        what = self.setting.label if self.setting is not None else "plain" if self.is_plain else "passes"
        return f"{what}, batch {self.batch_size}, context {self.context_length}"


class Bench(NamedTuple):
    """A target, the text it continues, and its drafters."""

    target: PagedModel
    text: Sequence[int]
    drafters: Mapping[Setting, Drafter]
    widths: Sequence[int]  # of passes

    def prompts(self, length: int, count: int) -> list[list[int]]:
        """Pieces of the text."""
        return slices(self.text, length, count)

    def laps(self, case: Case, num_rounds: int) -> list[Lap]:
        """So many rounds, of each width if there is no drafter, with the context in the middle of them."""
        drafter: Drafter | None = None
        most = 1
        if case.setting is not None:
            drafter, most = self.drafters[case.setting], case.setting.num_speculative_tokens + 1
        elif not case.is_plain:
            drafter = Guess([width - 1 for width in self.widths], self.target.vocab_size)
            num_rounds *= len(self.widths)
        prompts = self.prompts(max(2, case.context_length - num_rounds // 2), case.batch_size)
        room = most * (num_rounds + ROOM) + max(self.widths)
        return first_laps(decoding_laps(laps_of(self.target, prompts, room, drafter), case.batch_size), num_rounds)


def order_of(settings: Settings, drafters: Iterable[Setting]) -> list[tuple[Case, int]]:
    """The cases of one turn, and how many rounds of each: passes at every context, drafters at the shortest.

    There passes and plain rounds come again before each drafter, for all else is held against them, and what else the
    machine does comes and goes.
    """
    context, order = min(settings.context_lengths), []
    for batch in settings.batch_sizes:
        for length in settings.context_lengths:
            order += [(Case(length, batch, is_plain=True), NUM_ROUNDS)]
            order += [(Case(length, batch), NUM_ROUNDS)] if length != context else []
        for _, group in groupby(drafters, key=lambda setting: setting.drafter):
            order += [(Case(context, batch, is_plain=True), NUM_ROUNDS), (Case(context, batch), NUM_ROUNDS_BETWEEN)]
            order += [(Case(context, batch, setting), NUM_ROUNDS) for setting in group]
    return order


def run_cases(bench: Bench, order: Sequence[tuple[Case, int]], repeats: int, on_run: OnRun) -> dict[Case, list[Lap]]:
    """The rounds of every case. Cases take turns, after a first turn that does not count and may capture graphs."""
    found: dict[Case, list[Lap]] = {case: [] for case, _ in order}
    warming = [(case, 1) for case in found]
    runs = [*warming, *(each for _ in range(repeats) for each in order)]
    for done, (case, num_rounds) in enumerate(runs):
        on_run(done, len(runs), case.label)
        laps = bench.laps(case, num_rounds)
        if done >= len(warming):
            found[case] += laps
    return found


def by_width(laps: Iterable[Lap]) -> dict[int, list[Lap]]:
    """Rounds by the number of rows of each request."""
    groups: dict[int, list[Lap]] = {}
    for lap in laps:
        groups.setdefault(lap.event.num_rows // len(lap.event.steps), []).append(lap)
    return groups


def run_prompts(bench: Bench, lengths: Sequence[int], repeats: int, on_run: OnRun) -> dict[int, dict[str, list[float]]]:
    """Seconds from a prompt of each length to its first token: "specdec", and "transformers" for its forward pass."""
    found: dict[int, dict[str, list[float]]] = {length: {"specdec": [], "transformers": []} for length in lengths}
    total, done = (repeats + 1) * len(lengths), 0
    for turn in range(repeats + 1):
        for length in lengths:
            on_run(done, total, f"prompt of {length}")
            done += 1
            prompt = bench.prompts(length, 1)
            laps = list(laps_of(bench.target, prompt, 1))
            theirs = next(_their_steps(bench.target, prompt))
            if turn:
                found[length]["specdec"].append(sum(lap.seconds for lap in laps))
                found[length]["transformers"].append(theirs)
    return found


def run_theirs(bench: Bench, cases: Sequence[Case], repeats: int) -> dict[Case, list[float]]:
    """Seconds of transformers' own forward passes, of one new token per request, at the contexts of these cases."""
    found = {}
    for case in cases:
        steps = _their_steps(bench.target, bench.prompts(case.context_length, case.batch_size))
        next(steps)  # the prompts
        next(steps)  # warms up
        found[case] = [next(steps) for _ in range(NUM_ROUNDS * repeats)]
        steps.close()
    return found


def _their_steps(target: PagedModel, prompts: list[list[int]]) -> Generator[float]:
    """Seconds of a forward pass over the prompts, then of one after the other over the next token of each, greedily."""
    model, device = target.model, target.device
    options: dict[str, Any] = {"logits_to_keep": 1} if options_of(model)[0] else {}
    ids, past = torch.tensor(prompts, device=device), None
    while True:
        synchronize(device)
        began = time.perf_counter()
        with torch.inference_mode():
            output: Any = model(input_ids=ids, past_key_values=past, use_cache=True, **options)
            ids, past = output.logits[:, -1:].argmax(-1), output.past_key_values
        synchronize(device)
        yield time.perf_counter() - began
