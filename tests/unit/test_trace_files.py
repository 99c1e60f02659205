"""Files of traces: what is written is read, and what is no trace is refused in one line that names it."""

import json

import pytest

from specdec.experiments.trace.schema import KINDS, read_trace, table_of, write_trace
from specdec.experiments.trace.sweep import read_traces
from specdec.experiments.trace.texts import joined


def columns(**over):
    """Two positions of a text: a chain of one drawn token, then nothing drafted."""
    made = {
        "request": [0, 0, 0],
        "turn": [0, 0, 0],
        "position": [4, 4, 5],
        "node": [0, 1, 0],
        "parent": [-1, 0, -1],
        "depth": [0, 1, 0],
        "token": [9, 5, 5],
        "is_sampled": [False, True, False],
        "is_accepted": [False, True, False],
        "score": [None, None, None],
        "source": ["draft_model"] * 3,
        "p_token": [None, 0.5, None],
        "q_token": [None, 0.25, None],
        "target_token": [5, 6, 6],
        "text_token": [5, 6, 6],
        "p_top_tokens": [[5, 1], [6, 2], [6, 2]],
        "p_top_probs": [[0.5, 0.25], [0.5, 0.25], [0.5, 0.25]],
        "p_tail": [0.25] * 3,
        "q_top_tokens": [[1, 5], None, None],
        "q_top_probs": [[0.75, 0.25], None, None],
        "q_tail": [0.0, None, None],
    }
    return made | over


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "a.parquet"
    size = write_trace(
        path, table_of(columns(), {"drafter_name": "x"}), {"arm": "12ab", "prompts": json.dumps(["p-1"])}
    )
    assert size == path.stat().st_size
    return path


def test_what_is_written_is_read(written):
    trace = read_trace(written)
    assert (trace.arm, trace.num_tokens, trace.num_bytes) == ("12ab", 2, written.stat().st_size)
    (text,) = trace.texts
    assert (text.key, len(text.drafts)) == (("p-1", 0, (5, 6)), 2)
    assert (text.drafts[0].p, text.drafts[0].q, text.drafts[0].scores) == ([0.0, 0.5], [0.0, 0.25], None)
    assert trace.p_top.row(1) == ({6: 0.5, 2: 0.25}, 0.25)
    assert trace.q_top.row(0) == ({1: 0.75, 5: 0.25}, 0.0)
    assert trace.q_top.row(2) == ({}, 0.0)


def test_files_of_one_arm_are_one_trace(written):
    both = joined([read_trace(written), read_trace(written)])
    last = both.texts[1].drafts[0]
    assert (len(both.texts), last.first_row, both.num_tokens) == (2, 3, 4)
    assert both.p_top.row(last.first_row + 1) == ({6: 0.5, 2: 0.25}, 0.25)
    assert both.q_top.row(last.first_row) == ({1: 0.75, 5: 0.25}, 0.0)


def test_every_truncation_and_damage_is_refused(written, tmp_path):
    whole = written.read_bytes()
    broken = tmp_path / "broken.parquet"
    for length in range(0, len(whole) - 1, 97):
        broken.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="expected a trace in .*broken.parquet', got .*; trace it again"):
            read_trace(broken)
    for place in range(4, len(whole), 211):
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_trace(broken)  # a byte that nobody checks, or of a number
        except ValueError as error:
            assert "\n" not in str(error)


def test_foreign_files_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="other.parquet', got parquet without the header of a trace"):
        read_trace(path)
    table = table_of(columns(), {})
    about = {b"specdec.trace": json.dumps({"kind": "trace", "version": 99}).encode()}
    pq.write_table(table.replace_schema_metadata(about), path)
    with pytest.raises(ValueError, match="a trace of version 99"):
        read_trace(path)
    for settings in (5, {"num_speculative_tokens": "many"}):
        about = {b"specdec.trace": json.dumps({"kind": "trace", "version": 1, "settings": settings}).encode()}
        pq.write_table(table.replace_schema_metadata(about), path)
        with pytest.raises(ValueError, match="settings that are none"):
            read_trace(path)
    pq.write_table(table.drop_columns(["p_tail"]), path)
    with pytest.raises(ValueError, match="column 'p_tail' of type None"):
        read_trace(path)
    path.write_text("id,text\n1,hello\n")
    with pytest.raises(ValueError, match="no parquet file that can be read"):
        read_trace(path)
    with pytest.raises(ValueError, match="got no such file"):
        read_trace(tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected traces in .*empty', got no parquet file"):
        read_traces([tmp_path / "empty"])


@pytest.mark.parametrize(
    ("over", "what"),
    [
        ({"node": [0, 2, 0]}, "the draft of row 0 is incomplete"),
        ({"node": [1, 2, 0]}, "the first row is no pending token"),
        ({"parent": [-1, 1, -1]}, "node 1 of the draft of row 0 has no place"),
        ({"depth": [0, 2, 0]}, "node 1 of the draft of row 0 has no place"),
        ({"position": [4, 4, 7]}, "request 0 jumps to position 7"),
        ({"token": [9, None, 5]}, "gaps in column 'token'"),
        ({"q_token": [None, None, None]}, "a drawn token without probabilities"),
    ],
)
def test_rows_that_are_no_drafts_are_refused(tmp_path, over, what):
    path = tmp_path / "a.parquet"
    write_trace(path, table_of(columns(**over), {}), {})
    with pytest.raises(ValueError, match=what):
        read_trace(path)


def test_a_trace_without_rows_has_no_texts(tmp_path):
    write_trace(tmp_path / "a.parquet", table_of({name: [] for name in KINDS}, {}), {})
    with pytest.raises(ValueError, match="no rows"):
        read_trace(tmp_path / "a.parquet")
