"""Trains a self-draft head for a frozen target: `specdec train medusa`, `eagle3` and `block`.

A run is a folder: `config.json` (what was asked), `log.jsonl` (losses and measurements), `checkpoint.safetensors`
(everything needed to go on), `head/` (the best head so far, for `specdec.load_drafter`) and `curves.png`. What a step
sees and draws depends on the seed and its number only, so a killed run continues from its last checkpoint as if nothing
had happened.
"""

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from specdec.draft_models.head_writing import write_head

from .head_batches import Order, batch_of
from .head_features import Features
from .head_files import Advance, Log, load_step, nobody, save_whole
from .head_optimizer import HeadOptimizer, rate_at
from .head_recipe import Recipe
from .head_samples import Samples
from .head_watch import Standing, Watch, plot
from .train_lm import claim

STEP_SEED = 1_000_003  # apart from each other are the seeds of two runs' steps


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a head is trained on, and how it is watched."""

    recipe: Recipe
    samples: Samples
    features: Features
    watch: Watch
    checkpoint_every: int = 100  # steps

    @property
    def order(self) -> Order:
        """Which texts each step sees."""
        config = self.recipe.config
        return Order(self.samples.lengths, config.batch_size, config.seed)

    @property
    def identity(self) -> str:
        """Equal for the same target and texts."""
        return f"{self.recipe.target.identity} {self.samples.fingerprint}"

    @property
    def num_steps(self) -> int:
        """Of the whole run."""
        epochs: float = self.recipe.config.epochs
        return max(1, math.ceil(epochs * self.order.steps_per_epoch))


def train_head(lesson: Lesson, run: Path, accelerator: Accelerator, advance: Advance = nobody) -> Standing:
    """The best measurement; the head it was made of lies in `run/head`. Continues a run that was interrupted.

    Raises:
        ValueError: the folder holds a run of another config, target or texts, or the loss is no longer finite.

    Example:
        >>> import specdec, tempfile
        >>> from specdec.experiments.head_features import online
        >>> from specdec.experiments.head_medusa import MedusaConfig
        >>> from specdec.experiments.head_openings import Opening
        >>> from specdec.experiments.head_run import recipe_of
        >>> config = MedusaConfig(num_heads=2, epochs=1, batch_size=2)
        >>> recipe = recipe_of(config, specdec.PagedModel(specdec.load_embedded()[0]))
        >>> samples = Samples.of([[0, 5, 6, 7, 8, 9]] * 4, prompt_lengths=[1] * 4)
        >>> watch = Watch([Opening("a", [0, 5])], new_tokens=4)
        >>> run = Path(tempfile.mkdtemp()) / "run"
        >>> best = train_head(Lesson(recipe, samples, online(recipe.target), watch), run, Accelerator(cpu=True))
        >>> sorted(path.name for path in (run / "head").iterdir())
        ['config.json', 'medusa_lm_head.safetensors']
    """
    log, checkpoint = Log(run / "log.jsonl"), run / "checkpoint.safetensors"
    if accelerator.is_main_process:
        claim(run, lesson.recipe.config)
    accelerator.wait_for_everyone()
    model = accelerator.prepare_model(lesson.recipe.train(), device_placement=False)  # it is where its target is
    optimizer = HeadOptimizer(lesson.recipe.network, lesson.recipe.config)
    first = 0
    if checkpoint.exists():
        state, first = load_step(checkpoint, lesson.identity)
        optimizer.load(state)
    if accelerator.is_main_process:
        log.forget_after(first)
    standing = Standing.of(log)
    every = -(-lesson.num_steps // lesson.recipe.config.num_measurements)
    for done, line in _steps(lesson, model, optimizer, (first, accelerator)):
        is_last = done == lesson.num_steps
        is_measured = is_last or done % every == 0
        if accelerator.is_main_process:
            log.add({"step": done, **line})
            if is_measured:
                standing = _measured(lesson, run, log, done)
            advance(done, lesson.num_steps, f"loss {line['loss']:.3f}, {standing.best:.2f} tokens per step")
        is_over = is_last or (is_measured and _agreed(_is_enough(standing, lesson.recipe.config.patience), accelerator))
        if accelerator.is_main_process and (is_over or done % lesson.checkpoint_every == 0):
            about = {"step": str(lesson.num_steps if is_over else done), "lesson": lesson.identity}
            save_whole(optimizer.state(), checkpoint, about)
        if is_over:
            break
    accelerator.wait_for_everyone()
    return Standing.of(log)


def save_head(recipe: Recipe, folder: Path) -> None:
    """Writes the head in the layout that others read; over an earlier one of the same run, whose config is the same."""
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)  # of a run that was killed
    write_head(recipe.network, new, recipe.layout, recipe.target.paged.model.config)
    folder.mkdir(exist_ok=True)
    for path in sorted(new.iterdir()):
        os.replace(path, folder / path.name)
    new.rmdir()


def _measured(lesson: Lesson, run: Path, log: Log, done: int) -> Standing:
    """Measures, keeps the head if it is the best one, and draws the curves."""
    log.add({"step": done, "tokens_per_step": lesson.watch.measure(lesson.recipe)})
    standing = Standing.of(log)
    if standing.best_step == done:
        save_head(lesson.recipe, run / "head")
    plot(log, run / "curves.png")
    return standing


def _is_enough(standing: Standing, patience: int) -> bool:
    return bool(patience) and standing.num_worse >= patience


def _agreed(is_over: bool, accelerator: Accelerator) -> bool:
    """What the main process, which measures, says."""
    if accelerator.num_processes == 1:
        return is_over
    said: list[Any] = broadcast_object_list([is_over])
    return bool(said[0])


def _steps(
    lesson: Lesson, model: Any, optimizer: HeadOptimizer, start: tuple[int, Accelerator]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of finished steps and figures of each step; every process takes its share of the texts."""
    first, accelerator = start
    config, order = lesson.recipe.config, lesson.order
    rank, world = accelerator.process_index, accelerator.num_processes
    if config.batch_size % world:
        raise ValueError(f"expected a --batch-size that {world} processes can share, got {config.batch_size}")
    for step in range(first, lesson.num_steps):
        numbers = order.texts(step)[rank::world]
        seed = (config.seed * STEP_SEED + step) * world + rank
        result = model(batch_of(lesson.samples, numbers, lesson.features, lesson.recipe.target.paged.device, seed))
        accelerator.backward(result["loss"])
        optimizer.step(rate_at(step, lesson.num_steps, config.warmup_share))
        figures = {name: accelerator.reduce(value.detach(), "mean") for name, value in result.items()}
        line = {name: _rounded(value) for name, value in figures.items()}
        if not math.isfinite(line["loss"]):
            raise ValueError(f"expected a finite loss, got {line['loss']} at step {step}; lower --learning-rate")
        yield step + 1, line


def _rounded(value: Tensor) -> Any:
    """A number as it is, or a list of four digits each."""
    return value.item() if value.ndim == 0 else [round(number, 4) for number in value.tolist()]
