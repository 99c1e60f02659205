"""Timed rounds of the engine: over prompts, plain ones, wider ones, and behind drafts; and transformers' own passes."""

import time
from collections.abc import Callable, Generator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch

from specdec.anatomy import options_of
from specdec.cache import PagedKVCache
from specdec.protocols import Drafter
from specdec.target import PagedModel

from .drafters import Setting
from .running import Guess, Lap, first_laps, kept, laps_of
from .settings import NUM_ROUNDS, ROOM, Settings, slices

OnRun = Callable[[int, int, str], None]  # told how many runs are done, of how many, and what the next one is


class Case(NamedTuple):
    """Rounds that are alike: so many requests behind so much context, at a width or with a drafter."""

    context_length: int
    batch_size: int
    width: int | None = None
    setting: Setting | None = None

    @property
    def label(self) -> str:
        """For people."""
        what = self.setting.label if self.setting is not None else f"{self.width} wide"
        return f"{what}, batch {self.batch_size}, context {self.context_length}"


class Bench:
    """A target, the text it continues, and its drafters."""

    def __init__(self, target: PagedModel, text: Sequence[int], drafters: dict[Setting, Drafter]) -> None:
        self.target, self.text, self.drafters = target, text, drafters

    def prompts(self, length: int, count: int) -> list[list[int]]:
        """Pieces of the text."""
        return slices(self.text, length, count)

    def drafter(self, case: Case) -> Drafter | None:
        """Of a case: none where each request has one row."""
        if case.setting is not None:
            return self.drafters[case.setting]
        return None if case.width in (None, 1) else Guess(case.width - 1, self.target.vocab_size)


def cases_of(settings: Settings, drafters: Sequence[Setting]) -> list[Case]:
    """Every width at every context, and every drafter at the shortest.

    Plain decoding comes again before each drafter: all else is held against it.
    """
    context = min(settings.context_lengths)
    wide = [
        Case(length, batch, width)
        for length in settings.context_lengths
        for batch in settings.batch_sizes
        for width in settings.all_widths
    ]
    drafted = []
    for batch in settings.batch_sizes:
        for _, group in groupby(drafters, key=lambda setting: setting.drafter):
            drafted += [Case(context, batch, width=1), *(Case(context, batch, setting=setting) for setting in group)]
    return [*wide, *drafted]


def run_cases(bench: Bench, cases: Sequence[Case], repeats: int, on_run: OnRun) -> dict[Case, list[Lap]]:
    """The rounds of every case. Cases take turns, after a first turn that does not count and may capture graphs."""
    found: dict[Case, list[Lap]] = {case: [] for case in cases}
    most = max(case.batch_size for case in cases)
    contexts = {length: bench.prompts(length, most) for length in dict.fromkeys(case.context_length for case in cases)}
    total = (repeats + 1) * len(cases)
    with kept(bench.target, [prompt for prompts in contexts.values() for prompt in prompts]) as cache:
        for turn in range(repeats + 1):
            for number, case in enumerate(cases):
                on_run(turn * len(cases) + number, total, case.label)
                laps = _laps(bench, case, contexts[case.context_length], cache, NUM_ROUNDS if turn else 1)
                found[case] += laps if turn else []
    return found


def _laps(bench: Bench, case: Case, prompts: list[list[int]], cache: PagedKVCache, count: int) -> list[Lap]:
    drafter = bench.drafter(case)
    longest = case.setting.num_speculative_tokens if case.setting is not None else case.width or 1
    num_tokens = (NUM_ROUNDS + ROOM) * (1 + longest if case.setting is not None else 1) + longest
    return first_laps(laps_of(bench.target, prompts[: case.batch_size], num_tokens, drafter, cache), count)


def run_prompts(bench: Bench, lengths: Sequence[int], repeats: int, on_run: OnRun) -> dict[int, dict[str, list[float]]]:
    """Seconds from a prompt of each length to its first token: "specdec", and "transformers" for its forward pass."""
    found: dict[int, dict[str, list[float]]] = {length: {"specdec": [], "transformers": []} for length in lengths}
    total, done = (repeats + 1) * len(lengths), 0
    for turn in range(repeats + 1):
        for length in lengths:
            on_run(done, total, f"prompt of {length}")
            done += 1
            prompt = bench.prompts(length, 1)
            laps = list(laps_of(bench.target, prompt, 1, cache=bench.target.cache or PagedKVCache()))
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
        _synchronize(device)
        began = time.perf_counter()
        with torch.inference_mode():
            output: Any = model(input_ids=ids, past_key_values=past, use_cache=True, **options)
            ids, past = output.logits[:, -1:].argmax(-1), output.past_key_values
        _synchronize(device)
        yield time.perf_counter() - began


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
