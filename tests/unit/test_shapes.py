"""Models of real shapes: as large as the published ones, and random in a way that says the same whatever the width."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from specdec.experiments.shapes import SHAPES, TINY, random_model, weight_bytes

CPU = torch.device("cpu")
PARAMETERS = {"llama-3.1-8b": 8_030_261_248, "qwen3-8b": 8_190_735_360, "llama-3.2-1b": 1_235_814_400}  # of the cards


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_as_many_parameters_as_the_published_models(shape):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[shape]), dtype=torch.bfloat16)
    assert model.num_parameters() == PARAMETERS[shape]
    config = SHAPES[shape]
    embeddings = 0 if config["tie_word_embeddings"] else config["vocab_size"] * config["hidden_size"]
    assert weight_bytes(model) == 2 * (PARAMETERS[shape] - embeddings)
    assert set(PARAMETERS) == set(SHAPES)


def test_weights_depend_on_the_seed_only_and_the_callers_numbers_on_nothing():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, two, other = random_model(TINY, CPU), random_model(TINY, CPU), random_model(TINY, CPU, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    for name, weight in one.named_parameters():
        assert weight.dtype == torch.bfloat16 and torch.equal(weight, two.get_parameter(name))
        assert weight.dim() == 1 or not torch.equal(weight, other.get_parameter(name))


def test_the_text_has_no_end_and_a_margin_far_beyond_rounding():
    model = random_model(TINY, CPU)
    ids = torch.tensor([[5, 300, 7, 1, 0, 511, 44]])
    with torch.no_grad():
        top = model(input_ids=ids).logits[0].float().topk(2)
    assert top.indices[:, 0].tolist() == ids[0].tolist()
    gaps = top.values[:, 0] - top.values[:, 1]
    assert float(gaps.min()) > 16 * torch.finfo(torch.bfloat16).eps * float(top.values.max())
    text = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
    assert text[0, 7:].tolist() == [44] * 5
