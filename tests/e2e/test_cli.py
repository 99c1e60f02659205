"""The commands: what they print and write."""

import json
import sysconfig

import pytest
import torch
from transformers import AutoTokenizer, BloomConfig, BloomForCausalLM, LlamaForCausalLM

from specdec.experiments import compare_view, contenders
from specdec.experiments.compare import Comparison, Row
from specdec.experiments.statistics import Speedup

TEXT = "def f(x):\n    return x\n\nOnce upon a time, there was a small dog. The dog was happy. "
ROW_KEYS = {
    "method", "num_prompts", "num_tokens", "tokens_per_second", "tokens_per_step", "acceptance_rate", "speedup",
    "speedup_low", "speedup_high", "identical", "first_difference", "seconds",
}  # fmt: skip


PAIR = "--target @target --draft @draft"
COMPARE = f"compare {PAIR} --prompts @prompts.jsonl --max-new-tokens 10 --repeats 1"


def result_of(finished, path):
    assert finished.exit_code == 0, finished.output
    return json.loads(path.read_text())


def test_compare_writes_every_figure(specdec, tmp_path):
    finished = specdec(f"{COMPARE} --num-prompts 2 --json {tmp_path}/c.json")
    found = result_of(finished, tmp_path / "c.json")
    assert [row["method"] for row in found["rows"]] == [
        "transformers", "transformers assisted", "transformers prompt lookup", "specdec plain", "specdec ngram",
        "specdec draft_model", "specdec draft_model tree",
    ]  # fmt: skip
    for row in [*found["rows"], *found["by_category"]["story"], *found["by_category"]["code"]]:
        assert set(row) == ROW_KEYS
        assert row["identical"] is True and row["first_difference"] is None
        assert row["tokens_per_second"] > 0 and row["tokens_per_step"] >= 1
        assert sum(row["seconds"].values()) == pytest.approx(
            (1 + ("draft" in row["seconds"])) * row["seconds"]["total"]
        )
    baseline, *others = found["rows"]
    assert (baseline["speedup"], baseline["tokens_per_step"], baseline["acceptance_rate"]) == (1.0, 1.0, None)
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in others)  # three prompts
    assert [row["num_prompts"] for row in found["by_category"]["code"]] == [1] * 7
    assert found["by_category"]["code"][1]["speedup_low"] is None
    assert found["environment"]["torch"] == torch.__version__.split("+")[0] or found["environment"]["torch"]
    assert found["settings"]["prompts"] == ["a1", "a2", "b1"] and found["models"]["dtype"] == "float32"
    assert {"tokens_per_step", "speedup", "identical"} <= set(found["definitions"])
    assert "specdec draft_model" in finished.stdout and "speed-up" in finished.stdout


def test_compare_runs_first_turns_of_chosen_categories_and_says_so(specdec, tmp_path):
    (tmp_path / "talks.csv").write_text('category,turns\na,"[""The dog"", ""was""]"\nb,"[""Once""]"\na,"[""f(x)""]"\n')
    line = f"compare --target @target --prompts {tmp_path}/talks.csv --category a --num-prompts 1 --methods ngram"
    finished = specdec(f"{line} --max-new-tokens 4 --repeats 1 --json {tmp_path}/c.json")
    assert result_of(finished, tmp_path / "c.json")["settings"]["prompts"] == ["talks-1"]
    assert "Of 1 prompts with several turns the first turn was run, not the others." in finished.stdout


def test_compare_takes_the_categories_that_the_embedded_models_learnt(specdec, tmp_path):
    line = "compare --num-prompts 1 --max-new-tokens 2 --repeats 1 --methods ngram"
    found = result_of(specdec(f"{line} --json {tmp_path}/c.json"), tmp_path / "c.json")
    assert found["settings"]["prompts"] == ["story-01", "prose-01", "code-01"]


def test_compare_sampled_holds_ours_against_our_plain_decoding(specdec, tmp_path):
    options = f"--temperature 0.8 --seed 3 --methods ngram,assisted,draft_model --json {tmp_path}/c.json"
    finished = specdec(f"{COMPARE} --num-prompts 1 {options}")
    rows = {row["method"]: row for row in result_of(finished, tmp_path / "c.json")["rows"]}
    assert list(rows) == [
        "transformers",
        "specdec plain",
        "specdec ngram",
        "transformers assisted",
        "specdec draft_model",
    ]
    assert rows["transformers"]["identical"] is rows["transformers assisted"]["identical"] is None
    assert all(rows[f"specdec {name}"]["identical"] for name in ("plain", "ngram", "draft_model"))
    assert "held against 'specdec plain'" in finished.stdout


def test_compare_without_a_draft_model_leaves_out_what_needs_one(specdec, tmp_path):
    line = "compare --target @target --prompts @prompts.jsonl --num-prompts 1 --max-new-tokens 4 --repeats 1"
    found = result_of(specdec(f"{line} --json {tmp_path}/c.json"), tmp_path / "c.json")
    assert [row["method"] for row in found["rows"]][-2:] == ["specdec plain", "specdec ngram"]


def test_heads_are_compared_and_generate_text(specdec, tmp_path):
    line = "compare --target @target --head @head --prompts @prompts.jsonl --num-prompts 1 --max-new-tokens 8"
    found = result_of(specdec(f"{line} --repeats 1 --json {tmp_path}/c.json"), tmp_path / "c.json")
    assert [row["method"] for row in found["rows"]][-2:] == ["specdec head", "specdec head tree"]
    assert all(row["identical"] for row in found["rows"])
    assert found["models"]["heads"] == {"head": found["models"]["target"].replace("target", "head")}
    line = f"generate --target @target --head @head --drafter head --max-new-tokens 8 --json {tmp_path}/g.json"
    found = result_of(specdec(line, "The dog was"), tmp_path / "g.json")
    assert found["drafter"] == "medusa" and found["metrics"]["num_drafted"] > 0


def test_embedded_heads_are_compared_with_the_embedded_target(specdec, tmp_path):
    line = "compare --num-prompts 1 --max-new-tokens 12 --repeats 1 --dtype float32 --methods eagle3,medusa,block"
    found = result_of(specdec(f"{line} --json {tmp_path}/c.json"), tmp_path / "c.json")
    rows = {row["method"]: row for row in found["rows"]}
    assert all(row["identical"] or row["first_difference"]["is_tie"] for row in rows.values())
    assert all(rows[f"specdec {name}"]["tokens_per_step"] > 1.2 for name in ("eagle3", "medusa", "block"))
    assert set(found["models"]["heads"].values()) == {"embedded"}


def test_compare_says_where_a_text_differs(specdec, monkeypatch, tmp_path):
    """A method that writes something else is called out, not averaged away."""
    honest = contenders._generate

    def lying(model, ids, kwargs):
        output = honest(model, ids, kwargs)
        if kwargs.get("prompt_lookup_num_tokens"):
            output[0, ids.shape[1] + 2] += 1
        return output

    monkeypatch.setattr(contenders, "_generate", lying)
    finished = specdec(f"{COMPARE} --num-prompts 1 --json {tmp_path}/c.json --methods", "prompt lookup,ngram")
    rows = {row["method"]: row for row in result_of(finished, tmp_path / "c.json")["rows"]}
    assert rows["specdec ngram"]["identical"] is True
    wrong = rows["transformers prompt lookup"]
    assert wrong["identical"] is False and wrong["first_difference"]["position"] == 2
    assert wrong["first_difference"]["margin"] > 0 and wrong["first_difference"]["is_tie"] is False
    assert "differs on a1 after 2 tokens" in finished.stdout and "not a tie" in finished.stdout


def test_generate_prints_what_transformers_writes(specdec, folders, tmp_path):
    finished = specdec(f"generate {PAIR} --max-new-tokens 12 --json {tmp_path}/g.json", "The dog was")
    found = result_of(finished, tmp_path / "g.json")
    model = LlamaForCausalLM.from_pretrained(folders / "target")
    tokenizer = AutoTokenizer.from_pretrained(folders / "target")
    inputs = tokenizer("The dog was", return_tensors="pt")
    expected = tokenizer.decode(
        model.generate(**inputs, max_new_tokens=12, do_sample=False)[0], skip_special_tokens=True
    )
    assert "The dog was" + found["text"] == expected
    assert finished.stdout.startswith(expected + "\ntokens by")
    assert "\x1b" not in finished.stdout
    assert sum(found["tokens_by_source"].values()) == found["metrics"]["num_tokens"]
    assert found["finish_reason"] in ("length", "eos") and found["drafter"] == "draft_model"


@pytest.mark.parametrize("drafter", ["ngram", "none", "draft_model"])
def test_same_seed_same_text_whoever_drafts(specdec, drafter, tmp_path):
    line = f"generate {PAIR} --temperature 0.9 --seed 5 --max-new-tokens 12 --json {tmp_path}/g.json --drafter"
    texts = [result_of(specdec(line, name, "The dog"), tmp_path / "g.json")["text"] for name in (drafter, "ngram")]
    assert texts[0] == texts[1]


def test_generate_ends_at_a_stop_string(specdec, tmp_path):
    line = f"generate {PAIR} --max-new-tokens 20 --json {tmp_path}/g.json"
    whole = result_of(specdec(line, "The dog was"), tmp_path / "g.json")["text"]
    stop = whole[3:5]
    found = result_of(specdec(line, "The dog was", "--stop", stop), tmp_path / "g.json")
    assert found["finish_reason"] == "stop_string" and whole.startswith(found["text"])
    assert stop in found["text"] and len(found["text"]) < len(whole)


def test_doctor_reads_the_tables_that_act(specdec, tmp_path):
    finished = specdec(f"doctor {PAIR} --json {tmp_path}/d.json")
    found = result_of(finished, tmp_path / "d.json")
    assert found["target"]["passed"] and found["target"]["reason"] is None
    assert {"ngram", "draft_model"} <= set(found["drafters"])
    assert found["rules"]["sample_and_match"]["level"] == "PATHWISE"
    assert "num_beams" in found["refused"]["options"]
    assert "self-check" in finished.stdout and "passed" in finished.stdout


def test_doctor_says_why_a_model_is_refused(specdec, folders, tmp_path):
    config = BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=2)
    BloomForCausalLM(config).save_pretrained(tmp_path / "bloom")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "bloom" / name).write_bytes((folders / "target" / name).read_bytes())
    finished = specdec(f"doctor --target {tmp_path}/bloom")
    assert finished.exit_code == 1
    assert "FAILED" in finished.stdout and "ALiBi" in finished.stdout


def test_train_lm_makes_a_model_that_generate_takes(specdec, tmp_path, monkeypatch):
    corpora, library = tmp_path / "corpora", tmp_path / "library"
    (corpora / "books").mkdir(parents=True)
    library.mkdir()
    for index in range(80):
        (corpora / "books" / f"b{index}.md").write_text(f"Chapter {index}.\n\nIt was a dark\nnight. " * 4)
        (library / f"m{index}.py").write_text(f"def f_{index}(x):\n    return x + {index}\n" * 5)
    stories = [f"Once upon a time number {i}, there was a dog. {TEXT} {TEXT} {TEXT}" for i in range(120)]
    (corpora / "tinystories_2M.txt").write_text("<|endoftext|>".join(stories))
    (corpora / "tinystories_lowercase_4M.txt").write_text("\n".join(story.lower() for story in stories[:3]))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(library)})
    sizes = "--hidden-size 64 --num-heads 1 --num-kv-heads 1 --num-layers 1 --intermediate-size 32 --context 64"
    short = "--vocab-size 300 --sequence-length 16 --batch-size 2 --max-tokens 96"
    line = f"train lm --corpora {corpora} --run {tmp_path}/run {sizes} {short}"
    finished = specdec(line)
    assert finished.exit_code == 0, finished.output
    finished = specdec(f"generate --target {tmp_path}/run/model --max-new-tokens 4 Once")
    assert finished.exit_code == 0 and finished.stdout.startswith("Once")
    assert specdec(line).exit_code == 0  # a finished run is left as it is
    other = specdec(line.replace("--batch-size 2", "--batch-size 3"))
    assert other.exit_code == 1 and "error: expected the config of the run" in other.stderr


@pytest.mark.parametrize(
    "line", ["", "--help", "--version", "compare --help", "generate --help", "train lm --help", "train eagle3 --help"]
)
def test_help(specdec, line):
    finished = specdec(line)
    assert finished.exit_code == 0 and finished.stdout


def test_a_loss_is_told():
    """A method slower than the baseline is named with the reason."""

    def row(method, ratio, rate):
        seconds = {"total": 1.0, "draft": 0.4, "score": 0.5, "rule": 0.0, "cache": 0.0, "host": 0.1, "outside": 0.0}
        return Row(method, 3, 30, 10 * ratio, 1.5, rate, Speedup(ratio, None, None), True, None, seconds)

    rows = (row("transformers", 1.0, None), row("specdec ngram", 0.8, 0.2), row("specdec draft_model", 1.4, 0.7))
    comparison = Comparison(rows, {"code": rows}, "transformers", {})
    lines = list(compare_view._losses(comparison))
    assert lines == [
        "specdec ngram is no faster than transformers on all prompts 0.80x, code 0.80x: "
        "1.50 tokens per step, 40 % of the time spent on drafts."
    ]
