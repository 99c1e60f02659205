"""The tree that Medusa heads are calibrated for: counted as the drafter drafts, written, and used."""

import json

import pytest
import torch

import specdec
from specdec.draft_models.head_writing import write_head
from specdec.experiments.head_batches import batch_of
from specdec.experiments.head_features import FrozenTarget, online
from specdec.experiments.head_medusa import MedusaConfig, MedusaRecipe, calibrated_choices
from specdec.experiments.head_samples import Samples
from specdec.growth import best_choices
from specdec.target import PagedModel
from tests.toys.heads import medusa, medusa_row, randomised, tiny_target
from tests.toys.sessions import VOCAB

HEADS, RANKS, PROMPT = 3, 10, 4
TARGET = tiny_target()
TARGET.generation_config.eos_token_id = None


@pytest.fixture
def samples():
    """What the target says greedily to some openings, of different lengths."""
    openings = torch.randint(1, VOCAB, (6, PROMPT), generator=torch.Generator().manual_seed(0))
    texts = TARGET.generate(openings, attention_mask=torch.ones_like(openings), max_new_tokens=14, do_sample=False,
                            pad_token_id=0)  # fmt: skip
    return Samples.of([text[: 9 + i] for i, text in enumerate(texts.tolist())], [PROMPT] * len(texts))


def recipe_for(temperature):
    network = medusa(num_heads=HEADS)
    target = FrozenTarget(PagedModel(TARGET), network.feature_layers)
    recipe = MedusaRecipe(network, target, MedusaConfig(num_heads=HEADS, own_outputs=True, temperature=temperature))
    randomised(network)  # a recipe begins with the target's language model head in all of them
    return recipe


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ranks_are_counted_as_the_drafter_would_draft(samples, temperature):
    """Token by token: from every row behind which all heads guess what the target wrote."""
    recipe = recipe_for(temperature)
    hits, totals = [[0] * RANKS for _ in range(HEADS)], [0] * HEADS
    for number in range(len(samples)):
        text = samples.text(number).tolist()
        for committed in range(PROMPT + 1, len(text) - HEADS + 1):  # the last of them is pending
            for depth in range(HEADS):
                guess = medusa_row(recipe.network, TARGET, text[: committed + depth], committed)
                totals[depth] += 1
                ranked = guess.topk(RANKS).indices.tolist()
                if text[committed + depth] not in ranked:
                    break
                hits[depth][ranked.index(text[committed + depth])] += 1
    batch = batch_of(samples, range(len(samples)), online(recipe.target), torch.device("cpu"), 0)
    found, counted = recipe.rank_counts(batch)
    assert found.int().tolist() == hits and counted.int().tolist() == totals and sum(map(sum, hits)) > 9
    chances = [[hit / total for hit in row] for row, total in zip(hits, totals, strict=True)]
    assert calibrated_choices(recipe, samples, online(recipe.target), 6) == best_choices(chances, 6)


def test_the_tree_is_written_and_drafted_by_default(tmp_path):
    network = medusa(num_heads=HEADS)
    network.choices = [(0,), (2,), (0, 0), (0, 1)]
    write_head(network, tmp_path / "head", "medusa", TARGET.config)
    shape = [tuple(path) for path in specdec.load_drafter(str(tmp_path / "head"), TARGET).speculative_token_tree]
    assert shape == sorted(network.choices, key=lambda path: (len(path), path))
    chain = specdec.load_drafter(str(tmp_path / "head"), TARGET, num_speculative_tokens=2)
    assert chain.speculative_token_tree is None and not chain.needs.tree
    best = specdec.load_drafter(str(tmp_path / "head"), TARGET, num_tree_nodes=5)
    assert best.speculative_token_tree is None and best.needs.tree


@pytest.mark.parametrize("choices", [[[1, 1]], "x", [[-1]], 7])
def test_choices_that_are_no_tree_are_refused(choices, tmp_path):
    write_head(medusa(num_heads=HEADS), tmp_path / "head", "medusa", TARGET.config)
    path = tmp_path / "head" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "medusa_choices": choices}))
    with pytest.raises(ValueError, match=r"^expected .*\n?$"):
        specdec.load_drafter(str(tmp_path / "head"), TARGET)


def test_a_tree_deeper_than_the_heads_is_refused(tmp_path):
    network = medusa(num_heads=2)
    network.choices = [(0,), (0, 0), (0, 0, 0)]
    write_head(network, tmp_path / "head", "medusa", TARGET.config)
    with pytest.raises(ValueError, match="at most 2 drafted tokens"):
        specdec.load_drafter(str(tmp_path / "head"), TARGET)
