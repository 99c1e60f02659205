"""Trace files: parquet, one row per node of what was drafted at every position of a text.

    request, turn    int32, int16     which text
    position         int32            committed tokens, the prompt included, when the draft was made
    node, parent     int16            within the draft; node 0 is the pending token, its parent -1
    depth            int16            0 for the pending token
    token            int32
    is_sampled       bool             drawn from q, so that q_token is its probability; else chosen
    is_accepted      bool             on the way of the text: what greedy and sample_and_match accept from here
    score            float, or null   natural log of the drafter's own probability of the way to the node
    source           string           name of the drafter
    p_token          double, or null  target's final probability of the token, given its parent; null for node 0
    q_token          double, or null  draft probability of a sampled token
    target_token     int32            what the target itself says after the node
    text_token       int32            what the text says at position + depth; -1 behind its end
    p_top_tokens     list of int32    the target's top_m likeliest tokens after the node, best first
    p_top_probs      list of float    their final probabilities: after every processor and the temperature; of a greedy
                                      request those of its scores, though it draws nothing
    p_tail           float            probability of all others; 0 if the lists hold the vocabulary
    q_top_tokens, q_top_probs, q_tail likewise of what the node's child was drawn from; null if it was not drawn

Rows are ordered by request, turn, position, node. A draft of node 0 alone is the empty one, as in the first round over
a prompt. Behind a drawn node that is not of the text (behind its end) nothing is to be concluded.

The file's metadata holds under `specdec.trace` a JSON object with "kind": "trace", "version", and how the trace was
made (`tracing.trace_arm`), and whatever `write_trace` was given beside it: "arm", "label", "cell", and "prompts", a
JSON list of ids.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .texts import Tops, Trace, TracedDraft, TracedText

VERSION = 1
HEADER = "specdec.trace"
KINDS = {
    "request": "int32",
    "turn": "int16",
    "position": "int32",
    "node": "int16",
    "parent": "int16",
    "depth": "int16",
    "token": "int32",
    "is_sampled": "bool",
    "is_accepted": "bool",
    "score": "float",
    "source": "string",
    "p_token": "double",
    "q_token": "double",
    "target_token": "int32",
    "text_token": "int32",
    "p_top_tokens": "list<element: int32>",
    "p_top_probs": "list<element: float>",
    "p_tail": "float",
    "q_top_tokens": "list<element: int32>",
    "q_top_probs": "list<element: float>",
    "q_tail": "float",
}
NULLABLE = {"score", "p_token", "q_token", "q_top_tokens", "q_top_probs", "q_tail"}


def table_of(columns: Mapping[str, Sequence[Any]], header: Mapping[str, Any]) -> Any:  # pyarrow.Table
    """The columns as a table that says how it was made.

    Example:
        >>> table_of({name: [] for name in KINDS}, {}).num_columns
        21
    """
    import pyarrow as pa

    fields = [pa.field(name, _type(kind)) for name, kind in KINDS.items()]
    about = {HEADER: json.dumps({"kind": "trace", "version": VERSION, **header})}
    arrays = [pa.array(columns[field.name], field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=about))


def write_trace(path: Path, table: Any, metadata: Mapping[str, str]) -> int:
    """Writes a trace, whole or not at all; returns its size in bytes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty.parquet"
        >>> write_trace(path, table_of({name: [] for name in KINDS}, {}), {"arm": "9f2c01ab"}) == path.stat().st_size
        True
    """
    import pyarrow.parquet as pq

    about = {**(table.schema.metadata or {}), **{name.encode(): text.encode() for name, text in metadata.items()}}
    temporary = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table.replace_schema_metadata(about), temporary, compression="zstd", compression_level=9)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def read_trace(path: Path) -> Trace:
    """The trace in a file.

    Raises:
        ValueError: there is none, it is damaged, of another kind or of another version; names the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        _refuse(path, "no such file", "pass a file or folder that `specdec bench --trace` has written")
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        _refuse(path, f"no parquet file that can be read ({' '.join(str(error).split())[:80]})", "trace it again")
    header = _header(path, table)
    found = {field.name: str(field.type) for field in table.schema}
    wrong = next((name for name, kind in KINDS.items() if found.get(name) != str(_type(kind))), None)
    if wrong is not None:
        _refuse(path, f"column {wrong!r} of type {found.get(wrong)}", "trace it again")
    empty = next((name for name in KINDS if name not in NULLABLE and table[name].null_count), None)
    if empty is not None:
        _refuse(path, f"gaps in column {empty!r}", "trace it again")
    return trace_of(table, header, path)


def trace_of(table: Any, header: Mapping[str, Any], path: Path) -> Trace:
    """The trace in a table; the path is for messages."""
    table = table.combine_chunks()
    scalars = [name for name in KINDS if "list" not in KINDS[name]]
    columns = {name: table[name].to_pylist() for name in scalars}
    prompts = json.loads(header.get("prompts", "[]"))
    try:
        texts = _texts(columns, prompts)
    except (ValueError, IndexError, TypeError) as error:
        _refuse(path, f"rows that are no drafts ({error})", "trace it again")
    return Trace(path, header, texts, _tops(table, "p"), _tops(table, "q"), path.stat().st_size if path.exists() else 0)


def _header(path: Path, table: Any) -> dict[str, Any]:
    about = {name.decode(errors="replace"): text.decode(errors="replace") for name, text in _pairs(table)}
    try:
        header = json.loads(about.pop(HEADER, "null"))
        json.loads(about.get("prompts", "[]"))
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("kind") != "trace":
        _refuse(path, "parquet without the header of a trace", "pass what `specdec bench --trace` has written")
    if header.get("version") != VERSION:
        _refuse(
            path, f"a trace of version {header.get('version')}", f"read it with the release that wrote it; {VERSION=}"
        )
    settings = header.get("settings", {})
    sizes = ("num_speculative_tokens", "num_tree_nodes")
    if not isinstance(settings, dict) or not all(isinstance(settings.get(name), int | None) for name in sizes):
        _refuse(path, "a header with settings that are none", "trace it again")
    return {**about, **header}


def _pairs(table: Any) -> list[tuple[bytes, bytes]]:
    return list((table.schema.metadata or {}).items())


def _refuse(path: Path, found: str, remedy: str) -> NoReturn:
    raise ValueError(f"expected a trace in {str(path)!r}, got {found}; {remedy}")


def _type(kind: str) -> Any:
    import pyarrow as pa

    plain = {"float": pa.float32(), "double": pa.float64(), "bool": pa.bool_(), "string": pa.string()}
    if kind.startswith("list"):
        return pa.list_(pa.field("element", _type(kind[len("list<element: ") : -1])))
    return plain[kind] if kind in plain else getattr(pa, kind)()


def _tops(table: Any, which: str) -> Tops:
    import numpy as np

    tokens, probs = (table[f"{which}_top_{part}"].combine_chunks() for part in ("tokens", "probs"))
    counts = table[f"{which}_top_tokens"].combine_chunks().value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    tails = table[f"{which}_tail"].combine_chunks().fill_null(0).to_numpy(zero_copy_only=False)
    firsts = np.concatenate(([0], np.cumsum(counts)))
    parts = [part.flatten().to_numpy(zero_copy_only=False) for part in (tokens, probs)]
    return Tops(firsts, parts[0], parts[1].astype(np.float64), tails.astype(np.float64))


def _texts(columns: Mapping[str, Sequence[Any]], prompts: Sequence[str]) -> tuple[TracedText, ...]:
    starts = [row for row, node in enumerate(columns["node"]) if node == 0]
    if not columns["node"]:
        raise ValueError("no rows")
    if starts[:1] != [0]:
        raise ValueError("the first row is no pending token")
    texts: dict[tuple[int, int], list[TracedDraft]] = {}
    said: dict[tuple[int, int], list[int]] = {}
    for first, stop in zip(starts, [*starts[1:], len(columns["node"])], strict=True):
        key = columns["request"][first], columns["turn"][first]
        drafts = texts.setdefault(key, [])
        drafts.append(_draft(columns, first, stop))
        if drafts[-1].position != drafts[0].position + len(drafts) - 1:
            raise ValueError(f"request {key[0]} jumps to position {drafts[-1].position}")
        said.setdefault(key, []).append(columns["text_token"][first])
    return tuple(
        TracedText(
            *key, str(prompts[key[0]]) if key[0] < len(prompts) else str(key[0]), tuple(said[key]), tuple(drafts)
        )
        for key, drafts in texts.items()
    )


def _draft(columns: Mapping[str, Sequence[Any]], first: int, stop: int) -> TracedDraft:
    def part(name: str) -> list[Any]:
        return list(columns[name][first:stop])

    parents, depths = part("parent"), part("depth")
    if part("node") != list(range(stop - first)) or len(set(part("position"))) > 1 or parents[0] != -1:
        raise ValueError(f"the draft of row {first} is incomplete")
    for node, parent in enumerate(parents[1:], start=1):
        if not 0 <= parent < node or depths[node] != depths[parent] + 1:
            raise ValueError(f"node {node} of the draft of row {first} has no place")
    scores, sampled = part("score"), part("is_sampled")
    if any(drawn and None in pair for drawn, *pair in zip(sampled, part("p_token"), part("q_token"), strict=True)):
        raise ValueError(f"the draft of row {first} has a drawn token without probabilities")
    return TracedDraft(
        position=columns["position"][first],
        tokens=part("token"),
        parents=parents,
        depths=depths,
        sampled=sampled,
        scores=None if None in scores else scores,
        p=[0.0 if value is None else value for value in part("p_token")],
        q=[0.0 if value is None else value for value in part("q_token")],
        first_row=first,
    )
