"""Heads in training: they compute what the drafter will, and lose what the formulas say."""

import copy
from dataclasses import replace

import pytest
import torch

from specdec.draft_models.block_network import BlockShape
from specdec.experiments import head_losses
from specdec.experiments.head_batches import batch_of
from specdec.experiments.head_block import BlockConfig, BlockRecipe
from specdec.experiments.head_eagle3 import Eagle3Config, Eagle3Recipe
from specdec.experiments.head_features import FrozenTarget, online
from specdec.experiments.head_losses import Tally, Truth, expected_tokens, row_losses, sequence_weights, truth_of
from specdec.experiments.head_medusa import MedusaConfig, MedusaRecipe
from specdec.experiments.head_optimizer import HeadOptimizer
from specdec.experiments.head_recipe import default_layers, layer_config
from specdec.experiments.head_run import recipe_of
from specdec.experiments.head_samples import Samples
from specdec.target import PagedModel
from tests.toys.heads import (
    DRAFT_TOKENS,
    block,
    block_row,
    eagle3,
    in_target_vocabulary,
    medusa,
    medusa_row,
    stepping_row,
    tiny_target,
)
from tests.toys.models import tiny_model
from tests.toys.sessions import VOCAB

TARGET = tiny_target()
TWIN = copy.deepcopy(TARGET)  # transformers leaves hooks on a model that was asked for hidden states
ROUNDING = 1e-10  # of float64
SHAPE = BlockShape(block_size=4, mask_token_id=0)


def samples_of(*lengths, prompt=3):
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, VOCAB, (length,), generator=generator).tolist() for length in lengths]
    return Samples.of(texts, [prompt] * len(texts))


def batch_for(recipe, samples, seed=0):
    return batch_of(samples, range(len(samples)), online(recipe.target), torch.device("cpu"), seed)


@pytest.fixture
def recorded(monkeypatch):
    """The logits and weights that every depth was counted with."""
    found = []
    add = Tally.add

    def record(tally, logits, truth, weights):
        found.append((logits.detach(), weights))
        return add(tally, logits, truth, weights)

    monkeypatch.setattr(Tally, "add", record)
    return found


def eagle3_case():
    network = eagle3()
    return Eagle3Recipe(network, FrozenTarget(PagedModel(TARGET), network.feature_layers), Eagle3Config(unroll=4))


def medusa_case(own_outputs):
    network = medusa(num_heads=3, has_outputs=own_outputs)
    config = MedusaConfig(num_heads=3, own_outputs=own_outputs)
    return MedusaRecipe(network, FrozenTarget(PagedModel(TARGET), network.feature_layers), config)


def block_case(**over):
    network = block(**{"shape": SHAPE, **over})
    config = BlockConfig(block_size=4, num_anchors=5)
    return BlockRecipe(network, FrozenTarget(PagedModel(TARGET), network.feature_layers), config)


def chain_rows(samples, depth):
    """(text, row) whose next token the target wrote, as far down as a chain of every depth can end there."""
    ends = [(text, row) for text in range(len(samples)) for row in range(int(samples.lengths[text]) - 1)]
    return [(text, row) for text, row in ends if row >= depth and row + 1 >= int(samples.prompt_lengths[text])]


@pytest.mark.parametrize(
    ("recipe", "row_of"),
    [
        (eagle3_case(), stepping_row),
        (medusa_case(True), medusa_row),
        (medusa_case(False), medusa_row),
    ],
    ids=["eagle3", "medusa", "medusa, shared output"],
)
def test_depth_s_is_what_the_drafter_says_after_s_drafted_tokens(recipe, row_of, recorded):
    samples = samples_of(9, 12)
    recipe(batch_for(recipe, samples))
    rows = chain_rows(samples, recipe.depth)
    assert len(recorded) == recipe.depth
    for depth, (logits, weights) in enumerate(recorded):
        assert len(rows) == len(logits) and weights.sum() == pytest.approx(1)
        for (text, row), found in zip(rows, logits, strict=True):
            tokens = samples.text(text)[: row + 1].tolist()
            wanted = row_of(recipe.network, TWIN, tokens, row + 1 - depth)
            assert (in_target_vocabulary(recipe.network, found) - wanted).abs().max() < ROUNDING


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"draft_tokens": DRAFT_TOKENS},
        {"shape": replace(SHAPE, sample_from_anchor=True)},
        {"markov": (3, "gated"), "confidence": "markov"},
    ],
    ids=str,
)
def test_a_block_in_training_is_what_the_drafter_makes_of_it(over, recorded):
    samples = samples_of(9, 14)
    recipe = block_case(**over)
    batch = batch_for(recipe, samples, seed=3)
    result = recipe(batch)
    anchors, is_anchor = recipe._anchors(batch)
    compared = 0
    for depth, (logits, weights) in enumerate(recorded):
        for place, anchor in enumerate(anchors.flatten().tolist()):
            text, row = place // anchors.shape[1], anchor + depth + 1
            is_counted = bool(is_anchor.flatten()[place]) and row + 1 < int(samples.lengths[text])
            assert bool(weights[place]) == is_counted
            if is_counted:
                tokens = samples.text(text)[: row + 1].tolist()
                wanted, _ = block_row(recipe.network, TWIN, tokens, anchor + 2, recipe.depth)
                assert (in_target_vocabulary(recipe.network, logits[place]) - wanted).abs().max() < ROUNDING
                compared += 1
    assert compared > 15 and result["loss"].isfinite()


def test_blocks_begin_where_the_target_wrote_what_follows_and_depend_on_the_seed():
    recipe, samples = block_case(), samples_of(12, 7, prompt=5)
    anchors = [recipe._anchors(batch_for(recipe, samples, seed)) for seed in (0, 0, 1)]
    assert torch.equal(anchors[0][0], anchors[1][0]) and not torch.equal(anchors[0][0], anchors[2][0])
    for rows, is_anchor in anchors:
        assert is_anchor[0].all() and is_anchor[1].sum() == 2  # rows 3 and 4 of the shorter text
        assert rows[is_anchor].min() == 3


def test_slopes_of_the_losses_are_those_of_the_formulas(monkeypatch):
    monkeypatch.setattr(head_losses, "CHUNK", {"cpu": 30})  # three rows
    generator = torch.Generator().manual_seed(0)
    target, known = torch.randn(7, 12, generator=generator).double() * 2, torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 11])
    logits = torch.randn(7, 9, generator=generator).double().requires_grad_()
    truth = truth_of(target, known, temperature=0.7)
    assert torch.equal(truth.probs, (target / 0.7).softmax(-1)[:, known])
    assert [known[place] if place >= 0 else -1 for place in truth.best] == [
        token if token in known else -1 for token in target.argmax(-1)
    ]
    for weight in (0.0, 0.3, 1.0):
        log_q = logits.log_softmax(-1)
        accepted = torch.minimum(truth.probs, log_q.exp()).sum(-1)
        wanted = (1 - weight) * -(truth.probs * log_q).sum(-1) - weight * accepted.log()
        found = row_losses(logits, truth, weight)
        assert (found.loss - wanted).abs().max() < ROUNDING and (found.acceptance - accepted).abs().max() < ROUNDING
        assert torch.equal(found.best, logits.argmax(-1))
        assert torch.autograd.gradcheck(lambda rows, w=weight: row_losses(rows, truth, w).loss, logits)


def test_a_row_that_can_hardly_be_accepted_is_left_to_cross_entropy():
    logits = torch.tensor([[0.0, 40.0]], requires_grad=True)
    truth = Truth(torch.tensor([[1.0, 0.0]]), torch.tensor([0]))
    row_losses(logits, truth, 1.0).loss.sum().backward()
    assert logits.grad.abs().max() == 0
    row_losses(logits, truth, 0.5).loss.sum().backward()
    assert logits.grad[0].tolist() == pytest.approx([-0.5, 0.5])


def test_texts_weigh_the_same_whatever_their_length():
    weights = sequence_weights(torch.tensor([[True] * 4, [True, False, False, False], [False] * 4]))
    assert weights.sum(-1).tolist() == [0.5, 0.5, 0.0]


def test_expected_tokens_are_those_of_chains_up_to_the_first_refusal():
    matches = torch.tensor([[True, True, False], [False, True, True], [True, True, True]])
    assert expected_tokens(matches, torch.tensor([True, True, False])).item() == 2.0


def test_chains_are_counted_from_the_row_they_begin_at(recorded):
    """Of a head that is always right every chain is accepted, and of one that is wrong at one depth up to there."""
    recipe, samples = eagle3_case(), samples_of(12)
    batch = batch_for(recipe, samples)
    (texts, rows), _ = recipe._chain_rows(batch)
    tally = Tally(0.8, 0.0)
    tally.matches = [torch.ones(len(rows), dtype=torch.bool) for _ in range(recipe.depth)]
    tally._weights, tally._losses = [torch.ones(len(rows))] * recipe.depth, [torch.tensor(0.0)] * recipe.depth
    assert recipe._chain_result(batch, tally, (texts, rows))["expected"] == recipe.depth + 1
    tally.matches[2] = ~tally.matches[2]
    assert recipe._chain_result(batch, tally, (texts, rows))["expected"] == 3


@pytest.mark.parametrize(
    "config", [MedusaConfig(own_outputs=True), Eagle3Config(), BlockConfig(markov_rank=4)], ids=str
)
def test_a_head_begins_as_the_target_and_every_weight_of_it_learns(config):
    target = tiny_model("llama")
    recipe = recipe_of(config, PagedModel(target), None)
    optimizer = HeadOptimizer(recipe.network, config)
    before = {name: part.clone() for name, part in recipe.network.named_parameters()}
    if config == MedusaConfig(own_outputs=True):
        assert torch.equal(recipe.network.medusa_head[2][-1].weight, target.lm_head.weight)
    for seed in range(2):
        recipe(batch_for(recipe, samples_of(20, 20), seed))["loss"].backward()
        optimizer.step(1.0)
    for name, part in recipe.network.named_parameters():
        assert not torch.equal(part, before[name]), name
    assert all(part.grad is None for part in target.parameters())


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen3", "cohere"])
def test_targets_of_other_families_are_read_as_they_speak(name):
    target = tiny_model(name)
    frozen = FrozenTarget(PagedModel(target), default_layers(target))
    assert layer_config(type(target.config), target, 1, None) is not None
    tokens = torch.tensor([[5, 6, 7, 8]])
    logits = frozen.logits(frozen.split(frozen.outputs(tokens)).last)
    assert (logits - PagedModel(target).plain(tokens)).abs().max() < 1e-4
