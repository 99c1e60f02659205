"""The kernel benchmark, dry: every contender that runs on a CPU, what is skipped and why, and going on."""

import json
import math

import pytest
import torch

from specdec.experiments import kernel_bench
from specdec.experiments.attention_case import Case, Heads, largest_error, problem_of
from specdec.experiments.attention_contenders import ATTENTIONS, OURS, Attention
from specdec.experiments.kernel_bench import CASES, DRY_CASES, LLAMA_8B, Results
from specdec.experiments.kernel_bench_view import GOALS, figures

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
CPU = torch.device("cpu")
# Weights and the output are rounded to 8 bits, half a unit in the last place each; and as much again for sums.
TOLERANCE = 2 * torch.finfo(torch.bfloat16).eps
ON_A_CPU = [OURS, "sdpa", "flex_attention"]


def run(path, **options):
    kernel_bench.main(path, dry=True, **{"again": False, "time_limit": math.inf, **options})
    return json.loads(path.read_text())


def test_a_dry_run_writes_every_row_and_says_that_it_is_dry(tmp_path, capsys):
    found = run(tmp_path / "bench.json")
    assert found["complete"] and found["dry"] and "say nothing" in found["note"]
    assert found["absent"] == {"flashinfer": "needs a GPU"}
    assert [(row["name"], row["num_nodes"]) for row in found["rows"]] == [
        (name, case.num_nodes) for name in ON_A_CPU for case in DRY_CASES
    ]
    for row in found["rows"]:
        assert 0 < row["error"] < TOLERANCE
        assert row["share"] == pytest.approx(row["floor_us"] / row["us"]) and row["us_low"] <= row["us"]
    (began,) = found["runs"]
    assert found["rows"][0]["floor_us"] == pytest.approx(found["rows"][0]["bytes"] / began["read_gb_s"]["amax"] / 1e3)
    assert began["environment"]["cpu"] and began["kernels"] == "reference"
    assert {"us", "share", "error", "floor_us", "bytes"} <= set(found["definitions"])
    printed = capsys.readouterr().out
    assert "DRY RUN" in printed and "flashinfer: needs a GPU" in printed


def test_a_run_that_was_cut_short_is_gone_on_with(tmp_path, monkeypatch):
    path, measured = tmp_path / "bench.json", []

    def measure(attention, case, heads, device):
        measured.append((attention.name, case))
        return {"bytes": 100, "us": 2.0, "error": 0.0}

    clock = iter([0.0, *range(1, 11), *[0] * 99])
    monkeypatch.setattr(kernel_bench, "measure", measure)
    monkeypatch.setattr(kernel_bench.time, "monotonic", lambda: next(clock))
    with pytest.raises(SystemExit, match="the time was up .* run it once more"):
        run(path, time_limit=9.5)
    found = json.loads(path.read_text())
    assert not found["complete"] and len(found["rows"]) == len(measured) == 9
    found = run(path)
    assert found["complete"] and len(found["runs"]) == 2
    # Ours once more for what the second run holds against it.
    assert measured[9:] == [
        *[pair for case in DRY_CASES[1:] for pair in ((OURS, case), ("sdpa", case))],
        (OURS, DRY_CASES[0]),
        *[("flex_attention", case) for case in DRY_CASES],
    ]
    run(path)
    assert len(measured) == 9 + 2 * 7 + 9, "all is there"
    run(path, again=True)
    assert len(json.loads(path.read_text())["runs"]) == 1


def test_results_of_another_version_are_not_gone_on_with(tmp_path, monkeypatch, capsys):
    path = tmp_path / "bench.json"
    monkeypatch.setattr(kernel_bench, "measure", lambda *_: {"bytes": 100, "us": 2.0})
    found = run(path)
    found["runs"][-1]["environment"]["commit"] = "0123456789ab"
    path.write_text(json.dumps(found))
    with pytest.raises(SystemExit, match="got other commit in .*; pass --again to measure all anew"):
        run(path)


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="expected a GPU, got none; pass --dry"):
        kernel_bench.main(tmp_path / "bench.json")
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_skipped_and_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_bench, "free_bytes", lambda device: 50_000)
    rows = run(tmp_path / "bench.json")["rows"]
    skipped = [row for row in rows if "skipped" in row]
    assert {row["name"] for row in skipped} == set(ON_A_CPU) and len(skipped) < len(rows)
    assert all("GB of memory" in row["skipped"] and "us" not in row for row in skipped)


def test_a_contender_that_fails_is_left_out_with_its_reason_and_ours_is_an_error(tmp_path, monkeypatch):
    def fail(problem):
        raise RuntimeError("no such\n  thing")

    monkeypatch.setattr(kernel_bench, "ATTENTIONS", (ATTENTIONS[0], Attention("other", fail, is_gathered=False)))
    found = run(tmp_path / "bench.json")
    assert found["absent"] == {"other": "RuntimeError: no such thing"}
    assert [row["failed"] for row in found["rows"] if row["name"] == "other"] == ["RuntimeError: no such thing"]
    monkeypatch.setattr(kernel_bench, "ATTENTIONS", (Attention(OURS, fail, is_gathered=False),))
    with pytest.raises(RuntimeError):
        run(tmp_path / "bench.json", again=True)


@pytest.mark.parametrize(
    "attention", [each for each in ATTENTIONS if each.name in ON_A_CPU], ids=lambda each: each.name
)
def test_a_wrong_output_has_a_large_error(attention):
    problem = problem_of(Case(batch=3, prefix=9, num_nodes=6), Heads(4, 2, 16), 2, CPU)
    prepared = attention.prepare(problem)
    output = prepared.arranged(prepared.calls[0]())
    assert largest_error(problem, output) < TOLERANCE
    assert largest_error(problem, prepared.arranged(prepared.calls[1]())) > 0.5  # of another layer
    for dim in range(3):
        assert largest_error(problem, output.flip(dim)) > 0.1
    output[1, 2, 3, 4] = torch.nan
    assert math.isnan(largest_error(problem, output))


def test_the_grid_and_its_bytes():
    assert len(CASES) == 63 and len(set(CASES)) == 63
    case = Case(batch=8, prefix=8192, num_nodes=1)
    assert case in CASES and case.kv_bytes(LLAMA_8B) == 8 * 8193 * 8 * 128 * 2 * 2
    assert case.min_bytes(LLAMA_8B) - case.kv_bytes(LLAMA_8B) == 8 * 32 * 128 * 2 * 2
    assert Case(1, 1024, 1).num_layers(LLAMA_8B) == 128 and Case(64, 32768, 64).num_layers(LLAMA_8B) == 1


def test_figures_compare_rows_of_one_run():
    def row(name, num_nodes, us, run=0, size=300e6):
        return {"name": name, "run": run, "batch": 8, "prefix": 8192, "num_nodes": num_nodes, "us": us, "bytes": size,
                "share": 50 / us}  # fmt: skip

    rows = [
        row(OURS, 1, 60.0),
        row(OURS, 64, 90.0),
        row("sdpa", 1, 120.0),
        row("sdpa", 64, 720.0),
        row(OURS, 16, 1.0, 1),
    ]
    values = {figure["figure"]: figure["value"] for figure in figures([*rows, {**rows[0], "run": 1, "bytes": 1.0}])}
    assert values == {
        "smallest share of the read ceiling, 1 node, from 256 MB on": pytest.approx(50 / 60),
        "largest T(16) / T(1)": pytest.approx(1 / 60),
        "largest T(64) / T(1)": 1.5,
        "speed-up over sdpa, geometric mean": pytest.approx(4.0),
    }
    assert set(values) < set(GOALS)


def test_results_need_no_file():
    results = Results(None, is_dry=True, is_new=False)
    results.value["runs"] = [{}]
    results.add({"name": OURS, **Case(1, 2, 3)._asdict(), "skipped": "because"})
    assert results.has(OURS, Case(1, 2, 3), 0) and not results.has(OURS, Case(1, 2, 3), 1)
