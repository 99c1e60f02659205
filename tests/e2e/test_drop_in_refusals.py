"""What `specdec.generate` refuses, and that nothing a caller says is ignored without a word."""

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GenerationConfig, MaxLengthCriteria, StoppingCriteria, StoppingCriteriaList

import specdec
from specdec.experiments.contenders import Decoding
from tests.toys.models import GREEDY, IDS, real_llama, tiny_model


@pytest.fixture(scope="module")
def assistant():
    return tiny_model("llama", seed=1, num_hidden_layers=1)


def assert_refused(model, inputs, message, **options) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        specdec.generate(model, **inputs, **{**GREEDY, **options})
    assert "\n" not in str(caught.value) and "expected" in str(caught.value) and ";" in str(caught.value)


REFUSED = {
    "num_beams": ({"num_beams": 3}, "num_beams"),
    "penalty_alpha": ({"penalty_alpha": 0.6, "top_k": 4, "trust_remote_code": True}, "penalty_alpha"),
    "output_attentions": ({"output_attentions": True, "return_dict_in_generate": True}, "output_attentions"),
    "output_hidden_states": ({"output_hidden_states": True, "return_dict_in_generate": True}, "output_hidden_states"),
    "custom_generate": ({"custom_generate": print}, "custom_generate"),
    "two drafters": ({"drafter": "ngram", "prompt_lookup_num_tokens": 3}, "one drafter"),
    "lonely option": ({"num_assistant_tokens": 3}, "num_assistant_tokens"),
    "lonely threshold": ({"assistant_confidence_threshold": 0.3}, "together with assistant_model"),
    "option of the other drafter": (
        {"max_matching_ngram_size": 2, "drafter": "ngram"}, "together with prompt_lookup_num_tokens"),
    "stop strings without tokenizer": ({"stop_strings": ["x"]}, "tokenizer"),
    "unknown drafter": ({"drafter": "ngrm"}, "did you mean 'ngram'"),
    "unknown option": ({"drafter": {"method": "ngram", "prompt_lookup_maxx": 3}}, "did you mean 'prompt_lookup_max'"),
    "unknown rule": ({"verifier": "blok"}, "did you mean 'block'"),
    "greedy rule while sampling": ({"verifier": "greedy", "do_sample": True}, "do_sample=False"),
    "too long": ({"max_new_tokens": 5000}, "context of 512"),
    "seeds": ({"seed": [1, 2]}, "one per row"),
    "no seed": ({"seed": 1.5}, "one seed"),
    "prompt given twice": ({"inputs": IDS}, "inputs and input_ids"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_honoured_is_refused(model, name) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        specdec.generate(model, input_ids=IDS, **{**GREEDY, **options})
    assert "\n" not in str(caught.value)


NO_COUNTERPART = {
    "synced_gpus": True,
    "token_healing": True,
    "assistant_tokenizer": object(),
    "num_assistant_tokens_schedule": "heuristic",
    "assistant_lookbehind": 3,
    "target_lookbehind": 3,
    "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash",
    "use_mtp": True,
}


@pytest.mark.parametrize("name", NO_COUNTERPART)
def test_options_of_transformers_own_drafting_are_refused_by_name(model, assistant, name) -> None:
    value = NO_COUNTERPART[name]
    assert_refused(model, {"input_ids": IDS}, name, assistant_model=assistant, **{name: value})
    if name not in ("synced_gpus", "assistant_tokenizer"):
        config = GenerationConfig(**{**GREEDY, name: value})
        with pytest.raises(ValueError, match=name):
            specdec.generate(model, IDS, generation_config=config)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"input_ids": torch.empty(1, 0, dtype=torch.long)}, "at least one token"),
        ({"input_ids": torch.tensor([[4, 5, 999]])}, "vocabulary of 160"),
        ({"input_ids": IDS, "attention_mask": torch.tensor([[1] * 9 + [0]])}, "left padding"),
        ({"input_ids": IDS, "attention_mask": torch.tensor([[0, 1, 1]])}, "attention_mask of the shape"),
        ({"input_ids": IDS, "position_ids": torch.arange(10)[None] + 3}, "position ids"),
        ({"input_ids": IDS, "position_ids": torch.arange(12)[None]}, "position_ids of the shape"),
        ({"input_ids": torch.tensor([[4, 0, 5, 6]])}, "pass attention_mask if the padding token is part of the text"),
    ],
)
def test_bad_inputs_are_refused_in_one_line(model, inputs, message) -> None:
    assert_refused(model, inputs, message, eos_token_id=None)


def test_position_ids_of_one_row_are_those_of_all(model) -> None:
    batch = torch.cat([IDS, IDS.flip(1)])
    options = {**GREEDY, "eos_token_id": None, "position_ids": torch.arange(10)[None]}
    assert torch.equal(specdec.generate(model, batch, **options), model.generate(batch, **options))
    options["position_ids"] = torch.arange(10)[None] + 1
    assert_refused(model, {"input_ids": batch}, "row 0", **options)


def test_a_draft_model_of_another_vocabulary_is_refused(model) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        specdec.generate(model, IDS, drafter=tiny_model("llama", vocab_size=200), **GREEDY)


def cache_of(model, ids: torch.Tensor) -> DynamicCache:
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    return cache


def test_only_the_new_tokens_beside_a_cache_are_refused(model) -> None:
    inputs = {"input_ids": IDS, "attention_mask": torch.ones(1, 15, dtype=torch.long)}
    options = {"past_key_values": cache_of(model, IDS[:, :5]), "return_dict_in_generate": True}
    assert_refused(model, inputs, "pass the whole text", **options)


def test_a_cache_that_would_not_be_extended_is_refused(model) -> None:
    for cache in (cache_of(model, IDS[:, :5]), DynamicCache(config=model.config)):
        assert_refused(model, {"input_ids": IDS}, "return_dict_in_generate=True", past_key_values=cache)


def test_a_cache_with_rows_missing_is_refused(model) -> None:
    cache = cache_of(model, IDS[:, :6])
    layer = cache.layers[1]
    layer.keys, layer.values = layer.keys[:, :, -2:], layer.values[:, :, -2:]
    options = {"return_dict_in_generate": True}
    assert_refused(model, {"input_ids": IDS}, "last 6 rows", past_key_values=cache, **options)
    batch = cache_of(model, torch.cat([IDS, IDS])[:, :6])
    assert_refused(model, {"input_ids": IDS}, "batch of 1, got 2", past_key_values=batch, **options)


def test_a_window_may_have_dropped_rows_and_must_hold_the_others() -> None:
    mistral = tiny_model("mistral")
    ids = torch.randint(3, 150, (1, 30), generator=torch.Generator().manual_seed(0))
    cache = cache_of(mistral, ids[:, :20])
    options = {"return_dict_in_generate": True}
    ours = specdec.generate(mistral, ids, past_key_values=cache, **options, **GREEDY)
    assert torch.equal(ours.sequences, mistral.generate(ids, **GREEDY))
    cache.layers[0].keys, cache.layers[0].values = (t[:, :, 1:] for t in (cache.layers[0].keys, cache.layers[0].values))
    assert_refused(mistral, {"input_ids": ids}, "last 7 rows", past_key_values=cache, **options)


def test_a_rotation_that_depends_on_the_length_is_refused_where_it_does() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope |= {"original_max_position_embeddings": 32, "factor": 8.0}
    sizes = {"original_max_position_embeddings": 32, "max_position_embeddings": 256, "sliding_window": None}
    phi = tiny_model("phi3", rope_parameters=rope, **sizes)
    options = {**GREEDY, "eos_token_id": None, "max_new_tokens": 22}
    assert torch.equal(specdec.generate(phi, IDS, drafter="ngram", **options), phi.generate(IDS, **options))
    assert_refused(phi, {"input_ids": IDS}, "within the 32 that rope_type 'longrope'", max_new_tokens=23)


def test_the_assistants_options_reach_the_drafter(model, assistant) -> None:
    options = {**GREEDY, "return_dict_in_generate": True, "assistant_model": assistant, "eos_token_id": None}
    eager = specdec.generate(model, IDS, num_assistant_tokens=4, **options)
    shy = specdec.generate(model, IDS, num_assistant_tokens=4, assistant_confidence_threshold=0.999, **options)
    assert torch.equal(eager.sequences, shy.sequences)
    assert shy.speculation.metrics.num_drafted < eager.speculation.metrics.num_drafted


def test_prompt_lookup_in_a_generation_config_is_honoured(model) -> None:
    config = GenerationConfig(prompt_lookup_num_tokens=4, return_dict_in_generate=True, **GREEDY)
    out = specdec.generate(model, IDS, generation_config=config)
    assert out.speculation.drafter == "ngram" and config.prompt_lookup_num_tokens == 4
    assert torch.equal(out.sequences, model.generate(IDS, **GREEDY))
    with pytest.raises(ValueError, match="speculate"):
        model.generate(IDS, custom_generate=specdec.speculate(), generation_config=config)
    model.generation_config.prompt_lookup_num_tokens = 4
    try:
        out = specdec.generate(model, IDS, return_dict_in_generate=True, **GREEDY)
        assert out.speculation.drafter == "ngram" and model.generation_config.prompt_lookup_num_tokens == 4
    finally:
        model.generation_config.prompt_lookup_num_tokens = None


def test_stop_strings_of_a_generation_config_and_of_the_model(shared) -> None:
    from transformers import AutoTokenizer

    model = real_llama("stories260K", torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260K")
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    options = {"max_new_tokens": 24, "do_sample": False}
    wanted = model.generate(**inputs, **options, stop_strings=["little"], tokenizer=tokenizer)
    assert wanted.shape != model.generate(**inputs, **options).shape
    config = GenerationConfig(**options, stop_strings=["little"])
    assert torch.equal(specdec.generate(model, **inputs, generation_config=config, tokenizer=tokenizer), wanted)
    assert config.stop_strings == ["little"]
    model.generation_config.stop_strings = ["little"]
    assert torch.equal(specdec.generate(model, **inputs, **options, tokenizer=tokenizer), wanted)
    other = GenerationConfig(**options)
    assert torch.equal(specdec.generate(model, **inputs, generation_config=other, tokenizer=tokenizer), wanted)
    assert model.generation_config.stop_strings == ["little"]


@pytest.mark.parametrize("max_length", [5, 10, 11, 12])
def test_a_length_at_or_below_the_prompts_gives_one_token(model, max_length) -> None:
    criteria = StoppingCriteriaList([MaxLengthCriteria(max_length)])
    wanted = model.generate(IDS, stopping_criteria=criteria, **GREEDY)
    for drafter in (None, "ngram"):
        assert torch.equal(specdec.generate(model, IDS, drafter=drafter, stopping_criteria=criteria, **GREEDY), wanted)


def test_a_row_that_ended_without_an_eos_token_is_padded(model) -> None:
    """Transformers lets it run on; here rows end each for itself."""
    batch = torch.cat([IDS, IDS.flip(1)])
    options = {**GREEDY, "eos_token_id": None}
    plain = model.generate(batch, **options)
    token = int(plain[0, 12])

    class At(StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            return ids[:, -1] == token

    ours = specdec.generate(model, batch, drafter="ngram", stopping_criteria=StoppingCriteriaList([At()]), **options)
    for row, full in zip(ours[:, 10:].tolist(), plain[:, 10:].tolist(), strict=True):
        count = full.index(token) + 1 if token in full else len(full)
        assert row == (full[:count] + [0] * len(row))[: len(row)]


def test_seeds_of_numpy_and_the_generator_of_torch(model) -> None:
    options = {**GREEDY, "do_sample": True}
    assert torch.equal(*(specdec.generate(model, IDS, seed=seed, **options) for seed in (3, np.int64(3))))
    assert torch.equal(*(specdec.generate(model, IDS, seed=[seed], **options) for seed in (3, np.int64(3))))
    before = torch.random.get_rng_state()
    specdec.generate(model, IDS, drafter="ngram", **GREEDY)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("option", [{"top_p": 0.9}, {"top_k": 5}])
def test_a_greedy_decoding_takes_no_option_of_sampling(option) -> None:
    with pytest.raises(ValueError, match="above 0 with --top-") as caught:
        Decoding(temperature=0.0, **option)
    assert "\n" not in str(caught.value)
    assert Decoding(temperature=0.5, **option).do_sample
