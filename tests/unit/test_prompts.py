"""Prompts of every layout and kind of file, and what is refused."""

import csv
import json
import sys
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from specdec.experiments.loading import load_models
from specdec.experiments.prompts import PROMPTS, Prompt, first_per_category, read_prompts

ROWS = {
    "own": (
        {"id": "a-1", "category": "story", "turns": ["Once", "Then"], "reference": ["x", "y"], "source": "us"},
        Prompt("a-1", "story", ("Once", "Then"), ("x", "y"), "us"),
    ),
    "own, older": ({"id": 7, "task": "story", "turns": ["Once"]}, Prompt("7", "story", ("Once",))),
    "Spec-Bench": (
        {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["z"]},
        Prompt("81", "writing", ("Write.", "Again."), ("z",)),
    ),
    "SPEED-Bench": (
        {
            "question_id": "c0ffee", "category": "coding", "sub_category": "bugs", "turns": ["Fix it."],
            "source": "somewhere", "src_id": "9", "difficulty": "hard", "multiturn": False,
        },
        Prompt("c0ffee", "coding", ("Fix it.",), source="somewhere"),
    ),
    "ShareGPT": (
        {
            "id": "talk_0",
            "conversations": [
                {"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hello"},
                {"from": "gpt", "value": "Hi"}, {"from": "human", "value": "Bye"},
            ],
        },
        Prompt("talk_0", "chat", ("Hello", "Bye"), system="Be kind."),
    ),
    "conversations of roles": (
        {"conversations": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]},
        Prompt("rows-1", "chat", ("Hello",)),
    ),
    "messages of parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "He"}, {"type": "text", "text": "llo"}]}]},
        Prompt("rows-1", "chat", ("Hello",)),
    ),
    "HumanEval": (
        {
            "task_id": "HumanEval/0", "prompt": "def f(x):\n    ", "canonical_solution": "    return x\n",
            "test": "assert f(1) == 1", "entry_point": "f",
        },
        Prompt("HumanEval/0", "code", ("def f(x):\n    ",), ("    return x\n",)),
    ),
    "GSM8K": (
        {"question": "What is 2 + 3?", "answer": "#### 5"},
        Prompt("rows-1", "math", ("What is 2 + 3?",), ("#### 5",)),
    ),
    "MBPP": (
        {"task_id": 3, "text": "Write f.", "code": "f = 1", "test_list": ["assert f", "assert f > 0"]},
        Prompt("mbpp/3", "code", ("Write f.\nYour code should pass these tests:\nassert f\nassert f > 0",), ("f = 1",)),
    ),
    "MBPP, sanitized": (
        {"task_id": 3, "prompt": "Write f.", "test_imports": [], "test_list": ["assert f"]},
        Prompt("mbpp/3", "code", ("Write f.\nYour code should pass these tests:\nassert f",)),
    ),
    "speculator benchmarks": ({"prompt": "Hello"}, Prompt("rows-1", "rows", ("Hello",))),
    "prompt of messages": ({"prompt": [{"role": "user", "content": "Hello"}]}, Prompt("rows-1", "chat", ("Hello",))),
    "turns alone": ({"turns": ["Hello"]}, Prompt("rows-1", "rows", ("Hello",))),
    "text": ({"text": "Once", "id": None}, Prompt("rows-1", "rows", ("Once",))),
}  # fmt: skip
KINDS = ["jsonl", "json", "json of lines", "parquet", "csv"]


def written(folder, rows, kind):
    """A file of that kind with these rows."""
    path = folder / f"rows.{kind.split()[0]}"
    if kind in ("jsonl", "json of lines"):
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(
                {name: json.dumps(cell) if isinstance(cell, list) else cell for name, cell in row.items()}
                for row in rows
            )
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("row, expected", ROWS.values(), ids=ROWS)
def test_every_schema_in_every_kind_of_file(tmp_path, row, expected, kind):
    assert read_prompts(written(tmp_path, [row], kind)) == [expected]


def test_a_text_in_a_table_may_begin_with_a_bracket(tmp_path):
    texts = ["[INST] Hello [/INST]", "[1, 2] and what else?", "[1, 2]", "[]]"]
    path = written(tmp_path, [{"prompt": text} for text in texts], "csv")
    assert [prompt.text for prompt in read_prompts(path)] == texts


def test_a_table_that_is_damaged_within_is_refused(tmp_path):
    path = written(tmp_path, [{"prompt": "Once"}], "parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:20] + bytes(30) + whole[50:])
    with pytest.raises(ValueError, match="^expected a Parquet file, got '.*rows.parquet': .*; pass another --prompts$"):
        read_prompts(path)


def test_lines_of_text_are_prompts(tmp_path):
    (tmp_path / "openings.txt").write_text("Once\u2028upon\r\n\n  There was\n")
    assert read_prompts(tmp_path / "openings.txt") == [
        Prompt("openings-1", "openings", ("Once\u2028upon",)),
        Prompt("openings-2", "openings", ("  There was",)),
    ]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("p.jsonl", "", "expected at least one prompt, got none"),
        ("p.jsonl", '{"turns": ["a"]}\n{nope', r"expected {...} in JSON, got '{nope' at .*p.jsonl:2"),
        ("p.jsonl", "[1]", r"expected {...}, an object with fields, got \[1\] at .*p.jsonl:1"),
        ("p.json", '{"turns": ["a"]', "expected JSON, got .* in .*p.json"),
        ("p.json", '["a"]', "an object with fields, got a at .*p.json, row 1"),
        ("p.jsonl", '{"words": "a", "n": 2, "turns": null}', "got words, n at .*p.jsonl:1; .*known: SPEED-Bench"),
        ("p.jsonl", "{}", "got none at .*p.jsonl:1"),
        ("p.jsonl", '{"turns": ["a"]}\n\n{"turns": ["a", " "]}', "got an empty prompt at .*p.jsonl:3"),
        ("p.jsonl", '{"turns": []}', "got an empty prompt at .*p.jsonl:1"),
        ("p.jsonl", '{"turns": [1]}', "expected turns that are texts, got .1. at"),
        ("p.jsonl", '{"prompt": 5}', "expected turns that are texts, got .5. at"),
        ("p.jsonl", '{"messages": [{"role": "system", "content": "x"}]}', "got an empty prompt"),
        ("p.jsonl", '{"messages": [{"role": "user", "content": null}]}', "expected messages of a role and a text"),
        ("p.jsonl", '{"conversations": "hi"}', "expected a list of messages, got 'hi' at"),
        ("p.jsonl", '{"task_id": 1, "test_list": "x", "text": "y"}', "expected a task and a list of tests"),
        ("p.jsonl", '{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}', "each id once, got '1' at .*:2 and at .*:1"),
        ("p.csv", "prompt\na\nb,c\n", "expected a cell for each name of the first line, got others at .*row 2"),
        ("p.csv", "prompt\na\n" + 140_000 * "b", "expected CSV, got field larger than .* at .*p.csv, row 2; use JSON"),
        ("p.jsonl", 100_000 * "[", "expected {...} in JSON, got '\\[+' at .*p.jsonl:1; maximum recursion depth"),
        ("p.json", 100_000 * "[", "expected JSON, got maximum recursion depth"),
        ("p.jsonl", '{"prompt": "a \\ud800"}', r"got '.ud800' at .*p.jsonl:1, half of a character"),
        ("p.csv", "turns\n[a]\n", "in JSON, got '\\[a\\]' at .*row 1"),
        ("p.parquet", "x", "expected a Parquet file"),
        ("p.md", "x", r"expected a file of prompts \(.jsonl, .json, .parquet, .csv, .txt\) or hub:NAME"),
        ("p.txt", None, "expected a file of prompts"),
        ("p.txt", b"\xff\xfe", "expected text in UTF-8"),
    ],
)  # fmt: skip
def test_files_that_are_no_prompts_are_refused_with_the_place(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


SPLITS = {
    "one": {"data": [{"text": "a"}]},
    "tested": {"train": [{"text": "a"}], "test": [{"text": "b"}]},
    "many": {"train": [], "dev": []},
}


@pytest.fixture
def hub(monkeypatch):
    """Stands for the hub; keeps what it was asked."""
    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        if name == "org/nowhere":
            raise FileNotFoundError("no such\ndataset")
        if split is None:
            return SPLITS[name.removeprefix("org/")]
        return ({"question": f"{number}?", "answer": "1"} for number in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_datasets_of_the_hub_are_streamed(hub):
    found = read_prompts("hub:openai/gsm8k:main/test[:3]")
    assert hub == [("openai/gsm8k", "main", "test", True)]
    assert [(prompt.id, prompt.text) for prompt in found] == [("gsm8k-1", "0?"), ("gsm8k-2", "1?"), ("gsm8k-3", "2?")]
    assert [prompt.text for prompt in read_prompts("hub:org/one") + read_prompts("hub:org/tested")] == ["a", "b"]
    assert len(read_prompts("hub:org/x:train[:2]")) == 2 and hub[-1] == ("org/x", None, "train", True)


@pytest.mark.parametrize(
    "source, message",
    [
        ("hub:org/nowhere", "got 'hub:org/nowhere': no such dataset; pass --prompts hub:org/nowhere:"),
        ("hub:org/many", "it has the splits train, dev"),
        ("hub:", "expected hub:org/name"),
        ("hub:org/x:test[3:]", "write it like this"),
    ],
)
def test_what_the_hub_does_not_have_is_one_line(hub, source, message):
    with pytest.raises(ValueError) as caught:
        read_prompts(source)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_set_of_the_package():
    """Six domains with ten prompts or more, some with several turns; all fit the embedded target."""
    prompts = read_prompts()
    categories = [prompt.category for prompt in prompts]
    assert {name: categories.count(name) >= 10 for name in categories} == dict.fromkeys(
        ("story", "prose", "code", "chat", "math", "summary"), True
    )
    assert len(prompts) >= 60 and sum(len(prompt.turns) > 1 for prompt in prompts) >= 4
    assert all(prompt.id.startswith(prompt.category) for prompt in prompts)
    assert len({turn for prompt in prompts for turn in prompt.turns}) == sum(len(prompt.turns) for prompt in prompts)
    tokenizer = load_models().tokenizer
    assert max(len(tokenizer(turn)["input_ids"]) for prompt in prompts for turn in prompt.turns) <= 300
    assert PROMPTS.suffix == ".jsonl"


def test_first_of_each_category():
    prompts = [Prompt(name, name[0], ("x",)) for name in ("a1", "b1", "a2", "c1", "a3")]
    assert [prompt.id for prompt in first_per_category(prompts, 2)] == ["a1", "a2", "b1", "c1"]
    assert [prompt.id for prompt in first_per_category(prompts, 1, ("c", "a"))] == ["a1", "c1"]
    with pytest.raises(ValueError, match="expected categories of a, b, c, got 'd'"):
        first_per_category(prompts, 1, ("d",))


@pytest.mark.parametrize(
    "name, count, num_turns",
    [
        ("gsm8k_test", 1319, 1), ("mbpp_test", 500, 1), ("spec_bench", 480, 2), ("spec_bench_question", 480, 2),
        ("tinystories", 44, 1),
    ],
)  # fmt: skip
def test_published_files_are_read(shared, name, count, num_turns):
    prompts = read_prompts(shared / "data" / "prompts" / f"{name}.jsonl")
    assert len(prompts) == count and max(len(prompt.turns) for prompt in prompts) == num_turns
    if name.startswith("spec_bench"):
        assert len({prompt.category for prompt in prompts}) == 13
