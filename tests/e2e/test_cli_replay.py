"""`specdec replay`: on an example of its own, on files, and on files that are none."""

import json

import pytest
from typer.testing import CliRunner

from specdec import cli


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("replay")


@pytest.fixture
def run(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return lambda line: CliRunner().invoke(cli.app, line.split())


@pytest.mark.slow
def test_with_no_arguments_it_traces_an_example(run, folder, monkeypatch):
    from specdec.experiments.trace import example

    monkeypatch.setattr(example, "NEW_TOKENS", 12)
    done = run("replay --json out.json --node-cost 0.02 --draft-cost 0.1")
    assert done.exit_code == 0, done.output
    assert "best drafter per round" in done.output and "per token of text" in done.output
    result = json.loads((folder / "out.json").read_text())
    assert (result["kind"], result["version"]) == ("replay", 1)
    assert {row["exactness"] for row in result["rows"]} == {"path", "law"}
    assert all(oracle["is_upper_bound"] for oracle in result["oracles"])
    for row in result["rows"]:
        assert row["tokens_per_cost"] <= row["tokens_per_step"]
        assert 1 <= row["tokens_per_step"] <= 1 + (row["num_speculative_tokens"] or 8)


def test_files_are_found_where_bench_leaves_them(run, folder):
    from specdec.experiments.trace.schema import table_of, write_trace
    from tests.unit.test_trace_files import columns

    (folder / "specdec-bench" / "trace").mkdir(parents=True)
    about = {"drafter_name": "draft_model", "verifier": "block", "do_sample": True, "top_m": 2}
    about["settings"] = {"draft_sample_method": "probabilistic", "num_speculative_tokens": 1}
    write_trace(folder / "specdec-bench" / "trace" / "12ab-0.parquet", table_of(columns(), about), {"arm": "12ab"})
    done = run("replay --num-speculative-tokens 0,1 --verifier rejection,block --json out.json")
    assert done.exit_code == 0, done.output
    rows = json.loads((folder / "out.json").read_text())["rows"]
    assert [row["num_steps"] for row in rows] == pytest.approx([2.0, 1.5, 2.0, 1.5])  # min(1, q / p) = 0.5
    assert run("replay specdec-bench specdec-bench/trace --json twice.json").exit_code == 0
    assert "1 trace, " in run("replay specdec-bench specdec-bench/trace").output, "a file that is named twice is one"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("replay none.parquet", "expected a trace in 'none.parquet', got no such file"),
        ("replay broken.parquet", "expected a trace in 'broken.parquet', got no parquet file that can be read"),
        ("replay --num-tree-nodes two", "expected numbers with commas between them for --num-tree-nodes"),
        ("replay --budget -1", "expected budget of at least 0"),
        ("replay --confidence-threshold nan", "expected confidence_threshold of at least 0"),
        ("replay --draft-cost inf", "expected finite costs of at least 0, got inf"),
        ("replay --verifier best", "expected --verifier of greedy"),
        ("replay --json nowhere/out.json", "expected a file in a folder that exists"),
    ],
)
def test_mistakes_are_told_in_one_line(run, folder, line, what):
    (folder / "broken.parquet").write_bytes(b"PAR1 and then nothing")
    done = run(line)
    assert done.exit_code == 1
    (told,) = [part for part in done.stderr.splitlines() if part.strip()]
    assert told.startswith("error: ") and what in told
