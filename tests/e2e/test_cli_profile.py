"""specdec profile and specdec plan: what they print and write; every mistake is one line."""

import json

import pytest

from specdec.experiments.profile import machine
from specdec.experiments.profile.counting import counts_of
from specdec.zoo import load_embedded
from tests.e2e.test_cli_mistakes import assert_one_line

SIZES = "--prompt-lengths 4,9 --batch-sizes 1,2 --context-lengths 12 --widths 1,3 --draft-lengths 1,2 --repeats 1"
POINT = {"flops", "bytes", "intensity", "flops_per_second", "bytes_per_second", "roofline_seconds", "roofline_share"}
PLAN = "plan --profile @p.json"


@pytest.fixture(autouse=True)
def quick_machine(monkeypatch):
    """The roofs are not what is tested: they need no memory to defeat caches."""
    monkeypatch.setattr(machine, "PRODUCT_SIZES", {"cpu": (32, 64)})
    monkeypatch.setattr(machine, "cache_defeating_bytes", lambda: 1 << 20)


def run(specdec, line):
    finished = specdec(line)
    assert finished.exit_code == 0, finished.output
    return finished


def test_profile_measures_every_case(specdec, tmp_path):
    line = f"profile --target @target --draft @draft --head @head {SIZES} --tree-nodes 4"
    finished = run(specdec, f"{line} --json {tmp_path}/p.json --plot {tmp_path}/p.svg")
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["kind"], found["version"]) == ("profile", 1)
    assert found["environment"]["torch"] and found["definitions"] and found["settings"]["batch_sizes"] == [1, 2]
    roofs = found["machine"]
    assert roofs["ridge_flop_per_byte"] == roofs["peak_flops"] / roofs["bandwidth_bytes_per_second"] > 0
    assert [row["prompt_length"] for row in found["prefill"]] == [4, 9]
    assert [row["batch_size"] for row in found["decode"]] == [1, 2]
    widths = [1, 2, 3, 5]  # those asked for, of drafts of 1 and 2 tokens, and of the tree
    assert [(row["batch_size"], row["width"]) for row in found["verify"]] == [(b, w) for b in (1, 2) for w in widths]
    chains = [(name, k, None) for name in ("ngram", "draft_model", "head") for k in (1, 2)]
    settings = sorted([*chains, ("draft_model", 2, 4), ("head", 2, 4)], key=str)
    for batch in (1, 2):
        rows = [row for row in found["draft"] if row["batch_size"] == batch]
        got = [(row["drafter"], row["num_speculative_tokens"], row["num_tree_nodes"]) for row in rows]
        assert sorted(got, key=str) == settings
    for row in (*found["prefill"], *found["decode"], *found["verify"]):
        assert row.keys() >= POINT and row["bound"] in ("memory", "compute")
        assert 0 < row["seconds_low"] <= row["seconds_high"]
        assert row["intensity"] == row["flops"] / row["bytes"]
    assert all(row["ratio"] == 1 for row in found["verify"] if row["width"] == 1)
    assert "TTFT" in finished.output and "head k=2, tree of 4" in finished.output
    assert (tmp_path / "p.svg").read_text().startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.json", "p.svg"]


def test_a_random_model_of_a_shape_needs_no_tokenizer(specdec, tmp_path):
    run(specdec, f"profile --shape tiny --dtype float32 {SIZES} --json {tmp_path}/p.json --plot {tmp_path}/p.png")
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["model"]["target"], found["model"]["dtype"]) == ("random tiny", "float32")
    assert {row["drafter"] for row in found["draft"]} == {"ngram"}
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    finished = run(specdec, f"plan --profile {tmp_path}/p.json --acceptance-rate 0.5 --json {tmp_path}/plan.json")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert (plan["kind"], plan["version"], plan["acceptance"]) == ("plan", 1, "assumed: 0.5, independently")
    assert [row["batch_size"] for row in plan["best"]] == [1, 2] and plan["context_length"] == 12
    for row in plan["rows"]:
        step = row["seconds"]["total"]
        assert row["tokens_per_second"] == pytest.approx(row["batch_size"] * row["tokens_per_step"] / step)
    assert "Batch 1: " in finished.output and plan["advice"].startswith("Batch 1: ")
    assert "check" not in plan


@pytest.mark.slow
def test_plan_measures_acceptance_and_checks_itself(specdec, tmp_path):
    files = f"--profile {tmp_path}/p.json --json {tmp_path}/plan.json"
    run(specdec, f"profile {SIZES} --tree-nodes 3 --json {tmp_path}/p.json")
    profile = json.loads((tmp_path / "p.json").read_text())
    counts = counts_of(load_embedded()[0])
    assert profile["model"]["weight_bytes"] == counts.weight_bytes
    assert profile["model"]["kv_bytes_at_context"] == {"12": 12 * counts.kv_bytes}
    finished = run(specdec, f"plan {files} --check --num-prompts 1 --max-new-tokens 6 --repeats 1 --batch-sizes 1,2")
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["acceptance"].startswith("measured here: ")
    labels = {row["label"] for row in plan["rows"]}
    assert labels > {"plain", "ngram k=1", "draft_model k=2", "block k=2, tree of 3", "eagle3 k=1", "medusa k=2"}
    for batch in (1, 2):
        rows = [row for row in plan["check"] if row["batch_size"] == batch]
        assert rows[0]["label"] == "plain" and len(rows) == 4
        best = next(row for row in plan["rows"] if row["batch_size"] == batch and row["drafter"] is not None)
        assert rows[1]["label"] == best["label"]
        for row in rows:
            ratio = row["predicted_tokens_per_second"] / row["measured_tokens_per_second"]
            assert row["ratio"] == pytest.approx(ratio) and row["measured_tokens_per_second"] > 0
    assert "predicted / measured" in finished.output


@pytest.fixture
def profiled(folders):
    """A profile beside the models, of another target."""
    path = folders / "p.json"
    model = {"target": "elsewhere", "dtype": "float32", "device": "cpu"}
    rows = [
        {"context_length": 8, "batch_size": 1, "width": w, "pass_seconds": 1.0, "overhead_seconds": 0.0} for w in (1, 2)
    ]
    draft = {"drafter": "ngram", "num_speculative_tokens": 1, "num_tree_nodes": None, "batch_size": 1, "slowdown": 1.0}
    draft |= dict.fromkeys(("seconds", "seconds_low", "seconds_high", "overhead_seconds"), 0.1)
    settings = {"context_lengths": [8], "graphs": False}
    value = {"kind": "profile", "version": 1, "model": model, "environment": {}, "settings": settings}
    decode = [{"context_length": 8, "batch_size": 1, "seconds_per_round": 1.0}]
    path.write_text(json.dumps({**value, "decode": decode, "verify": rows, "draft": [draft]}))
    cut = folders / "cut.json"
    cut.write_text(json.dumps({**value, "decode": decode, "verify": rows[:1], "draft": [{"drafter": "ngram"}]}))
    yield path
    path.unlink()
    cut.unlink()


MISTAKES = {
    "no numbers": ("profile --batch-sizes 1,x", "expected --batch-sizes as numbers with commas, got '1,x'"),
    "nothing": ("profile --widths 0", "expected --widths of 1 or more, got '0'"),
    "a picture of no kind": ("profile --plot @p.gif", "expected --plot FILE in .png or .svg, got 'p.gif'"),
    "no folder for a picture": ("profile --plot @nowhere/p.png", "pass another --plot FILE"),
    "beyond the context": ("profile --target @target", "within the model's context of 128"),
    "unknown shape": ("profile --shape llama", "expected --shape llama-3.1-8b"),
    "shape and target": ("profile --shape tiny --target @target", "got --target beside it"),
    "shape and drafter": ("profile --shape tiny --head @head", "got --head beside it"),
    "shape of no dtype": ("profile --shape tiny --dtype bf16", "expected a dtype of bfloat16"),
    "shape nowhere": ("profile --shape tiny --device gpu:0", "expected a device this machine has"),
    "two acceptances": (f"{PLAN} --acceptance @x --acceptance-rate 0.5", "got both; drop one"),
    "no probability": (f"{PLAN} --acceptance-rate 1.5", "expected --acceptance-rate from 0 to 1"),
    "no profile": ("plan --profile @nowhere.json --acceptance-rate 0.5", "expected a profile result at"),
    "another file as profile": ("plan --profile @prompts.jsonl --acceptance-rate 0.5", "got no JSON in"),
    "a profile of another program": (
        "plan --profile @cut.json --acceptance-rate 0.5", "of a profile, got none that fits: KeyError"),
    "a model that nothing runs": (f"{PLAN} --acceptance-rate 0.5 --draft @draft", "got --draft; drop it, or run"),
    "no acceptance": (f"{PLAN} --acceptance @nowhere", "expected a bench-summary or replay result at"),
    "another model": (f"{PLAN}", "expected the target of the profile, 'elsewhere', got 'embedded'"),
    "empty batch": (f"{PLAN} --acceptance-rate 0.5 --batch-sizes 0", "expected --batch-sizes of 1 or more"),
}  # fmt: skip


@pytest.mark.parametrize("line, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(specdec, profiled, line, message):
    assert_one_line(specdec(line), 1, message)


def test_a_plan_from_a_file_runs_no_model(specdec, profiled, monkeypatch):
    monkeypatch.setattr("specdec.cli_profile.load_models", None)
    finished = run(specdec, f"{PLAN} --acceptance-rate 0.9")
    # 1.9 tokens in 1.2 seconds
    assert "draft with ngram k=1, 2 tokens/s, 1.58 times plain decoding" in " ".join(finished.output.split())
