"""Rows of features: what is kept, handed over, forgotten and shared."""

import random

import pytest
import torch

from specdec.anatomy import layer_of
from specdec.features import LAST, MAX_SPARE_ROWS, FeatureRows
from tests.toys.models import FAMILIES, tiny_model


def numbered(*rows):
    """Features that say which row they are of."""
    return torch.tensor([[float(row)] for row in rows])


def test_only_the_kept_rows_are_added():
    features = FeatureRows(start=3)
    features.extend(numbered(3, 4, 5), range(3))
    features.extend(numbered(6, -1, 7, -1, 8), [0, 2, 4])
    features.extend(numbered(9, -1, -1), [0])
    assert (features.start, features.stop) == (3, 10)
    assert features.rows(3, 10).flatten().tolist() == list(range(3, 10))
    assert features.rows(5, 7).flatten().tolist() == [5, 6]
    features.precede(numbered(1, 2))
    assert features.rows(1, 4).flatten().tolist() == [1, 2, 3]


def test_rows_that_are_not_there_are_not_made_up():
    features = FeatureRows(start=3)
    features.extend(numbered(3, 4), range(2))
    for start, stop in ((2, 4), (3, 6)):
        with pytest.raises(AssertionError):
            features.rows(start, stop)


def test_a_prompt_is_forgotten_once_it_is_not_wanted():
    """A part of it would keep all of it in memory."""
    features, length = FeatureRows(), 3 * MAX_SPARE_ROWS
    prompt = numbered(*range(length))
    features.extend(prompt, range(length))
    features.forget(length - 1)
    assert features.start == length - 1
    kept = features.rows(length - 1, length)
    assert kept.flatten().tolist() == [length - 1] and kept.untyped_storage().nbytes() == 4


def test_a_fork_has_the_rows_that_are_shared():
    features = FeatureRows(start=2)
    features.extend(numbered(2, 3, 4), range(3))
    fork = features.fork(4)
    fork.extend(numbered(40), [0])
    assert fork.rows(2, 5).flatten().tolist() == [2, 3, 40] and features.rows(2, 5).flatten().tolist() == [2, 3, 4]
    assert (features.fork(1).start, features.fork(1).stop) == (1, 1)


def test_any_history_gives_the_rows_of_the_text():
    for seed in range(50):
        chance = random.Random(seed)
        length = start = chance.randrange(4)
        features = FeatureRows(start)
        for _ in range(20):
            count = chance.randrange(1, 100)
            kept = sorted({0, *chance.sample(range(count), chance.randrange(count))})
            rows = [-1.0] * count
            for place, node in enumerate(kept):
                rows[node] = length + place
            features.extend(numbered(*rows), kept)
            length += len(kept)
            features.forget(chance.randrange(length))
            first = chance.randrange(features.start, length)
            assert features.stop == length
            assert features.rows(first, length).flatten().tolist() == list(range(first, length))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_features_are_what_the_language_model_head_reads(family):
    model = tiny_model(family)
    seen, read = [], []
    layer_of(model, LAST).register_forward_hook(lambda _module, _inputs, output: seen.append(output[0]))
    model.get_output_embeddings().register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        model(torch.tensor([[3, 4, 5, 6]]))
    assert torch.equal(*seen, *read)
