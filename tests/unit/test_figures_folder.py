"""The folder that a bench writes is what is summarized and compared."""

import json

import pytest

from specdec.experiments.bench import store
from specdec.experiments.figures.compare_sets import compare_folders
from specdec.experiments.figures.summary import summarize, summarize_folder
from tests.toys.bench_records import a_sweep


def test_a_folder_is_read_with_its_warnings(tmp_path):
    header, records = a_sweep()
    (tmp_path / store.HEADER).write_text(json.dumps(header))
    lines = b"".join(map(store.sealed, records))
    (tmp_path / "records-0.jsonl").write_bytes(lines + b'{"arm": "k1", "gro\n')
    summary = summarize_folder(tmp_path)
    assert len(summary["warnings"]) == 1 and "records-0.jsonl" in summary["warnings"][0]
    assert {**summary, "warnings": []} == summarize(header, records)
    result = compare_folders(tmp_path, tmp_path)
    assert result["is_comparable"] and len(result["notes"]) == 2


@pytest.mark.parametrize("inside", [{"requests": [{}]}, {"calls": [1]}, {"requests": [1], "seconds": 0}])
def test_a_sealed_record_of_another_inside_is_left_out(tmp_path, inside):
    header, records = a_sweep()
    (tmp_path / store.HEADER).write_text(json.dumps(header))
    *sound, last = records
    (tmp_path / "records-0.jsonl").write_bytes(b"".join(map(store.sealed, [*sound, {**last, **inside}])))
    summary = summarize_folder(tmp_path)
    assert "1 records are not as a run writes them and are left out" in summary["warnings"]
    assert {**summary, "warnings": []} == {**summarize(header, sound), "warnings": []}
