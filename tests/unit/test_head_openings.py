"""What a target is asked: from texts, chats, a hub or nothing."""

import json
import sys
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

from specdec.experiments.corpus import DOMAINS, Document, train_tokenizer
from specdec.experiments.head_openings import OpeningOptions, openings_of_nothing, read_openings

STORY = "Once upon a time, there was a small dog. The dog was happy.\n"
CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    documents = [Document(domain, f"{domain}{index}", STORY * 9) for domain in DOMAINS for index in range(3)]
    train_tokenizer(documents, 300, folder)
    return AutoTokenizer.from_pretrained(folder)


def words(tokenizer, openings):
    return [tokenizer.decode(opening.tokens, skip_special_tokens=True) for opening in openings]


def test_text_is_cut_into_pieces_of_which_each_is_begun_once(tokenizer, tmp_path):
    text = "".join(f"{number} is the line: {STORY}" for number in range(200))
    (tmp_path / "a.txt").write_text(text)
    openings = read_openings([str(tmp_path / "a.txt")], tokenizer, OpeningOptions(count=99, text_lengths=(4, 9)))
    assert {len(opening.tokens) for opening in openings.train} == {4, 9}
    assert all(opening.tokens[0] == tokenizer.bos_token_id for opening in openings.train)
    everything = words(tokenizer, [*openings.train, *openings.held_out])
    assert len(everything) == -(-len(text) // 2100)
    assert all(text.startswith(part) or f"\n{part}" in text for part in everything)


def test_documents_are_held_out_whole_and_tasks_take_turns(tokenizer, tmp_path):
    for task, count in (("few", 3), ("many", 120)):
        lines = [json.dumps({"text": f"{task} {i} " + STORY * 80, "id": f"{task}{i}"}) for i in range(count)]
        (tmp_path / f"{task}.jsonl").write_text("\n".join(lines))
    options = OpeningOptions(count=10_000, text_lengths=(24,), num_held_out=10_000)
    openings = read_openings([str(tmp_path)], tokenizer, options)
    names = [{" ".join(text.split()[:2]) for text in words(tokenizer, side) if text.split()[0] in ("few", "many")}
             for side in (openings.train, openings.held_out)]  # fmt: skip
    assert names[0].isdisjoint(names[1]) and {name.split()[0] for name in names[1]} == {"few", "many"}
    assert [opening.category for opening in openings.train[:4]] == ["few", "many", "few", "many"]
    again = read_openings([str(tmp_path)], tokenizer, options)
    assert again == openings


def test_chats_end_with_a_question_and_are_written_by_the_template(tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    lines = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "not to be learnt"}]},
        {"conversations": [{"from": "human", "value": "dog?"}, {"from": "gpt", "value": "x"}]},
        {"messages": [{"role": "system", "content": "nobody asks"}]},
        {"messages": [{"role": "user", "content": "long " * 500}]},
        {"prompt": "The dog was"},
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="expected a tokenizer with a chat template for messages"):
        read_openings([str(tmp_path / "chats.jsonl")], tokenizer, OpeningOptions(9))
    tokenizer.chat_template = CHAT_TEMPLATE
    openings = read_openings([str(tmp_path / "chats.jsonl")], tokenizer, OpeningOptions(9))
    found = sorted(words(tokenizer, [*openings.train, *openings.held_out]))
    assert found == ["<user>dog?<assistant>", "<user>hi<assistant>", "The dog was"]


def asked(tokenizer, folder, *lines):
    """What the target is asked by these lines, special tokens left out."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    tokenizer.chat_template = "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}" + (
        CHAT_TEMPLATE
    )
    (folder / "asked.jsonl").write_text("\n".join(lines), encoding="utf-8")
    openings = read_openings([str(folder / "asked.jsonl")], tokenizer, OpeningOptions(9))
    return sorted(words(tokenizer, [*openings.train, *openings.held_out]))


def test_lines_end_at_line_feeds_only(tokenizer, tmp_path):
    """JSON may hold other characters that are called ends of lines."""
    lines = [json.dumps({"text": f"the{end}dog {end}"}, ensure_ascii=False) for end in ("\u2028", "\x85", "\u2029")]
    assert len(asked(tokenizer, tmp_path, *lines)) == 3


def test_messages_are_taken_as_they_are(tokenizer, tmp_path):
    chats = [
        {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]},
        {"prompt": [{"role": "user", "content": "dog?"}]},
        {"turns": ["The dog was happy. " * 9, "and then?"]},
    ]
    found = asked(tokenizer, tmp_path, *map(json.dumps, chats))
    whole = ("The dog was happy. " * 9).strip()  # not its first eight tokens
    assert [text.strip() for text in found] == sorted(
        ["<system><user>hi<assistant>", "<user>ab<assistant>", "<user>dog?<assistant>", whole]
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": None}]}, "expected messages of a role and a text"),
        ({"messages": [{"content": "hi"}]}, "expected messages of a role and a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "expected messages of a role and a text"),
        ({"messages": ["hi"]}, "expected messages of a role and a text, got hi in asked.jsonl:1; leave out"),
        ({"messages": "hi"}, "expected messages of a role and a text"),
        ({"turns": 5}, "expected messages, prompt, turns or text"),
        ({"turns": "hi"}, "expected messages, prompt, turns or text"),
        ({"prompt": []}, "expected messages, prompt, turns or text"),
        ({"messages": [{"role": "tool", "content": "x"}, {"role": "user", "content": "y"}]}, "got 'no tools' at asked"),
    ],
    ids=str,
)
def test_rows_that_are_no_texts_are_refused_in_one_line(tokenizer, tmp_path, row, message):
    with pytest.raises(ValueError, match=message):
        asked(tokenizer, tmp_path, json.dumps(row), '{"text": "a dog"}', '{"text": "dogs"}')


def test_a_dataset_of_the_hub_is_streamed(tokenizer, monkeypatch):
    asked = []

    def load_dataset(name, split, streaming):
        asked.append((name, split, streaming))
        return ({"text": f"{number} {STORY}"} for number in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    openings = read_openings(["hub:org/stories:part"], tokenizer, OpeningOptions(count=20))
    assert asked == [("org/stories", "part", True)] and len(openings.train) == 20


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "expected a .txt, .md or .jsonl file"),
        ("a.csv", "x", "expected a .txt, .md or .jsonl file"),
        ("a.txt", "short", "expected texts of at least two documents"),
        ("a.jsonl", "{", "expected a JSON object"),
        ("a.jsonl", "[]", "expected a JSON object"),
        ("a.jsonl", '{"question": "x"}', "expected messages, prompt, turns or text"),
    ],
)
def test_data_that_cannot_be_read_is_refused(tokenizer, tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_openings([str(tmp_path / name)], tokenizer, OpeningOptions(9))


def test_a_folder_without_texts_is_refused(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="expected .txt, .md or .jsonl files"):
        read_openings([str(tmp_path)], tokenizer, OpeningOptions(9))


def test_from_nothing_the_target_begins_a_text_and_is_measured_on_prompts(tokenizer, tmp_path):
    lines = [json.dumps({"id": f"{task}{i}", "task": task, "turns": [STORY]}) for task in "ab" for i in range(3)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    openings = openings_of_nothing(tokenizer, tmp_path / "prompts.jsonl", OpeningOptions(5, num_held_out=4))
    assert [opening.tokens for opening in openings.train] == [[tokenizer.bos_token_id]] * 5
    assert [opening.category for opening in openings.held_out] == ["a", "b", "a", "b"]
    with pytest.raises(ValueError, match="expected a tokenizer with a beginning-of-text token"):
        openings_of_nothing(SimpleNamespace(bos_token_id=None), tmp_path / "prompts.jsonl", OpeningOptions(5))
