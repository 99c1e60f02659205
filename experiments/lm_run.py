"""A training run from files to files: corpora and a tokenizer, a teacher perhaps, and a model folder at the end."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from specdec.checkpoints import load_model, load_tokenizer

from .corpus import TokenStore, read_documents, tokenize, train_tokenizer
from .self_text import SelfTextConfig, write_self_text
from .train_lm import LmConfig, claim, train, training_device


@dataclass(frozen=True, slots=True)
class LmFiles:
    """Where a run reads and writes."""

    corpora: Path  # see `corpus.read_documents`
    run: Path
    tokenizer: Path | None = None  # None: one is trained, in the folder of the run
    teacher: Path | None = None  # model to distil


def train_on_files(
    config: LmConfig,
    files: LmFiles,
    self_text_tokens: int = 0,
    on_step: Callable[[int, float], None] = lambda done, loss: None,
) -> LlamaForCausalLM:
    """What `train_lm.train` returns; `model/` in the folder of the run holds the tokenizer too and is ready to be used.

    Args:
        config: what to train.
        files: from and to where.
        self_text_tokens: how much text the teacher writes for the student to learn on; 0 for the corpora alone.
        on_step: told the number of finished steps and the loss, after each step.

    Raises:
        ValueError: something is missing, or tokenizer, teacher and config differ in their vocabularies.
    """
    if self_text_tokens and files.teacher is None:
        raise ValueError(f"expected a teacher to write {self_text_tokens} tokens, got none; pass --teacher FOLDER")
    teacher = None if files.teacher is None else load_model(str(files.teacher), torch.bfloat16, training_device())
    if teacher is not None:
        _check_vocabulary("teacher", teacher.config.vocab_size, config)
    folder = files.tokenizer or files.run / "tokenizer"
    tokens = files.run / "tokens.npz"
    documents = [] if tokens.exists() and folder.exists() else list(read_documents(files.corpora))
    claim(files.run, config)
    if files.tokenizer is None and not folder.exists():
        train_tokenizer(documents, config.vocab_size, folder)
    tokenizer = load_tokenizer(str(folder))
    _check_vocabulary("tokenizer", len(tokenizer), config)
    store = tokenize(documents, tokenizer, tokens)
    if self_text_tokens:
        store = _self_text(teacher, store, replace(SelfTextConfig(), max_tokens=self_text_tokens), files.run)
    model = train(config, store, files.run, teacher, on_step=on_step)
    tokenizer.save_pretrained(files.run / "model")
    return model


def _check_vocabulary(what: str, size: int, config: LmConfig) -> None:
    if size != config.vocab_size:
        raise ValueError(f"expected a {what} of {config.vocab_size} tokens, got {size}; pass --vocab-size {size}")


def _self_text(teacher: Any, store: TokenStore, config: SelfTextConfig, run: Path) -> TokenStore:
    """The teacher's own text, kept in the folder of the run so that a killed run goes on with the same."""
    path = run / f"self_text_{config.max_tokens}.npz"
    if not path.exists():
        written: dict[str, Any] = {**write_self_text(teacher, store, config).train}
        temporary = path.with_suffix(".partial.npz")
        np.savez(temporary, **written)
        os.replace(temporary, path)
    with np.load(path) as arrays:
        return TokenStore({domain: arrays[domain] for domain in arrays.files}, store.held_out)
