"""Every logits processor of transformers as a case, and what transformers itself gives at the nodes of a tree."""

import random
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.generation import logits_process as hf

from specdec.sampling import Context
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


def repetition_penalty(penalty, ignored):
    """Ignores so many tokens per row; transformers 5.17 knows only one number for all rows."""
    try:
        return hf.RepetitionPenaltyLogitsProcessor(penalty, torch.tensor(ignored))
    except ValueError:
        return hf.RepetitionPenaltyLogitsProcessor(penalty, min(ignored))


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
    "repetition_padded": lambda: repetition_penalty(1.7, PADDING),
    "repetition_ignores_all": lambda: repetition_penalty(1.7, (99, 6, 0)),
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
        repetition_penalty(1.3, PADDING),
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
# Guidance with a float64 model gives float64 rows, added up in another order in a batch. All other rows are float32 and
# must have the bits of transformers.
TOLERANCE = {torch.float32: 0.0, torch.float64: 1e-12}


def random_tree(pending, generator, num_nodes=6):
    parents = [-1, *(generator.randrange(node) for node in range(1, num_nodes))]
    tokens = [pending, *(generator.choice(TOKENS) for _ in range(1, num_nodes))]
    return TokenTree(tokens, parents)


def path_tokens(tree, node):
    return tree.tokens_at(tree.path_to(node))


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
