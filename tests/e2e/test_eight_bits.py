"""A cache that rounds its rows to eight bits: other logits, and still the same text with and without a drafter."""

from functools import partial

import pytest
import torch

import specdec
from specdec import generation
from specdec import target as target_module
from specdec.cache import PagedKVCache
from specdec.calibration import calibrate
from specdec.chunk import Chunk
from specdec.draft_models.draft_model import DraftModel
from specdec.draft_models.ngram import NGram
from specdec.pool import KVPool
from specdec.target import PagedModel
from specdec.tree import TokenTree
from tests.toys.drafters import Oracle, RandomTrees
from tests.toys.models import GREEDY, IDS, tiny_model
from tests.toys.recorded import recording  # noqa: F401 - a fixture

WAYS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 40, "temperature": 0.8, "repetition_penalty": 1.2},
}
BATCH = {
    "input_ids": torch.tensor([[0, 0, 0, 5, 9, 5, 9, 31], [7, 8, 9, 7, 8, 9, 7, 8]]),
    "attention_mask": torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1], [1] * 8]),
}
PADDING = [3, 0]
STEP = 2.0**-4  # of e4m3: a number is off by that share of itself at most


@pytest.fixture
def eight_bits(monkeypatch):
    """Caches that `generate` makes are in fp8."""
    monkeypatch.setattr(generation, "PagedKVCache", partial(PagedKVCache, page_size=4, kv_cache_dtype="fp8"))


@pytest.fixture
def moves(monkeypatch):
    """How many rows each move of a pool moved."""
    counts, move = [], KVPool.move
    monkeypatch.setattr(KVPool, "move", lambda self, *rows: counts.append(len(rows[0])) or move(self, *rows))
    return counts


def drafters(model, texts):
    yield NGram(num_speculative_tokens=4, prompt_lookup_min=1)
    yield Oracle(texts, 0.7, 160, 4)
    yield RandomTrees(160, num_nodes=10, texts=texts, truth=0.8)
    yield DraftModel(model, num_speculative_tokens=3)
    coupled = {"draft_sample_method": "coupled", "num_tree_nodes": 6, "tree_width": 2}
    yield DraftModel(model, num_speculative_tokens=2, **coupled)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_oss", "deepseek_v2", "gemma3n_text", "gpt2"])
def test_the_text_does_not_depend_on_the_drafter(family, way, eight_bits, moves):
    """Grouped queries; softcap and window; sinks; keys and values that differ; layers that share them; own heads."""
    target, draft_model = PagedModel(tiny_model(family)), tiny_model("llama", seed=1, num_hidden_layers=1)
    options = {**BATCH, **WAYS[way], "max_new_tokens": 12, "pad_token_id": 0, "eos_token_id": None, "seed": 7}
    plain = specdec.generate(target, **options)
    moves.clear()  # those of the check at load
    texts = [row[padding:].tolist() for row, padding in zip(plain, PADDING, strict=True)]
    for drafter in drafters(draft_model, texts):
        found = specdec.generate(target, **options, drafter=drafter, verifier="sample_and_match")
        assert torch.equal(found, plain), f"{drafter.name} differs from plain decoding"
    assert moves


def test_eight_bits_change_the_logits_but_not_by_much(eight_bits, monkeypatch):
    model = tiny_model("llama")
    options = {**GREEDY, "max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    small = specdec.generate(model, IDS, **options).logits[0]
    monkeypatch.undo()
    wide = specdec.generate(model, IDS, **options).logits[0]
    assert 1e-4 < ((small - wide).norm() / wide.norm()).item() < 0.2


@pytest.mark.parametrize("family", ["llama", "deepseek_v2"])
def test_caches_are_handed_out_in_the_models_numbers_and_taken_back(family, eight_bits, monkeypatch):
    """Rows that come back are rounded to what they are already: a second turn goes on as if it were one."""
    model = tiny_model(family)
    drafter = RandomTrees(160, num_nodes=6)
    options = {**GREEDY, "eos_token_id": None, "return_dict_in_generate": True}
    first = specdec.generate(model, IDS, drafter=drafter, **options)
    whole = specdec.generate(model, first.sequences, **options).sequences
    again = specdec.generate(model, first.sequences, past_key_values=first.past_key_values, drafter=drafter, **options)
    assert torch.equal(again.sequences, whole)
    monkeypatch.undo()
    wide = specdec.generate(model, first.sequences[:, :-1], **{**options, "max_new_tokens": 1}).past_key_values
    for layer, other in zip(first.past_key_values.layers, wide.layers, strict=True):
        assert layer.keys.dtype == layer.values.dtype == torch.float64 and layer.keys.shape == other.keys.shape
    layer, other = first.past_key_values.layers[0], wide.layers[0]  # of which the inputs were the same
    for found, wanted in ((layer.keys, other.keys), (layer.values, other.values)):
        assert not torch.equal(found, wanted)
        torch.testing.assert_close(found, wanted, rtol=STEP, atol=2.0**-10)  # half the smallest number's step


def test_scales_of_a_text_make_its_largest_number_the_largest_there_is():
    model, cache = PagedModel(tiny_model("deepseek_v2")), PagedKVCache(kv_cache_dtype="fp8")
    calibrate(cache, model, IDS[0].tolist())
    caches = PagedKVCache(), cache
    for each in caches:
        table = each.open()
        each.stage(table, 10)
        model.score(each, [Chunk(table, 0, TokenTree.chain(IDS[0].tolist()))])
    slots = torch.arange(10)
    wide, scaled = (each.pool("target").read(model.layer_keys[0], slots) for each in caches)
    stored = cache.pool("target").stored(model.layer_keys[0])
    for found, wanted, codes, scale in zip(scaled, wide, stored[:2], stored.scales, strict=True):
        torch.testing.assert_close(found.abs().amax((0, 2)), wanted.abs().amax((0, 2)), rtol=1e-6, atol=0)
        torch.testing.assert_close(found, wanted, rtol=STEP, atol=2.0**-10 * scale.max().item())
        assert codes[slots].float().abs().amax((0, 2)).tolist() == [448.0] * 4
    for wrong, match in ((PagedKVCache(), "expected scales for a pool in fp8"), (cache, "a layer with rows")):
        with pytest.raises(ValueError, match=match):
            calibrate(wrong, model, [1, 2])
    with pytest.raises(ValueError, match="expected a text to take scales from, got no tokens"):
        calibrate(PagedKVCache(kv_cache_dtype="fp8"), model, [])


@pytest.mark.parametrize("way", WAYS)
def test_the_text_does_not_depend_on_the_drafter_with_scales_either(way, monkeypatch, moves):
    target = PagedModel(tiny_model("llama"))

    def scaled():
        cache = PagedKVCache(page_size=4, kv_cache_dtype="fp8")
        calibrate(cache, target, [5, 9, 31, 7, 8])
        return cache

    monkeypatch.setattr(generation, "PagedKVCache", scaled)
    options = {**BATCH, **WAYS[way], "max_new_tokens": 16, "pad_token_id": 0, "eos_token_id": None, "seed": 3}
    plain = specdec.generate(target, **options)
    moves.clear()
    texts = [row[padding:].tolist() for row, padding in zip(plain, PADDING, strict=True)]
    for drafter in (NGram(num_speculative_tokens=4, prompt_lookup_min=1), RandomTrees(160, 10, texts=texts, truth=0.8)):
        found = specdec.generate(target, **options, drafter=drafter, verifier="sample_and_match")
        assert torch.equal(found, plain)
    assert moves


def test_captured_rounds_read_and_write_eight_bits_too(eight_bits, monkeypatch, recording):  # noqa: F811
    monkeypatch.setattr(target_module, "PagedKVCache", generation.PagedKVCache)
    model = tiny_model("llama")
    eager, captured = PagedModel(model), PagedModel(model, graphs=True)
    options = {**BATCH, **WAYS["sampled"], "max_new_tokens": 16, "pad_token_id": 0, "eos_token_id": None, "seed": 3}
    for drafter in (None, RandomTrees(160, 10)):
        found = specdec.generate(captured, **options, drafter=drafter, verifier="sample_and_match")
        wanted = specdec.generate(eager, **options, drafter=drafter, verifier="sample_and_match")
        assert torch.equal(found, wanted)
    assert captured.graph_report.num_replayed > 5
    assert captured.cache.pool("target").stored(0).scales is not None


def test_generate_takes_the_cache_of_its_target():
    model = tiny_model("llama")
    target = PagedModel(model)
    exact = specdec.generate(target, **BATCH, **GREEDY)
    target.cache = PagedKVCache(kv_cache_dtype="fp8")
    rounded = [specdec.generate(target, **BATCH, drafter=drafter, **GREEDY) for drafter in (None, "ngram")]
    assert torch.equal(*rounded) and not torch.equal(rounded[0], exact)
    assert target.cache.num_free_pages == target.cache.num_pages
