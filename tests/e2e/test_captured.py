"""Captured and eager rounds give the same tokens; a graph is here a record of ops, run again on the same memory."""

import random

import pytest
import torch

import specdec
from specdec import capture
from specdec.cache import PagedKVCache
from specdec.draft_models.draft_model import DraftModel
from specdec.draft_models.ngram import NGram
from specdec.target import Chunk, PagedModel
from specdec.tree import TokenTree
from tests.toys.drafters import RandomTrees
from tests.toys.models import VOCAB_SIZE, tiny_model
from tests.toys.sessions import VOCAB, Session

NEW_TOKENS = 24
WAYS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 0, "temperature": 0.8, "seed": 5},
}
# With windows, chunks, softcaps, shared K and V, learned positions: all drafters for the first of them, trees for all.
FAMILIES = ("llama", "gemma2", "gemma3n_text", "llama4_text", "gpt2")


def batch(model):
    generator = torch.Generator().manual_seed(3)
    vocab = model.config.get_text_config().vocab_size
    rows = [torch.randint(3, vocab, (count,), generator=generator) for count in (9, 14, 30)]
    ids = torch.stack([torch.nn.functional.pad(row, (30 - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(30) >= 30 - len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}


def drafters(model, graphs):
    def paged():
        return PagedModel(model, pool="draft", graphs=graphs)

    yield "plain", None
    yield "ngram", NGram(num_speculative_tokens=4, prompt_lookup_min=1)
    yield "trees", RandomTrees(model.config.get_text_config().vocab_size)
    yield "chain", DraftModel(paged(), num_speculative_tokens=4)
    yield "tree", DraftModel(paged(), num_speculative_tokens=3, num_tree_nodes=8, tree_width=3)
    yield "drawn", DraftModel(paged(), num_speculative_tokens=4, draft_sample_method="probabilistic")


def texts(model, target, drafter, options):
    return specdec.generate(target, **batch(model), drafter=drafter, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_and_eager_rounds_give_the_same_tokens(family, recording):
    model = tiny_model(family)
    eager, captured = PagedModel(model), PagedModel(model, graphs=True)
    pairs = zip(drafters(model, False), drafters(model, True), strict=True)
    for (name, wanted_by), (_, found_by) in pairs:
        for way, options in WAYS.items():
            if family != FAMILIES[0] and (name != "trees" or way == "greedy"):
                continue
            before = captured.graph_report
            found = texts(model, captured, found_by, options)
            assert torch.equal(found, texts(model, eager, wanted_by, options)), (name, way)
            assert captured.graph_report.num_replayed > before.num_replayed, (name, way)
    assert captured.cache.num_free_pages == captured.cache.num_pages


@pytest.mark.parametrize("page_size", [16, 5])
def test_a_chain_is_one_graph(page_size, recording):
    """Drafts of one request and of several, with one or two rows to catch up on, on pages that are anywhere."""
    model = tiny_model("llama")
    wanted_by = DraftModel(PagedModel(model, pool="draft"), num_speculative_tokens=4)
    found_by = DraftModel(paged := PagedModel(model, pool="draft", graphs=True), num_speculative_tokens=4)
    runs = [Session(drafter, page_size=page_size) for drafter in (wanted_by, found_by)]
    rng = random.Random(1)
    for _ in range(14):
        indices = sorted(rng.sample(range(3), rng.choice([1, 3, 3])))
        wanted, found = [run.propose([9] * len(indices), indices) for run in runs]
        assert [draft.tree for draft in found] == [draft.tree for draft in wanted]
        for index, draft in zip(indices, wanted, strict=True):
            path, token = list(range(1, rng.choice([1, 3, 5]))), rng.randrange(VOCAB)
            for run in runs:
                run.settle(index, draft, path, token)
    report = paged.graph_report
    assert report.num_replayed > 6 and report.num_replayed + report.num_eager < 14 * 4


def test_features_of_captured_passes_outlive_the_next_one(recording):
    """What a pass returned is not what the next one writes."""
    model = tiny_model("llama")
    eager, captured = PagedModel(model, feature_layers=[1]), PagedModel(model, feature_layers=[1], graphs=True)
    found = []
    for target in (eager, captured):
        cache = target.cache or PagedKVCache()
        table = cache.open()
        cache.stage(table, 3)
        chunks = [Chunk(table, 0, TokenTree.chain([5, token, 9]), num_logits=3) for token in (7, 8, 3, 7, 4)]
        found.append([target.score(cache, [chunk]) for chunk in chunks])
    assert captured.graph_report.num_replayed == 4
    for wanted, got in zip(*found, strict=True):
        assert torch.allclose(got.features, wanted.features) and torch.allclose(got.logits, wanted.logits)


def test_a_model_that_cannot_be_captured_says_so_once_and_runs_eagerly(recording):
    """Its experts are told apart by how many rows each gets, for which the host has to wait."""
    model = tiny_model("mixtral")
    captured = PagedModel(model, graphs=True)
    with pytest.warns(UserWarning, match="runs without graphs, it cannot be captured: operation not permitted"):
        found = texts(model, captured, None, WAYS["greedy"])
    assert torch.equal(found, texts(model, PagedModel(model), None, WAYS["greedy"]))
    texts(model, captured, None, WAYS["greedy"])  # a second warning would be an error
    assert captured.graph_report.num_captured == captured.graph_report.num_replayed == 0


def test_graphs_want_all_weights_on_one_gpu():
    with pytest.raises(ValueError, match="expected all weights on one GPU for graphs=True, got cpu; pass graphs=False"):
        PagedModel(tiny_model("llama"), graphs=True)


def test_a_graph_that_gives_something_else_is_refused(recording, monkeypatch):
    model = tiny_model("llama")
    recorded = capture.record

    def spoilt(function, memory, device):
        replay, (logits, taps) = recorded(function, memory, device)
        return (lambda: (replay(), logits.mul_(1.5))), (logits, taps)

    monkeypatch.setattr(capture, "record", spoilt)
    with pytest.raises(ValueError, match=r"expected of a captured forward pass .* a difference of 0\.5 .*graphs=False"):
        texts(model, PagedModel(model, graphs=True), None, WAYS["greedy"])


@pytest.mark.parametrize("moved", ["storage", "weights"])
def test_graphs_are_captured_anew_when_what_they_read_has_moved(moved, recording):
    model = tiny_model("llama")
    captured = PagedModel(model, graphs=True)
    wanted, _, again = [texts(model, captured, None, WAYS["greedy"]) for _ in range(3)]
    num_captured = captured.graph_report.num_captured
    assert torch.equal(again, wanted) and num_captured == 2  # the prompts' bucket when it was met again
    if moved == "weights":
        weight = model.get_input_embeddings().weight
        weight.data = weight.data.clone()
    else:
        captured.cache.stage(table := captured.cache.open(), 2000)
        captured.cache.close(table)
    assert torch.equal(texts(model, captured, None, WAYS["greedy"]), wanted)
    assert captured.graph_report.num_captured == num_captured + 1


def test_the_number_of_graphs_is_bounded(recording, monkeypatch):
    monkeypatch.setattr(capture, "MAX_GRAPHS", 2)
    model = tiny_model("llama")
    captured = PagedModel(model, graphs=True)
    found = texts(model, captured, RandomTrees(VOCAB_SIZE), WAYS["greedy"])
    assert captured.graph_report.num_graphs == 2 < captured.graph_report.num_captured
    assert torch.equal(found, texts(model, PagedModel(model), None, WAYS["greedy"]))
