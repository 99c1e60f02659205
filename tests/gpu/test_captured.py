"""Captured rounds on a GPU: the same tokens as eager ones, from graphs that serve other lengths, trees and pages."""

import pytest
import torch

import specdec
from specdec import batched
from specdec.draft_models.draft_model import DraftModel
from specdec.draft_models.ngram import NGram
from specdec.target import PagedModel
from tests.toys.device import unwaited
from tests.toys.drafters import RandomTrees

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda")
NEW_TOKENS = 64
WAYS = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "top_k": 0, "temperature": 0.8, "seed": 5},
    "warped": {"do_sample": True, "top_k": 50, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 5},
}


@pytest.fixture(scope="module")
def pair():
    target, draft, tokenizer = specdec.load_embedded(torch.float32)
    prompts = ["Once upon a time", "def f(x):\n    return", "It was a dark night, and the old man"]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    return (
        target.to(DEVICE),
        draft.to(DEVICE),
        {name: inputs[name].to(DEVICE) for name in ("input_ids", "attention_mask")},
    )


def drafter(name, draft, graphs):
    if name in ("chain", "tree", "drawn"):
        paged = PagedModel(draft, pool="draft", graphs=graphs)
        options = {
            "chain": {},
            "tree": {"num_tree_nodes": 12, "tree_width": 3},
            "drawn": {"draft_sample_method": "probabilistic"},
        }
        return DraftModel(paged, num_speculative_tokens=4, **options[name])
    vocab = draft.config.vocab_size
    return {"plain": None, "ngram": NGram(4, prompt_lookup_min=1), "trees": RandomTrees(vocab)}[name]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["plain", "ngram", "trees", "chain", "tree", "drawn"])
def test_captured_and_eager_rounds_give_the_same_tokens(pair, name, way):
    target, draft, inputs = pair
    texts, reports = [], []
    for graphs in (False, True):
        paged = PagedModel(target, graphs=graphs)
        made = drafter(name, draft, graphs)
        for _ in range(2):  # the second call replays what the first has captured
            texts.append(specdec.generate(paged, **inputs, drafter=made, max_new_tokens=NEW_TOKENS, **WAYS[way]))
        reports.append(paged.graph_report)
    assert all(torch.equal(text, texts[0]) for text in texts[1:])
    assert reports[0] is None and reports[1].num_replayed > reports[1].num_eager
    assert 0 < reports[1].num_captured <= 16 and reports[1].num_bytes < 1 << 30


def test_a_batch_is_decided_on_the_device(pair, monkeypatch):
    """The only wait of a round is for the copy of its verdicts."""
    target, _, inputs = pair
    seen = []
    verdicts = batched.BatchDecider.verdicts

    def watched(self, *given):
        found = verdicts(self, *given)
        seen.append(found is not None)
        return found

    monkeypatch.setattr(batched.BatchDecider, "verdicts", watched)
    specdec.generate(target, **inputs, drafter="ngram", max_new_tokens=NEW_TOKENS, do_sample=False)
    assert seen and all(seen)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_replayed_pass_waits_for_nothing(pair):
    target, _, inputs = pair
    paged = PagedModel(target, graphs=True)
    cache = paged.cache
    table = cache.open()
    tokens = inputs["input_ids"][0].tolist()
    tree = specdec.TokenTree.chain(tokens[:6])

    def score():
        cache.stage(table, len(tree))
        logits = paged.score(cache, [specdec.target.Chunk(table, table.length, tree, num_logits=len(tree))]).logits
        cache.truncate(table, table.length)
        return logits

    with torch.inference_mode():
        for _ in range(3):
            wanted = score().clone()
        with unwaited():
            found = score()
    assert torch.equal(found, wanted) and paged.graph_report.num_replayed == 3
