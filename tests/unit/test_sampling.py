"""Final scores at every node equal transformers' processors, called with that node's own prefix."""

import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, SynthIDTextWatermarkingConfig
from transformers.generation import logits_process as hf

from specdec.sampling import Context, Sampler
from specdec.tree import TokenTree

VOCAB, EOS, PAD = 48, 2, 0
NUM_ROWS, PROMPT = 3, 6
PADDING = (0, 2, 3)  # left padding of each row
TOKENS = range(3, 14)  # that trees are made of: few, so that they repeat
CPU = torch.device("cpu")


@cache
def tiny_llama(seed=0):
    """In float64: guidance runs on one row here and on the batch in transformers, and sums must not tell them apart."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.5,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).double().eval()


def allowed_tokens(row, prefix):
    """Two thirds of the tokens; which ones depends on the row and the prefix."""
    return [token for token in range(VOCAB) if (token + int(prefix[-1]) + row) % 3 or token < 2]


@cache
def watermark(scheme, width):
    return hf.WatermarkLogitsProcessor(VOCAB, "cpu", seeding_scheme=scheme, context_width=width)


class EvenTokensPenalty(hf.LogitsProcessor):
    """A user's processor, which writes into its argument: takes the number of even tokens so far off the odd ones."""

    def __call__(self, input_ids, scores):
        scores[:, 1::2] -= (input_ids % 2 == 0).sum(-1, keepdim=True)
        return scores


class LoudTemperature(hf.TemperatureLogitsWarper):
    """A subclass that does what its base does not: it looks at the prefix."""

    def __call__(self, input_ids, scores):
        return super().__call__(input_ids, scores) * (1 + input_ids[:, -1:] % 2)


def prompts():
    generator = random.Random(5)
    return [[PAD] * padding + [generator.choice(TOKENS) for _ in range(PROMPT - padding)] for padding in PADDING]


PROMPTS = prompts()
PROMPT_IDS = torch.tensor(PROMPTS)

PREFIX_FREE = {
    "temperature": lambda: hf.TemperatureLogitsWarper(0.7),
    "top_k": lambda: hf.TopKLogitsWarper(5),
    "top_p": lambda: hf.TopPLogitsWarper(0.8),
    "top_h": lambda: hf.TopHLogitsWarper(0.4),
    "min_p": lambda: hf.MinPLogitsWarper(0.1),
    "min_p_keep_2": lambda: hf.MinPLogitsWarper(0.9, min_tokens_to_keep=2),
    "typical": lambda: hf.TypicalLogitsWarper(0.6),
    "epsilon": lambda: hf.EpsilonLogitsWarper(0.05),
    "eta": lambda: hf.EtaLogitsWarper(0.1),
    "suppress": lambda: hf.SuppressTokensLogitsProcessor([4, 7]),
    "inf_nan": lambda: hf.InfNanRemoveLogitsProcessor(),
    "normalization": lambda: hf.LogitNormalization(),
    "bark_eos": lambda: hf.BarkEosPrioritizerLogitsProcessor(EOS, 0.05),
}
WITH_PREFIX = {
    "repetition": lambda: hf.RepetitionPenaltyLogitsProcessor(1.7),
    "repetition_after_prompt": lambda: hf.RepetitionPenaltyLogitsProcessor(1.7, prompt_ignore_length=PROMPT),
    "no_repeat_ngram": lambda: hf.NoRepeatNGramLogitsProcessor(2),
    "sequence_bias": lambda: hf.SequenceBiasLogitsProcessor([[[5], 2.0], *([[t, t + 1], 3.0] for t in TOKENS)]),
    "bad_words": lambda: hf.NoBadWordsLogitsProcessor([[9], *([t, t + 2] for t in TOKENS)], eos_token_id=EOS),
    "min_length": lambda: hf.MinLengthLogitsProcessor(PROMPT + 3, [EOS, 3]),
    "min_new_tokens": lambda: hf.MinNewTokensLengthLogitsProcessor(PROMPT, 3, [EOS]),
    "forced_bos": lambda: hf.ForcedBOSTokenLogitsProcessor(5),
    "forced_eos": lambda: hf.ForcedEOSTokenLogitsProcessor(PROMPT + 4, EOS),
    "decay": lambda: hf.ExponentialDecayLengthPenalty((1, 1.5), EOS, PROMPT),
    "suppress_at_begin": lambda: hf.SuppressTokensAtBeginLogitsProcessor([3, 4], PROMPT),
    "watermark": lambda: watermark("lefthash", 1),
    "watermark_selfhash": lambda: watermark("selfhash", 2),
    "alternating_codebooks": lambda: hf.AlternatingCodebooksLogitsProcessor(PROMPT, 8, 8),
    "custom": EvenTokensPenalty,
    "subclass": lambda: LoudTemperature(0.5),
}
PER_ROW = {
    "repetition_padded": lambda: hf.RepetitionPenaltyLogitsProcessor(1.7, torch.tensor(PADDING)),
    "repetition_ignores_all": lambda: hf.RepetitionPenaltyLogitsProcessor(1.7, torch.tensor([99, 6, 0])),
    "encoder_repetition": lambda: hf.EncoderRepetitionPenaltyLogitsProcessor(1.7, PROMPT_IDS),
    "encoder_no_repeat": lambda: hf.EncoderNoRepeatNGramLogitsProcessor(2, PROMPT_IDS),
    "prefix_allowed": lambda: hf.PrefixConstrainedLogitsProcessor(allowed_tokens, 1),
}
STATEFUL = {
    "synth_id": lambda: hf.SynthIDTextWatermarkLogitsProcessor(3, [654, 400, 836], 64, 0, 4, CPU),
    "synth_id_skip": lambda: hf.SynthIDTextWatermarkLogitsProcessor(
        3, [654, 400], 64, 0, 16, CPU, skip_first_ngram_calls=True
    ),
    "guidance": lambda: hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(1.5, tiny_llama()),
    "guidance_negative": lambda: hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(
        1.5,
        tiny_llama(),
        unconditional_ids=torch.tensor([[0, 4, 5], [6, 7, 8], [0, 0, 9]]),
        unconditional_attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1], [0, 0, 1]]),
    ),
    "guidance_without_cache": lambda: hf.UnbatchedClassifierFreeGuidanceLogitsProcessor(
        1.5, tiny_llama(), use_cache=False
    ),
}
SINGLE = {name: (lambda make=make: [make()]) for name, make in (PREFIX_FREE | WITH_PREFIX | PER_ROW | STATEFUL).items()}
LISTS = {
    "none": lambda: [],
    "usual": lambda: [
        hf.RepetitionPenaltyLogitsProcessor(1.3, torch.tensor(PADDING)),
        hf.NoRepeatNGramLogitsProcessor(3),
        hf.MinLengthLogitsProcessor(PROMPT + 3, EOS),
        hf.TemperatureLogitsWarper(0.7),
        hf.TopKLogitsWarper(12),
        hf.TopPLogitsWarper(0.9),
        hf.MinPLogitsWarper(0.02),
    ],
    "state_in_the_middle": lambda: [
        hf.TopKLogitsWarper(20),
        SINGLE["guidance_negative"]()[0],
        hf.NoRepeatNGramLogitsProcessor(2),
        SINGLE["synth_id"]()[0],
        hf.LogitNormalization(),
    ],
}
CASES = SINGLE | LISTS
SEES_PREFIX = [
    name for name in CASES if name not in PREFIX_FREE and name not in ("none", "forced_bos", "encoder_repetition")
]
# Guidance with a float64 model gives float64 rows, added up in another order in a batch. All other rows are float32 and
# must have the bits of transformers.
TOLERANCE = {torch.float32: 0.0, torch.float64: 1e-12}


def random_tree(pending, generator, num_nodes=6):
    parents = [-1, *(generator.randrange(node) for node in range(1, num_nodes))]
    tokens = [pending, *(generator.choice(TOKENS) for _ in range(1, num_nodes))]
    return TokenTree.of(tokens, parents)


def path_tokens(tree, node):
    return tree.tokens[tree.path_to(node)].tolist()


def plain(make, prefix, row, logits, prompt_length=PROMPT):
    """What transformers gives after `prefix`: fresh processors on the whole batch, called once per token."""
    processors = hf.LogitsProcessorList(make())
    ids = torch.tensor([prefix] * NUM_ROWS)
    with torch.no_grad():
        for length in range(prompt_length, len(prefix)):
            processors(ids[:, :length], torch.zeros(NUM_ROWS, VOCAB))
        return processors(ids, logits.to(copy=True, dtype=torch.float32).repeat(NUM_ROWS, 1))[row]


def expected(make, contexts, logits, prompt_length=PROMPT):
    rows, index = [], 0
    for context in contexts:
        for node in range(context.first, len(context.tree)):
            prefix = [*context.tokens, *path_tokens(context.tree, node)]
            rows.append(plain(make, prefix, context.row, logits[index], prompt_length))
            index += 1
    return torch.stack(rows)


def assert_same(actual, wanted):
    torch.testing.assert_close(actual, wanted, rtol=0, atol=TOLERANCE[wanted.dtype], equal_nan=True)


def ragged_contexts(generator, rows=(2, 0, 1), grown=(0, 1, 3)):
    """Rows in another order than the batch, some of them with tokens emitted since the prompt."""
    contexts = []
    for row, num_new in zip(rows, grown, strict=True):
        tokens = PROMPTS[row] + [generator.choice(TOKENS) for _ in range(num_new)]
        contexts.append(Context(tokens, random_tree(tokens[-1], generator), row))
    return contexts


def num_rows(contexts):
    return sum(len(context.tree) - context.first for context in contexts)


def start(sampler, rows=range(NUM_ROWS)):
    """The first call of a run: every row's prompt, its last token pending."""
    contexts = [Context(PROMPTS[row], TokenTree.chain(PROMPTS[row][-1:]), row) for row in rows]
    return sampler.scores(torch.randn(len(contexts), VOCAB), contexts)


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

    tree = TokenTree.of([PROMPTS[0][-1], 3, 4, 5, 6], [-1, 0, 1, 0, 3])
    Sampler([remembering]).scores(torch.randn(5, VOCAB), [Context(PROMPTS[0], tree, 0)])
    assert len(seen) == 6


def test_several_returned_sequences_share_the_row_of_their_prompt():
    """`num_return_sequences=2`: batch row 3 was made from prompt 1."""
    for make in (PER_ROW["encoder_repetition"], PER_ROW["encoder_no_repeat"]):
        tokens = [*PROMPTS[1], PROMPTS[1][3]]
        logits = torch.randn(1, VOCAB)
        context = Context(tokens, TokenTree.chain(tokens[-1:]), row=3)
        scores = Sampler([make()], num_rows=6).scores(logits, [context])
        assert torch.equal(scores, make()(torch.tensor([tokens] * 6), logits.repeat(6, 1))[3, None])


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
    context = [Context(PROMPTS[0], TokenTree.chain(PROMPTS[0][-1:]), NUM_ROWS)]
    with pytest.raises(ValueError, match=r"expected .* made for every row .*, got 3 rows and row 3; "):
        Sampler(CASES[name]()).scores(torch.zeros(1, VOCAB), context)


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
