"""Answer files of Spec-Bench, written and read."""

import json
from pathlib import Path

import pytest

from specdec.experiments import specbench_export
from specdec.experiments.interop import import_results
from specdec.experiments.specbench import read_answers
from specdec.experiments.specbench_export import export_answers
from specdec.zoo import load_embedded
from tests.toys.bench_folder import DRAFTED, PLAIN, TEXTS, arm, bench_folder, record


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def speed_of(path, base, tokenizer):
    """Tokens per second, those of the baseline and accepted tokens as Spec-Bench's speed.py defines them."""
    own, plain = ([line["choices"][0] for line in lines_of(file)] for file in (path, base))
    speeds = [sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in own]
    lengths = [length for choice in own for length in choice["accept_lengths"]]
    counted = [sum(len(tokenizer(text).input_ids) - 1 for text in choice["turns"]) for choice in plain]
    slow = [count / sum(choice["wall_time"]) for count, choice in zip(counted, plain, strict=True)]
    return sum(speeds) / len(speeds), sum(slow) / len(slow), sum(lengths) / len(lengths)


def test_answers_have_the_fields_of_spec_bench(tmp_path):
    files, warnings = export_answers(bench_folder(tmp_path / "bench"), tmp_path / "out")
    names = [f"embedded-vanilla-float32-temp-0.0-{PLAIN}.jsonl", f"embedded-ngram-k-4-float32-temp-0.0-{DRAFTED}.jsonl"]
    assert [path.relative_to(tmp_path / "out") for path in files] == [
        Path(f"run_{run}", name) for name in names for run in (1, 2)
    ]
    assert warnings == []
    first, second = lines_of(files[2])
    assert list(first) == ["question_id", "category", "answer_id", "model_id", "choices", "tstamp"]
    assert (first["question_id"], second["question_id"]) == (81, 7)  # numbers, in the order of the prompts
    assert (first["category"], first["model_id"], first["tstamp"]) == ("writing", names[1][: -len(".jsonl")], 1001.0)
    (choice,) = first["choices"]
    tokenizer = load_embedded()[2]
    assert choice == {
        "index": 0,
        "turns": [tokenizer.decode(TEXTS["81", turn]).strip() for turn in (0, 1)],
        "decoding_steps": [2, 2],
        "new_tokens": [4, 3],
        "wall_time": [0.5, 0.5],
        "accept_lengths": [1, 3, 1, 2],
    }
    answers = [line["answer_id"] for path in files for line in lines_of(path)]
    assert len(set(answers)) == len(answers) and all(isinstance(name, str) for name in answers)
    assert files[2].read_text() == "".join(json.dumps(line) + "\n" for line in (first, second))
    plain = lines_of(files[0])[0]["choices"][0]
    assert plain["accept_lengths"] == [1] * 7 and plain["decoding_steps"] == plain["new_tokens"] == [4, 3]


def test_its_definition_of_speed_finds_ours(tmp_path):
    files, _ = export_answers(bench_folder(tmp_path / "bench"), tmp_path / "out")
    speed, _, accepted = speed_of(files[2], files[0], load_embedded()[2])
    result = import_results([files[0], files[2]])
    plain, drafted = (one["overall"] for one in result["arms"])
    assert drafted["tokens_per_second"]["macro"] == pytest.approx(speed) == (7 / 1 + 2 / 1) / 2
    assert drafted["tokens_per_step"]["value"] == pytest.approx(accepted) == 9 / 6
    assert plain["tokens_per_step"]["value"] == 1.0 and plain["speedup"] is None
    assert drafted["speedup"]["ratio"] == pytest.approx(2.0) and drafted["speedup"]["macro"] == pytest.approx(2.0)
    assert drafted["text"] == {"num_compared": 2, "num_identical": 2, "num_ties": None, "differences": []}
    assert [one["baseline"] == one["id"] for one in result["arms"]] == [True, False]
    assert {name: one["num_tokens"] for name, one in result["arms"][1]["by_category"].items()} == {
        "writing": 7,
        "qa": 2,
    }
    assert result["arms"][1]["by_category"]["qa"]["speedup"]["ratio"] == pytest.approx(2.0)


def test_what_spec_bench_could_not_have_made_is_left_out(tmp_path):
    silent = record(PLAIN, 0, arm="dddddddd", requests=[{**record(PLAIN, 0)["requests"][0], "steps": None}])
    arms = [
        arm(PLAIN), arm("cccccccc", label="many", batch_size=4), arm("dddddddd", label="assisted"),
        arm("eeeeeeee", label="theirs", drafter=None), arm("ffffffff", label="later"),
    ]  # fmt: skip
    theirs = {**silent, "arm": "eeeeeeee"}
    folder = bench_folder(tmp_path / "bench", arms, [record(PLAIN, 0), silent, theirs])
    files, warnings = export_answers(folder, tmp_path / "out")
    assert [path.name.split("-")[1] for path in files] == ["vanilla", "theirs"]
    assert lines_of(files[1])[0]["choices"][0]["accept_lengths"] == [1] * 4  # plain decoding without events
    assert warnings == [
        "many: left out, it ran several prompts at once",
        "assisted: left out, it tells nothing of its steps",
        "later: left out, it has no runs",
    ]
    with pytest.raises(ValueError, match="expected runs of one prompt at a time, got none"):
        export_answers(bench_folder(tmp_path / "many", [arm(PLAIN, batch_size=4)], []), tmp_path / "out")


def test_ids_that_are_no_numbers_stay_words(tmp_path):
    folder = bench_folder(tmp_path / "bench", records=[record(PLAIN, 1)])
    header = (folder / "bench.json").read_text()
    (folder / "bench.json").write_text(header.replace('"81"', '"081"'))
    files, _ = export_answers(folder, tmp_path / "out")
    assert lines_of(files[0])[0]["question_id"] == "7"


EAGLE = {
    "question_id": 3, "answer_id": "x", "model_id": "eagle-7b",
    "choices": [{"index": 0, "turns": ["a", "b"], "idxs": [3, 0], "new_tokens": [12, 3], "wall_time": [1.0, 0.5]}],
    "tstamp": 1.0,
}  # fmt: skip


def test_answers_of_eagle_count_steps_from_zero_and_have_no_category(tmp_path):
    (tmp_path / "e.jsonl").write_text(json.dumps(EAGLE) + "\n")
    (found,) = import_results([tmp_path / "e.jsonl"])["arms"]
    assert (found["label"], found["system"], found["baseline"]) == ("eagle-7b", "spec-bench", None)
    assert found["overall"]["num_steps"] == 5 and found["overall"]["tokens_per_step"]["value"] == 3.0
    assert found["overall"]["speedup"] is None and found["by_category"] == {}


def test_folders_that_cannot_be_exported_are_refused_in_a_line(tmp_path):
    folder = bench_folder(tmp_path / "bench")
    with pytest.raises(ValueError, match="^expected a folder to write to, got a file at .*; pass another --out$"):
        export_answers(folder, folder / "bench.json" / "answers")
    header = json.loads((folder / "bench.json").read_text())
    (folder / "bench.json").write_text(json.dumps({**header, "prompts": header["prompts"][:1]}))
    with pytest.raises(ValueError, match="^expected fields of a benchmark in .*, got none that fit: KeyError "):
        export_answers(folder, tmp_path / "answers")


def test_a_tokenizer_is_loaded_once(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(specbench_export, "_decoder", lambda target: loaded.append(target) or (lambda tokens: "text"))
    files, _ = export_answers(bench_folder(tmp_path / "bench"), tmp_path / "answers")
    assert len(files) > 1 and len(loaded) == 1


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "e.jsonl").write_text(json.dumps(EAGLE) + "\r\n", encoding="utf-8-sig")
    assert import_results([tmp_path / "e.jsonl"])["warnings"] == []


def test_a_file_that_tells_nothing_of_its_steps_is_no_baseline(tmp_path):
    choice = {**EAGLE["choices"][0], "accept_lengths": []}
    (tmp_path / "e.jsonl").write_text(json.dumps({**EAGLE, "choices": [choice]}))
    assert import_results([tmp_path / "e.jsonl"])["arms"][0]["baseline"] is None


def changed(**choice):
    return json.dumps({**EAGLE, "question_id": 9, "choices": [{**EAGLE["choices"][0], **choice}]})


def test_lines_that_are_no_answers_are_skipped_and_counted():
    bad = [
        "{", "[1]", '{"question_id": 1}', changed(idxs=[1]), changed(wall_time=[0.0, 0.0]), changed(new_tokens=[-1, 2]),
        changed(turns=[]), json.dumps({**EAGLE, "choices": []}), changed(wall_time=["x", 1]), changed(idxs=None),
        changed(new_tokens=[10**400, 2]), changed(new_tokens=[1e400, 2]), changed(accept_lengths=[-3]), 100_000 * "[",
    ]  # fmt: skip
    answers, skipped = read_answers("\n".join([json.dumps(EAGLE), *bad, json.dumps(EAGLE), ""]), Path("e.jsonl"))
    assert list(answers.by_question) == ["3"]
    assert skipped == ["e.jsonl: 14 of 16 lines skipped, no answers: 2, 3, 4, ..."]
    with pytest.raises(ValueError, match="expected answers of Spec-Bench, got none in 'e.jsonl'"):
        read_answers("\n".join(bad), Path("e.jsonl"))


def test_texts_and_questions_that_differ_are_told(tmp_path):
    folder = bench_folder(tmp_path / "bench")
    files, _ = export_answers(folder, tmp_path / "out")
    lines = lines_of(files[2])
    lines[0]["choices"][0]["turns"][1] = "something else"
    files[2].write_text("".join(json.dumps(line) + "\n" for line in lines))
    files[0].write_text(files[0].read_text().splitlines()[0])  # the other question is missing
    found = import_results([files[2], files[0]])["arms"][0]["overall"]
    assert found["text"]["num_compared"] == 1 and found["text"]["num_identical"] == 0
