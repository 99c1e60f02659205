"""`specdec bench`: what is written, what a second run adds, what is refused."""

import json
from collections import Counter

import pytest

from specdec.experiments.bench import bench as whole
from specdec.experiments.bench.store import key_of, read_header, read_records

BENCH = "bench --target @target --draft @draft --prompts @prompts.jsonl --dtype float32 --max-new-tokens 8"
ARM_KEYS = {
    "id", "label", "cell", "baseline", "system", "drafter", "drafter_name", "num_speculative_tokens", "num_tree_nodes",
    "verifier", "level", "is_lossless", "sampling", "batch_size", "dtype", "target", "max_new_tokens", "seed",
}  # fmt: skip


@pytest.fixture
def bench(specdec, tmp_path):
    """Runs a sweep into a folder; returns header and records, or what it said if it fails or may do either (None)."""

    def run(line="", out="out", code=0):
        finished = specdec(f"{BENCH} --out {tmp_path}/{out} {line}")
        if code is None:
            return finished
        assert finished.exit_code == code, finished.output
        if code:
            return finished
        records, warnings = read_records(tmp_path / out)
        assert warnings == []
        return read_header(tmp_path / out), records

    return run


def texts(records):
    return {key_of(each): [request["tokens"] for request in each["requests"]] for each in records}


def check(header, records):
    """What holds of every result."""
    arms = {arm["id"]: arm for arm in header["arms"]}
    for record in records:
        arm = arms[record["arm"]]
        group = header["groups"][str(arm["batch_size"])][record["group"]]
        assert [request["prompt"] for request in record["requests"] if request["turn"] == 0] == group
        assert record["seconds"] == pytest.approx(sum(call["seconds"] for call in record["calls"]))
        for request in record["requests"]:
            rounds = record["calls"][request["turn"]]["rounds"]
            check_request(arm, request, rounds)
            is_compared = arm["level"] != "same distribution as plain sampling" and arm["id"] != arm["baseline"]
            assert ("difference" in request) == is_compared
            assert request.get("difference") is None
    assert set(arms) == {record["arm"] for record in records}


def check_request(arm, request, rounds):
    assert request["finish_reason"] in ("length", "eos") and 1 <= len(request["tokens"]) <= arm["max_new_tokens"]
    if arm["system"] == "transformers":
        assert rounds is None and request["steps"] is None
        return
    steps = request["steps"]
    assert sum(steps["emitted"]) == len(request["tokens"])
    assert sum(steps["accepted"]) + len(steps["round"]) >= len(request["tokens"])
    assert all(0 <= index < len(rounds["ended"]) for index in steps["round"])
    assert rounds["ended"] == sorted(rounds["ended"])
    spans = [end - begin for begin, end in zip([0.0, *rounds["ended"]], rounds["ended"], strict=False)]
    for index, span in enumerate(spans):
        parts = sum(rounds[name][index] for name in ("draft", "score", "rule", "cache", "host"))
        assert 0 < parts <= span + 1e-5
    assert (arm["num_tree_nodes"] is not None and sum(steps["nodes"]) > 0) >= ("ranks" in steps)
    for ranks, offered, accepted in zip(
        steps.get("ranks", ()), steps.get("offered", ()), steps["accepted"], strict=False
    ):
        assert len(ranks) == accepted and len(offered) == accepted + 1
        assert all(rank < count for rank, count in zip(ranks, offered, strict=False))


def test_a_sweep_is_recorded(bench):
    header, records = bench("--num-speculative-tokens 2,3 --repeats 2 --drafter ngram")
    check(header, records)
    assert Counter(map(key_of, records)).most_common(1)[0][1] == 1
    assert len(records) == 3 * 3 * 2  # arms, prompts, repeats
    assert all(set(arm) == ARM_KEYS for arm in header["arms"])
    assert header["kind"] == "bench" and header["version"] == 1 and header["environment"]["torch"]
    assert [prompt["category"] for prompt in header["prompts"]] == ["story", "story", "code"]
    assert {each["process"] for each in records} == {records[0]["process"]}
    assert all(each["memory"]["target_kv_bytes"] > 0 for each in records)


def test_every_kind_of_arm(bench, specdec, tmp_path):
    toml = tmp_path / "s.toml"
    toml.write_text(
        "num_speculative_tokens = 3\ntemperature = [0, 0.9]\nbatch_size = [1, 2]\n"
        'drafter = ["ngram", "draft_model tree", "head", "head tree", "transformers", "assisted", "prompt lookup", '
        '{method = "draft_model", draft_sample_method = "probabilistic", verifier = ["rejection", "block"]}]\n'
    )
    header, records = bench(f"{toml} --head @head --num-prompts 1")
    check(header, records)
    counts = Counter(arm["cell"].split(" float32 ")[1] for arm in header["arms"])
    assert counts == {
        "greedy batch 1": 8, "greedy batch 2": 6, "temperature 0.9 batch 1": 10, "temperature 0.9 batch 2": 8,
    }  # fmt: skip
    arms = {arm["id"]: arm for arm in header["arms"]}
    with_model = [each for each in records if arms[each["arm"]]["drafter_name"] == "draft_model"]
    assert all(each["memory"]["drafter_kv_bytes"] > 0 for each in with_model)
    by_size = {}
    for each in records:  # a text depends on the prompt and the seed, not on who is beside it or drafts
        arm = arms[each["arm"]]
        if arm["verifier"] in ("greedy", "sample_and_match"):
            for request in each["requests"]:
                key = arm["sampling"]["temperature"], request["prompt"]
                assert by_size.setdefault(key, request["tokens"]) == request["tokens"]


def test_a_finished_folder_is_left_as_it_is(bench, tmp_path):
    line = "--drafter ngram --num-speculative-tokens 2 --num-prompts 1"
    bench(line)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    bench(line)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_torn_folder_is_completed(bench, tmp_path):
    """Whatever was cut off is run again, with a baseline of its own process, and the texts are the same."""
    line = "--drafter ngram,draft_model --num-speculative-tokens 2"
    header, whole_records = bench(line)
    path = tmp_path / "out" / "records-0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + lines[5][:40])
    header, records = bench(line)
    assert texts(records) == texts(whole_records)
    assert set(Counter(map(key_of, records)).values()) == {1, 2}  # twice: the baseline of the group that was cut
    twice = [key for key, count in Counter(map(key_of, records)).items() if count == 2]
    assert [key[0] for key in twice] == [header["arms"][0]["id"]]
    check(header, records)


def test_a_lost_header_of_an_empty_folder_is_written_again(bench, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "records-0.jsonl").touch()
    bench("--drafter ngram --num-speculative-tokens 2 --num-prompts 1")


@pytest.mark.parametrize(
    "other, message",
    [
        ("--num-speculative-tokens 3", "settings.num_speculative_tokens is [2] there and [2, 3] now"),
        ("--num-prompts 1 --seed 4", "settings.num_prompts is 2 there and 1 now"),
        ("--temperature 0,1", "settings.temperature is [0.0] there and [0.0, 1.0] now"),
    ],
)
def test_another_sweep_is_refused(bench, other, message):
    line = "--drafter ngram --num-speculative-tokens 2"
    bench(f"{line} --max-new-tokens 2")
    finished = bench(f"{line} --max-new-tokens 2 {other}", code=1)
    assert message in finished.stderr and "pass another --out FOLDER" in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1


def test_a_changed_environment_is_told(bench, tmp_path):
    line = "--drafter ngram --num-speculative-tokens 2 --max-new-tokens 2"
    header, _ = bench(line)
    header["environment"]["torch"] = "2.0"
    (tmp_path / "out" / "bench.json").write_text(json.dumps(header))
    finished = bench(line, code=None)
    assert finished.exit_code == 0 and "warning: the folder was begun with torch 2.0, and goes on" in finished.stdout


def test_damaged_lines_are_named_and_their_runs_repeated(bench, tmp_path):
    line = "--drafter ngram --num-speculative-tokens 2 --num-prompts 1"
    _, records = bench(line)
    path = tmp_path / "out" / "records-0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0].replace(b"tokens", b"token5"), b"from elsewhere\n", *lines[1:]]))
    finished = bench(line, code=None)
    assert finished.exit_code == 0
    for text in ("records-0.jsonl:1: skipped, wrong checksum", "records-0.jsonl:2: skipped, not JSON"):
        assert f"warning: {text}" in finished.stdout
    assert texts(read_records(tmp_path / "out")[0]) == texts(records)


def test_two_draft_models_are_told_apart(bench, tmp_path, folders):
    toml = tmp_path / "s.toml"
    toml.write_text(
        "num_speculative_tokens = 2\nnum_prompts = 1\n[[drafter]]\nmethod = 'draft_model'\n"
        f"[[drafter]]\nmethod = 'draft_model'\nmodel = '{folders}/target'\n"
    )
    header, _ = bench(str(toml))
    assert [arm["drafter_name"] for arm in header["arms"]] == [None, "draft_model", "draft_model target"]


def test_changed_prompts_are_another_sweep(bench, tmp_path, folders):
    own = tmp_path / "p.jsonl"
    own.write_text((folders / "prompts.jsonl").read_text())
    line = f"--drafter ngram --num-speculative-tokens 2 --max-new-tokens 2 --prompts {own}"
    bench(line)
    own.write_text(own.read_text().replace("The dog was", "The cat was"))
    assert "prompts[1].sha256" in bench(line, code=1).stderr


def test_dry_run_prints_plan_and_time_and_writes_nothing(bench, specdec, tmp_path):
    finished = specdec(f"{BENCH} --out {tmp_path}/out --dry-run --drafter ngram --num-speculative-tokens 2,3")
    assert finished.exit_code == 0, finished.output
    assert "3 arms in 1 cell, 3 prompts, 1 repeat: 9 runs" in finished.stdout
    assert "9 runs to do, about" in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_summary_as_json(bench, tmp_path):
    line = "--drafter ngram --num-speculative-tokens 2 --num-prompts 1"
    header, _ = bench(f"{line} --json {tmp_path}/s.json")
    summary = json.loads((tmp_path / "s.json").read_text())
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [arm["id"] for arm in summary["arms"]] == [arm["id"] for arm in header["arms"]]


MISTAKES = {
    "unknown drafter": ("--drafter ngrm", "expected a known drafter, got 'ngrm'; did you mean 'ngram'?"),
    "unknown rule": ("--verifier blok", "did you mean 'block'?"),
    "no such file": ("nowhere.toml", "there is no such file"),
    "no number": ("--temperature hot", "a number from 0 to 100 for temperature, got 'hot'"),
    "unknown category": ("--category novel", "expected categories of story, code, got 'novel'"),
    "too many threads": ("--threads 1000000", "threads on this machine, got 1000000"),
    "too long": ("--max-new-tokens 500", "within the context of 128"),
    "nothing left": ("--drafter replay", "expected at least one drafter that can be measured"),
}


@pytest.mark.parametrize("line, message", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line(bench, tmp_path, line, message):
    finished = bench(line, code=1)
    assert message in finished.stderr and len(finished.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "table, message",
    [
        ("method = 'draft_model', model = 3", "expected a string for model, got 3"),
        ("method = 'draft_model', confidence_threshold = 'x'", "expected options of a drafter, got"),
        ("method = 'ngram', prompt_lookup_max = 'a'", "expected options of a drafter, got"),
        ("method = 'transformers', foo = 1", "expected a known option of transformers, got 'foo'"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(bench, tmp_path, table, message):
    (tmp_path / "s.toml").write_text(f"drafter = [{{{table}}}]")
    finished = bench(str(tmp_path / "s.toml"), code=1)
    assert message in finished.stderr and len(finished.stderr.strip().splitlines()) == 1


def test_models_are_left_as_they_are_found(bench, monkeypatch):
    seen = []
    honest = whole.workbench

    def noted(*args):
        made = honest(*args)
        state = made.models.target.generation_config.to_dict(), made.models.target.config._attn_implementation
        seen.append((made, state, made.models.draft.generation_config.to_dict()))
        return made

    monkeypatch.setattr(whole, "workbench", noted)
    bench("--drafter ngram,assisted --num-speculative-tokens 2 --num-prompts 1")
    ((made, state, draft),) = seen
    target = made.models.target
    assert state == (target.generation_config.to_dict(), target.config._attn_implementation)
    assert made.models.draft.generation_config.to_dict() == draft
    assert not target._forward_hooks and not target.training
