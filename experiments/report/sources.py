"""Result files of any kind, and folders of them: what is no result is named with the reason, and left out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bench.store import HEADER, SUMMARY
from ..figures.summary import MALFORMED, summarize_folder

VERSION = 1
KINDS = ("bench-summary", "profile", "plan", "replay", "compare", "imported")
COMPARE_FIELDS = {"rows", "by_category", "reference"}  # of a comparison written before results named their kind


@dataclass(frozen=True, slots=True)
class Source:
    """A result that was read."""

    path: str
    kind: str
    value: Mapping[str, Any]
    records: Path | None = None  # the folder of the records that it was derived from, if they are there


@dataclass(frozen=True, slots=True)
class Skipped:
    """What was left out."""

    path: str
    reason: str  # in one line


class NoResult(ValueError):
    """A file that holds none, or not one that can be read."""


def read_sources(paths: Sequence[Path]) -> tuple[list[Source], list[Skipped]]:
    """The results in files and folders, each file once, and what was left out.

    Example:
        >>> read_sources([Path("nowhere.json")])
        ([], [Skipped(path='nowhere.json', reason='there is no such file or folder')])
    """
    found: list[Source] = []
    skipped: list[Skipped] = []
    seen: set[Path] = set()
    for path in (each for given in paths for each in _files(given)):
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        try:
            found.append(_read(path))
        except NoResult as error:
            skipped.append(Skipped(str(path), str(error)))
    return found, skipped


def _files(path: Path) -> Iterator[Path]:
    """A file, a benchmark's folder, or what a folder holds: its JSON files, and the benchmarks right below it."""
    if not path.is_dir() or _is_bench(path):
        yield path
        return
    inner = sorted(path.iterdir())
    found = [each for each in inner if each.suffix == ".json" or (each.is_dir() and _is_bench(each))]
    yield from found or [path]


def _is_bench(folder: Path) -> bool:
    return any((folder / name).exists() for name in (HEADER, SUMMARY))


def _read(path: Path) -> Source:
    if path.is_dir():
        return _read_bench(path)
    value = _json(path)
    kind = value.get("kind", "compare" if value.keys() >= COMPARE_FIELDS else None)
    if kind == "bench":
        return _read_bench(path.parent)
    if kind not in KINDS:
        named = f"its kind is {str(kind)[:40]!r}" if kind is not None else "it does not name its kind"
        raise NoResult(f"JSON, but no result of this toolkit: {named}")
    if value.get("version", VERSION) != VERSION:
        raise NoResult(f"a {kind} of version {str(value['version'])[:20]}; this report reads version {VERSION}")
    is_bench = kind == "bench-summary" and (path.parent / HEADER).exists()
    return Source(str(path), kind, value, path.parent if is_bench else None)


def _read_bench(folder: Path) -> Source:
    """A benchmark's folder, summarised anew: a summary that lies there may be older than the last records."""
    summary = folder / SUMMARY
    if not (folder / HEADER).exists():
        if not summary.exists():
            raise NoResult("a folder without results")
        return _read(summary)
    try:
        return Source(str(folder), "bench-summary", summarize_folder(folder), folder)
    except (OSError, *MALFORMED) as error:
        raise NoResult(f"a benchmark that cannot be summarised: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Why a reader failed, in one short line.

    Example:
        >>> reason(ValueError("expected a, got b")), reason(KeyError("arms"))
        ('expected a, got b', "KeyError: 'arms'")
    """
    words = " ".join(str(error).split())[:160]
    return words if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {words}"


def _json(path: Path) -> Mapping[str, Any]:
    """The object in a file; numbers that are none, like NaN, are None."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: None)
    except FileNotFoundError:
        raise NoResult("there is no such file or folder") from None
    except OSError as error:
        raise NoResult(f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise NoResult("not a text file") from None
    except json.JSONDecodeError as error:
        raise NoResult(f"not JSON, or cut short: {error.msg} in line {error.lineno}") from error
    except (RecursionError, ValueError):
        raise NoResult("JSON that is nested too deep or holds too long a number") from None
    if not isinstance(value, dict):
        raise NoResult("JSON, but not a result: it holds no object")
    return value
