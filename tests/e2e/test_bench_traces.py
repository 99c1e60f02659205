"""`specdec bench --trace`: what replay says of a traced arm is what the arm did."""

import json

import pytest

from specdec.experiments.bench.store import SUMMARY
from specdec.experiments.trace.sweep import read_traces
from specdec.types import Exactness

BENCH = "bench --target @target --draft @draft --prompts @prompts.jsonl --dtype float64 --max-new-tokens 10 --trace"
SWEEP = """
num_speculative_tokens = [1, 2, 4]
temperature = [0.0, 1.0]
drafter = ["ngram", "draft_model", {method = "draft_model", draft_sample_method = "probabilistic"}]
"""


@pytest.fixture
def summary(specdec, tmp_path):
    (tmp_path / "sweep.toml").write_text(SWEEP)
    finished = specdec(f"{BENCH} {tmp_path}/sweep.toml --batch-size 2 --out {tmp_path}/out")
    assert finished.exit_code == 0, finished.output
    assert "specdec replay" in finished.output
    return json.loads((tmp_path / "out" / SUMMARY).read_text())


def test_replayed_lengths_are_those_of_the_runs(specdec, summary, tmp_path):
    finished = specdec(f"replay {tmp_path}/out --num-speculative-tokens 1,2,4 --json {tmp_path}/replay.json")
    assert finished.exit_code == 0, finished.output
    result = json.loads((tmp_path / "replay.json").read_text())
    traced = {trace.arm for trace in read_traces([tmp_path / "out"])}
    arms = {arm["id"]: arm for arm in summary["arms"]}
    longest = [arm["num_speculative_tokens"] for arm in summary["arms"] if arm["id"] in traced]
    assert longest == [4] * 5  # greedily, drawn and likeliest drafts are the same
    compared = 0
    for row in result["rows"]:
        about = arms[row["arm"]]
        drawn = about["drafter"].get("draft_sample_method")
        (live,) = [
            arm["overall"]["tokens_per_step"]["value"]
            for arm in summary["arms"]
            if arm["drafter"] is not None
            and (arm["cell"], arm["drafter_name"]) == (about["cell"], about["drafter_name"])
            and arm["drafter"].get("draft_sample_method") == drawn
            and arm["num_speculative_tokens"] == row["num_speculative_tokens"]
        ]
        if about["level"] == Exactness.DISTRIBUTION.value:
            assert 1 <= row["tokens_per_step"] <= 1 + row["num_speculative_tokens"]  # of another text
        else:
            assert row["tokens_per_step"] == pytest.approx(live) and row["is_exact"]
            compared += 1
    assert compared == 4 * 3


def test_drawn_trees_are_left_out(specdec, tmp_path):
    tree = '{method = "draft_model", draft_sample_method = "probabilistic", num_tree_nodes = 4}'
    (tmp_path / "sweep.toml").write_text(f'temperature = 1.0\nnum_speculative_tokens = 2\ndrafter = ["ngram", {tree}]')
    finished = specdec(f"{BENCH} {tmp_path}/sweep.toml --out {tmp_path}/out")
    assert finished.exit_code == 0, finished.output
    assert {trace.header["drafter_name"] for trace in read_traces([tmp_path / "out"])} == {"ngram"}
