"""Time outside model forwards, ours against transformers: `python -m specdec.experiments.host_time --help`.

Both sides run in one process on the same models, interleaved; forwards of target and draft model are timed and
subtracted. One thread, and its CPU time rather than the clock on the wall, so that other jobs hardly matter. Figures
are per round (per target call), the median over repeats, and the ratio of those medians.
"""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, AutoTokenizer

import specdec

from .results_file import write_json
from .stamp import environment

PROMPT = (
    "Once upon a time, there was a little girl named Lily. She loved to play with her dog. One day, Lily and her dog"
)
NUM_DRAFT_TOKENS = 5
# ours -> transformers' counterpart, and the share of its host time that ours may take
GOALS = {
    "draft_model": ("assisted", 0.25),
    "draft_model probabilistic": ("assisted", 0.25),
    "ngram": ("prompt lookup", 1.0),
    "plain": ("generate", 1.0),
}


@dataclass
class ForwardClock:
    """Sums the time inside the forwards of some models while inside; counts the calls of the first."""

    models: list[Any]
    seconds: float = 0.0
    calls: int = 0

    def __enter__(self) -> "ForwardClock":
        for model in self.models:
            model.forward = self._timed(model.forward, model is self.models[0])
        return self

    def __exit__(self, *_: object) -> None:
        for model in self.models:
            del model.forward

    def _timed(self, forward: Callable[..., Any], is_target: bool) -> Callable[..., Any]:
        @functools.wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            output = forward(*args, **kwargs)
            self.seconds += time.thread_time() - start
            self.calls += is_target
            return output

        return timed


def measure(run: Callable[[], Any], target: Any, draft: Any) -> tuple[float, float]:
    """Milliseconds outside forwards per target call, and milliseconds of the whole call per new token."""
    with ForwardClock([target, draft]) as clock:
        start = time.thread_time()
        num_tokens = run().shape[1]
        total = time.thread_time() - start
    return 1e3 * (total - clock.seconds) / clock.calls, 1e3 * total / num_tokens


def methods(target: Any, draft: Any, inputs: dict[str, Any], options: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """What is compared, by name. A sampling request is drafted for as by default, and by drawing, as there."""
    draft.generation_config.num_assistant_tokens = NUM_DRAFT_TOKENS
    draft.generation_config.num_assistant_tokens_schedule = "constant"
    draft.generation_config.assistant_confidence_threshold = 0.0
    drafted = {"method": "draft_model", "model": draft, "num_speculative_tokens": NUM_DRAFT_TOKENS}
    ngram = {"method": "ngram", "num_speculative_tokens": NUM_DRAFT_TOKENS, "prompt_lookup_min": 1}
    lookup = {"prompt_lookup_num_tokens": NUM_DRAFT_TOKENS}
    width = inputs["input_ids"].shape[1]

    def ours(drafter: Any) -> Callable[[], Any]:
        return lambda: specdec.generate(target, **inputs, drafter=drafter, seed=0, **options)[:, width:]

    def theirs(**kwargs: Any) -> Callable[[], Any]:
        return lambda: target.generate(**inputs, **kwargs, **options)[:, width:]

    runs = {
        "generate": theirs(),
        "plain": ours(None),
        "assisted": theirs(assistant_model=draft),
        "draft_model": ours(drafted),
        "prompt lookup": theirs(**lookup),
        "ngram": ours(ngram),
    }
    if options["do_sample"]:
        runs["draft_model probabilistic"] = ours({**drafted, "draft_sample_method": "probabilistic"})
    return runs


def compared(
    models: list[Any], runs: dict[str, Callable[[], Any]], repeats: int, do_sample: bool
) -> list[dict[str, Any]]:
    """Medians of every method, measured in turns, then the ratios that have a goal."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            torch.manual_seed(repeat)
            samples[name].append(measure(run, models[0], models[1]))
    medians = {
        name: [statistics.median(column) for column in zip(*measured[1:], strict=True)]  # the first run warms up
        for name, measured in samples.items()
    }
    rows: list[dict[str, Any]] = [
        {"method": name, "do_sample": do_sample, "host_ms_per_round": host, "ms_per_token": token}
        for name, (host, token) in medians.items()
    ]
    for name, (other, goal) in GOALS.items():
        if name not in medians:
            continue
        column = 1 if name == "plain" else 0  # plain decoding is judged as a whole
        ratio = medians[name][column] / medians[other][column]
        rows.append({"ratio": f"{name} / {other}", "do_sample": do_sample, "value": ratio, "goal": goal})
    return rows


def main(
    target: Annotated[Path, typer.Option(help="folder of the target")],
    draft: Annotated[Path, typer.Option(help="folder of the draft model")],
    repeats: int = 9,
    max_new_tokens: int = 64,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    """Prints host milliseconds per round and their ratios; writes them with --json."""
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(target)
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in (target, draft)]
    inputs = dict(tokenizer(PROMPT, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    rows: list[dict[str, Any]] = []
    for do_sample in (False, True):
        options: dict[str, Any] = {"do_sample": do_sample, "max_new_tokens": max_new_tokens}
        if do_sample:
            options |= {"top_k": 0, "temperature": 0.8}
        rows.extend(compared(models, methods(models[0], models[1], inputs, options), repeats, do_sample))
    for row in rows:
        typer.echo(
            "  ".join(
                f"{key}={value:.3f}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
            )
        )
    write_json(json_file, {"environment": environment(), "models": [str(target), str(draft)], "rows": rows})


if __name__ == "__main__":
    typer.run(main)
