"""The rows of a file or of a dataset of the hub, whatever they hold: JSON lines, JSON, Parquet, CSV, lines of text."""

import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

HUB = "hub:"
# hub:org/name, then :split or :config/split, then how many rows, as datasets writes it: hub:org/name:main/test[:100]
HUB_SOURCE = re.compile(r"hub:(?P<name>[^:]+)(:((?P<config>[^/\[]+)/)?(?P<split>[^/\[]+)(\[:(?P<count>\d+)\])?)?")
USUAL_SPLIT = "test"  # of the splits of a dataset, if nobody chooses
LISTS = ("turns", "conversations", "messages", "test_list")  # columns of a CSV file that hold nothing but JSON lists

Row: TypeAlias = Mapping[str, Any]
Placed: TypeAlias = tuple[str, Row]  # where the row stands, for messages, and its fields


def rows_of(source: str | Path) -> Iterator[Placed]:
    """Every row of a source, with the place where it stands.

    JSON lines and JSON hold one object each, or one list of objects. Parquet and CSV hold one row each; a CSV cell that
    holds a JSON list of texts or objects is read as that. A line of text is a row with the one field `text`; empty
    lines are none.

    Args:
        source: a .jsonl, .json, .parquet, .csv or .txt file, or `hub:org/name[:[config/]split]`, where `[:100]` behind
            the split asks for the first hundred rows.

    Raises:
        ValueError: there is no such source, or it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "openings.txt")
        >>> written = path.write_text("Once\\n\\nThere was\\n")
        >>> [row for _, row in rows_of(path)]
        [{'text': 'Once'}, {'text': 'There was'}]
    """
    if str(source).startswith(HUB):
        yield from _hub_rows(str(source))
        return
    path = Path(source)
    read = READERS.get(path.suffix.lower())
    if read is None or not path.is_file():
        raise ValueError(
            f"expected a file of prompts ({', '.join(READERS)}) or {HUB}NAME, got {str(path)!r}; pass --prompts FILE"
        )
    try:
        yield from read(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected text in UTF-8, got other bytes in {str(path)!r}; convert the file") from error


def stem_of(source: str | Path) -> str:
    """What a source is called: the file's name, or the dataset's, without what stands around it.

    Example:
        >>> stem_of("prompts/rag.jsonl"), stem_of("hub:openai/gsm8k:main/test")
        ('rag', 'gsm8k')
    """
    found = HUB_SOURCE.fullmatch(str(source))
    return Path(found["name"] if found else source).stem


def _json_lines(path: Path) -> Iterator[Placed]:
    # Lines end at line feeds only: JSON strings may hold what Unicode calls other ends of lines.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            yield _object(_parsed(line, f"{path}:{number}"), f"{path}:{number}")


def _json(path: Path) -> Iterator[Placed]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not str(error).startswith("Extra data"):
            raise ValueError(f"expected JSON, got {error} in {str(path)!r}; correct the file") from error
        yield from _json_lines(path)  # of one object per line, called .json
        return
    for number, row in enumerate(found if isinstance(found, list) else [found], 1):
        yield _object(row, f"{path}, row {number}")


def _parquet(path: Path) -> Iterator[Placed]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:  # damage within a file is reported as the latter
        message = " ".join(str(error).split())
        raise ValueError(f"expected a Parquet file, got {str(path)!r}: {message}; pass another --prompts") from error
    for number, row in enumerate(table.to_pylist(), 1):
        yield f"{path}, row {number}", row


def _csv(path: Path) -> Iterator[Placed]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        number, rows = 0, csv.DictReader(file)
        try:
            for number, row in enumerate(rows, 1):
                where = f"{path}, row {number}"
                if None in row or None in row.values():
                    raise ValueError(
                        f"expected a cell for each name of the first line, got others at {where}; quote commas"
                    )
                yield where, {name: _cell(name, cell, where) for name, cell in row.items()}
        except csv.Error as error:
            raise ValueError(
                f"expected CSV, got {error} at {path}, row {number + 1}; use JSON lines instead"
            ) from error


def _cell(name: str, cell: str, where: str) -> Any:
    """A list if it is one; a text may begin with a bracket, too, as prompts with [INST] do."""
    if not cell.startswith("["):
        return cell
    try:
        found = _parsed(cell, where)
    except ValueError:
        if name in LISTS:
            raise
        return cell
    return found if name in LISTS or all(isinstance(each, str | Mapping) for each in found) else cell


def _lines(path: Path) -> Iterator[Placed]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            yield f"{path}:{number}", {"text": line.rstrip("\r")}


READERS: dict[str, Callable[[Path], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".txt": _lines,
}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected {{...}} in JSON, got {text[:60]!r} at {where}; {error}") from error


def _object(row: Any, where: str) -> Placed:
    if not isinstance(row, Mapping):
        raise ValueError(f"expected {{...}}, an object with fields, got {str(row)[:60]} at {where}; name its fields")
    return where, row


def _hub_rows(source: str) -> Iterator[Placed]:
    """Rows as they arrive: nothing is downloaded beyond the last one that is asked for."""
    from datasets import load_dataset

    found = HUB_SOURCE.fullmatch(source)
    if found is None:
        raise ValueError(f"expected {HUB}org/name[:[config/]split[[:count]]], got {source!r}; write it like this")
    name, config, split, count = (found[part] for part in ("name", "config", "split", "count"))
    try:
        rows = load_dataset(name, config, split=split, streaming=True)
        if split is None:
            split = USUAL_SPLIT if USUAL_SPLIT in rows else next(iter(rows)) if len(rows) == 1 else None
            if split is None:
                raise ValueError(f"it has the splits {', '.join(rows)}")
            rows = rows[split]
        for number, row in enumerate(islice(rows, None if count is None else int(count)), 1):
            yield f"{name}:{split}, row {number}", row
    except (OSError, RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        remedy = f"pass --prompts {HUB}{name}:[CONFIG/]SPLIT"
        raise ValueError(f"expected a dataset of the hub, got {source!r}: {message}; {remedy}") from error
