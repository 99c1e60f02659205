"""After any exception, cancelled stream or full cache: pages balance, and the model is as it was found."""

import pytest
import torch
from transformers import PreTrainedConfig, SynthIDTextWatermarkLogitsProcessor

import specdec
from specdec.cache import CacheFull, PagedKVCache
from specdec.draft_models.draft_model import DraftModel
from specdec.draft_models.ngram import NGram
from specdec.engine import Engine, EngineOptions
from specdec.noise import PhiloxNoise
from specdec.request import Request
from specdec.sampling import Sampler
from specdec.stopping import Stopping
from specdec.target import PagedModel
from specdec.verifiers.sample_and_match import SampleAndMatch
from tests.toys.models import tiny_model


def configs_of(model) -> list[PreTrainedConfig]:
    """The configs of all modules and those nested in them, each once."""
    found: dict[int, PreTrainedConfig] = {}
    left = list(model.modules())
    while left:
        for value in vars(left.pop()).values():
            if isinstance(value, PreTrainedConfig) and id(value) not in found:
                found[id(value)] = value
                left.append(value)
    return list(found.values())


def state_of(model) -> tuple:
    """Everything about a model, and about torch, that a careless tool might change.

    The state of torch's generator is part of it: the calls here are greedy or have a seed, and need nothing from it.
    """
    return (
        model.training,
        model.dtype,
        model.generation_config.to_dict(),
        [config._attn_implementation_internal for config in configs_of(model)],
        [module.training for module in model.modules()],
        [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        sorted(vars(model)),
        torch.is_grad_enabled(),
        torch.get_rng_state().numpy().tobytes(),
    )


def requests(lengths: list[int], new_tokens: int, do_sample: bool = False, processors=()) -> list[Request]:
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 150, (length,), generator=generator).tolist() for length in lengths]
    sampler = Sampler(processors, do_sample=do_sample, num_rows=len(lengths))
    return [
        Request(prompt, sampler, Stopping(max_length=len(prompt) + new_tokens), PhiloxNoise(row), row=row)
        for row, prompt in enumerate(prompts)
    ]


def texts_of(rounds) -> dict[int, list[int]]:
    texts: dict[int, list[int]] = {}
    for event in rounds:
        for step in event.steps:
            texts.setdefault(step.request_id, []).extend(step.tokens)
    return texts


def assert_balanced(cache: PagedKVCache) -> None:
    cache.check()
    assert cache.num_free_pages == cache.num_pages


class Failing:
    """A part that raises at its n-th call."""

    def __init__(self, part, method: str, call: int) -> None:
        self.part, self.method, self.left = part, method, call

    def __getattr__(self, name):
        value = getattr(self.part, name)
        return self._count(value) if name == self.method else value

    def _count(self, call):
        def wrapped(*args, **kwargs):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("planted")
            return call(*args, **kwargs)

        return wrapped


@pytest.mark.parametrize("call", [0, 1, 3])
@pytest.mark.parametrize("part", ["propose", "score", "verify"])
def test_an_exception_leaves_pages_and_model_alone(part: str, call: int) -> None:
    model = tiny_model("llama").train()
    before = state_of(model)
    target, cache = PagedModel(model), PagedKVCache(page_size=4)
    drafter, verifier = NGram(prompt_lookup_min=1), SampleAndMatch()
    parts = {
        "propose": (target, Failing(drafter, "propose", call), verifier),
        "score": (Failing(target, "score", call), drafter, verifier),
        "verify": (target, drafter, Failing(verifier, "verify", call)),
    }
    engine = Engine(*parts[part], cache)
    with pytest.raises(RuntimeError, match="planted"):
        list(engine.rounds(requests([9, 14, 5], 12)))
    assert_balanced(cache)
    target.close()
    assert state_of(model) == before


def test_an_exception_inside_the_model_leaves_it_as_it_was() -> None:
    model = tiny_model("llama")
    before = state_of(model)
    target, cache = PagedModel(model), PagedKVCache(page_size=4)
    engine = Engine(target, None, SampleAndMatch(), cache)
    rounds = engine.rounds(requests([9], 12))
    next(rounds)
    planted = model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(rounds)
    planted.remove()
    target.close()
    assert_balanced(cache)
    assert state_of(model) == before


def test_a_dropped_stream_returns_its_pages() -> None:
    model, draft_model = tiny_model("llama"), tiny_model("llama", seed=1)
    before = state_of(model), state_of(draft_model)
    cache = PagedKVCache(page_size=4)
    drafter = DraftModel(draft_model, num_speculative_tokens=3)
    rounds = Engine(PagedModel(model), drafter, SampleAndMatch(), cache).rounds(requests([9, 6], 20))
    next(rounds), next(rounds)
    assert (state_of(model), state_of(draft_model)) == before  # also between rounds: the caller may use the models
    rounds.close()
    assert_balanced(cache)
    assert (state_of(model), state_of(draft_model)) == before


def test_a_streamer_that_raises_ends_the_call_cleanly() -> None:
    class Broken:
        def put(self, value):
            if value.numel() == 1:
                raise KeyboardInterrupt

        def end(self): ...

    model = tiny_model("llama")
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        specdec.generate(model, torch.tensor([[4, 5, 6]]), drafter="ngram", streamer=Broken(), max_new_tokens=9)
    assert state_of(model) == before


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "seed": 5}])
def test_a_call_that_ends_leaves_model_and_generator_alone(options: dict) -> None:
    """Greedy decoding draws nothing, and a seed is all that sampling needs: torch's generator stays where it was."""
    model, draft_model = tiny_model("gemma2"), tiny_model("gemma2", seed=1)
    before = state_of(model), state_of(draft_model)
    specdec.generate(model, torch.tensor([[4, 5, 6]]), drafter=draft_model, max_new_tokens=9, **options)
    assert (state_of(model), state_of(draft_model)) == before


@pytest.mark.parametrize("do_sample", [False, True])
def test_preempted_requests_come_to_the_same_text(do_sample: bool) -> None:
    target = PagedModel(tiny_model("llama"))
    wanted = texts_of(
        Engine(target, None, SampleAndMatch(), PagedKVCache(page_size=4)).rounds(requests([9, 14, 5], 20, do_sample))
    )
    cache = PagedKVCache(page_size=4, max_pages=14)
    drafter = DraftModel(tiny_model("llama", seed=1), num_speculative_tokens=3)
    got = texts_of(Engine(target, drafter, SampleAndMatch(), cache).rounds(requests([9, 14, 5], 20, do_sample)))
    assert got == wanted
    assert_balanced(cache)


def test_processors_with_a_memory_survive_preemption() -> None:
    """SynthID remembers what it saw since the prompt; a preempted request must not begin anew."""
    watermark = {"ngram_len": 3, "keys": [3, 5, 8], "sampling_table_size": 64, "sampling_table_seed": 0}
    watermark |= {"context_history_size": 16, "device": torch.device("cpu")}
    texts = []
    for max_pages in (None, 14):
        processors = [SynthIDTextWatermarkLogitsProcessor(**watermark)]
        engine = Engine(
            PagedModel(tiny_model("llama")), NGram(), SampleAndMatch(), PagedKVCache(page_size=4, max_pages=max_pages)
        )
        texts.append(texts_of(engine.rounds(requests([9, 14, 5], 20, True, processors))))
    assert texts[0] == texts[1]


def test_a_request_larger_than_the_cache_is_refused_with_the_pages_wanted() -> None:
    cache = PagedKVCache(page_size=4, max_pages=3)
    engine = Engine(PagedModel(tiny_model("llama")), None, SampleAndMatch(), cache)
    with pytest.raises(CacheFull, match="pages"):
        list(engine.rounds(requests([30], 4)))
    assert_balanced(cache)


def test_batch_and_order_do_not_matter() -> None:
    target = PagedModel(tiny_model("llama"))
    together = requests([9, 14, 5, 11, 30], 12, do_sample=True)
    engine = Engine(
        target, NGram(prompt_lookup_min=1), SampleAndMatch(), PagedKVCache(page_size=4), EngineOptions(max_batch_size=2)
    )
    batched = texts_of(engine.rounds(together))
    for rank, request in enumerate(requests([9, 14, 5, 11, 30], 12, do_sample=True)):
        alone = Engine(target, None, SampleAndMatch(), PagedKVCache(), EngineOptions(max_prefill_tokens=8)).rounds(
            [request]
        )
        assert texts_of(alone)[0] == batched[rank]
