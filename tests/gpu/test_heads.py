"""Self-draft heads on a GPU: accepted whole where they must be, beside captured passes of the target, too."""

import pytest
import torch

import specdec
from specdec.target import PagedModel
from tests.e2e.test_heads import ALWAYS_RIGHT, PROMPTS, clockwork, following
from tests.toys.models import tiny_model
from tests.toys.wrong_heads import wrong_heads

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")


def on_gpu(drafter):
    """The drafter with its network there."""
    drafter._head.network.to(DEVICE)
    return drafter


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("name", ALWAYS_RIGHT)
def test_a_head_that_knows_the_target_is_accepted_whole(name, graphs):
    target = PagedModel(clockwork().to(DEVICE), graphs=graphs)
    inputs = {key: value.to(DEVICE) for key, value in PROMPTS.items()}
    options = {"max_new_tokens": 41, "do_sample": False, "return_dict_in_generate": True}
    out = specdec.generate(target, **inputs, drafter=on_gpu(ALWAYS_RIGHT[name]()), **options)
    after = following()
    for row in out.sequences.tolist():
        assert all(after[one] == other for one, other in zip(row[3:], row[4:], strict=False))
    steps = [step for event in out.speculation.rounds for step in event.steps]
    assert {len(step.tokens) for step in steps} == {1, 5}
    target.close()


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "temperature": 0.8}], ids=str)
def test_heads_that_are_wrong_leave_the_text_alone(options):
    model = tiny_model("llama", torch.float32).to(DEVICE)
    ids = torch.randint(3, 150, (3, 12), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    options = {**options, "seed": 4, "max_new_tokens": 24, "pad_token_id": 0}
    plain = specdec.generate(model, ids, **options)
    for name, drafter in wrong_heads(model, 160):
        ours = specdec.generate(model, ids, drafter=on_gpu(drafter), verifier="sample_and_match", **options)
        assert torch.equal(ours, plain), name
