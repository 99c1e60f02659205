"""Live runs beside predictions: how far texts are continued, and when one of them ends first."""

import pytest

from specdec.draft_models.replay import Replay
from specdec.experiments.profile.check import timed
from specdec.experiments.profile.running import laps_of
from specdec.target import PagedModel
from tests.toys.models import tiny_model


@pytest.fixture(scope="module")
def target():
    return PagedModel(tiny_model("llama"))


def record_of(target, prompt, count):
    """What plain decoding says behind the prompt."""
    return [token for lap in laps_of(target, [prompt], count) for token in lap.event.steps[0].tokens]


def test_a_batch_ends_with_the_request_whose_context_is_full(target):
    """One request has eight tokens a round and the others one each: there are not twice as many rounds."""
    length = target.max_positions // 2
    prompts = [[place % 7 + number for place in range(length)] for number in range(8)]
    drafter = Replay({0: record_of(target, prompts[0], target.max_positions - length)}, 1.0, 7)
    spent, emitted = timed(target, prompts, length // 2, drafter)
    assert spent > 0 and 0 < emitted < 8 * (length // 2)


def test_a_text_of_one_token_has_a_round_that_counts(target):
    prompt = [5, 6, 7]
    spent, emitted = timed(target, [prompt], 1, Replay([record_of(target, prompt, 30)], 1.0, 7))
    assert spent > 0 and emitted >= 1
