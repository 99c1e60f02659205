"""The drop-in: `generate` beside `model.generate`, and `speculate` for its `custom_generate`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .cache import PagedKVCache
from .engine import Engine, Request
from .events import Round, Step
from .exchange import export_cache, import_cache
from .methods import method_of, paged
from .metrics import Metrics, summarize
from .noise import PhiloxNoise, request_seed
from .sampling import Sampler
from .stopping import Stopping
from .target import PagedModel
from .types import Exactness

HANDLED_KWARGS = {"attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position", "logits_to_keep"}
# Options that choose another decoding method, and the value that leaves them off.
OTHER_METHODS: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "penalty_alpha": None,
    "dola_layers": None,
    "constraints": None,
    "force_words_ids": None,
    "assistant_early_exit": None,
}
UNAVAILABLE_OUTPUTS = ("output_attentions", "output_hidden_states")


@dataclass(frozen=True, slots=True)
class Speculation:
    """How a text came about: the effective configuration, the seeds, and every round."""

    drafter: str
    verifier: str
    level: Exactness
    seeds: tuple[int, ...]  # one per row; the same seed gives the same text
    rounds: tuple[Round, ...]

    @property
    def metrics(self) -> Metrics:
        return summarize(self.rounds)


@dataclass
class SpeculativeOutput(GenerateDecoderOnlyOutput):
    """What `model.generate` returns with `return_dict_in_generate=True`, and how it came about."""

    speculation: Speculation | None = None


def generate(
    model: PreTrainedModel | PagedModel,
    inputs: Tensor | None = None,
    drafter: Any = None,
    verifier: str | Any = "auto",
    seed: int | Sequence[int] | None = None,
    **generate_kwargs: Any,
) -> Any:
    """What `model.generate(inputs, **generate_kwargs)` returns, generated speculatively.

    Args:
        model: any Hugging Face decoder, left as it is found; or a `PagedModel` of one.
        inputs: [batch, length] token ids, left-padded with `attention_mask`; also as `input_ids=`.
        drafter: None for plain decoding, the name of a method ("ngram", "draft_model", ...), a mapping like vLLM's
            `speculative_config` (`{"method": "ngram", "num_speculative_tokens": 5}`), a Hugging Face model (used as
            draft model), or a `Drafter`. The Hugging Face spellings `assistant_model`, `num_assistant_tokens` and
            `prompt_lookup_num_tokens` work as well.
        verifier: name of the rule, or a `Verifier`; "auto" takes the one that fits the drafter.
        seed: same seed, same text, whatever the drafter; one for all rows or one per row. None draws one from torch's
            generator, so `torch.manual_seed` makes a run repeatable. It is recorded in the result.
        **generate_kwargs: anything `model.generate` takes, streamers and stop strings included.

    Returns:
        Token ids [batch * num_return_sequences, length], or with `return_dict_in_generate=True` a
        `SpeculativeOutput`, whose `speculation` carries events and metrics.

    Raises:
        ValueError: an option cannot be honoured exactly. Nothing is ignored.

    Example:
        >>> import specdec
        >>> target, draft_model, tokenizer = specdec.load_embedded()
        >>> inputs = tokenizer("Once upon a time", return_tensors="pt")
        >>> plain = target.generate(**inputs, max_new_tokens=12, do_sample=False)
        >>> ours = specdec.generate(target, **inputs, drafter=draft_model, max_new_tokens=12, do_sample=False)
        >>> bool((plain == ours).all())
        True
    """
    hf_model = model.model if isinstance(model, PagedModel) else model
    if "input_ids" in generate_kwargs:
        inputs = generate_kwargs.pop("input_ids")
    if generate_kwargs.get("custom_generate") is not None:
        raise ValueError("expected no custom_generate, got one; call model.generate with it, or specdec without it")
    if inputs is not None and inputs.shape[-1] == 0:
        raise ValueError("expected a prompt of at least one token, got an empty one; begin with the model's bos token")
    drafter = _with_aliases(drafter, generate_kwargs)
    streamer, tokenizer = generate_kwargs.get("streamer"), generate_kwargs.pop("tokenizer", None)
    stop_strings = generate_kwargs.pop("stop_strings", None)
    if stop_strings is None and generate_kwargs.get("generation_config") is None:
        stop_strings = hf_model.generation_config.stop_strings
    if stop_strings is not None:
        if tokenizer is None:
            raise ValueError("expected tokenizer= together with stop_strings, got none; pass the model's tokenizer")
        criteria = generate_kwargs.pop("stopping_criteria", None) or []
        generate_kwargs["stopping_criteria"] = StoppingCriteriaList(
            [*criteria, StopStringCriteria(tokenizer, stop_strings)]
        )
    loop = speculate(drafter, verifier, seed, streamer=streamer, target=model if isinstance(model, PagedModel) else None)
    return hf_model.generate(inputs, custom_generate=loop, **generate_kwargs)


def _with_aliases(drafter: Any, kwargs: dict[str, Any]) -> Any:
    """The drafter that Hugging Face's own options describe, if they are used; they are taken out of `kwargs`."""
    assistant = kwargs.pop("assistant_model", None)
    lookup = kwargs.pop("prompt_lookup_num_tokens", None)
    count = kwargs.pop("num_assistant_tokens", None)
    ngram_size = kwargs.pop("max_matching_ngram_size", None)
    if assistant is None and lookup is None:
        if count is not None or ngram_size is not None:
            raise ValueError(
                "expected num_assistant_tokens with assistant_model=, or max_matching_ngram_size with "
                "prompt_lookup_num_tokens=, got the option alone; pass both, or drafter={...}"
            )
        return drafter
    if drafter is not None or (assistant is not None and lookup is not None):
        raise ValueError("expected one drafter, got several; pass one of drafter, assistant_model, prompt_lookup_num_tokens")
    if assistant is not None:
        spec: dict[str, Any] = {"method": "draft_model", "model": assistant}
        return spec if count is None else {**spec, "num_speculative_tokens": count}
    spec = {"method": "ngram", "num_speculative_tokens": lookup}
    return spec if ngram_size is None else {**spec, "prompt_lookup_max": ngram_size, "prompt_lookup_min": 1}


class speculate:  # noqa: N801 - reads as a verb where it is used
    """A decoding loop for `model.generate(..., custom_generate=specdec.speculate("ngram"))`.

    transformers does not hand `streamer`, `tokenizer` and `assistant_model` to such a loop: give the streamer here, and
    use `specdec.generate` for stop strings.

    Example:
        >>> import specdec
        >>> target, _, tokenizer = specdec.load_embedded()
        >>> loop = specdec.speculate("ngram")
        >>> _ = target.generate(**tokenizer("def f(x):", return_tensors="pt"), max_new_tokens=8, custom_generate=loop)
        >>> loop.last.metrics.num_tokens
        8
    """

    last: Speculation  # of the most recent call

    def __init__(
        self,
        drafter: Any = None,
        verifier: str | Any = "auto",
        seed: int | Sequence[int] | None = None,
        *,
        streamer: Any = None,
        target: PagedModel | None = None,
        on_round: Callable[[Round], None] | None = None,
        **engine_options: Any,
    ) -> None:
        self.drafter, self.verifier, self.seed = drafter, verifier, seed
        self.streamer, self.target, self.on_round = streamer, target, on_round
        self.engine_options = engine_options

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Any:
        """The decoding loop that transformers calls."""
        _refuse(generation_config, model_kwargs, synced_gpus)
        streamer = streamer or self.streamer
        if streamer is not None and len(input_ids) > 1:
            raise ValueError(f"expected a batch of 1 with a streamer, got {len(input_ids)}; stream requests one by one")
        target = self.target or paged(model)
        prompts = _Prompts(input_ids, model_kwargs.get("attention_mask"), model_kwargs.get("position_ids"))
        prompts.check(target, generation_config.max_length)
        method = method_of(self.drafter, self.verifier, target, generation_config.do_sample)
        seeds = _seeds(self.seed, len(input_ids))
        wants = generation_config.return_dict_in_generate
        engine = Engine(
            target,
            method.drafter,
            method.verifier,
            PagedKVCache(),
            keep_scores=bool(wants and generation_config.output_scores),
            keep_logits=bool(wants and generation_config.output_logits),
            keep_tables=bool(wants and generation_config.use_cache),
            **self.engine_options,
        )
        sampler = Sampler(logits_processor, generation_config.do_sample, num_rows=len(input_ids))
        stopping = Stopping(stopping_criteria, generation_config.max_length, device=input_ids.device)
        requests = list(prompts.requests(sampler, stopping, seeds))
        with import_cache(engine, requests, model_kwargs.get("past_key_values")) as requests:
            rounds = tuple(self._run(engine, requests, streamer))
        self.last = Speculation(method.name, method.verifier.name, method.level, seeds, rounds)
        try:
            pad = generation_config._pad_token_tensor
            return _result(input_ids, self.last, engine, 0 if pad is None else int(pad), prompts.padding, wants)
        finally:
            engine.close()

    def _run(self, engine: Engine, requests: Sequence[Request], streamer: Any) -> Iterator[Round]:
        for event in engine.rounds(requests):
            if self.on_round is not None:
                self.on_round(event)
            if streamer is not None:
                for token in event.steps[0].tokens:
                    streamer.put(torch.tensor([token]))
            yield event
        if streamer is not None:
            streamer.end()


def _refuse(config: Any, model_kwargs: Mapping[str, Any], synced_gpus: bool) -> None:
    """Raises for what this loop cannot honour."""
    for name, off in OTHER_METHODS.items():
        value = getattr(config, name, off)
        if value not in (off, None, 0, False):
            raise ValueError(f"expected greedy decoding or sampling, got {name}={value}; call model.generate for it")
    for name in UNAVAILABLE_OUTPUTS:
        if getattr(config, name, False):
            raise ValueError(f"expected {name}=False, got True; paged attention does not return it, run model.forward")
    if config.cache_implementation == "quantized":
        raise ValueError("expected an exact cache, got cache_implementation='quantized'; leave it unset")
    if config.token_healing or synced_gpus:
        name = "token_healing" if config.token_healing else "synced_gpus"
        raise ValueError(f"expected {name}=False, got True; call model.generate for it")
    for name, value in model_kwargs.items():
        if value is not None and name not in HANDLED_KWARGS:
            raise ValueError(f"expected token ids only, got the model input {name!r}; call model.generate for it")


def _seeds(seed: int | Sequence[int] | None, num_rows: int) -> tuple[int, ...]:
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    if isinstance(seed, int):
        return tuple(request_seed(seed, row) for row in range(num_rows))
    if len(seed) != num_rows:
        raise ValueError(f"expected one seed, or one per row of the batch of {num_rows}, got {len(seed)}")
    return tuple(seed)


class _Prompts:
    """The rows of `input_ids` [batch, length], with their left padding apart."""

    def __init__(self, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> None:
        self.rows: list[list[int]] = input_ids.tolist()
        self.padding = [0] * len(self.rows)
        if attention_mask is not None:
            self.padding = (attention_mask == 0).sum(1).tolist()
            for row, (mask, count) in enumerate(zip(attention_mask.tolist(), self.padding, strict=True)):
                if any(mask[:count]) or count == len(mask):
                    raise ValueError(
                        f"expected left padding and at least one token per row, got attention_mask[{row}] with "
                        f"{count} zeros elsewhere or only zeros; tokenize with padding_side='left'"
                    )
        if position_ids is not None and position_ids.dim() == 2:
            for row, (positions, count) in enumerate(zip(position_ids.tolist(), self.padding, strict=True)):
                if positions[count:] != list(range(len(positions) - count)):
                    raise ValueError(
                        f"expected position ids that count from 0 at the first token, got others in row {row}; "
                        "leave position_ids unset"
                    )

    def check(self, target: PagedModel, max_length: int) -> None:
        length = len(self.rows[0])
        longest = length - min(self.padding)
        total = longest + max_length - length
        if length == 0:
            raise ValueError("expected a prompt of at least one token, got an empty one; begin with the bos token")
        if total > target.max_positions:
            raise ValueError(
                f"expected prompt + new tokens within the context of {target.max_positions}, got {longest} + "
                f"{max_length - length}; shorten the prompt or lower max_new_tokens"
            )
        largest = max(max(row) for row in self.rows)
        if largest >= target.vocab_size:
            raise ValueError(
                f"expected token ids below the target's vocabulary of {target.vocab_size}, got {largest}; "
                "use the model's own tokenizer"
            )

    def requests(self, sampler: Sampler, stopping: Stopping, seeds: Sequence[int]) -> Iterator[Request]:
        for row, (tokens, count) in enumerate(zip(self.rows, self.padding, strict=True)):
            noise = PhiloxNoise(seeds[row])
            yield Request(tokens[count:], sampler, stopping, noise, row=row, padding=tokens[:count])


def _result(
    input_ids: Tensor, speculation: Speculation, engine: Engine, pad: int, padding: Sequence[int], as_dict: bool
) -> Any:
    steps: list[list[Step]] = [[] for _ in range(len(input_ids))]
    for event in speculation.rounds:
        for step in event.steps:
            steps[step.request_id].append(step)
    texts = [[token for step in row for token in step.tokens] for row in steps]
    width = max(map(len, texts))
    emitted = torch.tensor([[*text, *[pad] * (width - len(text))] for text in texts], device=input_ids.device)
    sequences = torch.cat([input_ids, emitted], dim=1)
    if not as_dict:
        return sequences
    return SpeculativeOutput(
        sequences=sequences,
        scores=_columns([[step.scores for step in row] for row in steps], width),
        logits=_columns([[step.logits for step in row] for row in steps], width),
        past_key_values=export_cache(engine, padding, sequences.shape[1] - 1) if engine.tables else None,
        speculation=speculation,
    )


def _columns(rows: list[list[Tensor | None]], width: int) -> tuple[Tensor, ...] | None:  # width x [batch, vocab]
    """Per-step rows as transformers returns them: one [batch, vocab] per new token; zero after a row has ended."""
    if rows[0][0] is None:
        return None
    stacked = [torch.cat([part for part in row if part is not None]) for row in rows]
    padded = [torch.nn.functional.pad(part, (0, 0, 0, width - len(part))) for part in stacked]
    return tuple(torch.stack(padded, dim=1).unbind(0))
