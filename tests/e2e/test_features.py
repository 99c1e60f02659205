"""What the engine hands to drafters that read features: those of the request's own rows, whatever happened before."""

import copy
import random

import pytest
import torch

import specdec
from specdec.cache import PagedKVCache
from specdec.engine import Engine, EngineOptions
from specdec.features import LAST
from specdec.feed import FeatureFeed
from specdec.noise import PhiloxNoise
from specdec.protocols import DrafterNeeds
from specdec.request import Request
from specdec.sampling import Sampler
from specdec.stopping import Stopping
from specdec.target import PagedModel
from specdec.types import Draft
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys.drafters import RandomTrees
from tests.toys.models import tiny_model

LAYERS = (2, LAST, 0)
TOLERANCE = 1e-10  # float64: only the order of sums differs
POOL = "reader"


class Reader:
    """Compares the features it is handed with those of a plain forward pass; drafts as another drafter does.

    Mostly it makes rows of all it is handed, as a head does; at times it does nothing, as for a budget of 0.
    """

    name = "reader"

    def __init__(self, model, drafter, pool=POOL, diligence=0.7):
        self.twin = copy.deepcopy(model)  # transformers leaves hooks of its own on a model asked for hidden states
        self.drafter, self.diligence = drafter, diligence
        self.needs = DrafterNeeds(tree=drafter.needs.tree, feature_layers=LAYERS, pool=pool)
        self.num_rows, self.lengths = 0, []

    def propose(self, views, budgets, noises):
        for view in views:
            self.compare(view)
        return self.drafter.propose(views, budgets, noises)

    def compare(self, view):
        table, features, pool = view.table, view.features, self.needs.pool
        length = len(view.tokens) - 1
        filled = length if pool is None else min(table.filled[pool], length)
        first = max(0, filled - 1)
        assert features.start <= first < features.stop == length == table.length
        torch.testing.assert_close(
            features.rows(first, length), self.plain(view.tokens[:length])[first:], rtol=0, atol=TOLERANCE
        )
        self.num_rows += length - first
        self.lengths.append(length - first)
        if pool is not None and random.Random(f"{view.request_id} {length}").random() < self.diligence:
            table.filled[pool] = length + 1

    def plain(self, tokens):
        with torch.no_grad():
            states = self.twin(torch.tensor([list(tokens)]), output_hidden_states=True).hidden_states
        return torch.cat([states[layer if layer == LAST else layer + 1][0] for layer in LAYERS], -1)

    def close(self, request_ids):
        self.drafter.close(request_ids)


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


def requests(prompts, new_tokens=16):
    sampler = Sampler(do_sample=True)
    return [
        Request(prompt, sampler, Stopping(max_length=len(prompt) + new_tokens), PhiloxNoise(row), row=row)
        for row, prompt in enumerate(prompts)
    ]


def random_prompts(*lengths):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 150, (length,), generator=generator).tolist() for length in lengths]


def texts_of(rounds):
    texts = {}
    for event in rounds:
        for step in event.steps:
            texts.setdefault(step.request_id, []).extend(step.tokens)
    return texts


def check(model, prompts, cache=None, options=None, **reader):
    """Runs these prompts with a reader that drafts right and wrong trees, and compares the texts as well."""
    target = PagedModel(model)
    plain = texts_of(Engine(target, None, SampleAndMatch(), PagedKVCache()).rounds(requests(prompts)))
    known = [[*prompt, *plain[row]] for row, prompt in enumerate(prompts)]
    drafter = Reader(model, RandomTrees(160, num_nodes=8, texts=known, truth=0.7), **reader)
    cache = cache or PagedKVCache(page_size=4)
    assert texts_of(Engine(target, drafter, SampleAndMatch(), cache, options).rounds(requests(prompts))) == plain
    cache.check()
    assert cache.num_free_pages == cache.num_pages
    assert not any(module._forward_hooks for module in model.modules())
    return drafter


@pytest.mark.parametrize("pool", [POOL, None])
def test_a_ragged_batch(model, pool):
    drafter = check(model, random_prompts(9, 1, 14, 5), pool=pool)
    assert drafter.num_rows > 20


def test_prompts_in_pieces(model):
    drafter = check(model, random_prompts(9, 30, 2), options=EngineOptions(max_prefill_tokens=4))
    assert max(drafter.lengths) > 4


def test_requests_that_are_preempted(model):
    check(model, random_prompts(9, 14, 5), PagedKVCache(page_size=4, max_pages=14))
    check(model, random_prompts(9, 14, 5), PagedKVCache(page_size=4, max_pages=14), diligence=0.0)


@pytest.mark.parametrize("diligence", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("limit", [None, 2])
def test_prompts_that_share_pages(model, limit, diligence):
    """Equal prompts, at once and one after the other, and prompts that begin alike: some rows are nobody's to give."""
    one, other = random_prompts(13, 6)
    prompts = [one, one, [*one[:9], *other], [*one, *other], one]
    check(model, prompts, options=EngineOptions(max_batch_size=limit), diligence=diligence)


def test_rows_are_run_again_only_if_nobody_can_give_their_features(model, monkeypatch):
    """Copies of a prompt that is being drafted for share its features; one that comes later lacks a single row."""
    again, original = [], FeatureFeed._recomputed
    monkeypatch.setattr(FeatureFeed, "_recomputed", lambda *args: again.append(args[-1] - args[-2]) or original(*args))
    (prompt,) = random_prompts(13)
    check(model, random_prompts(9, 1, 14, 5))
    check(model, [prompt] * 4, diligence=1.0)
    assert again == []
    check(model, [prompt] * 8, options=EngineOptions(max_batch_size=3), diligence=1.0)
    assert set(again) == {1}


@pytest.mark.parametrize("pool", [POOL, None])
def test_caches_of_the_caller_hold_no_features(model, pool):
    ids = torch.tensor(random_prompts(12, 12))
    past = model(ids[:, :9]).past_key_values
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True}
    plain = model.generate(ids, **options).sequences
    drafter = Reader(model, RandomTrees(160, texts=plain.tolist(), truth=0.8), pool=pool)
    ours = specdec.generate(model, ids, drafter=drafter, past_key_values=past, **options)
    assert torch.equal(ours.sequences, plain) and ours.speculation.metrics.tokens_per_step > 1
    assert not any(module._forward_hooks for module in model.modules())


def test_a_full_cache_drops_the_draft_and_not_the_text(model):
    """Rows that are run again need pages of their own."""
    for max_pages in (7, 8, 9, 10):
        check(model, random_prompts(9, 4), PagedKVCache(page_size=4, max_pages=max_pages), diligence=0.5)


def test_hooks_are_there_while_rounds_run_and_gone_whatever_ends_them(model):
    class Broken(Reader):
        def compare(self, view):
            raise RuntimeError("planted")

    def hooks():
        return sum(len(module._forward_hooks) for module in model.modules())

    target, drafter = PagedModel(model), RandomTrees(160)
    rounds = Engine(target, Reader(model, drafter), SampleAndMatch(), PagedKVCache()).rounds(requests([[4, 5, 6]]))
    next(rounds)
    assert hooks() == len(LAYERS)
    rounds.close()
    assert hooks() == 0
    with pytest.raises(RuntimeError, match="planted"):
        list(Engine(target, Broken(model, drafter), SampleAndMatch(), PagedKVCache()).rounds(requests([[4, 5, 6]])))
    assert hooks() == 0


def test_drafts_for_the_first_token_have_no_features_to_read(model):
    """A request's first round is plain, so a drafter is never asked before there is a row to read."""
    drafter = check(model, random_prompts(1, 1))
    assert min(drafter.lengths) == 1


def test_the_empty_draft_is_as_good_as_any(model):
    class Idle(RandomTrees):
        def draft(self, view, budget, noise):
            return Draft.empty(view.tokens[-1], self.name)

    target, prompts = PagedModel(model), random_prompts(9, 5)
    drafter = Reader(model, Idle(160))
    got = texts_of(Engine(target, drafter, SampleAndMatch(), PagedKVCache()).rounds(requests(prompts)))
    assert got == texts_of(Engine(target, None, SampleAndMatch(), PagedKVCache()).rounds(requests(prompts)))
