"""How good a head is while it is trained: tokens per step of the real drafter on prompts that it never saw."""

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import specdec
from specdec.events import Step
from specdec.metrics import summarize_steps

from .head_files import Log
from .head_openings import Opening
from .head_recipe import Recipe

ALL = "all"  # the categories together


@dataclass(frozen=True, slots=True)
class Watch:
    """Measures heads.

    Args:
        openings: what is continued.
        new_tokens: by how much.
        temperature: 0 for greedy decoding.
    """

    openings: Sequence[Opening]
    new_tokens: int
    temperature: float = 0.0

    def measure(self, recipe: Recipe) -> dict[str, float]:
        """Tokens per step for all openings, and per category."""
        target = recipe.target.paged
        network = copy.deepcopy(recipe.network).to(target.dtype).eval()
        drafter = {"method": recipe.method, "model": network, "num_speculative_tokens": recipe.depth}
        width = max(len(opening.tokens) for opening in self.openings)
        padded = [[0] * (width - len(opening.tokens)) + opening.tokens for opening in self.openings]
        mask = [[0] * (width - len(opening.tokens)) + [1] * len(opening.tokens) for opening in self.openings]
        sampling: dict[str, Any] = {"do_sample": bool(self.temperature)}
        if self.temperature:
            sampling["temperature"] = self.temperature
        output = specdec.generate(
            target,
            torch.tensor(padded, device=target.device),
            attention_mask=torch.tensor(mask, device=target.device),
            drafter=drafter,
            max_new_tokens=self.new_tokens,
            pad_token_id=0,
            seed=0,
            return_dict_in_generate=True,
            **sampling,
        )
        steps: dict[str, list[Step]] = defaultdict(list)
        for event in output.speculation.rounds:
            for step in event.steps:
                steps[ALL].append(step)
                steps[self.openings[step.request_id].category].append(step)
        return {category: summarize_steps(group).tokens_per_step for category, group in steps.items()}


@dataclass(frozen=True, slots=True)
class Standing:
    """The measurements so far.

    Example:
        >>> import tempfile
        >>> log = Log(Path(tempfile.mkdtemp()) / "log.jsonl")
        >>> for step, value in enumerate([1.5, 2.5, 2.0], 1):
        ...     log.add({"step": step, "tokens_per_step": {"all": value}})
        >>> Standing.of(log)
        Standing(best=2.5, best_step=2, num_worse=1)
    """

    best: float  # tokens per step
    best_step: int
    num_worse: int  # measurements since then

    @staticmethod
    def of(log: Log) -> "Standing":
        """What a log says."""
        measured = [(line["tokens_per_step"][ALL], line["step"]) for line in log.lines() if "tokens_per_step" in line]
        if not measured:
            return Standing(0.0, 0, 0)
        best = max(value for value, _ in measured)
        index = next(i for i, (value, _) in enumerate(measured) if value == best)
        return Standing(best, measured[index][1], len(measured) - 1 - index)


def plot(log: Log, path: Path) -> None:
    """Draws loss, agreement and tokens per step over the steps."""
    from matplotlib.figure import Figure

    losses = [line for line in log.lines() if "loss" in line]
    measured = [line for line in log.lines() if "tokens_per_step" in line]
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    steps = [line["step"] for line in losses]
    left.plot(steps, [line["loss"] for line in losses], linewidth=0.7)
    left.set(title="loss", xlabel="step")
    for depth in range(len(losses[0]["agreement"]) if losses else 0):
        middle.plot(steps, [line["agreement"][depth] for line in losses], linewidth=0.7, label=f"depth {depth + 1}")
    middle.set(title="likeliest token is the target's", xlabel="step", ylim=(0, 1))
    for category in measured[0]["tokens_per_step"] if measured else ():
        values = [line["tokens_per_step"][category] for line in measured]
        right.plot([line["step"] for line in measured], values, marker=".", label=category)
    right.set(title="tokens per step, held out", xlabel="step")
    for axes in (middle, right):
        if axes.has_data():
            axes.legend(fontsize="small")
    figure.savefig(path, dpi=120)
