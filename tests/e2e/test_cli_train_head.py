"""`specdec train medusa`, `eagle3` and `block`: from nothing or from files to a head that drafts."""

import json
import shutil

import pytest
import torch

import specdec as package
from specdec.checkpoints import load_model

SMALL = "--max-tokens 120 --response-length 10 --epochs 2 --batch-size 4 --sequence-length 32"
KINDS = {
    "medusa": "--num-heads 2",
    "eagle3": "--unroll 2 --draft-vocab-size 9 --feature-layers 1,0 --cache-gb 0.1",
    "block": "--block-size 3 --num-anchors 4 --markov-rank 2 --confidence",
}


def result_of(finished, path):
    assert finished.exit_code == 0, finished.output
    return json.loads(path.read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_trained_from_nothing_and_drafts(specdec, folders, tmp_path, kind):
    line = f"train {kind} --target @target --run {tmp_path}/run --prompts @prompts.jsonl {SMALL} {KINDS[kind]}"
    finished = specdec(f"{line} --json {tmp_path}/r.json")
    found = result_of(finished, tmp_path / "r.json")
    assert f"trained: {tmp_path}/run/head" in finished.stdout.replace("\n", "")
    assert found["kind"] == kind and found["num_texts"] == 12 and found["tokens_per_step"] >= 1
    assert (found["known_share"] < 1) == (kind == "eagle3")
    assert (tmp_path / "run" / "responses" / "features").is_dir() == (kind == "eagle3")
    target = load_model(f"{folders}/target")
    drafter, prompt = package.load_drafter(f"{tmp_path}/run/head", target), torch.tensor([[3, 4, 5]])
    text = package.generate(target, prompt, drafter=drafter, max_new_tokens=8, do_sample=False)
    assert torch.equal(text, target.generate(prompt, max_new_tokens=8, do_sample=False))
    assert specdec(line).exit_code == 0  # a finished run is left as it is


def test_responses_are_shared_between_runs(specdec, tmp_path):
    data = [json.dumps({"text": f"{number} The dog was happy. " * 5}) for number in range(60)]
    (tmp_path / "texts.jsonl").write_text("\n".join(data))
    line = f"train medusa --target @target {SMALL} --temperature 0 --run {tmp_path}"
    written = result_of(
        specdec(f"{line}/first --data {tmp_path}/texts.jsonl --json {tmp_path}/r.json"), tmp_path / "r.json"
    )
    again = result_of(
        specdec(f"{line}/second --responses {tmp_path}/first/responses --json {tmp_path}/r.json"), tmp_path / "r.json"
    )
    same = ("tokens_per_step", "step", "num_texts", "num_response_tokens")
    assert [again[name] for name in same] == [written[name] for name in same]
    assert not (tmp_path / "second" / "responses").exists()
    logs = [(tmp_path / name / "log.jsonl").read_text() for name in ("first", "second")]
    assert logs[0] == logs[1]


MISTAKES = {
    "nothing to write on from": ("--temperature 0", "expected --data to be continued greedily, got none"),
    "both": ("--responses @target --data @prompts.jsonl", "expected --responses or --data, got both"),
    "no responses": ("--responses @target", "expected a folder of responses"),
    "no data": ("--data @nowhere.txt", "expected a .txt, .md or .jsonl file"),
    "long responses": ("--response-length 600", "lower --response-length"),
    "no layers": ("--feature-layers low,high", "expected --feature-layers like 1,6,10"),
    "a layer too high": ("--feature-layers 9", "expected feature_layers from 0 to 1"),
    "too large a vocabulary": ("--draft-vocab-size 9999", "expected --draft-vocab-size from 1 to"),
    "too few texts": ("--batch-size 50", "expected at least 50 texts for a batch, got 1"),
    "no text that long": ("--unroll 40", "expected texts of at least 42 tokens to learn 40 in a row, got none"),
    "a layer that cannot be written": ("--feature-layers 0,-1", "of which -1 is behind the last norm"),
    "too small a cache": ("--cache-gb 0.0000001", "raise --cache-gb"),
}


@pytest.mark.parametrize(("options", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(specdec, tmp_path, options, message):
    line = f"train eagle3 --target @target --run {tmp_path}/run --prompts @prompts.jsonl {SMALL}"
    finished = specdec(f"{line} {options}")
    assert finished.exit_code == 1, finished.output
    lines = finished.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], finished.stderr


def test_a_mask_token_is_one_of_the_targets(specdec, tmp_path):
    line = f"train block --target @target --run {tmp_path}/run --prompts @prompts.jsonl {SMALL}"
    finished = specdec(f"{line} --mask-token-id 9999")
    assert finished.exit_code == 1 and "error: expected --mask-token-id below" in finished.stderr


@pytest.fixture
def others(folders, tmp_path):
    """The target with one layer changed, and with fewer tokens."""
    for name in ("changed", "smaller"):
        shutil.copytree(folders / "target", tmp_path / name)
        model = load_model(str(folders / "target"))
        if name == "changed":
            torch.nn.init.ones_(model.model.layers[1].mlp.down_proj.weight)
        else:
            model.resize_token_embeddings(9)
        model.save_pretrained(tmp_path / name)


def test_a_run_goes_on_with_what_it_began_with(specdec, others, tmp_path):
    line = f"train medusa --prompts @prompts.jsonl {SMALL} --num-heads 2 --run {tmp_path}"
    assert specdec(f"{line}/run --target @target").exit_code == 0
    finished = specdec(f"{line}/run --target {tmp_path}/changed")
    assert finished.exit_code == 1 and "got another writer; pass the same options to go on" in finished.stderr
    responses = f"--responses {tmp_path}/run/responses"
    assert specdec(f"{line}/run --target @target {responses}").exit_code == 0
    finished = specdec(f"{line}/run --target {tmp_path}/changed {responses}")
    assert finished.exit_code == 1 and "expected the target, precision and responses that the run in" in finished.stderr
    finished = specdec(f"{line}/new --target {tmp_path}/smaller {responses}")
    assert finished.exit_code == 1 and "expected responses of the target's 9 tokens, got token" in finished.stderr
