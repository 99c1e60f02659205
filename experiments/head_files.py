"""Files of a training run, which are there whole or not at all, and its log."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

# Told how much is done of how much, and what it is.
Advance: TypeAlias = Callable[[int, int, str], None]


def nobody(done: int, total: int, what: str) -> None:
    """Tells nobody."""


def save_whole(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes safetensors: first beside the path, then renamed."""
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary, metadata)
    os.replace(temporary, path)


def write_whole(text: str, path: Path) -> None:
    """Writes a text: first beside the path, then renamed."""
    temporary = path.with_suffix(".partial")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def load_step(path: Path, lesson: str) -> tuple[dict[str, Tensor], int]:
    """The tensors of a checkpoint, and the number of steps that were done.

    Args:
        path: of the checkpoint.
        lesson: what the run learns from; it must be what it began with.

    Raises:
        ValueError: it is not.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "checkpoint.safetensors"
        >>> save_whole({"weight": torch.ones(2)}, path, {"step": "7", "lesson": "3f"})
        >>> load_step(path, "3f")
        ({'weight': tensor([1., 1.])}, 7)
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if metadata["lesson"] != lesson:
        raise ValueError(
            f"expected the target, precision and responses that the run in {str(path.parent)!r} began with, got "
            "others; pass the same, or another --run FOLDER"
        )
    return load_file(path), int(metadata["step"])


class Log:
    """Lines of JSON, one per step or measurement, in the order of the steps.

    Example:
        >>> import tempfile
        >>> log = Log(Path(tempfile.mkdtemp()) / "log.jsonl")
        >>> log.add({"step": 1, "loss": 5.0}), log.add({"step": 2, "loss": 4.0}), log.forget_after(1)
        (None, None, None)
        >>> log.lines()
        [{'step': 1, 'loss': 5.0}]
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, line: dict[str, Any]) -> None:
        """One more line, with its `step`."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """All of them. A last one that was cut off by a kill is none."""
        if not self._path.exists():
            return []
        lines = self._path.read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def forget_after(self, step: int) -> None:
        """Drops what comes after a checkpoint: it will be done again."""
        kept = [line for line in self.lines() if line["step"] <= step]
        write_whole("".join(json.dumps(line) + "\n" for line in kept), self._path)
