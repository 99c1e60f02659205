"""`specdec.generate` where `model.generate` stood: same arguments, same return types, same text."""

import gc
import weakref

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

import specdec
from tests.toys.models import GREEDY, IDS, real_llama, tiny_model


@pytest.fixture(scope="module")
def padded() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 150, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    mask[2, :9] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


class Boost(LogitsProcessor):
    """A user's own processor: depends on the last token."""

    def __call__(self, input_ids, scores):
        return scores + (torch.arange(scores.shape[1]) % 5 == (input_ids[:, -1:] % 5)) * 2.0


PROCESSORS = {
    "none": {},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2},
    "min_new_tokens": {"min_new_tokens": 9, "eos_token_id": [17, 33, 90]},
    "min_length": {"min_length": 18, "eos_token_id": [17, 33, 90]},
    "bad_words_ids": {"bad_words_ids": [[5], [33, 90], [21]]},
    "sequence_bias": {"sequence_bias": {(17, 33): -5.0, (40,): 3.0}},
    "suppress_tokens": {"suppress_tokens": [17, 21], "begin_suppress_tokens": [33]},
    "forced_eos": {"forced_eos_token_id": 2},
    "exponential_decay": {"exponential_decay_length_penalty": (3, 1.4), "eos_token_id": 2},
    "encoder_repetition_penalty": {"encoder_repetition_penalty": 1.4},
    "encoder_no_repeat_ngram_size": {"encoder_no_repeat_ngram_size": 2},
    "renormalize": {"renormalize_logits": True, "remove_invalid_values": True},
    "prefix_allowed_tokens_fn": {
        "prefix_allowed_tokens_fn": lambda row, ids: [(int(ids[-1]) * 3 + i * (row + 2)) % 150 + 3 for i in range(6)]
    },
    "custom": {"logits_processor": LogitsProcessorList([Boost()])},
    "guidance": {"guidance_scale": 1.5},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_processor_gives_the_text_of_transformers(model, padded, name) -> None:
    options = {**GREEDY, "eos_token_id": None, **PROCESSORS[name]}
    inputs = padded
    if name == "guidance":  # transformers' own supports one row here
        inputs = {"input_ids": IDS}
    wanted = model.generate(**inputs, **options)
    for drafter in (None, {"method": "ngram", "prompt_lookup_min": 1}):
        assert torch.equal(specdec.generate(model, **inputs, drafter=drafter, **options), wanted)


def test_scores_and_logits_are_those_of_transformers(model, padded) -> None:
    options = {**GREEDY, "repetition_penalty": 1.2, "eos_token_id": None, "return_dict_in_generate": True}
    options |= {"output_scores": True, "output_logits": True}
    wanted = model.generate(**padded, **options)
    ours = specdec.generate(model, **padded, drafter="ngram", **options)
    assert torch.equal(ours.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(ours.scores), torch.stack(wanted.scores))
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(wanted.logits))
    both = [model.compute_transition_scores(o.sequences, o.scores, normalize_logits=True) for o in (ours, wanted)]
    torch.testing.assert_close(*both)


def test_num_return_sequences_share_the_prompt_and_differ(model) -> None:
    options = {"do_sample": True, "max_new_tokens": 12, "num_return_sequences": 4, "pad_token_id": 0}
    plain = specdec.generate(model, IDS, seed=5, **options)
    ours = specdec.generate(model, IDS, seed=5, drafter="ngram", **options)
    assert ours.shape[0] == 4 and torch.equal(ours, plain)
    assert len({tuple(row.tolist()) for row in ours}) > 1


def test_seeds_make_and_repeat_texts(model) -> None:
    options = {"do_sample": True, "max_new_tokens": 12, "pad_token_id": 0}
    one, same, other = (specdec.generate(model, IDS, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    torch.manual_seed(4)
    first = specdec.generate(model, IDS, return_dict_in_generate=True, **options)
    torch.manual_seed(4)
    second = specdec.generate(model, IDS, drafter="ngram", **options)
    assert torch.equal(first.sequences, second)
    again = specdec.generate(model, IDS, seed=list(first.speculation.seeds), **options)
    assert torch.equal(first.sequences, again)


def test_streams_the_prompt_and_each_token_once(model) -> None:
    class Collect(BaseStreamer):
        def __init__(self):
            self.values, self.ends = [], 0

        def put(self, value):
            self.values.append(value)

        def end(self):
            self.ends += 1

    wanted, ours = Collect(), Collect()
    model.generate(IDS, streamer=wanted, **GREEDY)
    specdec.generate(model, IDS, streamer=ours, drafter="ngram", **GREEDY)
    assert [v.tolist() for v in ours.values] == [v.tolist() for v in wanted.values]
    assert ours.ends == wanted.ends == 1


def test_custom_generate(model) -> None:
    loop = specdec.speculate("ngram")
    assert torch.equal(model.generate(IDS, custom_generate=loop, **GREEDY), model.generate(IDS, **GREEDY))
    assert loop.last.metrics.num_tokens == GREEDY["max_new_tokens"]


def test_hugging_face_spellings(model) -> None:
    assistant = tiny_model("llama", seed=1, num_hidden_layers=1)
    wanted = model.generate(IDS, **GREEDY)
    spellings = [
        {"assistant_model": assistant, "num_assistant_tokens": 3},
        {"prompt_lookup_num_tokens": 4, "max_matching_ngram_size": 2},
        {"drafter": assistant},
    ]
    names = []
    for spelling in spellings:
        out = specdec.generate(model, IDS, return_dict_in_generate=True, **spelling, **GREEDY)
        assert torch.equal(out.sequences, wanted)
        names.append(out.speculation.drafter)
    assert names == ["draft_model", "ngram", "draft_model"]


def test_generation_config_and_the_models_defaults_are_read(model) -> None:
    config = GenerationConfig(max_new_tokens=7, do_sample=False, repetition_penalty=1.5, pad_token_id=0)
    ours = specdec.generate(model, IDS, drafter="ngram", generation_config=config)
    assert torch.equal(ours, model.generate(IDS, generation_config=config))


def test_a_cache_goes_in_and_comes_out(model, padded) -> None:
    """A second turn continues from the first one's `past_key_values`, made by either library."""
    options = {**GREEDY, "eos_token_id": None, "return_dict_in_generate": True}
    first = model.generate(**padded, **options)
    ours = specdec.generate(model, **padded, drafter="ngram", **options)
    assert isinstance(ours.past_key_values, DynamicCache)
    assert ours.past_key_values.get_seq_length() == first.past_key_values.get_seq_length()
    more = torch.randint(3, 150, (3, 4), generator=torch.Generator().manual_seed(1))
    inputs = {
        "input_ids": torch.cat([first.sequences, more], 1),
        "attention_mask": torch.cat([padded["attention_mask"], torch.ones(3, 16 + 4, dtype=torch.long)], 1),
    }
    wanted = model.generate(**inputs, **GREEDY, eos_token_id=None)
    for cache in (first.past_key_values, ours.past_key_values):
        out = specdec.generate(model, **inputs, **options, drafter="ngram", past_key_values=cache)
        assert torch.equal(out.sequences, wanted)
        rows = sum(event.num_rows for event in out.speculation.rounds if event.is_prefill)
        assert rows < inputs["attention_mask"].sum()  # the old rows were not computed again
    again = specdec.generate(model, **padded, drafter="ngram", **options)
    theirs = model.generate(**inputs, **GREEDY, eos_token_id=None, past_key_values=again.past_key_values)
    assert torch.equal(theirs, wanted)


def test_text_generation_pipeline(shared) -> None:
    from transformers import AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    pipe = pipeline("text-generation", model=real_llama("stories260K", torch.float32), tokenizer=tokenizer)
    options = {"max_new_tokens": 20, "do_sample": False}
    loop = specdec.speculate("ngram")
    assert pipe("Once upon a time", **options) == pipe("Once upon a time", custom_generate=loop, **options)
    assert loop.last.metrics.num_tokens == 20


def test_a_model_is_checked_once_and_not_kept_alive() -> None:
    model = tiny_model("llama", num_hidden_layers=1)
    calls = []
    hook = model.register_forward_pre_hook(lambda *_: calls.append(1))
    specdec.generate(model, IDS, drafter=model, **GREEDY)
    first = len(calls)
    calls.clear()
    specdec.generate(model, IDS, drafter=model, **GREEDY)
    assert len(calls) < first  # no check the second time
    hook.remove()
    gone = weakref.ref(model)
    del model, hook
    gc.collect()
    assert gone() is None
