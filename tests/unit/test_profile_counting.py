"""FLOPs and bytes of passes: by hand for tiny models, against torch's own counter, and against what the cache holds."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    OPTConfig,
    Qwen3MoeConfig,
)

from specdec.cache import PagedKVCache
from specdec.experiments.profile.counting import Rows, Work, counts_of
from specdec.target import Chunk, PagedModel
from specdec.tree import TokenTree

SIZES = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "grouped heads": LlamaConfig(**SIZES, **HEADS),
    "tied": LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True),
    "biases": LlamaConfig(**SIZES, **HEADS, attention_bias=True, mlp_bias=True),
    "gpt2": GPT2Config(vocab_size=48, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
    "opt": OPTConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, ffn_dim=24, num_attention_heads=2, word_embed_proj_dim=16
    ),
    "mixtral": MixtralConfig(**SIZES, **HEADS, num_local_experts=4, num_experts_per_tok=2),
    "qwen3 moe": Qwen3MoeConfig(**SIZES, **HEADS, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=12),
}


def model_of(config, **options):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation="eager", **options).eval()


def counted(model, ids):
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(input_ids=ids, use_cache=False)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("batch, length", [(1, 1), (1, 7), (3, 5)])
def test_flops_are_those_that_torch_counts(name, batch, length):
    """Eager attention multiplies hidden pairs too: each row sees as if it were the last."""
    is_sparse = name in ("mixtral", "qwen3 moe")
    model = model_of(CONFIGS[name], **({"experts_implementation": "eager"} if is_sparse else {}))
    counts = counts_of(model)
    work = counts.work([Rows(0, length, length)] * batch)
    hidden = batch * (length * length - length * (length + 1) // 2) * sum(a.pair_flops for a in counts.attentions)
    assert counted(model, torch.zeros(batch, length, dtype=torch.int64)) == work.flops + hidden


def test_counts_by_hand():
    counts = counts_of(model_of(CONFIGS["grouped heads"], dtype=torch.bfloat16))
    attention, mlp = 16 * 32 + 2 * 16 * 16 + 32 * 16, 3 * 16 * 24
    assert counts.row_flops == 2 * 2 * (attention + mlp)
    assert counts.logit_flops == 2 * 16 * 48
    assert counts.kv_bytes == 2 * (2 * 2 * 8) * 2  # layers, K and V of two heads, two bytes
    norms = 2 * 2 * 16 + 16
    assert counts.weight_bytes == 2 * (2 * (attention + mlp) + norms + 16 * 48)
    assert counts.experts is None
    # Two requests of 10 rows in the cache get 3 more; logits of all of them are wanted.
    pairs = 2 * (11 + 12 + 13)
    read, written = 2 * 13 * counts.kv_bytes, 2 * 3 * counts.kv_bytes
    flops = 6 * (counts.row_flops + counts.logit_flops) + pairs * 2 * 2 * 4 * (8 + 8)
    assert counts.work([Rows(10, 3, 3)] * 2) == Work(flops, counts.weight_bytes + read + written)
    assert counts.kv_bytes_at(100, batch=3) == 300 * counts.kv_bytes


def test_experts_are_read_as_often_as_rows_are_routed_to_them():
    counts = counts_of(model_of(CONFIGS["qwen3 moe"]))
    expert = 3 * 16 * 12
    assert counts.experts.count == 8 and counts.experts.active == 2
    assert counts.experts.bytes == 2 * 8 * expert * 4
    router, attention = 16 * 8, 16 * 32 + 2 * 16 * 16 + 32 * 16
    assert counts.row_flops == 2 * 2 * (attention + router + 2 * expert)
    one, many = (counts.work([Rows(0, rows)]).bytes - rows * 2 * counts.kv_bytes for rows in (1, 500))
    assert one == pytest.approx(counts.dense_bytes + counts.experts.bytes / 4)
    assert many == pytest.approx(counts.weight_bytes)


def test_embeddings_count_where_they_are_the_head():
    tied, apart = (counts_of(model_of(CONFIGS[name])) for name in ("tied", "grouped heads"))
    assert tied.weight_bytes == apart.weight_bytes
    assert tied.work([Rows(0, 4)]) == apart.work([Rows(0, 4)])


def test_windows_bound_what_is_read():
    config = Gemma3TextConfig(**SIZES, **HEADS, sliding_window=6, layer_types=["sliding_attention", "full_attention"])
    narrow, full = counts_of(model_of(config)).attentions
    assert (narrow.window, full.window) == (6, None)
    assert (narrow.pairs(Rows(20, 2)), full.pairs(Rows(20, 2))) == (12, 21 + 22)
    assert (narrow.rows_read(Rows(20, 2)), full.rows_read(Rows(20, 2))) == (7, 22)
    assert (narrow.rows_read(Rows(0, 3)), narrow.pairs(Rows(0, 3))) == (3, 6)


def test_a_window_without_types_is_that_of_every_layer():
    windows = {
        width: {
            each.window
            for each in counts_of(model_of(MistralConfig(**SIZES, **HEADS, sliding_window=width))).attentions
        }
        for width in (6, None)
    }
    assert windows == {6: {6}, None: {None}}


@pytest.mark.parametrize("name", CONFIGS)
def test_kv_bytes_are_those_of_the_cache(name):
    model = model_of(CONFIGS[name])
    target, cache = PagedModel(model), PagedKVCache()
    table = cache.open()
    cache.stage(table, 3)
    target.score(cache, [Chunk(table, 0, TokenTree.chain([1, 2, 3]))])
    assert counts_of(model).kv_bytes == cache.pool("target").slot_bytes().total()
    cache.close(table)
