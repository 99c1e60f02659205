"""A run is cut where transformers' criteria, called after every single token, would have ended the request."""

import itertools
import random
import time

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast
from transformers.generation.stopping_criteria import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from specdec.stopping import Stopping

EOS = 2
VOCABULARY = ["<pad>", "<s>", "</s>", "st", "op", "stop", "opera", "las", "topper", "s", "to", "pped", ".", "\n", "x"]
PROMPT = [0, 0, 1, 14, 9]  # two tokens of left padding
RUN = [14, 9, 12, 14, 9]  # nothing in it ends anything
OFFSETS = range(len(RUN))
FAR = 100


def tokenizer():
    """Each entry of the vocabulary is a token and its own text; transformers tries it out on "abcdef"."""
    model = models.WordLevel({text: token for token, text in enumerate([*VOCABULARY, "abcdef"])}, unk_token="x")
    backend = Tokenizer(model)
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def stop_strings(*strings):
    return StopStringCriteria(tokenizer(), list(strings))


class LastIs(StoppingCriteria):
    """A user's criterion, which counts its calls and keeps what it saw."""

    def __init__(self, token):
        self.token = token
        self.seen = []

    def __call__(self, input_ids, scores, **kwargs):
        self.seen.append((input_ids.tolist(), scores))
        return input_ids[:, -1] == self.token


class StrictEos(EosTokenCriteria):
    """A subclass that decides otherwise."""

    def __call__(self, input_ids, scores, **kwargs):
        return super().__call__(input_ids, scores) & (input_ids.shape[1] > len(PROMPT) + 2)


def with_token(token, offset):
    return [*RUN[:offset], token, *RUN[offset + 1 :]]


def stepwise(criteria, tokens, run):
    """How many tokens transformers would emit, one at a time."""
    for count in range(1, len(run) + 1):
        if bool(criteria(torch.tensor([[*tokens, *run[:count]]]), None)):
            return count, True
    return len(run), False


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("eos", [2, [2], [5, 2, 7], torch.tensor([2, 8]), torch.tensor(2)])
def test_eos_at_every_offset(offset, eos):
    stopping = Stopping([EosTokenCriteria(eos)], FAR)
    assert stopping.cut(PROMPT, with_token(EOS, offset)) == (offset + 1, "eos")
    assert stopping.cut(PROMPT, RUN) == (len(RUN), None)
    assert EOS in stopping.eos_tokens


def test_the_first_of_several_eos_ends_the_run():
    stopping = Stopping([EosTokenCriteria([2]), EosTokenCriteria([7])], FAR)
    assert stopping.cut(PROMPT, [14, 7, 2]) == (2, "eos")
    assert stopping.cut(PROMPT, [14, 2, 7]) == (2, "eos")
    assert stopping.eos_tokens == {2, 7}


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("last, strings", [([5], ["stop"]), ([3, 4], ["stop"]), ([10, 11], ["top", "zzz", "rast"])])
def test_a_stop_string_ending_at_every_offset(offset, last, strings):
    """Also one that begins in the prompt, overhangs its last token, or is made of several."""
    run = [*RUN[:offset], *last, *RUN]
    stopping = Stopping([stop_strings(*strings)], FAR)
    assert stopping.cut(PROMPT, run) == (offset + len(last), "stop_string")
    assert stopping.cut([*PROMPT, *run[:-1]], run[-1:]) == (1, None)
    if len(last) == 2:
        assert stopping.cut([*PROMPT, last[0]], last[1:]) == (1, "stop_string")


def test_a_stop_string_is_looked_for_in_any_short_sequence():
    stopping = Stopping([stop_strings("stop")], FAR)
    assert stopping.cut([], [4, 5]) == (2, "stop_string")
    assert stopping.cut([9], [10, 11]) == (2, "stop_string")
    assert stopping.cut([9], [99999]) == (1, None)  # not in the tokenizer's vocabulary
    letters = Stopping([stop_strings("xxxx")], FAR)  # as many tokens as characters
    assert letters.cut([9, 14, 14, 14], [14]) == (1, "stop_string")
    assert letters.cut([9, 14], [14, 14, 14]) == (3, "stop_string")
    assert letters.cut([9, 14, 9, 14], [14, 14]) == (2, None)


@pytest.mark.parametrize("offset", OFFSETS)
def test_length_at_every_offset(offset):
    stopping = Stopping([], max_length=len(PROMPT) + offset + 1)
    assert stopping.cut(PROMPT, RUN) == (offset + 1, "length")
    assert stopping.room(len(PROMPT)) == offset + 1


def test_length_is_the_smallest_that_is_given():
    assert Stopping([MaxLengthCriteria(7)], 9).max_length == 7
    assert Stopping([MaxLengthCriteria(9), MaxLengthCriteria(8)]).max_length == 8
    assert Stopping(max_length=6).max_length == 6


def test_a_call_emits_one_token_even_without_room():
    stopping = Stopping([EosTokenCriteria(EOS)], max_length=len(PROMPT))
    assert stopping.room(len(PROMPT)) == stopping.room(len(PROMPT) + 3) == 0
    assert stopping.cut(PROMPT, [7, 8]) == stopping.cut([*PROMPT, 3], [7]) == (1, "length")
    assert stopping.cut(PROMPT, [EOS]) == (1, "eos")


@pytest.mark.parametrize("offset", OFFSETS)
def test_a_custom_criterion_at_every_offset(offset):
    criterion = LastIs(13)
    run = with_token(13, offset)
    assert Stopping([criterion], FAR).cut(PROMPT, run) == (offset + 1, "criterion")
    assert [ids for ids, _ in criterion.seen] == [[[*PROMPT, *run[: count + 1]]] for count in range(offset + 1)]
    assert all(scores is None for _, scores in criterion.seen)


def test_a_custom_criterion_sees_the_rows_of_scores_up_to_its_token():
    criterion = LastIs(13)
    scores = torch.randn(3, 15)
    assert Stopping([criterion], FAR).cut(PROMPT, [9, 13, 9], scores) == (2, "criterion")
    assert [len(seen) for _, seen in criterion.seen] == [1, 2]
    assert torch.equal(criterion.seen[1][1][-1], scores[1:2])
    criterion.seen.clear()
    earlier = [torch.randn(1, 15), torch.randn(1, 15)]  # rows of earlier rounds stand before those of the run
    assert Stopping([criterion], FAR).cut(PROMPT, [9, 13, 9], [*earlier, *scores]) == (2, "criterion")
    assert [len(seen) for _, seen in criterion.seen] == [3, 4]
    assert torch.equal(criterion.seen[0][1][0], earlier[0]) and torch.equal(criterion.seen[0][1][-1], scores[:1])


def test_every_criterion_is_asked_at_every_token_as_in_transformers():
    first, second = LastIs(99), LastIs(13)
    assert Stopping([first, second], FAR).cut(PROMPT, [9, 13, 9]) == (2, "criterion")
    assert Stopping([second, first], FAR).cut(PROMPT, [9, 13, 9]) == (2, "criterion")
    assert Stopping([first, second, EosTokenCriteria(13)], FAR).cut(PROMPT, [9, 13, 9]) == (2, "eos")
    assert len(first.seen) == len(second.seen) == 6


def test_functions_and_subclasses_are_custom_criteria():
    assert Stopping([lambda input_ids, scores: input_ids.shape[1] == 7], FAR).cut(PROMPT, RUN) == (2, "criterion")
    strict = Stopping([StrictEos(EOS)], FAR)
    assert strict.cut(PROMPT, [EOS, 9, EOS, 9]) == (3, "criterion")
    assert not strict.eos_tokens


@pytest.mark.parametrize("offset", OFFSETS)
def test_time_at_every_offset(offset, monkeypatch):
    """The clock passes the limit between two tokens of the run."""
    criterion = MaxTimeCriteria(max_time=10.0, initial_timestamp=0.0)
    ticks = iter([0.0] * offset + [10.1] * len(RUN))
    monkeypatch.setattr(time, "time", lambda: next(ticks))
    assert Stopping([criterion], FAR).cut(PROMPT, RUN) == (offset + 1, "time")


def test_time_that_is_over_ends_the_request_with_its_next_token():
    assert Stopping([MaxTimeCriteria(1.0, time.time() - 2.0)], FAR).cut(PROMPT, RUN) == (1, "time")
    assert Stopping([MaxTimeCriteria(1e6)], FAR).cut(PROMPT, RUN) == (len(RUN), None)


@pytest.mark.parametrize("offset", OFFSETS)
def test_confidence(offset):
    scores = torch.full((len(RUN), 15), -9.0)
    scores[range(len(RUN)), RUN] = 9.0
    scores[offset, RUN[offset]] = -9.0
    stopping = Stopping([ConfidenceCriteria(0.4)], FAR)
    assert stopping.cut(PROMPT, RUN, scores) == (offset + 1, "criterion")
    with pytest.raises(ValueError, match="expected scores for ConfidenceCriteria, got none; "):
        stopping.cut(PROMPT, RUN)


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize(
    "criterion, token, reason",
    [(EosTokenCriteria(EOS), EOS, "eos"), (stop_strings("stop"), 5, "stop_string"), (LastIs(13), 13, "criterion")],
)
def test_a_stop_at_the_last_token_that_fits_wins_over_length(criterion, token, reason, offset):
    run = with_token(token, offset)
    assert Stopping([criterion], len(PROMPT) + offset + 1).cut(PROMPT, run) == (offset + 1, reason)
    assert Stopping([criterion], len(PROMPT) + offset + 2).cut(PROMPT, run) == (offset + 1, reason)
    if offset:  # and one behind it does not
        assert Stopping([criterion], len(PROMPT) + offset).cut(PROMPT, run) == (offset, "length")


def test_the_earliest_stop_counts_whatever_its_kind():
    criteria = [stop_strings("stop"), EosTokenCriteria(EOS), LastIs(13)]
    for order in itertools.permutations([(5, "stop_string"), (EOS, "eos"), (13, "criterion")]):
        run = [14, *(token for token, _ in order)]
        assert Stopping(criteria, FAR).cut(PROMPT, run) == (2, order[0][1])


@pytest.mark.parametrize("seed", range(40))
def test_decisions_are_those_of_transformers_called_step_by_step(seed):
    """One long text, cut into runs of any length, ends where it ends token by token."""
    generator = random.Random(seed)
    text = [generator.choice([3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, *[EOS] * (seed % 3 == 0)]) for _ in range(40)]
    criteria = StoppingCriteriaList(
        [
            MaxLengthCriteria(len(PROMPT) + generator.randrange(1, 41)),
            stop_strings(*generator.sample(["stop", "sto.", "rast", "xs", "."], 2)),
            EosTokenCriteria([EOS, 13] if seed % 2 else EOS),
            lambda input_ids, scores: (input_ids[:, -3:] == 9).sum(-1) >= 2 + seed % 2,
        ]
    )
    stopping = Stopping(criteria)
    emitted, reason = [], None
    while reason is None:
        run = text[len(emitted) :][: generator.randrange(1, 8)]
        count, reason = stopping.cut([*PROMPT, *emitted], run)
        assert 1 <= count <= len(run) and (reason is not None or count == len(run))
        emitted += run[:count]
        if reason is None and len(emitted) == len(text):
            break
    assert (len(emitted), reason is not None) == stepwise(criteria, PROMPT, text)


def test_eos_and_length_need_no_tensor(monkeypatch):
    stopping = Stopping([EosTokenCriteria(EOS), MaxLengthCriteria(9)], 20)
    monkeypatch.setattr(torch, "tensor", None)
    assert stopping.cut(PROMPT, [9, EOS]) == (2, "eos")
    assert stopping.cut(tuple(PROMPT), (9, 9, 9, 9, 9)) == (4, "length")


def test_refusals():
    for arguments in ([], [[EosTokenCriteria(EOS)]], [[], 0], [[MaxLengthCriteria(0)], 5], [["stop"], 5]):
        with pytest.raises(ValueError, match=r"^expected .*, got .*; [^\n]*$"):
            Stopping(*arguments)
