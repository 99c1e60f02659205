"""The result folder of a benchmark: a header, and append-only lines that a kill at any point leaves readable.

bench.json           what is run: settings, arms, prompts, environment
records-<rank>.jsonl one line per run, each with a checksum; written by one process, read by all
"""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

HEADER, VERSION, KIND = "bench.json", 1, "bench"
SUMMARY = "summary.json"  # derived from the header and the records; may be deleted
CHECKSUM = "crc32"
# What every line has, and of what type.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "arm": str,
    "group": int,
    "repeat": int,
    "process": str,
    "began": (int, float),
    "seconds": (int, float),
    "calls": list,
    "requests": list,
    "memory": dict,
}
# What a header has at least, likewise.
HEADER_FIELDS = {"settings": dict, "arms": list, "prompts": list, "environment": dict}
Key = tuple[str, int, int]  # arm, group, repeat


def key_of(record: Mapping[str, Any]) -> Key:
    """What a run is known by: whatever else is in two records with the same key, one of them counts."""
    return record["arm"], record["group"], record["repeat"]


def sealed(record: Mapping[str, Any]) -> bytes:
    r"""The line of a record, its checksum last.

    Example:
        >>> sealed({"b": 1, "a": "ü"})
        b'{"a":"\xc3\xbc","b":1,"crc32":"47751954"}\n'
    """
    body = _canonical(record)
    return f'{body[:-1]},"{CHECKSUM}":"{zlib.crc32(body.encode()):08x}"}}\n'.encode()


def opened(line: bytes) -> dict[str, Any]:
    r"""The record of a line without its newline.

    Raises:
        ValueError: says why it is none.

    Example:
        >>> opened(b'{"arm": 1}')
        Traceback (most recent call last):
        ValueError: no checksum
    """
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise ValueError("not JSON") from None
    if not isinstance(record, dict) or CHECKSUM not in record:
        raise ValueError("no checksum")
    checksum = record.pop(CHECKSUM)
    try:
        found = f"{zlib.crc32(_canonical(record).encode()):08x}"
    except UnicodeEncodeError:  # half of a surrogate pair, as a flipped byte makes one
        found = ""
    if checksum != found:
        raise ValueError("wrong checksum")
    wrong = next((name for name, kind in FIELDS.items() if not isinstance(record.get(name), kind)), None)
    if wrong is not None:
        raise ValueError(f"no {wrong!r} as a run has it")
    return dict(record)


def read_header(folder: Path) -> dict[str, Any]:
    """The header of a result folder.

    Raises:
        ValueError: there is none, or it is none.
    """
    path = folder / HEADER
    remedy = "pass the --out folder of a `specdec bench`"
    if not path.is_file():
        raise ValueError(f"expected a folder with {HEADER}, got {str(folder)!r}; {remedy}")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a header in JSON, got {str(path)!r}: {error}; {remedy}") from error
    is_ours = isinstance(header, dict) and header.get("kind") == KIND
    if not is_ours or header.get("version") != VERSION:
        found = (
            {name: header.get(name) for name in ("kind", "version")} if isinstance(header, dict) else "another value"
        )
        raise ValueError(
            f"expected a header of kind {KIND!r}, version {VERSION}, got {found} in {str(path)!r}; {remedy}"
        )
    wrong = next((name for name, kind in HEADER_FIELDS.items() if not isinstance(header.get(name), kind)), None)
    if wrong is None and not all(isinstance(arm, dict) and {"id", "baseline"} <= arm.keys() for arm in header["arms"]):
        wrong = "arms"
    if wrong is not None:
        raise ValueError(
            f"expected a header as `specdec bench` writes it, got another {wrong!r} in {str(path)!r}; {remedy}"
        )
    return dict(header)


def read_records(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The runs that count, in the order they were written, and what was skipped, a sentence each.

    The first valid line with a key counts. A baseline may be there once per process, since an arm is held against the
    baseline of its own process; an arm's line without such a baseline is skipped, and the run is repeated on resume.
    """
    baselines = {arm["id"]: arm["baseline"] for arm in read_header(folder)["arms"]}
    warnings: list[str] = []
    lines = []
    for where, record in _lines(folder, warnings):
        if record["arm"] in baselines:
            lines.append((where, record))
        else:
            warnings.append(f"{where}: skipped, {HEADER} names no arm {record['arm']!r}")
    present = {(*key_of(record), record["process"]) for _, record in lines}
    kept: dict[tuple[Any, ...], dict[str, Any]] = {}
    for where, record in lines:
        (arm, *turn), process = key_of(record), record["process"]
        baseline = baselines[arm]
        if (baseline, *turn, process) not in present:
            warnings.append(f"{where}: skipped, the baseline of its process is not there")
            continue
        kept.setdefault((arm, *turn, process if arm == baseline else None), record)
    return list(kept.values()), warnings


class RecordFile:
    r"""The lines of one process, locked while open; what is appended is on the disk when `append` returns.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "records-0.jsonl")
        >>> with RecordFile(path) as file:
        ...     file.append({"arm": "a"})
        >>> path.read_bytes()
        b'{"arm":"a","crc32":"d9fd1080"}\n'

    Raises:
        ValueError: another run writes to it.
    """

    def __init__(self, path: Path) -> None:
        import fcntl  # Unix only: elsewhere the other commands still work

        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(
                f"expected a folder that no other run writes to, got {str(path.parent)!r}; wait for it, or "
                "pass another --out FOLDER"
            ) from None
        _drop_torn_line(self._file)
        sync_folder(path.parent)

    def append(self, record: Mapping[str, Any]) -> None:
        self._file.write(sealed(record))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        self._file.close()


def sync_folder(folder: Path) -> None:
    """Names of new files in it outlast a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _drop_torn_line(file: Any) -> None:
    """Cuts off what stands behind the last newline: the trace of a kill."""
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _lines(folder: Path, warnings: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in _ordered(folder.glob("records-*.jsonl")):
        content = path.read_bytes()
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            where = f"{path.name}:{number}"
            try:
                yield where, opened(line)
            except ValueError as error:
                warnings.append(f"{where}: skipped, {error}")


def _ordered(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: (len(path.name), path.name))


def _canonical(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
