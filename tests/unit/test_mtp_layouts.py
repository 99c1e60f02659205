"""MTP modules against what is published: names and shapes of tensors, and transformers' own reading of them."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.modeling_layers import MtpModel

from specdec.draft_models import mtp_reading
from specdec.draft_models.head_reading import read_head
from specdec.mtp_layouts import mtp_names, without_modules
from specdec.target import PagedModel
from tests.toys.mtp import TARGETS, called, mtp, mtp_row, put_inside


def experts(prefix, count, hidden, inner):
    named = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    return {f"{prefix}{i}.{name}_proj.weight": shape for i in range(count) for name, shape in named.items()}


def mlp(prefix, hidden, inner):
    return {
        name.replace("experts.0.", ""): shape for name, shape in experts(f"{prefix}experts.", 1, hidden, inner).items()
    }


def norms(prefix, *names, size):
    return {f"{prefix}{name}.weight": (size,) for name in names}


def weights(prefix, **shapes):
    return {f"{prefix}{name}.weight": shape for name, shape in shapes.items()}


def extra_layer(prefix, hidden, vocab):
    return {
        **norms(prefix, "enorm", "hnorm", "shared_head.norm", size=hidden),
        **norms(prefix, "input_layernorm", "post_attention_layernorm", size=hidden),
        **weights(prefix, eh_proj=(hidden, 2 * hidden), embed_tokens=(vocab, hidden)),
        f"{prefix}shared_head.head.weight": (vocab, hidden),
    }


DEEPSEEK, GLM, QWEN, MIMO = "model.layers.61.", "model.layers.46.", "mtp.layers.0.", "model.mtp_layers.0."
TABLES = {  # name -> kind of the target, its config with fewer layers, tensors of the module
    "deepseek-ai/DeepSeek-V3": (
        "deepseek_v3",
        {"hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048, "vocab_size": 129280}
        | {"num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512}
        | {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 256}
        | {"n_shared_experts": 1, "first_k_dense_replace": 1},
        {
            **extra_layer(DEEPSEEK, 7168, 129280),
            **weights(f"{DEEPSEEK}self_attn.", q_a_proj=(1536, 7168), q_a_layernorm=(1536,), q_b_proj=(24576, 1536)),
            **weights(f"{DEEPSEEK}self_attn.", kv_a_proj_with_mqa=(576, 7168), kv_a_layernorm=(512,)),
            **weights(f"{DEEPSEEK}self_attn.", kv_b_proj=(32768, 512), o_proj=(7168, 16384)),
            **{f"{DEEPSEEK}mlp.gate.weight": (256, 7168), f"{DEEPSEEK}mlp.gate.e_score_correction_bias": (256,)},
            **mlp(f"{DEEPSEEK}mlp.shared_experts.", 7168, 2048),
            **experts(f"{DEEPSEEK}mlp.experts.", 256, 7168, 2048),
        },
    ),
    "zai-org/GLM-4.5-Air": (
        "glm4_moe",
        {"hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408, "vocab_size": 151552}
        | {"num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128, "attention_bias": True}
        | {"n_routed_experts": 128, "n_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": False},
        {
            **extra_layer(GLM, 4096, 151552),
            **weights(f"{GLM}self_attn.", q_proj=(12288, 4096), k_proj=(1024, 4096), v_proj=(1024, 4096)),
            **weights(f"{GLM}self_attn.", o_proj=(4096, 12288)),
            **{f"{GLM}self_attn.{name}_proj.bias": (size,) for name, size in (("q", 12288), ("k", 1024), ("v", 1024))},
            **{f"{GLM}mlp.gate.weight": (128, 4096), f"{GLM}mlp.gate.e_score_correction_bias": (128,)},
            **mlp(f"{GLM}mlp.shared_experts.", 4096, 1408),
            **experts(f"{GLM}mlp.experts.", 128, 4096, 1408),
        },
    ),
    "Qwen/Qwen3-Next-80B-A3B-Instruct": (
        "qwen3_next",
        {"hidden_size": 2048, "intermediate_size": 5120, "moe_intermediate_size": 512, "vocab_size": 151936}
        | {"num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256, "num_experts": 512}
        | {"shared_expert_intermediate_size": 512, "layer_types": ["linear_attention", "full_attention"]},
        {
            **{"mtp.fc.weight": (2048, 4096)},
            **norms("mtp.", "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden", size=2048),
            **norms(QWEN, "input_layernorm", "post_attention_layernorm", size=2048),
            **norms(f"{QWEN}self_attn.", "q_norm", "k_norm", size=256),
            **weights(f"{QWEN}self_attn.", q_proj=(8192, 2048), k_proj=(512, 2048), v_proj=(512, 2048)),
            **weights(f"{QWEN}self_attn.", o_proj=(2048, 4096)),
            **weights(f"{QWEN}mlp.", gate=(512, 2048), shared_expert_gate=(1, 2048)),
            **mlp(f"{QWEN}mlp.shared_expert.", 2048, 512),
            **experts(f"{QWEN}mlp.experts.", 512, 2048, 512),
        },
    ),
    "XiaomiMiMo/MiMo-7B-RL": (
        "qwen2",
        {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"vocab_size": 151680},
        {
            **norms(MIMO, "token_layernorm", "hidden_layernorm", "final_layernorm", size=4096),
            **norms(MIMO, "input_layernorm", "post_attention_layernorm", size=4096),
            **weights(MIMO, input_proj=(4096, 8192)),
            **weights(f"{MIMO}self_attn.", q_proj=(4096, 4096), k_proj=(1024, 4096), v_proj=(1024, 4096)),
            **weights(f"{MIMO}self_attn.", o_proj=(4096, 4096)),
            **{f"{MIMO}self_attn.{name}_proj.bias": (size,) for name, size in (("q", 4096), ("k", 1024), ("v", 1024))},
            **mlp(f"{MIMO}mlp.", 4096, 11008),
        },
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_names_and_shapes_are_those_that_are_published(name, monkeypatch):
    """Read with weights that take no memory; all of them are wanted, and no others."""
    kind, sizes, shapes = TABLES[name]
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    others = ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"]

    def read_chosen(path, choose):
        assert sorted(choose([*others, *tensors])) == sorted(tensors)
        return tensors

    monkeypatch.setattr(mtp_reading, "read_chosen", read_chosen)
    monkeypatch.setattr(mtp_reading, "require_finite", lambda tensors, path: None)
    monkeypatch.setattr(mtp_reading, "_finish", lambda network, model: None)  # it runs the layer
    monkeypatch.setattr(torch, "equal", lambda *_: False)  # embedding and language model head are its own
    with torch.device("meta"):
        config = AutoConfig.for_model(kind, num_hidden_layers=2, **sizes)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    target = SimpleNamespace(model=model, device=torch.device("meta"), dtype=torch.bfloat16)
    network = mtp_reading.read_mtp(name, {}, target)
    assert network.eh_proj.weight.shape == (sizes["hidden_size"], 2 * sizes["hidden_size"])
    assert network.is_state_first == (kind == "qwen2")
    num_weights = sum(part.numel() for part in network.state_dict().values())
    assert num_weights == sum(torch.Size(shape).numel() for shape in shapes.values())


def test_the_first_module_is_taken():
    names = [f"model.layers.{layer}.{part}.weight" for layer in (4, 10, 9) for part in ("eh_proj", "mlp.up_proj")]
    _, found = mtp_names(names)
    assert found == {names[0]: "eh_proj.weight", names[1]: "layer.mlp.up_proj.weight"}
    assert without_modules([*names, "model.layers.44.mlp.up_proj.weight"]) == ["model.layers.44.mlp.up_proj.weight"]
    _, found = mtp_names(["mtp.fc.weight", "mtp.layers.1.mlp.up_proj.weight", "mtp.layers.0.mlp.up_proj.weight"])
    assert list(found.values()) == ["eh_proj.weight", "layer.mlp.up_proj.weight"]
    assert mtp_names(["model.layers.0.mlp.up_proj.weight"]) is None


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe"])
def test_transformers_reads_and_runs_the_same_module(family, tmp_path):
    """Its first drafted logits are ours: the same order, norms, states and tokens. Positions count from another row."""
    target = TARGETS[family]()
    folder = put_inside(tmp_path / "model", target, called(mtp(target), "extra layer"))
    network = read_head(str(folder), PagedModel(target)).network
    target.config.name_or_path = str(folder)
    target._keys_to_ignore_on_load_unexpected = [r"model\.layers\.4\."]
    target._weight_conversions = get_model_conversion_mapping(target)
    target.config.dtype = torch.float64
    theirs = MtpModel.from_pretrained(target)
    theirs.set_experts_implementation("eager")
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2]])
    with torch.no_grad():
        states = target(ids[:, :-1], output_hidden_states=True).hidden_states[-1]
        positions = torch.arange(1, ids.shape[1])[None]
        _, logits, _ = theirs(ids[:, 1:], states, torch.ones_like(positions), positions, None)
    ours = mtp_row(network, target, ids[0].tolist(), ids.shape[1])
    torch.testing.assert_close(ours, logits[0, -1].double(), rtol=0, atol=1e-5)
