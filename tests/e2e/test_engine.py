"""What the engine does around the four verbs: admission, exhaustion, long prompts, and what it hands on."""

import gc
import weakref

import pytest
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

import specdec
from specdec.cache import PagedKVCache
from specdec.draft_models.draft_model import DraftModel
from specdec.engine import Engine, EngineOptions
from specdec.noise import PhiloxNoise
from specdec.protocols import DrafterNeeds
from specdec.request import Request
from specdec.sampling import Sampler
from specdec.stopping import Stopping
from specdec.target import PagedModel
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys.drafters import RandomTrees
from tests.toys.models import GREEDY, IDS, tiny_model

ENDLESS = {**GREEDY, "eos_token_id": None}


def requests(lengths: list[int], new_tokens: int) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 150, (length,), generator=generator).tolist() for length in lengths]
    stops = [Stopping(max_length=len(prompt) + new_tokens) for prompt in prompts]
    return [
        Request(prompt, Sampler(), stopping, PhiloxNoise(0)) for prompt, stopping in zip(prompts, stops, strict=True)
    ]


def test_a_preempted_request_waits_until_another_has_ended(model) -> None:
    """Taken in again every round, it would be prefilled only to be thrown out."""
    free = list(Engine(PagedModel(model), None, SampleAndMatch(), PagedKVCache(4)).rounds(requests([60, 61, 62], 40)))
    cache = PagedKVCache(4, max_pages=56)
    tight = list(Engine(PagedModel(model), None, SampleAndMatch(), cache).rounds(requests([60, 61, 62], 40)))
    assert sum(event.num_rows for event in tight) < 2 * sum(event.num_rows for event in free)


def test_the_last_request_goes_on_without_a_draft_where_only_that_fits(model) -> None:
    cache = PagedKVCache(4, max_pages=7)
    engine = Engine(PagedModel(model), RandomTrees(160, num_nodes=40, depth=4), SampleAndMatch(), cache)
    texts = [token for event in engine.rounds(requests([16], 10)) for step in event.steps for token in step.tokens]
    assert len(texts) == 10
    cache.check()
    assert cache.num_free_pages == cache.num_pages


class Learner:
    """A drafter that learns while it drafts."""

    name, needs = "learner", DrafterNeeds()

    def __init__(self):
        self.weight = torch.ones(2, requires_grad=True)

    def propose(self, views, budgets, noises):
        with torch.enable_grad():
            (self.weight * torch.ones(2)).sum().backward()
        return [specdec.Draft.empty(view.tokens[-1], self.name) for view in views]

    def close(self, request_ids):
        pass


class Keeper(SampleAndMatch):
    """A rule that keeps what it is shown."""

    def __init__(self):
        self.seen = []

    def verify(self, draft, rows, noise):
        self.seen.append(rows.scores)
        return super().verify(draft, rows, noise)


def test_code_of_the_callers_meets_tensors_it_can_learn_from(model) -> None:
    drafter, rule = Learner(), Keeper()
    specdec.generate(model, IDS, drafter=drafter, **ENDLESS)
    assert drafter.weight.grad is not None
    specdec.generate(model, IDS, drafter="ngram", verifier=rule, **ENDLESS)
    assert rule.seen and not any(scores.is_inference() for scores in rule.seen)


def test_kept_scores_and_logits_are_ordinary_tensors(model) -> None:
    options = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    output = specdec.generate(model, IDS, drafter="ngram", **options, **ENDLESS)
    for event in output.speculation.rounds:
        for step in event.steps:
            step.scores.add_(1)
            step.logits.add_(1)
    assert not any(tensor.is_inference() for tensor in (*output.scores, *output.logits, output.sequences))


def test_pieces_of_a_long_prompt_count_as_rows_of_the_target(model) -> None:
    options = EngineOptions(max_prefill_tokens=16)
    engine = Engine(PagedModel(model), None, SampleAndMatch(), PagedKVCache(), options)
    first, *others = engine.rounds(requests([200], 3))
    assert first.num_rows == 200 and first.is_prefill
    assert first.seconds.score > first.seconds.draft
    assert [event.num_rows for event in others] == [1, 1]


def test_a_drafter_keeps_no_cache_alive_and_serves_two_streams(model, monkeypatch) -> None:
    drafter = DraftModel(tiny_model("llama", seed=1), num_speculative_tokens=3)
    caches = [PagedKVCache(), PagedKVCache()]
    streams = [Engine(PagedModel(model), drafter, SampleAndMatch(), cache).rounds(requests([9], 8)) for cache in caches]
    events = [list(pair) for pair in zip(*streams, strict=True)]
    assert all(one.steps[0].tokens == other.steps[0].tokens for one, other in events)
    gone = weakref.ref(caches[0])
    del caches, streams
    gc.collect()
    assert gone() is None


def test_a_draft_model_in_the_targets_own_pool_is_refused(model) -> None:
    other = PagedModel(tiny_model("llama", seed=1))
    with pytest.raises(ValueError, match="pool of its own"):
        specdec.generate(model, IDS, drafter=DraftModel(other), **ENDLESS)
    own = PagedModel(tiny_model("llama", seed=1), pool="draft")
    assert torch.equal(specdec.generate(model, IDS, drafter=DraftModel(own), **ENDLESS), model.generate(IDS, **ENDLESS))


def test_criteria_see_the_scores_of_all_tokens_so_far(model) -> None:
    class AfterFive(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((input_ids.shape[0],), len(scores) >= 5)

    criteria = StoppingCriteriaList([AfterFive()])
    options = {**GREEDY, "return_dict_in_generate": True, "output_scores": True, "stopping_criteria": criteria}
    wanted = model.generate(IDS, **options).sequences
    for drafter in (None, {"method": "ngram", "prompt_lookup_min": 1}):
        assert torch.equal(specdec.generate(model, IDS, drafter=drafter, **options).sequences, wanted)


def test_probs_of_the_wrong_width_are_found_out(model) -> None:
    class Narrow:
        name, needs = "narrow", DrafterNeeds(sampled=True)

        def propose(self, views, budgets, noises):
            trees = [
                specdec.TokenTree.chain([view.tokens[-1], 4][: 1 + min(1, b)])
                for view, b in zip(views, budgets, strict=True)
            ]
            return [
                specdec.Draft(tree, torch.arange(len(tree)) > 0, torch.full((len(tree), 100), 0.01), source="narrow")
                for tree in trees
            ]

        def close(self, request_ids): ...

    with pytest.raises(ValueError, match="probs of shape"):
        specdec.generate(model, IDS, drafter=Narrow(), **{**GREEDY, "do_sample": True})


def test_resized_embeddings_are_noticed() -> None:
    model = tiny_model("llama")
    specdec.generate(model, IDS, **ENDLESS)
    model.resize_token_embeddings(200)
    longer = torch.cat([IDS, torch.tensor([[190]])], 1)
    assert torch.equal(specdec.generate(model, longer, **ENDLESS), model.generate(longer, **ENDLESS))
