"""Models that cannot be run are refused with the reason; the others are left as they were found, whatever happens."""

from dataclasses import replace

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, T5Config
from transformers import T5ForConditionalGeneration as T5

from specdec import attention
from specdec.cache import PagedKVCache
from specdec.kernels.rows import RequestRows
from specdec.target import Chunk, PagedModel
from specdec.tree import TokenTree
from tests.toys.models import tiny_model
from tests.toys.scoring import ROUNDED, Batch


def state_of(model):
    """What a forward pass of ours must leave alone."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return (
        [module.training for module in model.modules()],
        [config._attn_implementation for config in configs.values()],
        [(dict(m._forward_hooks), dict(m._forward_pre_hooks), set(vars(m))) for m in model.modules()],
        [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()],
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        attention.running_now.get(None),
    )


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_model_is_left_as_it_was_found(implementation):
    model = tiny_model("llama").train()
    model.model.layers[1].eval()
    model.set_attn_implementation(implementation)
    found = state_of(model)
    paged = PagedModel(model)
    assert state_of(model) == found
    assert Batch(paged, (5, 3)).run() <= ROUNDED[torch.float64]
    assert state_of(model) == found


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_model_is_left_as_it_was_found_after_an_error_in_the_middle(error):
    model = tiny_model("gemma2").train()
    paged, cache = PagedModel(model, feature_layers=(0,)), PagedKVCache()
    found = state_of(model)
    table = cache.open()
    cache.stage(table, 3)
    chunk = Chunk(table, 0, TokenTree.chain([5, 6, 7]), num_logits=3)
    want = paged.score(cache, [chunk])

    def fail(*_):
        raise error

    hook = model.model.layers[2].mlp.register_forward_hook(fail)
    with pytest.raises(error):
        paged.score(cache, [chunk])
    hook.remove()
    assert state_of(model) == found
    again = paged.score(cache, [chunk])
    assert torch.equal(again.logits, want.logits) and torch.equal(again.features, want.features)


BART = {"vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
REFUSED = {
    "bloom": (lambda: tiny_model("bloom"), "ALiBi inside attention"),
    "mpt": (lambda: tiny_model("mpt"), "ALiBi inside attention"),
    "falcon": (lambda: tiny_model("falcon", alibi=True, new_decoder_architecture=False), "ALiBi inside attention"),
    "mamba": (lambda: tiny_model("mamba"), "cannot be cut back"),
    "rwkv": (lambda: tiny_model("rwkv", torch.float32), "cannot be cut back"),
    "qwen3_next": (lambda: tiny_model("qwen3_next", torch.float32), "linear_attention layers, whose state"),
    "t5": (
        lambda: T5(T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        "encoder-decoder",
    ),
    "bart": (lambda: BartForConditionalGeneration(BartConfig(**BART)), "encoder-decoder"),
    "xglm": (lambda: tiny_model("xglm", torch.float32), "its attention does not go through that interface"),
    "bert": (lambda: tiny_model("bert", torch.float32, is_decoder=False), "logits after prefill differ"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_run_is_refused_with_its_name_and_reason(name):
    build, reason = REFUSED[name]
    model = build().eval()
    found = state_of(model)
    with pytest.raises(ValueError, match="expected a decoder whose attention goes through") as caught:
        PagedModel(model)
    message = str(caught.value)
    assert f"got {model.config.model_type} (" in message and reason in message and "use model.generate" in message
    assert "\n" not in message and state_of(model) == found


def test_a_headless_model_is_refused():
    with pytest.raises(ValueError, match="LlamaModel has no language model head"):
        PagedModel(tiny_model("llama").model)


def see_siblings(rows, branches=RequestRows.branches):
    row, block = branches(rows)
    return row, torch.zeros_like(block)


@pytest.mark.parametrize(
    ("name", "owner", "attribute", "mutant", "phase"),
    [
        ("llama", RequestRows, "branches", see_siblings, "a tree"),
        ("llama", PagedKVCache, "_gather", lambda *_: None, "a commit"),
        ("mistral", attention, "scoring_of", "window", "prefill"),
        ("llama4_text", attention, "scoring_of", "chunk", "prefill"),
        ("gemma2", attention, "scoring_of", "softcap", "prefill"),
    ],
    ids=["siblings are visible", "kept rows do not move", "no window", "no chunks", "no softcap"],
)
def test_the_check_catches(monkeypatch, name, owner, attribute, mutant, phase):
    if isinstance(mutant, str):
        field, original = mutant, attention.scoring_of

        def mutant(*arguments):
            return replace(original(*arguments), **{field: None})

    monkeypatch.setattr(owner, attribute, mutant)
    with pytest.raises(ValueError, match=f"logits after {phase} differ from a plain forward pass"):
        PagedModel(tiny_model(name, torch.float32))
