"""A benchmark that is killed with SIGKILL again and again, one that several processes share, and a target that is."""

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from specdec.experiments.bench.store import key_of, read_header, read_records
from tests.project import ROOT

SWEEP = "--drafter ngram,draft_model --num-speculative-tokens 2 --repeats 2 --max-new-tokens 6 --dtype float32"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def words(folders):
    return f"{model_words(folders)} --device cpu".split()


def model_words(folders):
    return f"bench --target {folders}/target --draft {folders}/draft --prompts {folders}/prompts.jsonl {SWEEP}"


def started(*command):
    """What a command prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def figures(folder):
    """Every run that counts, by its key, without times: a baseline may be there for each process, all of them equal."""
    header, (records, warnings) = read_header(folder), read_records(folder)
    assert warnings == []
    baselines = {arm["baseline"] for arm in header["arms"]}
    repeated = {key: count for key, count in Counter(map(key_of, records)).items() if count > 1}
    assert all(key[0] in baselines for key in repeated)
    found = {}
    for record in records:
        mine = [(each["prompt"], each["tokens"], each["steps"], each.get("difference")) for each in record["requests"]]
        assert found.setdefault(key_of(record), mine) == mine
    return found, header["arms"]


@pytest.mark.parametrize("seed, kills", [(0, 6), pytest.param(1, 20, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_counted_twice(specdec, words, tmp_path, seed, kills):
    assert specdec(" ".join([*words, "--out", f"{tmp_path}/whole"])).exit_code == 0
    settings = json.dumps({"seed": seed, "kills": kills})
    printed = started("-m", "tests.toys.killed", settings, *words, "--out", tmp_path / "killed")
    result = json.loads(printed.strip().splitlines()[-1])
    assert result["last"] == 0 and set(result["codes"]) <= {0, -9} and -9 in result["codes"]
    assert figures(tmp_path / "killed") == figures(tmp_path / "whole")


def test_two_processes_give_what_one_gives(specdec, words, tmp_path):
    assert specdec(" ".join([*words, "--out", f"{tmp_path}/one"])).exit_code == 0
    launch = "-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no"
    options = (
        "--dynamo_backend no --main_process_port 0 -m specdec"  # on a machine without GPUs it starts two on the CPU
    )
    printed = started(*launch.split(), *options.split(), *words, "--out", tmp_path / "two")
    assert printed.count("3 arms in 1 cell, 3 prompts, 2 repeats: 18 runs") == 1
    files = sorted(path.name for path in (tmp_path / "two").glob("records-*.jsonl"))
    assert files == ["records-0.jsonl", "records-1.jsonl"]
    assert all((tmp_path / "two" / name).stat().st_size for name in files)
    assert figures(tmp_path / "two") == figures(tmp_path / "one")
    # Another number of processes goes on where those have stopped.
    path = tmp_path / "two" / "records-1.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert specdec(" ".join([*words, "--out", f"{tmp_path}/two"])).exit_code == 0
    assert figures(tmp_path / "two") == figures(tmp_path / "one")


def test_a_target_over_two_processes_writes_the_same_texts(specdec, folders, tmp_path):
    """Tensor parallelism: both run everything, one writes. Sums in another order may part texts, at ties only."""
    words = model_words(folders).split()
    launch = "-m torch.distributed.run --nproc-per-node 2 --master-port 0 --standalone -m specdec".split()
    started(*launch, *words, "--tp-plan", "auto", "--out", tmp_path / "two")
    assert [path.name for path in (tmp_path / "two").glob("records-*.jsonl")] == ["records-0.jsonl"]
    records, warnings = read_records(tmp_path / "two")
    assert warnings == [] and len(records) == 3 * 3 * 2
    found = [request["difference"] for each in records for request in each["requests"] if "difference" in request]
    assert len(found) == 2 * 3 * 2 and all(each is None or each["is_tie"] for each in found)


def test_tensor_parallelism_wants_processes(specdec, folders, tmp_path):
    finished = specdec(f"{model_words(folders)} --tp-plan auto --out {tmp_path}/one")
    assert finished.exit_code == 1 and "torchrun --nproc-per-node 2" in finished.stderr


def test_a_target_laid_out_by_a_device_map_writes_the_same_texts(specdec, folders, tmp_path):
    words = model_words(folders)
    assert specdec(f"{words} --out {tmp_path}/one").exit_code == 0
    assert specdec(f"{words} --device-map auto --out {tmp_path}/map").exit_code == 0
    assert figures(tmp_path / "map") == figures(tmp_path / "one")
    for both, message in (
        ("--device cpu", "got both, 'cpu' too"),
        ("--tp-plan auto", "expected device_map or tp_plan"),
    ):
        finished = specdec(f"{words} --device-map auto {both} --out {tmp_path}/no")
        assert finished.exit_code == 1 and message in finished.stderr
