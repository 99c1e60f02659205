"""Level E2 across devices: the same seed gives the same text on a GPU (Triton kernels) and on a CPU (reference).

In float32, where rounding differs in the seventh digit: the two best tokens would have to be as close as that.
"""

import pytest
import torch

import specdec
from specdec.experiments.prompts import LEARNT, first_per_category, read_prompts
from specdec.kernels import ops

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
NEW_TOKENS = 48
WAYS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 0, "temperature": 0.8},
    "sampled warped": {"do_sample": True, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2},
}
DRAFTERS = {
    "plain": None,
    "ngram": {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 1},
    "chain": {"method": "draft_model", "num_speculative_tokens": 4},
    "tree": {"method": "draft_model", "num_speculative_tokens": 4, "num_tree_nodes": 12, "tree_width": 3},
    "drawn": {"method": "draft_model", "num_speculative_tokens": 4, "draft_sample_method": "probabilistic"},
}


@pytest.fixture(scope="module")
def pairs():
    """Target and draft model on both devices, the checked target as `generate` takes it, and the prompts' ids."""
    found = {}
    for device in (torch.device("cpu"), DEVICE):
        target, draft, tokenizer = specdec.load_embedded(torch.float32)
        found[device] = specdec.PagedModel(target.to(device)), draft.to(device)
    prompts = [prompt.text for prompt in first_per_category(read_prompts(), 1, LEARNT)]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    return found, {name: inputs[name] for name in ("input_ids", "attention_mask")}


def generated(models, inputs, device, drafter, options):
    target, draft = models[device]
    if drafter is not None and drafter["method"] == "draft_model":
        drafter = {**drafter, "model": draft}
    inputs = {name: value.to(device) for name, value in inputs.items()}
    return specdec.generate(target, **inputs, drafter=drafter, seed=5, max_new_tokens=NEW_TOKENS, **options).cpu()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_same_seed_same_text_on_both_devices(pairs, way, drafter, monkeypatch):
    models, inputs = pairs
    bodies = []
    body_of = ops.body_of
    monkeypatch.setattr(ops, "body_of", lambda tensor: bodies.append(body_of(tensor)) or bodies[-1])
    wanted = generated(models, inputs, torch.device("cpu"), DRAFTERS[drafter], WAYS[way])
    assert set(bodies) == {"reference"}
    bodies.clear()
    found = generated(models, inputs, DEVICE, DRAFTERS[drafter], WAYS[way])
    assert set(bodies) == {"triton"}
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("drafter", ["plain", "chain", "tree"])
def test_each_row_of_a_batch_is_as_alone(pairs, drafter):
    """On the GPU alone: whether requests are attended together or one by one."""
    models, inputs = pairs
    together = generated(models, inputs, DEVICE, DRAFTERS[drafter], WAYS["greedy"])
    width = inputs["input_ids"].shape[1]
    for row, mask in enumerate(inputs["attention_mask"].bool()):
        alone = {name: value[row : row + 1, mask] for name, value in inputs.items()}
        text = generated(models, alone, DEVICE, DRAFTERS[drafter], WAYS["greedy"])[0, int(mask.sum()) :]
        assert torch.equal(together[row, width : width + len(text)], text)
