"""A stop anywhere inside an accepted run: nothing behind it is emitted, streamed, counted or cached."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import specdec
from specdec.draft_models.replay import Replay
from specdec.events import Step
from tests.toys.models import real_llama

RUN = 6  # drafted tokens per round, all of them right
ROUNDS = 2  # after the first, which is plain: one token
LENGTH = 1 + ROUNDS * (RUN + 1)
PROMPT = torch.tensor([[1, 103, 85, 45, 113, 9]])  # the greedy text that follows repeats no token
EVERY_OFFSET = pytest.mark.parametrize("count", range(1, LENGTH + 1))  # of the rounds, accepted tokens and bonus alike


class Collect(BaseStreamer):
    """Keeps what it was given."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.num_ends = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.reshape(-1).tolist()

    def end(self) -> None:
        self.num_ends += 1


class StopAfter(StoppingCriteria):
    """Stops once a text holds so many tokens."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((input_ids.shape[0],), input_ids.shape[1] >= self.length)


@pytest.fixture(scope="module")
def text(model) -> list[int]:
    """New tokens of a plain run that never stops, no two alike: each can be the only end-of-text token."""
    out = model.generate(PROMPT, max_new_tokens=LENGTH, do_sample=False, eos_token_id=None, pad_token_id=0)
    tokens = out[0, PROMPT.shape[1] :].tolist()
    assert len(set(tokens)) == LENGTH
    return tokens


def run(model, text: list[int], **options):
    streamer = Collect()
    drafter = Replay([text], acceptance=1.0, num_speculative_tokens=RUN)
    loop_options = {"do_sample": False, "pad_token_id": 0, "max_new_tokens": len(text), "eos_token_id": None}
    out = specdec.generate(
        model,
        PROMPT,
        drafter=drafter,
        streamer=streamer,
        return_dict_in_generate=True,
        output_scores=True,
        **{**loop_options, **options},
    )
    return out, streamer


def steps_of(out, row: int = 0) -> list[Step]:
    return [step for event in out.speculation.rounds for step in event.steps if step.request_id == row]


def assert_cut_inside_a_run(steps: list[Step], count: int) -> None:
    """All drafted tokens were right, and the last round was cut so that `count` new tokens remain."""
    assert [len(step.tokens) for step in steps[:-1]] == [1, *[RUN + 1] * (len(steps) - 2)][: len(steps) - 1]
    assert [step.num_accepted for step in steps[1:-1]] == [RUN] * (len(steps) - 2)
    last = steps[-1]
    if count == 1:  # the plain round
        assert (last.num_drafted, last.num_accepted, last.num_wasted) == (0, 0, 0)
        return
    offset = (count - 2) % (RUN + 1)  # of the last token in its run; RUN is the bonus
    assert (last.num_drafted, len(last.tokens), last.num_wasted) == (RUN, offset + 1, RUN - offset)
    assert last.num_accepted == min(RUN, offset + 1) > 0


def assert_stopped_after(count: int, out, streamer: Collect, text: list[int], reason: str) -> None:
    wanted = text[:count]
    prompt = PROMPT[0].tolist()
    assert out.sequences[0].tolist() == prompt + wanted
    assert streamer.tokens == prompt + wanted and streamer.num_ends == 1
    metrics, steps = out.speculation.metrics, steps_of(out)
    assert metrics.num_tokens == count == len(out.scores)
    assert [token for step in steps for token in step.tokens] == wanted
    assert [step.finish_reason for step in steps] == [None] * (len(steps) - 1) + [reason]
    assert out.past_key_values.get_seq_length() == len(prompt) + count - 1


@EVERY_OFFSET
def test_eos_at_every_offset(model, text, count) -> None:
    out, streamer = run(model, text, eos_token_id=text[count - 1])
    assert_stopped_after(count, out, streamer, text, "eos")
    assert_cut_inside_a_run(steps_of(out), count)


@EVERY_OFFSET
def test_length_at_every_offset(model, text, count) -> None:
    """Nothing is drafted that would not fit, so the last round is shorter, all of it accepted, and nothing wasted."""
    out, streamer = run(model, text, max_new_tokens=count)
    assert_stopped_after(count, out, streamer, text, "length")
    steps = steps_of(out)
    assert all(step.num_accepted == step.num_drafted == len(step.tokens) - 1 for step in steps)
    assert sum(step.num_accepted for step in steps) == count - len(steps)
    assert len(steps) == 1 + -(-(count - 1) // (RUN + 1))
    assert not any(step.num_wasted for step in steps)


@EVERY_OFFSET
def test_custom_criterion_at_every_offset(model, text, count) -> None:
    criteria = StoppingCriteriaList([StopAfter(PROMPT.shape[1] + count)])
    out, streamer = run(model, text, stopping_criteria=criteria)
    assert_stopped_after(count, out, streamer, text, "criterion")
    assert_cut_inside_a_run(steps_of(out), count)


def test_eos_on_the_last_allowed_token_is_a_stop_not_a_length(model, text) -> None:
    out, streamer = run(model, text, eos_token_id=text[RUN], max_new_tokens=RUN + 1)
    assert_stopped_after(RUN + 1, out, streamer, text, "eos")
    assert steps_of(out)[-1].num_accepted == RUN - 1


def test_stop_string_at_every_offset(shared) -> None:
    from transformers import AutoTokenizer

    model = real_llama("stories260K", torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    options = {"max_new_tokens": 1 + 4 * (RUN + 1), "do_sample": False}
    plain = model.generate(**inputs, **options)[0].tolist()
    width, offsets = inputs["input_ids"].shape[1], set()
    for end in range(width + 1, len(plain) - 1):
        stop = tokenizer.decode(plain[: end + 1])[len(tokenizer.decode(plain[: end - 1])) :]
        if not stop.strip():
            continue
        wanted = model.generate(**inputs, **options, stop_strings=[stop], tokenizer=tokenizer)
        ours = specdec.generate(
            model,
            **inputs,
            drafter=Replay([plain[width:]], acceptance=1.0, num_speculative_tokens=RUN),
            stop_strings=[stop],
            tokenizer=tokenizer,
            return_dict_in_generate=True,
            **options,
        )
        assert torch.equal(ours.sequences, wanted), repr(stop)
        steps, count = steps_of(ours), wanted.shape[1] - width
        assert steps[-1].finish_reason == "stop_string"
        assert_cut_inside_a_run(steps, count)
        offsets.add((count - 2) % (RUN + 1))
    assert offsets == set(range(RUN + 1))


def test_rows_of_a_batch_stop_each_for_itself(model, text) -> None:
    batch = torch.cat([PROMPT, torch.tensor([[1, 90, 143, 75, 67, 117]])])
    options = {"max_new_tokens": LENGTH, "do_sample": False, "pad_token_id": 0}
    texts = model.generate(batch, **options, eos_token_id=None)[:, PROMPT.shape[1] :].tolist()
    drafter = Replay(texts, acceptance=1.0, num_speculative_tokens=RUN)
    options |= {"eos_token_id": [texts[0][4], texts[1][10]]}
    ours = specdec.generate(model, batch, drafter=drafter, return_dict_in_generate=True, **options)
    assert torch.equal(ours.sequences, model.generate(batch, **options))
    assert_cut_inside_a_run(steps_of(ours, 0), 5)
    assert_cut_inside_a_run(steps_of(ours, 1), 11)
