"""What the sampler shortens, keeps, hands on and refuses."""

import random

import pytest
import torch
from transformers.generation import logits_process as hf

from specdec.sampling import Context, Sampler
from specdec.tree import TokenTree
from tests.toys.processors import (
    CASES,
    CPU,
    NUM_ROWS,
    PER_ROW,
    PROMPT_IDS,
    PROMPTS,
    VOCAB,
    EvenTokensPenalty,
    num_rows,
    plain,
    ragged_contexts,
    start,
)


def test_order_matters():
    context, logits = [Context([3, 4], TokenTree.chain([4]), 0)], torch.arange(48.0)[None] / 4
    warpers = [hf.TopPLogitsWarper(0.5), hf.TemperatureLogitsWarper(3.0)]
    assert not torch.equal(Sampler(warpers).scores(logits, context), Sampler(warpers[::-1]).scores(logits, context))


def test_a_forced_first_token_needs_a_prefix_of_one():
    sampler = Sampler([hf.ForcedBOSTokenLogitsProcessor(5)])
    scores = sampler.scores(torch.zeros(2, VOCAB), [Context([3], TokenTree.chain([3, 4]), 0)])
    assert scores[0].isfinite().nonzero().tolist() == [[5]] and scores[1].isfinite().all()


@pytest.mark.parametrize("k", [1, 2, 7, 50])
@pytest.mark.parametrize("keep", [1, 3])
def test_top_k_then_top_p_has_the_bits_of_transformers(k, keep):
    """Ties at both borders, -inf and NaN included; the shorter body must step aside where it cannot know."""
    for seed in range(60):
        torch.manual_seed(seed)
        vocab = int(torch.randint(2, 300, ()))
        rows = 4 * torch.randn(3, vocab)
        if seed % 3 == 0:
            rows = rows.round()  # many ties
        if seed % 4 == 0:
            rows[:, torch.rand(vocab) < 0.3] = -torch.inf
        if seed % 7 == 0:
            rows[0, 0] = torch.nan
        warpers = [hf.TopKLogitsWarper(k), hf.TopPLogitsWarper(float(torch.rand(())), min_tokens_to_keep=keep)]
        warpers += [hf.MinPLogitsWarper(0.05)]
        wanted = hf.LogitsProcessorList(warpers)(None, rows.clone())
        assert torch.equal(Sampler(warpers).scores(rows, []).nan_to_num(0.5), wanted.nan_to_num(0.5))


def test_top_k_then_top_p_with_another_filter_value():
    warpers = [hf.TopKLogitsWarper(3, filter_value=-1e4), hf.TopPLogitsWarper(0.5)]
    rows = torch.randn(4, 30)
    assert torch.equal(Sampler(warpers).scores(rows, []), hf.LogitsProcessorList(warpers)(None, rows.clone()))


def test_rows_become_float32_and_nothing_else_without_processors():
    sampler, logits = Sampler(do_sample=True), torch.randn(2, VOCAB)
    assert sampler.do_sample and not Sampler().do_sample
    assert sampler.scores(logits, []) is logits
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(sampler.scores(logits.to(dtype), []), logits.to(dtype).to(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_the_logits_stay_as_they_were(name, dtype):
    sampler = Sampler(CASES[name]())
    start(sampler)
    contexts = ragged_contexts(random.Random(0))
    logits = torch.randn(num_rows(contexts), VOCAB).to(dtype)
    before = logits.clone()
    sampler.scores(logits, contexts)
    assert torch.equal(logits, before)


def test_a_single_row_is_not_written_into_either():
    logits = torch.ones(1, VOCAB)
    assert Sampler([EvenTokensPenalty()]).scores(logits, [Context([4], TokenTree.chain([4]), 0)])[0, 1] == 0
    assert (logits == 1).all()


def test_shorter_prefixes_come_first():
    """A processor that remembers a result per prefix, as grammars do, finds that of the parent."""
    seen = {tuple(PROMPTS[0])[:-1]}

    def remembering(input_ids, scores):
        for prefix in map(tuple, input_ids.tolist()):
            assert prefix[:-1] in seen
            seen.add(prefix)
        return scores

    tree = TokenTree([PROMPTS[0][-1], 3, 4, 5, 6], [-1, 0, 1, 0, 3])
    Sampler([remembering]).scores(torch.randn(5, VOCAB), [Context(PROMPTS[0], tree, 0)])
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["encoder_repetition", "encoder_no_repeat"])
def test_several_returned_sequences_share_the_row_of_their_prompt(name):
    """`num_return_sequences=2`: row 3 of the batch was made from prompt 1."""
    tokens, logits = [*PROMPTS[1], PROMPTS[1][3]], torch.randn(1, VOCAB)
    context = Context(tokens, TokenTree.chain(tokens[-1:]), row=3)
    scores = Sampler([PER_ROW[name]()], num_rows=2 * NUM_ROWS).scores(logits, [context])
    assert torch.equal(scores[0], plain(lambda: [PER_ROW[name]()], tokens, 1, logits))


def refusal(processors, **options):
    with pytest.raises(ValueError, match="expected .*, got .*; ") as caught:
        Sampler(processors, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Subclass(hf.SynthIDTextWatermarkLogitsProcessor):
    pass


class WithArguments(hf.LogitsProcessor):
    def __call__(self, input_ids, scores, cur_len):
        return scores


def test_refusals_name_the_processor_and_a_remedy():
    assert "ClassifierFreeGuidanceLogitsProcessor" in refusal([hf.ClassifierFreeGuidanceLogitsProcessor(1.5)])
    assert "DiaEOSChannelFilterLogitsProcessor" in refusal([hf.DiaEOSChannelFilterLogitsProcessor(2, 1)])
    assert "Subclass" in refusal([Subclass(3, [1], 8, 0, 4, CPU)])
    assert "WithArguments" in refusal([WithArguments()])
    assert "NoneType" in refusal([None])


@pytest.mark.parametrize("name", ["synth_id", "guidance"])
def test_a_used_stateful_processor_is_refused(name):
    (processor,) = CASES[name]()
    with torch.no_grad():
        processor(PROMPT_IDS, torch.zeros(NUM_ROWS, VOCAB))
    assert "called before" in refusal([processor])


@pytest.mark.parametrize("name", ["repetition_padded", "encoder_repetition", "encoder_no_repeat", "guidance_negative"])
def test_a_row_beyond_the_processors_batch_is_refused(name):
    if name == "repetition_padded" and isinstance(CASES[name]()[0].prompt_ignore_length, int):
        pytest.skip("needs a transformers whose repetition penalty knows the padding of each row")
    context = [Context(PROMPTS[0], TokenTree.chain(PROMPTS[0][-1:]), NUM_ROWS)]
    with pytest.raises(ValueError, match=r"expected .* made for every row .*, got 3 rows and row 3; "):
        Sampler(CASES[name]()).scores(torch.zeros(1, VOCAB), context)
