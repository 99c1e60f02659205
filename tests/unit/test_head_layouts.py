"""Layouts against what is published: marks of configs, numbers of layers, names and shapes of tensors."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specdec.draft_models import head_reading
from specdec.draft_models.head_layouts import (
    METHODS,
    feature_layers,
    layout_of,
    layout_of_tensors,
    other_layers,
    our_name,
    stated_layers,
)
from specdec.draft_models.head_writing import files_of
from specdec.features import LAST
from specdec.target import PagedModel

ZLAB = {"dflash_config": {"mask_token_id": 151669, "target_layer_ids": [1, 9, 17, 25, 33]}}
MARKS = {  # layout -> what the configs of published heads have
    "speculators eagle3": [{"speculators_model_type": "eagle3", "architectures": ["Eagle3Speculator"]}],
    "speculators dflash": [{"speculators_model_type": "dflash", "draft_vocab_size": 32000}],
    "speculators peagle": [{"speculators_model_type": "peagle", "architectures": ["PEagleDraftModel"]}],
    "eagle3": [
        {"architectures": ["LlamaForCausalLM"], "draft_vocab_size": 32000},
        {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 32000},
        {"architectures": ["Qwen3Eagle3Model"], "target_layer_ids": [1, 9, 17, 25, 33]},
    ],
    "medusa": [{"medusa_num_heads": 2, "medusa_num_layers": 1}, {"model_type": "medusa", "num_heads": 5}],
    "dflash": [{"architectures": ["DFlashDraftModel"], **ZLAB}, ZLAB],
    "dspark": [
        {"architectures": ["Qwen3DSparkModel"], "markov_rank": 256},
        {"architectures": ["DSparkDraftModel"], **ZLAB},
        {"architectures": ["DFlashDraftModel"], "dflash_config": {"projector_type": "dspark"}},
    ],
    "domino": [{"architectures": ["DominoDraftModel"], "dflash_config": {"projector_type": "domino"}}],
    "dflash2": [{"architectures": ["DFlash2DraftModel"], **ZLAB}],
    "peagle": [{"architectures": ["PEagleDraftModel"], "draft_vocab_size": 32000}],
    "mtp": [
        {"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 1},
        {"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": {"mtp_num_hidden_layers": 1}},
    ],
    None: [{"architectures": ["LlamaForCausalLM"], "num_hidden_layers": 1}, {"architectures": None}, {}],
}


@pytest.mark.parametrize("layout", MARKS)
def test_layouts_are_recognised_by_their_configs(layout):
    assert [layout_of(config) for config in MARKS[layout]] == [layout] * len(MARKS[layout])


def test_what_a_config_does_not_say_tensors_do():
    for names, layout in (
        (["embed_tokens.weight", "fc.weight", "layers.0.mlp.up_proj.weight"], "eagle"),
        (["midlayer.hidden_norm.weight", "fc.weight"], "eagle3"),
        (["midlayer.hidden_norm.weight", "fc.weight", "mask_hidden"], "peagle"),
        (["fc.weight", "hidden_norm.weight", "layers.0.mlp.up_proj.weight"], "dflash"),
        (["0.0.linear.weight", "0.1.weight"], "medusa"),
        (["medusa_head.0.0.linear.weight"], "medusa"),
        (["mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"], "mtp"),
        (["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight", "lm_head.weight"], None),
    ):
        assert layout_of_tensors(map(our_name, names)) == layout


NUMBERS = [  # layout, config, layers of the target, and which of them are read
    ("eagle3", {}, 32, (1, 15, 28)),  # EAGLE's code: what goes into layers 2, 16, 29
    ("eagle3", {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 11, 21]}}, 24, (1, 11, 21)),  # SGLang
    ("eagle3", {"eagle_aux_hidden_state_layer_ids": [2, 12, 22]}, 24, (1, 11, 21)),  # vLLM
    ("eagle3", {"target_layer_ids": [1, 9, 17, 25, 33]}, 36, (1, 9, 17, 25, 33)),  # DeepSpec
    ("speculators eagle3", {}, 32, (1, 15, 28)),
    ("speculators eagle3", {"eagle_aux_hidden_state_layer_ids": [2, 18, 33]}, 36, (1, 17, 32)),
    ("speculators peagle", {"eagle_aux_hidden_state_layer_ids": [2, 18, 33]}, 36, (1, 17, 32)),
    ("peagle", {}, 24, (1, 11, 20)),
    ("dflash", ZLAB, 36, (1, 9, 17, 25, 33)),
    ("speculators dflash", {"aux_hidden_state_layer_ids": [2, 10, 18, 26, 34]}, 36, (1, 9, 17, 25, 33)),  # the same
    ("dflash", {"num_hidden_layers": 5}, 36, (1, 9, 17, 25, 33)),  # z-lab's default
    ("dflash", {"num_hidden_layers": 1}, 36, (18,)),
    ("dspark", {"target_layer_ids": [0, 35]}, 36, (0, LAST)),  # `hidden_states[36]` is normed
    ("speculators dspark", {"aux_hidden_state_layer_ids": [1, 36]}, 36, (0, 35)),  # what vLLM hands over is not
]


@pytest.mark.parametrize(("layout", "config", "num_layers", "layers"), NUMBERS, ids=str)
def test_numbers_of_layers_mean_what_their_authors_mean(layout, config, num_layers, layers):
    assert feature_layers(*stated_layers(layout, config, num_layers), num_layers) == layers


def test_the_other_way_of_counting_is_one_off():
    assert other_layers([2, 16, 29], "inputs", 32) == (2, 16, 29)
    assert other_layers([1, 9, 17], "states", 36) == (0, 8, 16) == other_layers([1, 9, 17], "outputs", 36)
    assert other_layers([0, 9], "outputs", 36) is None and other_layers([36], "inputs", 36) is None


# ---- names and shapes


def norms(prefix, *names, size):
    return {f"{prefix}{name}.weight": (size,) for name in names}


def mlp(prefix, hidden, inner):
    up = {f"{prefix}{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
    return up | {f"{prefix}down_proj.weight": (hidden, inner)}


def attention(prefix, *, given, heads, keys, hidden):
    """Sizes of what comes in, of all queries, of all keys, of what goes out."""
    sides = {f"{prefix}{name}_proj.weight": (keys, given) for name in "kv"}
    return sides | {f"{prefix}q_proj.weight": (heads, given), f"{prefix}o_proj.weight": (hidden, heads)}


def eagle3_tensors(layer, hidden, inner, fused, attended, vocab, drafted=32000):
    layer_norms = ("hidden_norm", "input_layernorm", "post_attention_layernorm")
    return {
        **{"d2t": (drafted,), "t2d": (vocab,), "fc.weight": (hidden, fused), "norm.weight": (hidden,)},
        **{"lm_head.weight": (drafted, hidden)},
        **norms(layer, *layer_norms, size=hidden),
        **mlp(f"{layer}mlp.", hidden, inner),
        **attention(f"{layer}self_attn.", **attended),
    }


LLAMA8 = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8}
LLAMA8 |= {"vocab_size": 128256, "max_position_embeddings": 2048, "rms_norm_eps": 1e-05, "hidden_act": "silu"}
LLAMA7 = {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32}
LLAMA7 |= {"vocab_size": 32000, "rms_norm_eps": 1e-06, "rope_scaling": None}
GPT_OSS = {"hidden_size": 2880, "intermediate_size": 17280, "num_attention_heads": 64, "num_key_value_heads": 8}
GPT_OSS |= {"vocab_size": 201088, "head_dim": 64}
QWEN8 = {"hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8}
QWEN8 |= {"vocab_size": 151936, "head_dim": 128, "rope_theta": 1000000, "layer_types": ["full_attention"] * 5}
EAGLE3_8B = {"given": 8192, "heads": 4096, "keys": 1024, "hidden": 4096}
ONE = {"model_type": "llama", "num_hidden_layers": 1}
PEAGLE_8B = {
    **eagle3_tensors("layers.0.", 4096, 14336, 3 * 4096, EAGLE3_8B, 128256),
    "mask_hidden": (1, 1, 3 * 4096),  # and embeddings, which may be the target's
    **{
        name: shape
        for layer in range(1, 4)
        for part in (
            norms(f"layers.{layer}.", "input_layernorm", "post_attention_layernorm", size=4096),
            mlp(f"layers.{layer}.mlp.", 4096, 14336),
            attention(f"layers.{layer}.self_attn.", given=4096, heads=4096, keys=1024, hidden=4096),
        )
        for name, shape in part.items()
    },
}
DFLASH_8B = {
    **{"fc.weight": (4096, 5 * 4096), "hidden_norm.weight": (4096,), "norm.weight": (4096,)},
    **{
        name: shape
        for layer in range(5)
        for part in (
            norms(f"layers.{layer}.", "input_layernorm", "post_attention_layernorm", size=4096),
            mlp(f"layers.{layer}.mlp.", 4096, 12288),
            attention(f"layers.{layer}.self_attn.", given=4096, heads=4096, keys=1024, hidden=4096),
            norms(f"layers.{layer}.self_attn.", "q_norm", "k_norm", size=128),
        )
        for name, shape in part.items()
    },
}
DSPARK = {"projector_type": "dspark", "markov_rank": 256, "markov_head_type": "vanilla"}
DSPARK |= {"enable_confidence_head": True, "confidence_head_with_markov": True, **ZLAB["dflash_config"]}
SPECULATORS = {"speculators_model_type": "eagle3", "draft_vocab_size": 32000, "norm_before_residual": False}
TABLES = {  # name -> sizes of the target, its layers, the head's config, its tensors
    "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B": (
        LLAMA8,
        32,
        {**LLAMA8, **ONE, "architectures": ["LlamaForCausalLM"], "draft_vocab_size": 32000},
        eagle3_tensors("midlayer.", 4096, 14336, 3 * 4096, EAGLE3_8B, 128256),
    ),
    "EAGLE-3 for gpt-oss-20b (SpecForge)": (
        GPT_OSS,
        24,
        {
            **{**GPT_OSS, **ONE, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 32000},
            "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 11, 21]},
        },
        eagle3_tensors(
            "midlayer.", 2880, 17280, 8640, {"given": 5760, "heads": 4096, "keys": 512, "hidden": 2880}, 201088
        ),
    ),
    "RedHatAI/Llama-3.1-8B-Instruct-speculator.eagle3": (
        LLAMA8,
        32,
        {**SPECULATORS, "transformer_layer_config": {**LLAMA8, **ONE}, "eagle_aux_hidden_state_layer_ids": [2, 16, 29]},
        eagle3_tensors("layers.0.", 4096, 14336, 3 * 4096, EAGLE3_8B, 128256),
    ),
    "P-EAGLE for Llama-3.1-8B (as speculators 0.9.0 makes it)": (
        LLAMA8,
        32,
        {
            **{**SPECULATORS, "speculators_model_type": "peagle", "mask_token_id": 128255},
            **{"transformer_layer_config": {**LLAMA8, **ONE, "num_hidden_layers": 4}},
            "eagle_aux_hidden_state_layer_ids": [2, 16, 29],
        },
        PEAGLE_8B,
    ),
    "yuhuili/EAGLE-llama2-chat-7B": (
        LLAMA7,
        32,
        {**LLAMA7, **ONE, "architectures": ["LlamaForCausalLM"]},
        {
            **{"fc.weight": (4096, 8192), "fc.bias": (4096,)},
            **norms("layers.0.", "post_attention_layernorm", size=4096),
            **mlp("layers.0.mlp.", 4096, 11008),
            **attention("layers.0.self_attn.", given=4096, heads=4096, keys=4096, hidden=4096),
        },
    ),
    "FasterDecoding/medusa-vicuna-7b-v1.3": (
        LLAMA7,
        32,
        {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "medusa_num_heads": 2, "medusa_num_layers": 1},
        {
            name: shape
            for head in range(5)
            for name, shape in {
                f"{head}.0.linear.weight": (4096, 4096),
                f"{head}.0.linear.bias": (4096,),
                f"{head}.1.weight": (32000, 4096),
            }.items()
        },
    ),
    "z-lab/Qwen3-8B-DFlash-b16": (
        QWEN8,
        36,
        {**QWEN8, **ZLAB, "architectures": ["DFlashDraftModel"], "model_type": "qwen3", "num_hidden_layers": 5}
        | {"block_size": 16},
        DFLASH_8B,
    ),
    "DSpark for Qwen3-8B (SpecForge)": (
        QWEN8,
        36,
        {**QWEN8, "architectures": ["DSparkDraftModel"], "model_type": "qwen3", "num_hidden_layers": 5}
        | {"block_size": 7, "dflash_config": DSPARK},
        DFLASH_8B
        | {"markov_head.markov_w1.weight": (151936, 256), "markov_head.markov_w2.weight": (151936, 256)}
        | {"confidence_head.proj.weight": (1, 4096 + 256), "confidence_head.proj.bias": (1,)},
    ),
}
WRITTEN = {"eagle": "eagle", "eagle3": "eagle3", "medusa": "medusa", "speculators eagle3": "speculators"}
WRITTEN |= {"speculators peagle": "speculators"}


@pytest.mark.parametrize("name", TABLES)
def test_names_and_shapes_are_those_that_are_published(name, monkeypatch):
    """Read, with weights that take no memory, and written."""
    sizes, num_layers, config, shapes = TABLES[name]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    if "d2t" in tensors:
        tensors["d2t"] = torch.zeros(shapes["d2t"], dtype=torch.int64)
        tensors["t2d"] = torch.arange(*shapes["t2d"]) < shapes["d2t"][0]
    monkeypatch.setattr(head_reading, "read_config", lambda path: config)
    monkeypatch.setattr(head_reading, "read_tensors", lambda path: tensors)
    monkeypatch.setattr(head_reading, "require_finite", lambda tensors, path: None)
    with torch.device("meta"):
        kinds = {"layer_types": None, "max_position_embeddings": 4096}
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **kinds}, num_hidden_layers=num_layers))
    head = head_reading.read_head(name, PagedModel(model, check=False))
    assert {our_name(key): shape for key, shape in shapes.items()} == {
        key: tuple(part.shape) for key, part in head.network.state_dict().items()
    }
    if head.layout in WRITTEN:
        files = files_of(head.network, WRITTEN[head.layout], model.config)
        assert {key: tuple(part.shape) for key, part in files.tensors.items()} == shapes
    assert head.method == METHODS[head.layout]
