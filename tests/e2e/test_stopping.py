"""A stop anywhere inside an accepted run: nothing behind it is emitted, streamed, counted or cached."""

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import specdec
from specdec.draft_models.replay import Replay
from tests.toys.models import real_llama, tiny_model

RUN = 6  # drafted tokens per round, all of them right
PROMPT = torch.tensor([[1, 17, 33, 90, 17, 33]])


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
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def text(model) -> list[int]:
    """New tokens of a plain run that never stops."""
    out = model.generate(PROMPT, max_new_tokens=2 * RUN + 3, do_sample=False, eos_token_id=None, pad_token_id=0)
    return out[0, PROMPT.shape[1] :].tolist()


def run(model, text: list[int], **options):
    streamer = Collect()
    drafter = Replay([[*PROMPT[0].tolist(), *text]], acceptance=1.0, num_speculative_tokens=RUN)
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


def assert_stopped_after(count: int, out, streamer: Collect, text: list[int], reason: str) -> None:
    wanted = text[:count]
    prompt = PROMPT[0].tolist()
    assert out.sequences[0].tolist() == prompt + wanted
    assert streamer.tokens == prompt + wanted and streamer.num_ends == 1
    metrics = out.speculation.metrics
    steps = [step for event in out.speculation.rounds for step in event.steps]
    assert metrics.num_tokens == count == len(out.scores)
    assert [token for step in steps for token in step.tokens] == wanted
    assert steps[-1].finish_reason == reason
    assert all(step.num_accepted <= len(step.tokens) for step in steps)
    assert out.past_key_values.get_seq_length() == len(prompt) + count - 1


@pytest.mark.parametrize("count", range(1, 2 * RUN + 2))
def test_eos_at_every_offset(model, text, count) -> None:
    first = text.index(text[count - 1]) + 1  # an earlier copy of the same token stops earlier
    out, streamer = run(model, text, eos_token_id=text[count - 1])
    assert_stopped_after(first, out, streamer, text, "eos")


@pytest.mark.parametrize("count", range(1, 2 * RUN + 2))
def test_length_at_every_offset(model, text, count) -> None:
    out, streamer = run(model, text, max_new_tokens=count)
    assert_stopped_after(count, out, streamer, text, "length")


@pytest.mark.parametrize("count", range(1, 2 * RUN + 2))
def test_custom_criterion_at_every_offset(model, text, count) -> None:
    criteria = StoppingCriteriaList([StopAfter(PROMPT.shape[1] + count)])
    out, streamer = run(model, text, stopping_criteria=criteria)
    assert_stopped_after(count, out, streamer, text, "criterion")


def test_eos_on_the_last_allowed_token_is_a_stop_not_a_length(model, text) -> None:
    count = next(n for n in range(RUN, 0, -1) if text.index(text[n - 1]) == n - 1)
    out, streamer = run(model, text, eos_token_id=text[count - 1], max_new_tokens=count)
    assert_stopped_after(count, out, streamer, text, "eos")


def test_stop_string_at_every_offset(shared) -> None:
    from transformers import AutoTokenizer

    model = real_llama("stories260K", torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    options = {"max_new_tokens": 24, "do_sample": False}
    plain = model.generate(**inputs, **options)[0].tolist()
    width = inputs["input_ids"].shape[1]
    for end in range(width + 1, len(plain) - 1):
        stop = tokenizer.decode(plain[: end + 1])[len(tokenizer.decode(plain[: end - 1])) :]
        if not stop.strip():
            continue
        wanted = model.generate(**inputs, **options, stop_strings=[stop], tokenizer=tokenizer)
        drafter = Replay([plain], acceptance=1.0, num_speculative_tokens=RUN)
        ours = specdec.generate(model, **inputs, drafter=drafter, stop_strings=[stop], tokenizer=tokenizer, **options)
        assert torch.equal(ours, wanted), repr(stop)


def test_rows_of_a_batch_stop_each_for_itself(model, text) -> None:
    other = torch.tensor([[1, 50, 60, 70, 80, 90]])
    batch = torch.cat([PROMPT, other])
    options = {"max_new_tokens": 14, "do_sample": False, "pad_token_id": 0, "eos_token_id": text[4]}
    assert torch.equal(specdec.generate(model, batch, drafter="ngram", **options), model.generate(batch, **options))
