"""A small trace of the embedded models, for whoever has none yet."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specdec.experiments.loading import load_models
from specdec.experiments.prompts import first_per_category, read_prompts
from specdec.methods import load_drafter, paged
from specdec.target import PagedModel

from .schema import write_trace
from .tracing import Tracing, trace_arm

LENGTH = 8
PER_TASK, NEW_TOKENS = 1, 40


def trace_embedded(folder: Path, advance: Callable[[int, int, str], None]) -> list[Path]:
    """Traces of greedy texts by n-grams, the draft model and a head, and of a sampled one with drawn drafts.

    Args:
        folder: where the files go.
        advance: told how many texts of how many are done.
    """
    models = load_models()
    target = paged(models.target)
    prompts = first_per_category(read_prompts(), PER_TASK)
    encoded = [models.encode(prompt.text) for prompt in prompts]
    arms = _arms(models, target)
    written = []
    for number, (label, (drafter, verifier, sampling)) in enumerate(arms.items()):

        def on_text(done: int, total: int, name: str, number: int = number) -> None:
            advance(number * total + done, len(arms) * total, f"tracing {name}")

        options = {"max_new_tokens": NEW_TOKENS, "do_sample": bool(sampling), **sampling}
        table = trace_arm(target, drafter, verifier, Tracing(options, on_text=on_text), encoded)
        name = hashlib.sha256(label.encode()).hexdigest()[:8]
        path = folder / f"{number}-{name}.parquet"
        about = {"arm": name, "label": label, "prompts": json.dumps([prompt.id for prompt in prompts])}
        write_trace(path, table, about)
        written.append(path)
    return written


def _arms(models: Any, target: PagedModel) -> dict[str, tuple[Any, str, dict[str, Any]]]:
    """Label -> drafter, rule, sampling options."""
    draft_model = {"method": "draft_model", "model": models.draft, "num_speculative_tokens": LENGTH}
    ngram = {"method": "ngram", "num_speculative_tokens": LENGTH}
    eagle3 = load_drafter(models.heads["eagle3"], target, num_speculative_tokens=5)
    drawn = {**draft_model, "draft_sample_method": "probabilistic"}
    return {
        "ngram": (ngram, "greedy", {}),
        "draft_model": (draft_model, "greedy", {}),
        "eagle3": (eagle3, "greedy", {}),
        "draft_model drawn": (drawn, "block", {"temperature": 1.0}),
    }
