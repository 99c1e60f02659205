"""Self-draft heads on a GPU: accepted whole where they must be, beside captured passes of the target, too."""

import pytest
import torch

import specdec
from specdec.draft_models.dflash import DFlash
from specdec.draft_models.eagle3 import Eagle3
from specdec.draft_models.medusa import Medusa
from specdec.rollout import catch_up
from specdec.target import PagedModel
from tests.e2e.test_heads import ALWAYS_RIGHT, PROMPTS, clockwork, following
from tests.toys.device import unwaited
from tests.toys.heads import ONE_PASS, STEPPING, HeadSession, tiny_target
from tests.toys.models import tiny_model
from tests.toys.sessions import PROMPTS as TEXTS
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
    drafter = on_gpu(ALWAYS_RIGHT[name]())
    out = specdec.generate(target, **inputs, drafter=drafter, **options)
    after = following()
    for row in out.sequences.tolist():
        assert all(after[one] == other for one, other in zip(row[3:], row[4:], strict=False))
    steps = [step for event in out.speculation.rounds for step in event.steps]
    assert {len(step.tokens) for step in steps} == {1, 5}
    report = drafter.graph_report
    assert report is None if not graphs else report.num_replayed > 4
    target.close()
    assert not graphs or drafter.graph_report.num_graphs == 0


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("name", ["eagle3", "block", "block with a causal and a windowed layer", "medusa"])
def test_a_captured_pass_of_a_head_waits_for_nothing(name):
    """What it says is what an eager pass says, up to what another algorithm for padded rows may change."""
    kind = {"eagle3": Eagle3, "medusa": Medusa}.get(name, DFlash)
    network = {**STEPPING, **ONE_PASS}[name]().to(DEVICE, torch.float32)
    drafter = kind(network, 4)
    session = HeadSession(drafter, tiny_target(dtype=torch.float32).to(DEVICE), TEXTS[:1], graphs=True)
    for _ in range(3):
        (draft,) = session.propose([4])
        session.settle(0, draft, [1, 2], 7)
    head, (view,) = drafter._head, session.views([0])
    session.cache.stage(view.table, 1)

    def score():
        view.table.filled[head.pool_name] = max(1, view.table.length - 2)
        head.read({view.table: view.features})
        return head.score(session.cache, [catch_up(head, session.cache, view)]).logits

    with torch.inference_mode():
        wanted = score().clone()
        for _ in range(3):
            score()
        before = drafter.graph_report.num_replayed
        with unwaited():
            found = score()
    assert drafter.graph_report.num_replayed == before + 1
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "temperature": 0.8}], ids=str)
def test_heads_that_are_wrong_leave_the_text_alone(options, graphs):
    model = tiny_model("llama", torch.float32).to(DEVICE)
    ids = torch.randint(3, 150, (3, 12), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    options = {**options, "seed": 4, "max_new_tokens": 24, "pad_token_id": 0}
    plain = specdec.generate(model, ids, **options)
    target = PagedModel(model, graphs=graphs)
    for name, drafter in wrong_heads(model, 160):
        ours = specdec.generate(target, ids, drafter=on_gpu(drafter), verifier="sample_and_match", **options)
        assert torch.equal(ours, plain), name
        assert not graphs or drafter.graph_report.num_replayed > 4, name
