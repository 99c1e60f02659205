"""The script for machines with a GPU: its steps, what it does when they fail, and that it skips what is done."""

import json
from pathlib import Path

import pytest
import torch

from specdec.experiments import gpu_run

REPORT = """<testsuites><testsuite>
<testcase classname="tests.gpu.a" name="one" /><testcase classname="tests.gpu.a" name="two" />
<testcase classname="tests.gpu.b" name="three"><skipped message="needs a CUDA device">x</skipped></testcase>
{more}</testsuite></testsuites>"""
FAILURE = '<testcase classname="tests.gpu.b" name="four"><failure message="assert 1 == 2">lines</failure></testcase>'


def run(folder, **options):
    limits = {"test_limit": 200.0, "bench_limit": 100.0, "system_limit": 100.0}
    gpu_run.main(folder, **{"dry": True, "again": False, **limits, **options})


@pytest.mark.slow
def test_a_dry_run_takes_every_step_once(tmp_path, capfd):
    run(tmp_path / "new" / "results")
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / "new" / "results").iterdir()}
    assert set(found) == {"gpu_tests.json", "kernel_bench.json", "system_bench.json"}
    assert all(result["complete"] and result["dry"] for result in found.values())
    tests = found.pop("gpu_tests.json")
    assert tests["problem"] is None and tests["failed"] == [] and tests["environment"]["torch"]
    assert list(tests["skipped"]) == ([] if torch.cuda.is_available() else ["needs a CUDA device"])
    assert all(bench["rows"] and bench["runs"][0]["environment"]["torch"] for bench in found.values())
    capfd.readouterr()
    run(tmp_path / "new" / "results")
    printed = capfd.readouterr().out.splitlines()
    assert len(printed) == 3 and all(line.endswith("complete (done before)") for line in printed)


@pytest.fixture
def stand_in(monkeypatch):
    """Steps that end as they are told, instead of processes."""
    told = {"code": 0, "report": REPORT.format(more=""), "runs": []}

    def stand_in(arguments, limit):
        told["runs"].append((arguments[0], limit))
        if arguments[0] == "pytest":
            (report,) = [word.partition("=")[2] for word in arguments if word.startswith("--junitxml=")]
            if told["report"]:
                Path(report).write_text(told["report"])
            return told["code"], "the end"
        Path(arguments[arguments.index("--json") + 1]).write_text('{"complete": true, "dry": true}')
        return 0, ""

    monkeypatch.setattr(gpu_run, "_run", stand_in)
    return told


def test_failures_are_written_and_remembered(tmp_path, stand_in):
    stand_in.update(code=1, report=REPORT.format(more=FAILURE))
    for _ in range(2):
        with pytest.raises(SystemExit, match="error: 1 tests failed$"):
            run(tmp_path)
    found = json.loads((tmp_path / "gpu_tests.json").read_text())
    assert (found["num_passed"], found["skipped"]) == (2, {"needs a CUDA device": 1})
    assert found["failed"] == [{"test": "tests.gpu.b::four", "message": "assert 1 == 2", "text": "lines"}]
    assert stand_in["runs"] == [
        ("pytest", 200.0),
        ("specdec.experiments.kernel_bench", 100.0 + gpu_run.GRACE["kernel_bench"]),
        ("specdec.experiments.system_bench", 100.0 + gpu_run.GRACE["system_bench"]),
    ]
    stand_in.update(code=0, report=REPORT.format(more=""))
    run(tmp_path, again=True)
    assert json.loads((tmp_path / "gpu_tests.json").read_text())["failed"] == []


@pytest.mark.parametrize(
    ("code", "message"), [(None, "the tests took more than 200 s"), (4, "no test passed, and pytest ended with code 4")]
)
def test_tests_that_did_not_end_are_run_again(tmp_path, stand_in, code, message):
    stand_in.update(code=code, report=None)
    with pytest.raises(SystemExit, match=message):
        run(tmp_path)
    found = json.loads((tmp_path / "gpu_tests.json").read_text())
    assert not found["complete"] and found["output"] == "the end"
    stand_in.update(code=0, report=REPORT.format(more=""))
    run(tmp_path)
    assert [name for name, _ in stand_in["runs"]].count("pytest") == 2


def test_a_dry_run_is_none_of_a_real_one(tmp_path, stand_in, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_run, "environment", dict)
    run(tmp_path, dry=False)
    assert len(stand_in["runs"]) == 6
    assert json.loads((tmp_path / "gpu_tests.json").read_text())["dry"] is False


def test_a_step_without_time_is_left_to_another_call(tmp_path, stand_in, capsys):
    run(tmp_path, test_limit=0, system_limit=0)
    assert [name for name, _ in stand_in["runs"]] == ["specdec.experiments.kernel_bench"]
    assert capsys.readouterr().out.count("left out") == 2
    run(tmp_path)
    assert [name for name, _ in stand_in["runs"][1:]] == ["pytest", "specdec.experiments.system_bench"]


def test_a_benchmark_that_fails_is_named(tmp_path, stand_in, monkeypatch):
    ended = iter([(1, ""), (None, "")])
    taken = gpu_run._run
    monkeypatch.setattr(
        gpu_run, "_run", lambda words, limit: taken(words, limit) if words[0] == "pytest" else next(ended)
    )
    with pytest.raises(SystemExit, match="error: kernel_bench ended with code 1; system_bench did not end in time$"):
        run(tmp_path)


def test_a_process_has_its_time_and_its_end_is_kept(monkeypatch):
    monkeypatch.setenv("SPECDEC_KERNELS", "reference")
    assert gpu_run._run(["timeit", "-n1", "-r1", "import time; time.sleep(60)"], 1.0) == (None, "")
    code, output = gpu_run._run(["timeit", "-n1", "-r1", "import os; print(os.environ.get('SPECDEC_KERNELS'))"], 60.0)
    assert code == 0 and output.startswith("None\n1 loop")


def test_without_a_gpu_it_says_so(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="expected a GPU, got none; pass --dry"):
        gpu_run.main(tmp_path / "results")
    assert not (tmp_path / "results").exists()
