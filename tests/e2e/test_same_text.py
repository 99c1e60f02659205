"""Level E2 and E0, end to end: the same text as plain decoding, for every family, drafter, batch and way of sampling.

float64 and eager weights, so that no numerical tie hides a bug. What is compared is whole texts, token for token.
"""

import copy
from collections.abc import Iterator

import pytest
import torch

import specdec
from specdec.draft_models.draft_model import DraftModel
from specdec.draft_models.ngram import NGram
from specdec.target import PagedModel
from tests.toys.drafters import LIES, Liar, Oracle, RandomDraws, RandomTrees, always_wrong
from tests.toys.models import FAMILIES, real_llama, tiny_model
from tests.toys.wrong_heads import wrong_heads

NEW_TOKENS = 10
GREEDY = {"do_sample": False}
GREEDY_PROCESSED = {
    "do_sample": False,
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 3,
    "min_new_tokens": 6,
    "bad_words_ids": [[5], [7, 8]],
}
SAMPLED = {"do_sample": True, "top_k": 0}
SAMPLED_PROCESSED = {
    **GREEDY_PROCESSED,
    "do_sample": True,
    "temperature": 0.8,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
}
# Left-padded batches come to NaN in transformers' own eager attention of these types (softcap beside a sliding window):
# a batch is then compared with our own plain decoding, and with transformers one row at a time only.
PADDING_BREAKS_TRANSFORMERS = {"gemma2"}
WAYS = {
    "greedy": GREEDY,
    "greedy processed": GREEDY_PROCESSED,
    "sampled": SAMPLED,
    "sampled processed": SAMPLED_PROCESSED,
}
WAYS_OF_HEADS = ("greedy", "sampled processed")  # they draft as draft models do, so these are enough


def ragged_prompts(vocab_size: int, count: int) -> dict[str, torch.Tensor]:
    """Left-padded prompts of different lengths, with repeats so that prompt lookup finds something."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(3, vocab_size, (9 + 3 * (row % 4),), generator=generator) for row in range(count)]
    rows = [torch.cat([row, row[: 4 + index]]) for index, row in enumerate(rows)]
    width = max(map(len, rows))
    ids = torch.stack([torch.nn.functional.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([torch.arange(width) >= width - len(row) for row in rows]).long()
    return {"input_ids": ids, "attention_mask": mask}


def drafters(model, texts: list[list[int]], vocab_size: int) -> Iterator[tuple[str, object]]:
    yield "ngram chain", NGram(num_speculative_tokens=4, prompt_lookup_min=1)
    yield "ngram tree", NGram(num_speculative_tokens=3, prompt_lookup_min=1, num_branches=3)
    yield "right with probability 0.7", Oracle(texts, 0.7, vocab_size, 4)
    yield "always wrong", always_wrong(texts, vocab_size, 2)
    yield "random trees", RandomTrees(vocab_size, num_nodes=8, texts=texts, truth=0.7)
    yield "random draws", RandomDraws(vocab_size, (2, 1))
    yield "draft model greedy", DraftModel(model, num_speculative_tokens=3)
    yield "draft model coupled", DraftModel(model, num_speculative_tokens=3, draft_sample_method="coupled")
    yield "draft model tree", DraftModel(model, num_speculative_tokens=3, num_tree_nodes=7, tree_width=2)
    coupled = {"draft_sample_method": "coupled", "num_tree_nodes": 6, "tree_width": 2}
    yield "draft model coupled tree", DraftModel(model, num_speculative_tokens=2, **coupled)
    drawn = {"draft_sample_method": "probabilistic", "num_speculative_tokens": 2}
    yield "draft model drawn", DraftModel(model, **drawn)
    yield "draft model drawn tree", DraftModel(model, **drawn, num_tree_nodes=3, tree_width=2)


def check_family(model, draft_model, vocab_size: int, batch: int) -> None:
    target = PagedModel(model)
    inputs = ragged_prompts(vocab_size, batch)
    width = inputs["input_ids"].shape[1]
    for way, options in WAYS.items():
        options = {**options, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0}
        plain = specdec.generate(target, **inputs, seed=11, **options)
        is_comparable = batch == 1 or model.config.model_type not in PADDING_BREAKS_TRANSFORMERS
        if not options["do_sample"] and is_comparable:
            wanted = model.generate(**inputs, **options)
            assert torch.equal(plain, wanted), f"{way}: plain differs from transformers"
        texts = [
            row[mask.bool()].tolist() for row, mask in zip(plain[:, :width], inputs["attention_mask"], strict=True)
        ]
        texts = [text + row[width:].tolist() for text, row in zip(texts, plain, strict=True)]
        heads = wrong_heads(model, vocab_size) if way in WAYS_OF_HEADS else ()
        for name, drafter in (*drafters(draft_model, texts, vocab_size), *heads):
            ours = specdec.generate(target, **inputs, drafter=drafter, seed=11, verifier="sample_and_match", **options)
            assert torch.equal(ours, plain), f"{way}, {name}: differs from plain decoding"
    target.close()


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_text_of_plain_decoding(family: str, batch: int) -> None:
    model = tiny_model(family)
    draft_model = tiny_model("llama", seed=1, num_hidden_layers=1)
    check_family(model, draft_model, 160, batch)


@pytest.mark.parametrize("batch", [1, 7])
@pytest.mark.parametrize("names", [("stories260K", "llama2xs-tinystories"), ("llama2xs-tinystories", "stories260K")])
def test_real_models_give_the_text_of_plain_decoding(names: tuple[str, str], batch: int) -> None:
    target, draft = (real_llama(name, torch.float64) for name in names)
    check_family(target, draft, 512, batch)


def nearly(model):
    """A copy of the model with noise on its weights: as a drafter it is often right and often wrong."""
    noisy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return noisy


def assert_partly_accepted(out) -> None:
    steps = [step for event in out.speculation.rounds for step in event.steps]
    assert 0 < sum(step.num_accepted for step in steps) < sum(step.num_drafted for step in steps)


@pytest.mark.parametrize("method", ["greedy", "probabilistic", "coupled"])
@pytest.mark.parametrize("verifier", ["greedy", "sample_and_match", "rejection", "block"])
def test_greedy_text_is_the_same_under_every_rule(verifier: str, method: str) -> None:
    model = tiny_model("llama")
    options = {**ragged_prompts(160, 3), "max_new_tokens": 16, "do_sample": False, "pad_token_id": 0}
    drafter = DraftModel(nearly(model), num_speculative_tokens=4, draft_sample_method=method)
    ours = specdec.generate(model, drafter=drafter, verifier=verifier, return_dict_in_generate=True, **options)
    assert torch.equal(ours.sequences, model.generate(**options))
    assert_partly_accepted(ours)


@pytest.mark.parametrize("options", [{}, {"draft_sample_method": "probabilistic"}, {"draft_sample_method": "coupled"}])
def test_several_samples_of_each_prompt_of_a_ragged_batch(options: dict) -> None:
    """Each of the 14 rows has noise of its own, and it is the noise of its row, however the rows came about."""
    model, inputs = tiny_model("llama"), ragged_prompts(160, 7)
    sampled = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "temperature": 0.4, "pad_token_id": 0, "seed": 11}
    plain = specdec.generate(model, **inputs, num_return_sequences=2, **sampled)
    assert len(plain) == 14 and all(not torch.equal(*plain[row : row + 2]) for row in range(0, 14, 2))
    written_out = {name: value.repeat_interleave(2, dim=0) for name, value in inputs.items()}
    assert torch.equal(specdec.generate(model, **written_out, **sampled), plain)
    drafter = DraftModel(nearly(model), num_speculative_tokens=3, **options)
    wanted = {"verifier": "sample_and_match", "num_return_sequences": 2, "return_dict_in_generate": True}
    ours = specdec.generate(model, **inputs, drafter=drafter, **wanted, **sampled)
    assert torch.equal(ours.sequences, plain)
    assert_partly_accepted(ours)


def test_float32_differs_only_at_ties() -> None:
    """A mismatch passes only where the target's two best logits are closer than 1e-4 (algorithms.md 3.4)."""
    model = real_llama("stories260K", torch.float32)
    inputs = ragged_prompts(512, 7)
    plain = model.generate(**inputs, max_new_tokens=64, do_sample=False)
    ours = specdec.generate(model, **inputs, drafter="ngram", max_new_tokens=64, do_sample=False)
    for row, (wanted, got) in enumerate(zip(plain, ours, strict=True)):
        if not torch.equal(wanted, got):
            first = int((wanted != got).nonzero()[0])
            prefix = wanted[:first][inputs["attention_mask"][row].sum() - inputs["input_ids"].shape[1] + first :]
            top = model(prefix[None]).logits[0, -1].topk(2).values
            assert float(top[0] - top[1]) < 1e-4


@pytest.mark.parametrize("lie", LIES)
def test_a_drafter_that_lies_is_found_out(lie: str) -> None:
    with pytest.raises(ValueError, match="expected from liar"):
        specdec.generate(tiny_model("llama"), torch.tensor([[3, 4, 5]]), drafter=Liar(lie, 160), max_new_tokens=8)
