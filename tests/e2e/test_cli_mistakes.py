"""Every mistake gets one line, expected / got / remedy, a non-zero exit, and leaves nothing half-written."""

import os
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from specdec import cli

PAIR = "--target @target --draft @draft"
COMPARE = f"compare {PAIR} --prompts @prompts.jsonl --max-new-tokens 10 --repeats 1"


def assert_one_line(finished, exit_code, message):
    assert finished.exit_code == exit_code, finished.output
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), finished.stderr
    assert message in lines[0]
    assert "Traceback" not in finished.output


MISTAKES = {
    "unknown command": ("comprae", 2, "No such command 'comprae'"),
    "unknown option": (f"{COMPARE} --bogus 1", 2, "--bogus"),
    "not a number": (f"{COMPARE} --repeats many", 2, "'--repeats'"),
    "too small": (f"{COMPARE} --num-speculative-tokens 0", 2, "'--num-speculative-tokens'"),
    "unknown method": (f"{COMPARE} --methods ngrm", 1, "expected a known method, got 'ngrm'; did you mean 'ngram'?"),
    "method without its model": (
        "compare --target @target --prompts @prompts.jsonl --methods draft_model", 1, "need --draft"),
    "unknown drafter": (f"generate {PAIR} --max-new-tokens 4 --drafter ngrm", 1, "got 'ngrm'; did you mean 'ngram'?"),
    "drafter without its model": ("generate --target @target --drafter draft_model", 1, "pass --draft FOLDER"),
    "wrong dtype": (f"{COMPARE} --dtype bf16", 1, "expected a dtype of bfloat16, float16"),
    "wrong device": (f"{COMPARE} --device gpu:0", 1, "got 'gpu:0'; try cpu"),
    "no such target": ("compare --target @nowhere", 1, "there is no such folder"),
    "no such category": (f"{COMPARE} --category story,poem", 1, "expected categories of story, code, got 'poem'"),
    "no such prompts": (f"compare {PAIR} --prompts @nowhere.jsonl", 1, "pass --prompts FILE"),
    "no such head": ("compare --target @target --head @nowhere --prompts @prompts.jsonl", 1, "there is no such folder"),
    "no head": ("compare --target @target --head @draft --prompts @prompts.jsonl", 1, "expected a head in"),
    "heads of one name": (
        "compare --target @target --head @head --head x/head --prompts @prompts.jsonl", 1, "rename a folder"),
    "no such draft model": ("compare --target @target --draft @nowhere", 1, "there is no such folder"),
    "other tokens": ("compare --target @target --draft @other --prompts @prompts.jsonl", 1, "vocabular"),
    "prompt beyond the context": (f"{COMPARE} --max-new-tokens 500", 1, "within the context of 128"),
    "text beyond the context": (f"generate {PAIR} --max-new-tokens 500 x", 1, "within the context of 128"),
    "folder of the result is missing": (f"{COMPARE} --json @nowhere/c.json", 1, "a folder that exists"),
    "result is a folder": (f"{COMPARE} --json @target", 1, "expected a file to write, got a folder"),
    "top-p out of range": (f"{COMPARE} --temperature 1 --top-p 7", 2, "'--top-p'"),
    "no corpora": ("train lm --corpora @nowhere --run @run", 1, "pass --corpora FOLDER"),
}  # fmt: skip


@pytest.mark.parametrize("line, exit_code, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(specdec, folders, line, exit_code, message):
    before = sorted(str(path) for path in folders.rglob("*"))
    assert_one_line(specdec(line), exit_code, message)
    assert sorted(str(path) for path in folders.rglob("*")) == before


def test_an_empty_prompt_is_one_line(specdec):
    assert_one_line(specdec(f"generate {PAIR}", ""), 1, "expected a prompt of at least one token")


@pytest.mark.parametrize(
    "content, message",
    [
        ("", "expected at least one prompt"),
        ("{nope", "expected {"),
        ('{"id": 1, "task": "t", "turns": "a"}', "expected turns that are texts, got a at"),
        ('{"id": 1, "words": "a"}', "got id, words at"),
        ('{"id": 1, "task": "t", "turns": [" "]}', "got an empty prompt"),
        ('{"id": 1, "task": "t", "turns": ["a"]}\n{"id": 1, "task": "t", "turns": ["b"]}', "expected each id once"),
    ],
)
def test_prompts_that_are_no_prompts(specdec, tmp_path, content, message):
    (tmp_path / "p.jsonl").write_text(content)
    assert_one_line(specdec(f"compare {PAIR} --prompts {tmp_path}/p.jsonl"), 1, message)


def damaged(folder, target, change):
    """A copy of the target after `change(weights, folder)`."""
    folder.mkdir()
    for path in target.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    change(weights, folder)
    if (folder / "model.safetensors").exists():
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_them(weights, folder):
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


NORM = "model.layers.1.input_layernorm.weight"
DAMAGE = {
    "missing": (lambda weights, folder: weights.pop(NORM), f"got 1 missing in .*{NORM}"),
    "surplus": (lambda weights, folder: weights.update({"bogus": torch.zeros(2)}), "got 1 unexpected in .*bogus"),
    "other shape": (lambda weights, folder: weights.update({NORM: torch.zeros(3)}), f"got 1 mismatched in .*{NORM}"),
    "pickled": (pickle_them, "expected a causal LM with safetensors"),
    "no config": (lambda weights, folder: (folder / "config.json").unlink(), "expected a causal LM"),
    "no tokenizer": (lambda weights, folder: [p.unlink() for p in folder.glob("tokenizer*")], "expected a tokenizer"),
}


@pytest.mark.parametrize("change, message", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused(specdec, folders, tmp_path, change, message):
    damaged(tmp_path / "damaged", folders / "target", change)
    finished = specdec(f"generate --target {tmp_path}/damaged x")
    assert_one_line(finished, 1, "expected ")
    assert re.search(message, finished.stderr), finished.stderr


def test_truncated_weights_are_refused(specdec, folders, tmp_path):
    damaged(tmp_path / "damaged", folders / "target", lambda weights, folder: None)
    os.truncate(tmp_path / "damaged" / "model.safetensors", 1000)
    assert_one_line(specdec(f"generate --target {tmp_path}/damaged x"), 1, "expected a causal LM with safetensors")


def test_interrupt_is_a_clean_line(specdec, monkeypatch, tmp_path):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run_comparison", interrupted)
    finished = specdec(f"{COMPARE} --json {tmp_path}/c.json")
    assert finished.exit_code == 130
    assert finished.stderr.strip().endswith("interrupted") and "Traceback" not in finished.output
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(specdec):
    finished = specdec("generate --target @nowhere --debug")
    assert isinstance(finished.exception, ValueError) and finished.exc_info[2] is not None


def test_a_failed_write_leaves_the_old_result(specdec, monkeypatch, tmp_path):
    (tmp_path / "g.json").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError("disk full")))
    finished = specdec(f"generate {PAIR} --max-new-tokens 2 --json {tmp_path}/g.json x")
    assert_one_line(finished, 1, "disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["g.json"] and (tmp_path / "g.json").read_text() == "old"
