"""A file that is there whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def check_writable(path: Path | None, option: str = "--json") -> None:
    """Raises ValueError if nothing can be written there: better before the work than after it."""
    if path is None:
        return
    remedy = f"pass another {option} FILE than {str(path)!r}"
    if path.is_dir():
        raise ValueError(f"expected a file to write, got a folder; {remedy}")
    if not path.parent.is_dir():
        raise ValueError(f"expected a file in a folder that exists, got none at {str(path.parent)!r}; {remedy}")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"expected a folder one can write to, got {error.strerror}; {remedy}") from error


def write_json(path: Path | None, value: Any) -> None:
    """Writes the value, if there is a path."""
    if path is not None:
        write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file: first beside its place, then renamed.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "page.html"
        >>> write_text(path, "<p>")
        >>> path.read_text()
        '<p>'
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
