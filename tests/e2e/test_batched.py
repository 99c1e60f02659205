"""Rules that decide on a whole batch at once decide as they do on one request after the other."""

import pytest
import torch

import specdec
from specdec import batched, capture
from specdec.draft_models.draft_model import DraftModel
from specdec.draft_models.ngram import NGram
from specdec.protocols import DrafterNeeds
from specdec.target import PagedModel
from specdec.tree import TokenTree
from specdec.types import Draft, Verdict
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys import recorded
from tests.toys.drafters import RandomDraws, RandomTrees, Toy
from tests.toys.models import VOCAB_SIZE, tiny_model

NEW_TOKENS = 20
WAYS = {
    "greedy": {"do_sample": False, "repetition_penalty": 1.1},
    "sampled": {"do_sample": True, "top_k": 40, "temperature": 0.9, "seed": 5},
    "wide": {"do_sample": True, "top_k": 0, "seed": (7, 2**64 - 5, 1)},
}
DRAFTERS = {
    "ngram": lambda model: NGram(num_speculative_tokens=4, prompt_lookup_min=1),
    "trees": lambda model: RandomTrees(VOCAB_SIZE),
    "draws": lambda model: RandomDraws(VOCAB_SIZE),
    "chain": lambda model: DraftModel(model, num_speculative_tokens=3, draft_sample_method="probabilistic"),
}
RULES = {"auto": DRAFTERS, "rejection": DRAFTERS, "block": ("ngram", "chain")}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    target, draft = (tiny_model("llama", torch.float32, seed=seed) for seed in (0, 1))
    ids = torch.randint(3, VOCAB_SIZE, (3, 14), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :6] = mask[2, :2] = 0
    return PagedModel(target), draft, {"input_ids": ids, "attention_mask": mask, "pad_token_id": 0}


def texts(models, drafter, rule, options):
    target, draft, inputs = models
    made = DRAFTERS[drafter](draft)
    return specdec.generate(target, **inputs, drafter=made, verifier=rule, max_new_tokens=NEW_TOKENS, **options)


@pytest.mark.parametrize("has_graphs", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("rule", "drafter"), [(rule, drafter) for rule in RULES for drafter in RULES[rule]])
def test_together_as_one_by_one(models, rule, drafter, way, has_graphs, monkeypatch):
    wanted = texts(models, drafter, rule, WAYS[way])
    calls = []
    monkeypatch.setattr(batched, "pays", lambda scores: calls.append(1) or True)
    monkeypatch.setattr(capture, "record", recorded.rerun)
    if has_graphs:
        decider = batched.BatchDecider
        replayed = capture.Replayed()
        monkeypatch.setattr("specdec.engine.BatchDecider", lambda verifier, _: decider(verifier, replayed))
    assert torch.equal(texts(models, drafter, rule, WAYS[way]), wanted)
    assert calls


class Impossible(Toy):
    """Claims to have drawn a token from where it has no probability."""

    name = "impossible"
    needs = DrafterNeeds(sampled=True)

    def draft(self, view, budget, noise):
        probs = torch.eye(VOCAB_SIZE)[[9, 9]]
        return Draft(TokenTree.chain([view.tokens[-1], 5]), [False, True], probs, source=self.name)


def test_a_lie_about_q_is_refused(models, monkeypatch):
    monkeypatch.setattr(batched, "pays", lambda scores: True)
    target, _, inputs = models
    with pytest.raises(ValueError, match="expected nodes of impossible marked as sampled to have probability .* got 0"):
        specdec.generate(target, **inputs, drafter=Impossible(), verifier="rejection", max_new_tokens=8, do_sample=True)


class Doubting(SampleAndMatch):
    """Accepts nothing: its own `verify`, and the `decide` of another rule."""

    def verify(self, draft, rows, noise):
        return Verdict([], noise.target_tokens(rows.scores[:1], rows.positions[:1])[0])


def test_a_rule_that_overrides_verify_alone_is_asked_for_it(models, monkeypatch):
    target, _, inputs = models
    options = {**inputs, "drafter": "ngram", "verifier": Doubting(), "do_sample": True, "max_new_tokens": 8, "seed": 1}
    wanted = specdec.generate(target, **options)
    monkeypatch.setattr(batched, "pays", lambda scores: True)
    monkeypatch.setattr(SampleAndMatch, "decide", None)
    assert torch.equal(specdec.generate(target, **options), wanted)


def test_what_cannot_be_captured_says_so_once_and_is_called_as_it_is(monkeypatch):
    def refused(function, memory, device):
        raise RuntimeError("operation not permitted")

    monkeypatch.setattr(capture, "record", refused)
    replayed, rows = capture.Replayed(), torch.ones(2)
    replayed("rows", torch.exp, [rows])
    with pytest.warns(UserWarning, match="runs without graphs, it cannot be captured: operation not permitted"):
        assert torch.equal(replayed("rows", torch.exp, [rows]), rows.exp())
    assert torch.equal(replayed("rows", torch.exp, [rows]), rows.exp())


def test_a_captured_call_serves_other_contents(monkeypatch):
    monkeypatch.setattr(capture, "record", recorded.record)
    replayed, called = capture.Replayed(), []

    def function(rows, shift):
        called.append(1)
        return (rows * 2).cumsum(-1) + shift

    for turn in range(5):
        rows, shift = torch.randn(3, 4), torch.randn(3, 1)
        assert torch.equal(replayed("rows", function, [rows, shift]), (rows * 2).cumsum(-1) + shift), turn
    assert len(called) == 3  # the first time, and twice when it was captured


def test_captured_calls_are_bounded(monkeypatch):
    monkeypatch.setattr(capture, "record", recorded.record)
    monkeypatch.setattr(capture, "MAX_GRAPHS", 2)
    replayed = capture.Replayed()
    for turn in range(12):
        rows = torch.randn(turn % 3 + 1)
        assert torch.equal(replayed(len(rows), torch.exp, [rows]), rows.exp())
