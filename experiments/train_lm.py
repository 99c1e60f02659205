"""Trains a small Llama from scratch, or distils one from a teacher: `specdec train lm`.

A run is a folder: `config.json` (what was asked), `log.jsonl` (losses), `checkpoint.pt` (everything needed to go on)
and, once finished, `model/`. A killed run continues from its last checkpoint with the same data order and schedule.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from .corpus import DOMAINS, TokenStore

LOG_EVERY_CHECKPOINTS = 4  # held-out losses take as long as many steps


@dataclass(frozen=True, slots=True)
class LmConfig:
    """What to train. Lengths and sizes in tokens; rates are those of AdamW (Muon's updates are scaled to match)."""

    vocab_size: int = 4096
    hidden_size: int = 256
    num_layers: int = 14
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 768
    context: int = 1024
    sequence_length: int = 512
    batch_size: int = 8
    max_tokens: int = 12_000_000
    decay_share: float = 0.35  # of the steps, at the end: learning rate falls linearly to zero
    learning_rate: float = 3e-3
    embedding_rate: float = 2e-3
    warmup_steps: int = 60
    weights: dict[str, float] = field(default_factory=lambda: {"stories": 0.38, "prose": 0.27, "code": 0.35})
    temperature: float = 1.0  # of the teacher, when there is one
    seed: int = 0

    @property
    def num_steps(self) -> int:
        return max(1, self.max_tokens // (self.batch_size * self.sequence_length))


def build_model(config: LmConfig) -> LlamaForCausalLM:
    """A Llama with random weights; embeddings tied, heads of 64."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=64,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )


def optimizers_of(model: LlamaForCausalLM, config: LmConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
    muon = torch.optim.Muon(matrices, lr=config.learning_rate, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, lr=config.embedding_rate, betas=(0.9, 0.95), weight_decay=0.0)
    return [muon, adamw]


def rate_at(step: int, config: LmConfig) -> float:
    """Share of the full learning rate: warm-up, constant, linear decay to zero (WSD)."""
    decay_steps = max(1, int(config.num_steps * config.decay_share))
    return min(1.0, (step + 1) / config.warmup_steps, (config.num_steps - step) / decay_steps)


def loss_of(model: Any, windows: Tensor, teacher: Any = None, temperature: float = 1.0) -> Tensor:
    """Mean cross entropy (nats per token) with the next token, or with the teacher's distribution."""
    device = next(model.parameters()).device
    windows = windows.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        logits = model(windows[:, :-1], use_cache=False).logits
    if teacher is None:
        return F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        wanted = teacher(windows[:, :-1], use_cache=False).logits.float().div_(temperature).softmax(-1)
    return F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(0, 1))


@torch.no_grad()
def held_out_losses(model: Any, store: TokenStore, length: int, limit: int = 24) -> dict[str, float]:
    """Nats per token on documents that were never trained on, per domain that has a window of them."""
    model.eval()
    losses = {}
    for domain in DOMAINS:
        windows = store.held_out_windows(domain, length, limit)
        if len(windows):
            losses[domain] = float(np.mean([float(loss_of(model, part)) for part in windows.split(8)]))
    model.train()
    return losses


def training_device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train(
    config: LmConfig,
    store: TokenStore,
    run: Path,
    teacher: Any = None,
    checkpoint_every: int = 100,
    on_step: Callable[[int, float], None] = lambda done, loss: None,
) -> LlamaForCausalLM:
    """The trained model, also written to `run/model` in bfloat16; continues a run that was interrupted.

    Args:
        config: what to train.
        store: the text.
        run: folder of the run.
        teacher: a causal LM of the same vocabulary whose distributions are learnt in place of the text's next tokens.
        checkpoint_every: steps between checkpoints.
        on_step: told the number of finished steps and the loss, after each step.

    Raises:
        ValueError: the folder holds a run of another config, or the loss is no longer finite.
    """
    claim(run, config)
    model: Any = build_model(config)
    model.to(training_device()).train()
    optimizers = optimizers_of(model, config)
    first = _resume(run / "checkpoint.pt", model, optimizers)
    for done, loss in _steps(config, store, model, optimizers, (first, teacher)):
        is_last = done == config.num_steps
        if is_last or done % checkpoint_every == 0:
            _save(run / "checkpoint.pt", model, optimizers, done)
        if is_last or done % (LOG_EVERY_CHECKPOINTS * checkpoint_every) == 0:
            losses = held_out_losses(model, store, config.sequence_length)
            with (run / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": done, "time": time.time(), "loss": loss, "held_out": losses}) + "\n")
        on_step(done, loss)
    trained: LlamaForCausalLM = model.eval().to(torch.bfloat16)
    trained.save_pretrained(run / "model")
    return trained


def _steps(
    config: LmConfig, store: TokenStore, model: Any, optimizers: list[torch.optim.Optimizer], start: tuple[int, Any]
) -> Iterator[tuple[int, float]]:
    """Number of finished steps and loss of each step; what a step sees depends on the seed and its number only."""
    first, teacher = start
    bases = (config.learning_rate, config.embedding_rate)
    for step in range(first, config.num_steps):
        rng = np.random.default_rng((config.seed, step))
        windows = store.batch(config.weights, config.batch_size, config.sequence_length, rng)
        loss = loss_of(model, windows, teacher, config.temperature)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ValueError(f"expected a finite loss, got {value} at step {step}; lower --learning-rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, base in zip(optimizers, bases, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * rate_at(step, config)
            optimizer.step()
            optimizer.zero_grad()
        yield step + 1, value


def claim(run: Path, config: Any) -> None:
    """Makes the folder of the run, or finds it as this very config, a dataclass, left it."""
    path, wanted = run / "config.json", json.loads(json.dumps(asdict(config)))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name, value in wanted.items() if found.get(name) != value]
        if different:
            raise ValueError(
                f"expected the config of the run in {str(run)!r}, got another {', '.join(different)}; "
                "pass the same options to go on, or another --run FOLDER"
            )
        return
    run.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(wanted, indent=2), encoding="utf-8")
    os.replace(temporary, path)


def _save(path: Path, model: Any, optimizers: list[torch.optim.Optimizer], step: int) -> None:
    temporary = path.with_suffix(".partial")
    states = [optimizer.state_dict() for optimizer in optimizers]
    torch.save({"model": model.state_dict(), "optimizers": states, "step": step}, temporary)
    os.replace(temporary, path)


def _resume(path: Path, model: Any, optimizers: list[torch.optim.Optimizer]) -> int:
    """The number of steps that are done; model and optimizers are as they were after them."""
    if not path.exists():
        return 0
    saved = torch.load(path, weights_only=True, map_location=next(model.parameters()).device)
    model.load_state_dict(saved["model"])
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    return int(saved["step"])
