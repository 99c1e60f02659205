"""Final scores at every node equal transformers' processors, called with that node's own prefix."""

import random
from dataclasses import replace

import pytest
import torch
from transformers import SynthIDTextWatermarkingConfig
from transformers.generation import logits_process as hf

from specdec.sampling import Context, Sampler
from specdec.tree import TokenTree
from tests.toys.processors import (
    CASES,
    EOS,
    LISTS,
    NUM_ROWS,
    PAD,
    PREFIX_FREE,
    PROMPT,
    PROMPT_IDS,
    PROMPTS,
    SINGLE,
    STATEFUL,
    TOKENS,
    TOLERANCE,
    VOCAB,
    EvenTokensPenalty,
    allowed_tokens,
    assert_same,
    expected,
    num_rows,
    path_tokens,
    ragged_contexts,
    random_tree,
    start,
    tiny_llama,
)

SEES_PREFIX = [
    name for name in CASES if name not in PREFIX_FREE and name not in ("none", "forced_bos", "encoder_repetition")
]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_each_node_gets_what_its_own_prefix_gives(name, seed):
    generator = random.Random(seed)
    torch.manual_seed(seed)
    sampler = Sampler(CASES[name]())
    start(sampler)
    contexts = ragged_contexts(generator)
    logits = 3 * torch.randn(num_rows(contexts), VOCAB)
    assert_same(sampler.scores(logits, contexts), expected(CASES[name], contexts, logits))


@pytest.mark.parametrize("name", SEES_PREFIX)
def test_the_state_of_the_root_for_all_nodes_is_noticed(name):
    """The commonest bug (algorithms.md 3.1), as a mutant: one of three draws must tell it from the truth."""

    def differs(seed):
        generator = random.Random(seed)
        torch.manual_seed(seed)
        contexts = ragged_contexts(generator)
        logits = 3 * torch.randn(num_rows(contexts), VOCAB)
        sampler = Sampler(CASES[name]())
        start(sampler)
        roots = [replace(context, tree=TokenTree.chain(context.tokens[-1:])) for context in contexts]
        roots = [root for root, context in zip(roots, contexts, strict=True) for _ in range(len(context.tree))]
        mutant = torch.cat([sampler.scores(row[None], [root]) for row, root in zip(logits, roots, strict=True)])
        wanted = expected(CASES[name], contexts, logits)
        return not torch.allclose(mutant, wanted, rtol=0, atol=TOLERANCE[wanted.dtype])

    assert any(differs(seed) for seed in range(3))


@pytest.mark.parametrize("name", [*STATEFUL, *LISTS])
def test_rounds_follow_the_accepted_path(name):
    """Over four rounds of random trees and accepted paths, scores are those of a plain sequential run."""
    generator = random.Random(7)
    sampler = Sampler(CASES[name]())
    start(sampler)
    tokens = [list(prompt) for prompt in PROMPTS]
    for _ in range(4):
        contexts = [Context(tokens[row], random_tree(tokens[row][-1], generator), row) for row in (1, 2, 0)]
        logits = 3 * torch.randn(num_rows(contexts), VOCAB)
        assert_same(sampler.scores(logits, contexts), expected(CASES[name], contexts, logits))
        for context in contexts:
            accepted = path_tokens(context.tree, generator.randrange(len(context.tree)))
            tokens[context.row] = [*context.tokens, *accepted, generator.choice(TOKENS)]


@pytest.mark.parametrize("name", [*STATEFUL, "usual"])
def test_a_drafter_may_ask_for_a_growing_tree(name):
    """A drafter scores level by level with the sampler of the request, and the target the whole tree afterwards."""
    generator = random.Random(3)
    sampler = Sampler(CASES[name]())
    start(sampler)
    tokens = [*PROMPTS[1], 5]
    tree = random_tree(5, generator, num_nodes=7)
    for first, stop in ((0, 1), (1, 4), (4, 7)):
        part = TokenTree(tree.tokens[:stop], tree.parents[:stop])
        context = Context(tokens, part, 1, first)
        logits = torch.randn(stop - first, VOCAB)
        assert_same(sampler.scores(logits, [context]), expected(CASES[name], [context], logits))
    context, logits = Context(tokens, tree, 1), torch.randn(7, VOCAB)
    assert_same(sampler.scores(logits, [context]), expected(CASES[name], [context], logits))
    only_leaves = replace(context, first=5)
    assert_same(sampler.scores(logits[5:], [only_leaves]), expected(CASES[name], [only_leaves], logits[5:]))


@pytest.mark.parametrize("name", STATEFUL)
def test_states_are_computed_again_where_they_are_missing(name):
    """Tokens that were in no tree, a return to fewer tokens, and a new run of the prompt."""
    sampler = Sampler(CASES[name]())
    start(sampler)
    for new in ([5, 6, 7, 8], [5, 9], [], [5, 6, 7]):
        tokens = [*PROMPTS[0], *new]
        context, logits = Context(tokens, TokenTree.chain([tokens[-1], 4, 9]), 0), torch.randn(3, VOCAB)
        assert_same(sampler.scores(logits, [context]), expected(CASES[name], [context], logits))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_forgotten_row_begins_with_its_next_tokens(name):
    sampler = Sampler(CASES[name]())
    start(sampler)
    sampler.forget(1)
    sampler.forget(1)  # nothing is left to drop
    longer = [*PROMPTS[1], 7, 8]
    context, logits = Context(longer, TokenTree.chain([8, 4]), 1), torch.randn(2, VOCAB)
    wanted = expected(CASES[name], [context], logits, prompt_length=len(longer))
    assert_same(sampler.scores(logits, [context]), wanted)
    other = [9, *PROMPTS[1][1:]]  # another prompt in the same row is a new request even if nobody said so
    context = Context(other, TokenTree.chain([other[-1], 4]), 1)
    assert_same(sampler.scores(logits, [context]), expected(CASES[name], [context], logits))


@pytest.mark.parametrize("name", STATEFUL)
def test_the_callers_processor_stays_as_it_was(name):
    (processor,) = CASES[name]()
    sampler = Sampler([processor])
    start(sampler)
    Sampler([processor])  # would refuse one that was called


@pytest.mark.parametrize("seed", range(6))
def test_any_order_of_any_processors(seed):
    generator = random.Random(seed)
    chosen = generator.sample(
        [name for name in SINGLE if name not in ("eta", "top_h")], 5
    )  # those fail on rows of -inf

    def make():
        return [SINGLE[name]()[0] for name in chosen]

    sampler = Sampler(make())
    start(sampler)
    contexts = ragged_contexts(generator)
    logits = 3 * torch.randn(num_rows(contexts), VOCAB)
    assert_same(sampler.scores(logits, contexts), expected(make, contexts, logits))


class Prepared(Exception):
    """Carries what `generate` prepares for a decoding loop."""


def prepared(model, **kwargs):
    def capture(model, input_ids, logits_processor, **rest):
        raise Prepared(logits_processor)

    with pytest.raises(Prepared) as caught:
        model.generate(custom_generate=capture, **kwargs)
    return caught.value.args[0]


OPTIONS = {
    "plain": {},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.2},
    "sampled": {"do_sample": True, "temperature": 0.8, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
    "cutoffs": {
        "do_sample": True,
        "epsilon_cutoff": 0.02,
        "eta_cutoff": 0.02,
        "renormalize_logits": True,
        "top_h": 0.9,
    },
    "words": {"bad_words_ids": [[5], [6, 7]], "sequence_bias": [[[8], 2.0], [[9, 3], -5.0]], "suppress_tokens": [4]},
    "lengths": {
        "eos_token_id": EOS,
        "min_new_tokens": 12,
        "exponential_decay_length_penalty": (2, 1.1),
        "begin_suppress_tokens": [3],
        "remove_invalid_values": True,
    },
    "prefix": {"prefix_allowed_tokens_fn": allowed_tokens, "encoder_no_repeat_ngram_size": 2},
    "guidance": {"guidance_scale": 1.5, "negative_prompt_ids": torch.tensor([[4, 5], [6, 7], [8, 9]])},
    "synth_id": {"watermarking_config": SynthIDTextWatermarkingConfig(ngram_len=3, keys=[7, 11, 13])},
    "user": {"logits_processor": hf.LogitsProcessorList([EvenTokensPenalty()]), "temperature": 0.5, "do_sample": True},
    "twice": {"num_return_sequences": 2, "do_sample": True, "encoder_no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_scores_are_those_that_generate_returns(name):
    """The whole continuation as one chain per row, over the logits that `model.generate` saw."""
    model = tiny_llama(1)
    options = {"max_new_tokens": 12, "pad_token_id": PAD, "repetition_penalty": 1.1} | OPTIONS[name]
    options |= {"inputs": PROMPT_IDS, "attention_mask": (PROMPT_IDS != PAD).long()}
    out = model.generate(**options, return_dict_in_generate=True, output_scores=True, output_logits=True)
    copies = options.get("num_return_sequences", 1)
    order = random.Random(0).sample(range(NUM_ROWS * copies), NUM_ROWS * copies)
    sampler = Sampler(prepared(model, **options), num_rows=NUM_ROWS * copies)
    contexts = [
        Context(PROMPTS[row // copies], TokenTree.chain(out.sequences[row, PROMPT - 1 : -1].tolist()), row)
        for row in order
    ]
    logits = torch.stack([step[row] for row in order for step in out.logits])
    assert_same(sampler.scores(logits, contexts), torch.stack([step[row] for row in order for step in out.scores]))
