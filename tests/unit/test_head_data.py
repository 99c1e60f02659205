"""Data of heads: what the target writes, what a step sees of it."""

import pytest
import torch

from specdec.experiments.head_batches import POOL, SHARD, FeatureCache, Order, batch_of, padded
from specdec.experiments.head_features import FrozenTarget, online
from specdec.experiments.head_samples import (
    ResponseConfig,
    Samples,
    begin_responses,
    frequent_tokens,
    read_responses,
    write_responses,
)
from specdec.target import PagedModel
from tests.toys.models import tiny_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def target():
    model = tiny_model("llama", dtype=torch.float32)
    model.generation_config.eos_token_id = None
    return model


def openings_of(count, longest=6):
    from specdec.experiments.head_openings import Opening, Openings

    texts = [[1 + (7 * i + j) % 40 for j in range(1 + i % longest)] for i in range(count)]
    return Openings([Opening("a", text) for text in texts], [Opening("a", [3, 4])])


WRITING = ResponseConfig(max_tokens=100, response_length=6, temperature=0.0, batch_size=4)


def written(openings, target, config, folder, *rest):
    begin_responses(openings, config, folder)
    write_responses(target, config, folder, *rest)


def test_responses_are_what_the_target_generates(target, tmp_path):
    openings = openings_of(10)
    written(lambda: openings, target, WRITING, tmp_path)
    samples, held_out = read_responses(tmp_path)
    assert held_out == openings.held_out and len(samples) == 10
    for index in range(10):
        prompt = samples.text(index)[: samples.prompt_lengths[index]]
        text = target.generate(prompt[None].long(), max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert samples.text(index).tolist() == text[0].tolist()
    assert sorted(samples.prompt_lengths.tolist()) == sorted(len(opening.tokens) for opening in openings.train)


def test_responses_end_where_the_text_does(target, tmp_path):
    written(lambda: openings_of(8), target, WRITING, tmp_path / "whole")
    whole, _ = read_responses(tmp_path / "whole")
    end = int(whole.text(0)[int(whole.prompt_lengths[0]) + 2])
    target.generation_config.eos_token_id = [end]
    try:
        written(lambda: openings_of(8), target, WRITING, tmp_path / "ended")
    finally:
        target.generation_config.eos_token_id = None
    ended, _ = read_responses(tmp_path / "ended")
    for index in range(8):
        prompt, text = int(whole.prompt_lengths[index]), whole.text(index).tolist()
        stop = next((place + 1 for place in range(prompt, len(text)) if text[place] == end), len(text))
        assert ended.text(index).tolist() == text[:stop]


def test_writing_goes_on_where_it_was_killed(target, tmp_path):
    config = ResponseConfig(max_tokens=100, response_length=6, temperature=1.0, batch_size=4)
    written(lambda: openings_of(10), target, config, tmp_path / "whole")

    def killed(done, total, what):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(lambda: openings_of(10), target, config, tmp_path / "killed", killed)
    with pytest.raises(ValueError, match="expected 3 files of responses in .*, got 2"):
        read_responses(tmp_path / "killed")
    written(lambda: pytest.fail("the openings are there"), target, config, tmp_path / "killed")
    whole, killed = read_responses(tmp_path / "whole")[0], read_responses(tmp_path / "killed")[0]
    assert torch.equal(whole.tokens, killed.tokens)
    with pytest.raises(ValueError, match="got another temperature"):
        written(lambda: openings_of(10), target, WRITING, tmp_path / "killed")
    with pytest.raises(ValueError, match="expected a folder of responses"):
        read_responses(tmp_path)


def test_processes_write_their_shares(target, tmp_path):
    written(lambda: openings_of(10), target, WRITING, tmp_path / "one")
    begin_responses(lambda: openings_of(10), WRITING, tmp_path / "two")
    for process in (1, 0):
        write_responses(target, WRITING, tmp_path / "two", share=(process, 2))
    assert torch.equal(read_responses(tmp_path / "one")[0].tokens, read_responses(tmp_path / "two")[0].tokens)


def test_counts_are_of_responses_only_and_give_the_reduced_vocabulary():
    samples = Samples.of([[5, 5, 5, 1, 2], [5, 2, 2, 3], [4, 4]], prompt_lengths=[3, 1, 2])
    assert samples.counts(6).tolist() == [0, 1, 3, 1, 0, 0]
    assert frequent_tokens(samples.counts(6), 3) == [1, 2, 3]
    assert frequent_tokens(samples.counts(6), 2, always=[5]) == [2, 5]
    cut = samples.cut(4)
    assert [cut.text(index).tolist() for index in range(len(cut))] == [[5, 2, 2, 3]]
    assert cut.counts(6).tolist() == [0, 0, 2, 1, 0, 0]


def test_an_epoch_sees_every_text_once_in_batches_of_like_length():
    lengths = torch.randint(5, 500, (1003,), generator=torch.Generator().manual_seed(0))
    order = Order(lengths, batch_size=8, seed=1)
    assert order.steps_per_epoch == 125
    epochs = [[order.texts(step) for step in range(start, start + 125)] for start in (0, 125)]
    for epoch in epochs:
        assert len({number for batch in epoch for number in batch}) == 1000
        spread = sum(int(lengths[batch].max() - lengths[batch].min()) for batch in epoch) / 125
        assert spread < 500 / POOL * 3
    assert epochs[0] != epochs[1] and order.texts(3) == epochs[0][3]
    assert Order(lengths, 8, seed=2).texts(3) != epochs[0][3]
    with pytest.raises(ValueError, match="expected at least 8 texts for a batch, got 3"):
        Order(lengths[:3], batch_size=8, seed=0)


def texts(count):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 30, (count,), generator=generator).tolist()
    made = [torch.randint(1, 40, (length,), generator=generator).tolist() for length in lengths]
    return Samples.of(made, [2] * count)


def test_cached_features_are_those_computed_when_they_are_wanted(target, tmp_path):
    samples, frozen = texts(2 * SHARD + 3), FrozenTarget(PagedModel(target), [2, 0])
    cache = FeatureCache(tmp_path, samples, frozen, limit_gb=1.0)
    cache.fill((1, 2))  # the share of the second of two processes
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    cache.fill()
    numbers = [0, 2 * SHARD + 2, SHARD, 5]
    tokens, is_response = padded(samples, numbers)
    found, wanted = (batch_of(samples, numbers, source, CPU, 0) for source in (cache, online(frozen)))
    assert torch.equal(found.tokens, tokens) and torch.equal(found.is_response, is_response)
    is_there = torch.arange(tokens.shape[1]) < samples.lengths[numbers, None]
    for ours, theirs in ((found.features, wanted.features), (found.last, wanted.last)):
        assert (ours - theirs)[is_there].abs().max() < 1e-5 and ours[~is_there].abs().max() == 0
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert size < 1.3 * int(samples.lengths.sum()) * frozen.width * 4


def test_a_cache_of_other_texts_layers_or_weights_is_another_one(target, tmp_path):
    other = tiny_model("llama", dtype=torch.float32)
    torch.nn.init.ones_(other.model.layers[1].mlp.down_proj.weight)  # its language model head is the same
    for model, layers, samples in (
        (target, [0], texts(5)), (target, [1], texts(5)), (target, [0], texts(6)), (other, [0], texts(5))
    ):  # fmt: skip
        FeatureCache(tmp_path, samples, FrozenTarget(PagedModel(model), layers), limit_gb=1.0).fill()
    assert len(list(tmp_path.iterdir())) == 4


def test_a_cache_that_would_grow_beyond_its_limit_is_refused(target, tmp_path):
    with pytest.raises(ValueError, match="expected texts whose features take at most 1e-06 GB"):
        FeatureCache(tmp_path, texts(40), FrozenTarget(PagedModel(target), [0]), limit_gb=1e-6)
    assert not list(tmp_path.iterdir())
