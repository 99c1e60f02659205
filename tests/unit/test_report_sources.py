"""Which files a report reads: every kind by its name, folders, and a reason for whatever is left out."""

import json

import pytest

from specdec.experiments.report import sources
from specdec.experiments.report.sources import KINDS, read_sources
from tests.project import ROOT
from tests.toys.summaries import bench_summary

SUMMARY = bench_summary({"ngram": (0.6, 0.0, 0.01)}, (2,), 3)
DAMAGED = {
    "missing": (None, "there is no such file"),
    "empty": (b"", "not JSON, or cut short"),
    "cut short": (json.dumps(SUMMARY).encode()[:-40], "cut short"),
    "binary": (b"\x89PNG\r\n\x1a\n\xff\xfe", "not a text file"),
    "a list": (b"[1, 2]", "it holds no object"),
    "foreign": (b'{"loss": 0.3}', "it does not name its kind"),
    "another kind": (b'{"kind": "trace"}', "its kind is 'trace'"),
    "a kind that is no text": (b'{"kind": [1]}', "its kind is '[1]'"),
    "of the future": (b'{"kind": "plan", "version": 2}', "a plan of version 2; this report reads version 1"),
    "nested": (b'{"kind": "plan", "rows": ' + b"[" * 100_000, "nested too deep"),
    "a number without end": (b'{"kind": "plan", "rows": ' + b"9" * 5000 + b"}", "too long a number"),
}


@pytest.mark.parametrize("content, reason", DAMAGED.values(), ids=DAMAGED)
def test_what_is_no_result_is_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    found, (skipped,) = read_sources([path])
    assert found == [] and skipped.path == str(path)
    assert reason in skipped.reason and "\n" not in skipped.reason


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_known_by_their_kind(tmp_path, kind):
    (tmp_path / "x.json").write_text(json.dumps({"kind": kind, "version": 1}))
    ((found,), skipped) = read_sources([tmp_path / "x.json"])
    assert found.kind == kind and skipped == []


def test_a_comparison_from_before_kinds_is_known_by_its_fields():
    ((found,), _) = read_sources([ROOT / "experiments/results/compare_embedded_cpu.json"])
    assert found.kind == "compare"


def test_numbers_that_are_none_are_absent(tmp_path):
    (tmp_path / "x.json").write_text('{"kind": "plan", "a": NaN, "b": -Infinity}')
    ((found,), _) = read_sources([tmp_path / "x.json"])
    assert found.value["a"] is None and found.value["b"] is None


def test_a_folder_gives_its_results_and_benchmarks_each_once(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "plan.json").write_text('{"kind": "plan"}')
    (tmp_path / "notes.txt").write_text("of no concern")
    (tmp_path / "other.json").write_text("{}")
    found, skipped = read_sources([tmp_path, tmp_path / "plan.json", tmp_path / "run"])
    assert [each.kind for each in found] == ["plan", "bench-summary"]
    assert [each.path for each in skipped] == [str(tmp_path / "other.json")]


def test_a_folder_without_results_is_named(tmp_path):
    _, (skipped,) = read_sources([tmp_path])
    assert skipped.reason == "a folder without results"


@pytest.fixture
def summarized(monkeypatch):
    """Folders that were summarised; the summary is a toy."""
    folders = []

    def summarize_folder(folder):
        folders.append(folder)
        if not (folder / "records-0.jsonl").exists():
            raise ValueError("expected records, got none;\nrun it")
        return SUMMARY

    monkeypatch.setattr(sources, "summarize_folder", summarize_folder)
    return folders


@pytest.mark.parametrize("summary", [None, '{"kind": "bench-sum', '{"kind": "bench-summary", "arms": []}'])
@pytest.mark.parametrize("named", ["folder", "header"])
def test_a_benchmark_is_summarised_anew_whatever_summary_lies_there(tmp_path, summarized, summary, named):
    (tmp_path / "bench.json").write_text('{"kind": "bench"}')
    (tmp_path / "records-0.jsonl").touch()
    if summary is not None:
        (tmp_path / "summary.json").write_text(summary)
    found, skipped = read_sources([tmp_path if named == "folder" else tmp_path / "bench.json"])
    assert [(each.value, each.records) for each in found] == [(SUMMARY, tmp_path)] and skipped == []
    assert summarized == [tmp_path]


def test_a_summary_knows_whether_its_records_are_there(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(SUMMARY))
    assert [each.records for each in read_sources([tmp_path])[0]] == [None]
    (tmp_path / "bench.json").write_text('{"kind": "bench"}')
    assert [each.records for each in read_sources([path])[0]] == [tmp_path]


def test_a_header_without_its_fields_is_named(tmp_path):
    (tmp_path / "bench.json").write_text('{"kind": "bench", "version": 1, "arms": []}')
    _, (skipped,) = read_sources([tmp_path])
    assert "cannot be summarised: expected a header as `specdec bench` writes it" in skipped.reason


def test_a_benchmark_that_cannot_be_summarised_is_named(tmp_path, summarized):
    (tmp_path / "bench.json").write_text('{"kind": "bench"}')
    _, (skipped,) = read_sources([tmp_path])
    assert skipped.reason == "a benchmark that cannot be summarised: expected records, got none; run it"
