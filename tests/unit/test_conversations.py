"""Turns and answers as token ids, with and without a chat template."""

from dataclasses import replace

import pytest
import torch

from specdec.experiments.conversations import Conversation
from specdec.experiments.loading import load_models
from specdec.experiments.prompts import Prompt

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and 'quiet' in m.content %}{{ raise_exception('no systems') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
PROMPT = Prompt("p", "chat", ("Hello", "And now?", "Bye"))


@pytest.fixture(scope="module")
def models():
    return load_models()


@pytest.fixture
def chatty(models):
    tokenizer = load_models().tokenizer
    tokenizer.chat_template = TEMPLATE
    return replace(models, tokenizer=tokenizer)


def test_without_a_template_the_history_keeps_its_tokens(models):
    talk = Conversation(PROMPT, models)
    first = talk.next_input()
    assert first.dtype == torch.int64 and torch.equal(first, models.encode("Hello"))
    assert torch.equal(talk.next_input(), first)  # until it is answered
    answer = [models.tokenizer("x", add_special_tokens=False)["input_ids"][0]] * 3  # "x x x" would be other tokens
    end = models.target.generation_config.eos_token_id
    talk.answer([*answer, end])
    second = talk.next_input()
    asked = models.tokenizer("\n\nAnd now?", add_special_tokens=False)["input_ids"]
    assert second[0].tolist() == [*first[0].tolist(), *answer, *asked]
    talk.answer([])
    third = talk.next_input()[0].tolist()
    assert third[: second.shape[1]] == second[0].tolist() and models.decode(third).endswith("And now?\n\nBye")
    talk.answer(answer)
    assert talk.next_input() is None
    with pytest.raises(AssertionError, match="every turn is answered"):
        talk.answer(answer)


def test_ends_may_be_several(models, monkeypatch):
    monkeypatch.setattr(models.target.generation_config, "eos_token_id", [0, 7])
    talk = Conversation(PROMPT, models)
    first = talk.next_input()[0].tolist()
    talk.answer([9, 7])
    second = talk.next_input()[0].tolist()
    assert second[: len(first) + 1] == [*first, 9] and second[len(first) + 1] != 7
    talk.answer([7, 9])  # an end within is none: the model wrote on
    assert talk.next_input()[0].tolist()[: len(second) + 2] == [*second, 7, 9]


def test_a_chat_template_writes_all_messages(chatty):
    talk = Conversation(replace(PROMPT, system="Be kind."), chatty)
    assert chatty.decode(talk.next_input()[0].tolist()) == "<system>Be kind.<user>Hello<assistant>"
    talk.answer([*chatty.tokenizer("Hi", add_special_tokens=False)["input_ids"], chatty.tokenizer.eos_token_id])
    said = "<system>Be kind.<user>Hello<assistant>Hi<user>And now?<assistant>"
    assert chatty.decode(talk.next_input()[0].tolist()) == said


def test_the_template_can_be_left_off(chatty, models):
    talk = Conversation(replace(PROMPT, system="Be kind."), chatty, use_chat_template=False)
    assert torch.equal(talk.next_input(), models.encode("Be kind.\n\nHello"))


def test_a_template_that_is_not_there_or_refuses_is_one_line(chatty, models):
    with pytest.raises(ValueError, match="expected a tokenizer with a chat template, got none"):
        Conversation(PROMPT, models, use_chat_template=True)
    with pytest.raises(ValueError, match="got 'no systems' for prompt 'p'; leave the template off"):
        Conversation(replace(PROMPT, system="Be quiet."), chatty).next_input()
