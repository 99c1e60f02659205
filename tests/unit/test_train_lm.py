"""Training: what survives a kill, the schedule, the held-out split, the text."""

import json
from dataclasses import replace

import numpy as np
import pytest

from specdec.experiments.corpus import (
    DOMAINS,
    HELD_OUT_IN,
    Document,
    TokenStore,
    _common_forms,
    _truecase,
    tokenize,
    train_tokenizer,
)
from specdec.experiments.train_lm import LmConfig, rate_at, train

TINY = LmConfig(
    vocab_size=64,
    hidden_size=64,
    num_layers=2,
    num_heads=1,
    num_kv_heads=1,
    intermediate_size=32,
    context=32,
    sequence_length=16,
    batch_size=2,
    max_tokens=8 * 2 * 16,
    warmup_steps=2,
)


@pytest.fixture
def store():
    rng = np.random.default_rng(0)
    return TokenStore(
        {domain: rng.integers(64, size=300).astype(np.uint16) for domain in DOMAINS},
        {domain: rng.integers(64, size=60).astype(np.uint16) for domain in DOMAINS},
    )


class Killed(BaseException):
    """As a signal would."""


def losses_of(config, store, run, kill_after=None):
    losses = {}

    def note(done, loss):
        losses[done] = loss
        if done == kill_after:
            raise Killed

    try:
        train(config, store, run, checkpoint_every=2, on_step=note)
    except Killed:
        pass
    return losses


def test_killed_run_continues_as_if_it_had_not_been(store, tmp_path):
    whole = losses_of(TINY, store, tmp_path / "whole")
    before = losses_of(TINY, store, tmp_path / "killed", kill_after=5)
    after = losses_of(TINY, store, tmp_path / "killed")
    assert list(whole) == list(range(1, 9)) and list(before) == [1, 2, 3, 4, 5]
    assert list(after) == [5, 6, 7, 8]  # from the checkpoint after step 4
    assert {**before, **after} == whole
    assert (tmp_path / "killed" / "model" / "model.safetensors").exists()
    records = [json.loads(line) for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 8 and set(records[-1]["held_out"]) == set(DOMAINS)


def test_finished_run_is_left_alone(store, tmp_path):
    losses_of(TINY, store, tmp_path)
    assert losses_of(TINY, store, tmp_path) == {}


def test_other_config_in_the_same_folder_is_refused(store, tmp_path):
    losses_of(TINY, store, tmp_path, kill_after=2)
    with pytest.raises(ValueError, match="expected the config of the run .* got another seed; pass the same options"):
        train(replace(TINY, seed=1), store, tmp_path)


def test_loss_that_is_not_finite_stops(store, tmp_path):
    config = replace(TINY, learning_rate=1e30, embedding_rate=1e30, warmup_steps=1)
    with pytest.raises(ValueError, match="expected a finite loss, got .* lower --learning-rate"):
        train(config, store, tmp_path)


def test_schedule_warms_up_stays_and_decays():
    config = LmConfig(max_tokens=100 * 8 * 512, warmup_steps=10, decay_share=0.4)
    rates = [rate_at(step, config) for step in range(config.num_steps)]
    assert config.num_steps == 100
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert set(rates[10:60]) == {1.0}
    assert rates[60:] == pytest.approx([(100 - step) / 40 for step in range(60, 100)])


def test_distillation_learns_the_teacher(store, tmp_path):
    """A student told the teacher's distribution has another loss than one told the text."""
    teacher = train(TINY, store, tmp_path / "teacher")
    losses = {}
    train(replace(TINY, seed=1), store, tmp_path / "student", teacher.float(), on_step=losses.__setitem__)
    assert losses != losses_of(replace(TINY, seed=1), store, tmp_path / "alone")


def test_held_out_split_depends_on_the_name_only():
    names = [f"module_{index}.py" for index in range(3000)]
    held = {name for name in names if Document("code", name, "x").held_out}
    assert held == {name for name in reversed(names) if Document("prose", name, "y").held_out}
    assert 0.5 < len(held) * HELD_OUT_IN / len(names) < 1.5


def test_held_out_documents_are_never_trained_on(tmp_path):
    texts = {f"m{index}": f"value_{index} = {index}" for index in range(200)}
    documents = [Document(domain, f"{domain}{name}", text) for domain in DOMAINS for name, text in texts.items()]
    train_tokenizer(documents, 300, tmp_path / "tokenizer")
    tokenizer = load(tmp_path / "tokenizer")
    store = tokenize(documents, tokenizer, tmp_path / "tokens.npz")
    held = {document.text for document in documents if document.domain == "code" and document.held_out}
    assert held and set(pieces(tokenizer, store.held_out["code"])) == held
    assert not held & set(pieces(tokenizer, store.train["code"]))


def pieces(tokenizer, tokens):
    return tokenizer.decode(tokens.tolist()).split("<|endoftext|>")[1:]


def load(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def test_tokenizer_gives_the_text_back(tmp_path):
    code = 'def f(x):\n    """Return x."""\n    if x == 10:\n        return self.count_items(x)\n\n\nclass A:\n    pass'
    story = 'Once upon a time, there was a girl.\n\nShe said, "Naïve – 猫!" It\'s 1999.'
    documents = [
        Document(domain, f"{domain}{index}", text * 3) for domain in DOMAINS for index, text in enumerate((code, story))
    ]
    train_tokenizer(documents, 320, tmp_path)
    tokenizer = load(tmp_path)
    for text in (code, story, " leading", "trailing ", "a\tb\r\n", "  "):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_truecasing_restores_names_and_beginnings():
    forms = _common_forms(['The girl, Lily, ran. "I like it," said Lily and the dog. Then, I and Tom, and Lily.'])
    text = 'the dog and lily ran. "can i come," asked tom. "yes," said lily.'
    assert _truecase(text, forms) == 'The dog and Lily ran. "Can I come," asked Tom. "Yes," said Lily.'
