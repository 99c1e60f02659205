"""The target: trees scored over the cache against plain forward passes, for many families; logits and features."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from specdec import attention
from specdec.cache import PagedKVCache
from specdec.features import LAST
from specdec.target import Chunk, PagedModel
from specdec.tree import TokenTree
from tests.toys.models import FAMILIES, WINDOW, real_llama, tiny_model
from tests.toys.scoring import EXACT, FLOAT32_INSIDE, ROUNDED, Batch, expected_nodes, plain_rows


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", FAMILIES)
def test_family_scores_trees_like_plain_passes(name, dtype):
    """Ragged batch over scattered pages, prompts shorter and longer than the window."""
    paged = PagedModel(tiny_model(name, dtype))
    tolerance = (ROUNDED if name in FLOAT32_INSIDE else EXACT)[dtype]
    assert Batch(paged, (2 * WINDOW + 3, 3, WINDOW)).run() <= tolerance


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_oss", "deepseek_v3", "llama4_text", "gemma4_text"])
def test_one_request_on_consecutive_pages(name):
    """The paths without a gather: slice copies, views, causal prefill, no mask for a single row."""
    paged = PagedModel(tiny_model(name))
    assert Batch(paged, (2 * WINDOW + 3,), page_size=64).run() <= ROUNDED[torch.float64]


@pytest.mark.parametrize("name", ["llama", "gemma2", "llama4_text"])
def test_long_and_short_requests_are_packed_together(name):
    """Over 192 keys, more rows than are padded, and key counts too far apart to be padded to the longest."""
    paged = PagedModel(tiny_model(name, max_position_embeddings=2048, num_hidden_layers=2, layer_types=...))
    batch = Batch(paged, (540, 40, 5, 230), page_size=16)
    assert batch.run() <= ROUNDED[torch.float64]


@pytest.mark.parametrize("name", ["stories260K", "llama2xs-tinystories"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_real_llamas(name, dtype):
    assert Batch(PagedModel(real_llama(name, dtype)), (70, 9, 33)).run() <= EXACT[dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_passes_its_check(dtype):
    for name in ("llama", "gemma2", "mixtral", "gpt_oss"):
        paged = PagedModel(tiny_model(name, dtype))
        assert paged.dtype == dtype and paged.vocab_size == 160


def test_rope_that_changes_with_length_is_scored_by_its_own_position():
    rope = {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    paged = PagedModel(tiny_model("llama", rope_parameters=rope, max_position_embeddings=64))
    assert Batch(paged, (21, 9, 33)).run() <= EXACT[torch.float64]


def test_only_new_nodes_are_computed():
    """A tree that grows level by level: what was scored before is in the pool."""
    for page_size in (2, 64):
        paged, cache = PagedModel(tiny_model("mistral")), PagedKVCache(page_size=page_size)
        prompt, table, other = list(range(5, 17)), cache.open(), cache.open()
        tree = TokenTree([20, 21, 22, 23, 24, 25], [-1, 0, 0, 1, 2, 2])
        cache.stage(table, len(prompt))
        cache.stage(other, 1)
        paged.score(cache, [Chunk(table, 0, TokenTree.chain(prompt))])
        cache.commit(table, list(range(1, len(prompt))), prompt)
        cache.stage(table, len(tree))
        want = expected_nodes(paged, prompt, tree)
        for first, stop in ((0, 1), (1, 3), (3, 4), (4, 6)):
            grown = TokenTree(tree.tokens[:stop], tree.parents[:stop])
            chunk = Chunk(table, len(prompt), grown, first=first, num_logits=stop - first)
            logits = paged.score(cache, [chunk]).logits
            torch.testing.assert_close(logits, want[first:stop], rtol=0, atol=1e-10)
            assert table.filled["target"] == len(prompt) + stop


def test_logits_are_of_the_last_nodes_wanted():
    paged, cache = PagedModel(tiny_model("llama")), PagedKVCache()
    texts = [list(range(5, 12)), list(range(30, 34)), list(range(50, 55))]
    counts = [2, 0, 5]
    chunks = []
    for text, count in zip(texts, counts, strict=True):
        table = cache.open()
        cache.stage(table, len(text))
        chunks.append(Chunk(table, 0, TokenTree.chain(text), num_logits=count))
    want = torch.cat([plain_rows(paged, text, n) for text, n in zip(texts, counts, strict=True) if n])
    torch.testing.assert_close(paged.score(cache, chunks).logits, want, rtol=0, atol=1e-10)
    assert paged.score(cache, [chunks[1]]).logits.shape == (0, 160)
    assert paged.score(cache, [chunks[1], replace(chunks[0], num_logits=0)]).logits.shape == (0, 160)
    with pytest.raises(ValueError, match="expected rows to compute and no more logits than rows, got 4 nodes"):
        paged.score(cache, [replace(chunks[1], num_logits=5)])
    with pytest.raises(ValueError, match="expected at least one chunk"):
        paged.score(cache, [])


def test_logits_may_be_changed_in_place():
    """As logits processors do, outside of inference mode."""
    paged, cache = PagedModel(tiny_model("llama")), PagedKVCache()
    table = cache.open()
    cache.stage(table, 1)
    logits = paged.score(cache, [Chunk(table, 0, TokenTree.chain([5]))]).logits
    logits[:, 3] = -torch.inf
    assert not logits.is_inference() and not logits.requires_grad


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "deepseek_v3", "opt"])
def test_features_are_the_outputs_of_layers_at_all_computed_rows(name):
    model = tiny_model(name)
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    layers = (2, LAST, 0)
    text, other = list(range(5, 16)), list(range(30, 34))
    paged, cache = PagedModel(model), PagedKVCache()
    with paged.tapped(layers):
        chunks = []
        for tokens, count in ((text, 3), (other, 0)):
            table = cache.open()
            cache.stage(table, len(tokens))
            chunks.append(Chunk(table, 0, TokenTree.chain(tokens), num_logits=count))
        both = paged.score(cache, chunks)
        one = paged.score(cache, chunks[:1]).features
        none = paged.score(cache, chunks[1:])
        paged.plain(torch.tensor([text]))  # not ours: leaves nothing behind
    assert [dict(module._forward_hooks) for module in model.modules()] == hooks
    with torch.no_grad():
        states = [model(torch.tensor([t]), output_hidden_states=True).hidden_states for t in (text, other)]
    want = [torch.cat([s[layer if layer == LAST else layer + 1][0] for layer in layers], -1) for s in states]
    torch.testing.assert_close(both.features, torch.cat(want), rtol=0, atol=1e-10)
    torch.testing.assert_close(one, want[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(none.features, want[1], rtol=0, atol=1e-10)
    assert both.logits.shape[0] == 3 and none.logits.shape[0] == 0
    assert [part.shape[0] for part in both.split_features(chunks)] == [len(text), len(other)]
    assert not one.is_inference()
    closed = paged.score(cache, chunks)
    assert closed.features is None and closed.split_features(chunks) == [None, None]


def test_layers_tapped_for_a_while_do_not_disturb_those_tapped_for_good():
    model, cache = tiny_model("llama"), PagedKVCache()
    table = cache.open()
    cache.stage(table, 3)
    chunk = Chunk(table, 0, TokenTree.chain([5, 6, 7]))
    with PagedModel(model, feature_layers=(1,)) as paged:
        before = paged.score(cache, [chunk]).features
        with pytest.raises(KeyboardInterrupt), paged.tapped((3, 1)):
            wider = paged.score(cache, [chunk]).features
            raise KeyboardInterrupt
        assert torch.equal(wider[:, 64:], before) and torch.equal(paged.score(cache, [chunk]).features, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_feature_layers_out_of_range_are_refused():
    expected = "expected feature_layers from 0 to 3, got 4; 0 is the first layer, -1 what the language model head reads"
    paged = PagedModel(tiny_model("llama"))
    with pytest.raises(ValueError, match=expected), paged.tapped((1, 4)):
        pass
    assert paged.feature_layers == () and not any(module._forward_hooks for module in paged.model.modules())


def test_an_error_in_the_first_pass_is_forgotten():
    """Layers that share K and V are still told apart afterwards."""
    paged = PagedModel(tiny_model("gemma3n_text"), check=False)

    def fail(*_):
        raise RuntimeError

    batch = Batch(paged, (19, 3))
    hook = paged.model.model.layers[3].register_forward_hook(fail)
    with pytest.raises(RuntimeError):
        batch.score([[-1], [-1]])
    hook.remove()
    assert batch.run() <= EXACT[torch.float64]
    assert batch.cache.pool("target").view(3, 0, 1) and len(paged.model.model.layers) == 6
    with pytest.raises(KeyError):
        batch.cache.pool("target").view(4, 0, 1)  # the last two layers store nothing


def test_two_models_share_a_cache():
    cache, table = PagedKVCache(), None
    table = cache.open()
    cache.stage(table, 3)
    chunk = Chunk(table, 0, TokenTree.chain([5, 6, 7]), num_logits=3)
    for pool, name in (("target", "llama"), ("draft_model", "gpt2")):
        paged = PagedModel(tiny_model(name), pool=pool)
        logits = paged.score(cache, [chunk]).logits
        torch.testing.assert_close(logits, plain_rows(paged, [5, 6, 7], 3), rtol=0, atol=1e-10)
    assert dict(table.filled) == {"target": 3, "draft_model": 3}


def test_context_and_vocabulary():
    for name, length in (("llama", 512), ("gpt2", 512), ("opt", 512), ("gpt_oss", 512)):
        for check in (True, False):
            paged = PagedModel(tiny_model(name), check=check)
            assert (paged.max_positions, paged.vocab_size) == (length, 160)
            assert paged.device == torch.device("cpu") and paged.dtype == torch.float64


def test_unknown_arguments_of_attention_are_refused():
    """A family that hands over something that changes scores is not run without it."""
    model = tiny_model("llama")
    for option in (torch.zeros(1), 0.5):
        with pytest.raises(ValueError, match="LlamaAttention hands 'position_bias' to its attention"):
            attention.scoring_of(model.model.layers[0].self_attn, {"position_bias": option})


def test_a_step_reaches_families_that_drop_keyword_arguments(monkeypatch):
    paged = PagedModel(tiny_model("llama"))
    monkeypatch.setattr(paged, "_takes_step", False)
    assert Batch(paged, (19, 3)).run() <= EXACT[torch.float64]


def test_models_that_cannot_keep_logits_are_cut_afterwards(monkeypatch):
    paged = PagedModel(tiny_model("llama"))
    monkeypatch.setattr(paged, "_keeps_logits", False)
    assert Batch(paged, (19, 3)).run() <= EXACT[torch.float64]


def test_dispatched_models_are_left_to_accelerate(tmp_path):
    """`device_map`: hooks of accelerate stay, and inputs go where its hooks expect them."""
    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}, dtype=torch.float64).eval()
    assert Batch(PagedModel(model), (19, 3)).run() <= EXACT[torch.float64]
