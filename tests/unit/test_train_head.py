"""Training of heads: it learns, what survives a kill, what is measured and kept."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import PretrainedConfig

from specdec.draft_models.medusa import MedusaNetwork
from specdec.experiments.head_batches import batch_of
from specdec.experiments.head_block import BlockConfig
from specdec.experiments.head_eagle3 import Eagle3Config
from specdec.experiments.head_features import online
from specdec.experiments.head_files import Log
from specdec.experiments.head_medusa import MedusaConfig
from specdec.experiments.head_openings import Opening
from specdec.experiments.head_optimizer import HeadOptimizer, rate_at
from specdec.experiments.head_recipe import HeadConfig
from specdec.experiments.head_run import recipe_of
from specdec.experiments.head_samples import Samples
from specdec.experiments.head_watch import ALL, Standing, Watch
from specdec.experiments.train_head import Lesson, train_head
from specdec.methods import load_head, paged
from tests.project import ROOT
from tests.toys.models import tiny_model

COMMON = {"epochs": 4.0, "batch_size": 8, "sequence_length": 24, "num_measurements": 4, "patience": 0}
CONFIGS = {
    "medusa": MedusaConfig(num_heads=2, own_outputs=True, adamw_rate=1e-2, **COMMON),
    "eagle3": Eagle3Config(unroll=3, draft_vocab_size=30, **COMMON),
    "block": BlockConfig(block_size=4, num_anchors=6, mask_token_id=0, markov_rank=4, confidence=True, **COMMON),
}
KNOWN = list(range(1, 31))


@pytest.fixture(scope="module")
def target():
    model = tiny_model("llama", dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def samples(target):
    """Texts the target wrote greedily, 24 tokens each."""
    openings = torch.randint(1, 30, (40, 3), generator=torch.Generator().manual_seed(0))
    texts = target.generate(openings, attention_mask=torch.ones_like(openings), max_new_tokens=21, do_sample=False,
                            pad_token_id=0)  # fmt: skip
    return Samples.of(texts.tolist(), [3] * len(texts))


def lesson_of(config, target, samples, **options):
    known = KNOWN if getattr(config, "draft_vocab_size", None) else None
    recipe = recipe_of(config, paged(target), known)
    openings = [Opening("ab"[index % 2], samples.text(index)[:5].tolist()) for index in range(4)]
    return Lesson(recipe, samples, online(recipe.target), Watch(openings, new_tokens=8), **options)


def trained(config, target, samples, run, kill_after=None, **options):
    """What a run logs; a kill comes between two steps."""

    def advance(done, total, what):
        if done == kill_after:
            raise KeyboardInterrupt

    lesson = lesson_of(config, target, samples, checkpoint_every=3, **options)
    try:
        train_head(lesson, run, Accelerator(cpu=True), advance)
    except KeyboardInterrupt:
        pass
    return Log(run / "log.jsonl").lines()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_head_learns_and_is_kept_as_it_was_measured(config, target, samples, tmp_path):
    lines = trained(config, target, samples, tmp_path)
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 4 * (40 // 8)
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    measured = [line for line in lines if "tokens_per_step" in line]
    assert [line["step"] for line in measured] == [5, 10, 15, 20]
    assert all(set(line["tokens_per_step"]) == {ALL, "a", "b"} for line in measured)
    standing = Standing.of(Log(tmp_path / "log.jsonl"))
    assert standing.best == max(line["tokens_per_step"][ALL] for line in measured)
    lesson = lesson_of(config, target, samples)
    head = load_head(str(tmp_path / "head"), paged(target)).network
    lesson.recipe.network.load_state_dict(head.state_dict())
    assert lesson.watch.measure(lesson.recipe)[ALL] == standing.best


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_killed_run_continues_as_if_it_had_not_been(config, target, samples, tmp_path):
    whole = trained(config, target, samples, tmp_path / "whole")
    for kill_after in (2, 8, 13):  # before the first checkpoint, behind one, and behind a measurement
        trained(config, target, samples, tmp_path / "killed", kill_after)
        with (tmp_path / "killed" / "log.jsonl").open("a") as log:
            log.write('{"step": 99, "lo')  # cut off while it was written
    continued = trained(config, target, samples, tmp_path / "killed")
    assert continued == whole
    states = [load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "killed")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_texts_in_which_no_chain_ends_are_nothing_to_learn_from(config, target, samples):
    """A batch of them alone would have no row at some depth, and processes would count them unequally."""
    recipe = lesson_of(config, target, samples).recipe
    short = Samples.of([[1, 2, 3][:2] + [5] * n for n in range(1, 6)], [1] * 5)
    kept = short.cut(24, recipe.shortest)
    assert min(kept.lengths) == recipe.depth + 2 and len(kept) < len(short)
    batch = batch_of(kept, [0], online(recipe.target), torch.device("cpu"), seed=0)
    result = recipe(batch)
    assert result["loss"] > 0 and result["agreement"].shape == (recipe.depth,)


def test_a_finished_run_is_left_alone(target, samples, tmp_path):
    config = CONFIGS["medusa"]
    lines = trained(config, target, samples, tmp_path)
    before = (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns
    assert trained(config, target, samples, tmp_path) == lines
    assert (tmp_path / "checkpoint.safetensors").stat().st_mtime_ns == before


def test_another_config_in_the_same_folder_is_refused(target, samples, tmp_path):
    trained(CONFIGS["medusa"], target, samples, tmp_path, kill_after=2)
    with pytest.raises(ValueError, match="expected the config of the run .* got another seed; pass the same options"):
        trained(replace(CONFIGS["medusa"], seed=1), target, samples, tmp_path)


def test_a_run_ends_early_once_nothing_gets_better(target, samples, tmp_path, monkeypatch):
    said = iter([1.5, 2.0, 1.9, 2.0, 3.0])
    monkeypatch.setattr(Watch, "measure", lambda self, recipe: {ALL: next(said)})
    config = replace(CONFIGS["medusa"], num_measurements=20, patience=2)
    lines = trained(config, target, samples, tmp_path)
    assert lines[-1] == {"step": 4, "tokens_per_step": {ALL: 2.0}}
    assert Standing.of(Log(tmp_path / "log.jsonl")) == Standing(best=2.0, best_step=2, num_worse=2)
    assert trained(config, target, samples, tmp_path) == lines  # it stays over


def test_a_loss_that_is_not_finite_stops(target, samples, tmp_path):
    config = replace(CONFIGS["eagle3"], learning_rate=1e30, warmup_share=0.0)
    with pytest.raises(ValueError, match="expected a finite loss, got .* lower --learning-rate"):
        trained(config, target, samples, tmp_path)


def test_curves_are_drawn(target, samples, tmp_path):
    trained(CONFIGS["medusa"], target, samples, tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_small_steps_move_weights_of_bfloat16():
    """A thousand steps of a ten-thousandth: each alone would be rounded away."""
    network = MedusaNetwork(PretrainedConfig(hidden_size=1, vocab_size=8), num_heads=1).bfloat16()
    output = network.medusa_head[0][1]
    torch.nn.init.ones_(output.weight)
    optimizer = HeadOptimizer(network, HeadConfig(adamw_rate=1e-4))
    for _ in range(1000):
        output(torch.ones(1).bfloat16()).sum().backward()
        optimizer.step(1.0)
    assert output.weight.dtype == torch.bfloat16 and output.weight[3].item() == pytest.approx(0.9, abs=2e-3)


def test_the_rate_warms_up_and_falls_to_nothing():
    rates = [rate_at(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0 and sorted(rates[10:], reverse=True) == rates[10:] and rates[-1] < 0.001


PROCESS = """
import json, sys
import torch
from accelerate import Accelerator
from pathlib import Path
from tests.unit.test_train_head import CONFIGS, lesson_of, target, samples
from specdec.experiments.train_head import train_head
torch.set_num_threads(1)
model = target.__wrapped__()
train_head(lesson_of(CONFIGS["eagle3"], model, samples.__wrapped__(model)), Path(sys.argv[1]), Accelerator(cpu=True))
"""


@pytest.mark.slow
def test_two_processes_learn_as_one(target, samples, tmp_path):
    """Each takes half of every batch, whose texts weigh the same: the mean of the slopes is that of the whole."""
    (tmp_path / "process.py").write_text(PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [*command, str(tmp_path / "process.py"), str(tmp_path / "two")]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True, env=environment, timeout=120)
    one = trained(CONFIGS["eagle3"], target, samples, tmp_path / "one")
    two = Log(tmp_path / "two" / "log.jsonl").lines()
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert load_head(str(tmp_path / "two" / "head"), paged(target)).network.feature_layers
