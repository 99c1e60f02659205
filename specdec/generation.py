"""The drop-in: `generate` beside `model.generate`, and `speculate` for its `custom_generate`."""

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .cache import PagedKVCache
from .engine import Engine, EngineOptions
from .events import Round, Step
from .exchange import export_cache, import_cache
from .inputs import Prompts
from .methods import method_of, paged
from .metrics import Metrics, summarize
from .noise import request_seed
from .options import Options, refuse, require_available, require_no_lookup, with_aliases, with_stop_strings
from .request import Request
from .sampling import Sampler
from .stopping import Stopping
from .target import PagedModel
from .types import Exactness


@dataclass(frozen=True, slots=True)
class Speculation:
    """How a text came about: the effective configuration, the seeds, and every round."""

    drafter: str
    verifier: str
    level: Exactness
    seeds: tuple[int, ...]  # one per row; the same seed gives the same text
    rounds: tuple[Round, ...]
    kv_bytes: Mapping[str, int] = field(default_factory=dict)  # pool -> bytes of the most pages in use at once

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
            draft model), or a `Drafter`. The Hugging Face spellings work as well: `assistant_model` with
            `num_assistant_tokens` and `assistant_confidence_threshold`, and `prompt_lookup_num_tokens`.
        verifier: name of the rule, or a `Verifier`; "auto" takes the one that fits the drafter.
        seed: same seed, same text, whatever the drafter; one for all rows or one per row. None draws one from torch's
            generator when sampling, so `torch.manual_seed` makes a run repeatable. It is recorded in the result.
        **generate_kwargs: anything `model.generate` takes, streamers and stop strings included.

    Two differences are meant. A row that has ended is filled with the padding token, always; without an EOS token
    transformers lets it run on until every row has ended. And `past_key_values` is copied, not extended: the extended
    cache is in the output, so it takes `return_dict_in_generate=True`.

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
    if generate_kwargs.get("input_ids") is not None:
        if inputs is not None:
            raise ValueError("expected the prompt once, got inputs and input_ids; pass one of them")
        inputs = generate_kwargs.pop("input_ids")
    if inputs is not None and inputs.shape[-1] == 0:
        raise ValueError("expected a prompt of at least one token, got an empty one; begin with the model's bos token")
    options = Options(hf_model, generate_kwargs)
    require_available(options)
    drafter = with_aliases(drafter, options)
    with_stop_strings(options)
    loop = speculate(
        drafter,
        verifier,
        seed,
        streamer=options.get("streamer"),
        target=model if isinstance(model, PagedModel) else None,
    )
    return cast(Any, hf_model).generate(inputs, custom_generate=loop, **options.kwargs)


class speculate:  # noqa: N801 - reads as a verb where it is used
    """A decoding loop for `model.generate(..., custom_generate=specdec.speculate("ngram"))`.

    transformers does not hand `streamer`, `tokenizer`, `assistant_model`, `assistant_tokenizer` and `synced_gpus` to
    such a loop: give streamer and drafter here, and use `specdec.generate` for stop strings.

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
    ) -> None:
        self.drafter, self.verifier, self.seed = drafter, verifier, seed
        self.streamer, self.target, self.on_round = streamer, target, on_round

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
        config = generation_config
        refuse(config, model_kwargs, synced_gpus)
        if self.drafter is None:
            require_no_lookup(config)
        streamer = streamer or self.streamer
        if streamer is not None and len(input_ids) > 1:
            raise ValueError(f"expected a batch of 1 with a streamer, got {len(input_ids)}; stream requests one by one")
        target = self.target or paged(model)
        prompts = Prompts(input_ids, model_kwargs.get("attention_mask"), model_kwargs.get("position_ids"))
        prompts.check(target, config.max_length)
        method = method_of(self.drafter, self.verifier, target, config.do_sample)
        seeds = _seeds(self.seed, len(input_ids), config.do_sample)
        sampler = Sampler(logits_processor, config.do_sample, num_rows=len(input_ids))
        stopping = Stopping(stopping_criteria, config.max_length, device=input_ids.device)
        options = _engine_options(config)
        cache = target.cache or PagedKVCache()
        cache.take_peak_bytes()  # counted from now on
        with Engine(target, method.drafter, method.verifier, cache, options) as engine:
            requests = prompts.requests(sampler, stopping, seeds)
            with import_cache(engine, list(requests), model_kwargs.get("past_key_values")) as filled:
                rounds = tuple(self._run(engine, filled, streamer))
            about = method.name, method.verifier.name, method.level
            self.last = Speculation(*about, seeds, rounds, cache.take_peak_bytes())
            sequences = _sequences(input_ids, rounds, config._pad_token_tensor)
            return _output(sequences, self.last, engine, prompts) if config.return_dict_in_generate else sequences

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


def _seeds(seed: Any, num_rows: int, do_sample: bool) -> tuple[int, ...]:
    if seed is None:  # a greedy text depends on none, and leaves torch's generator alone
        seed = int(torch.randint(2**62, ())) if do_sample else 0
    if isinstance(seed, SupportsIndex):
        return tuple(request_seed(operator.index(seed), row) for row in range(num_rows))
    if not isinstance(seed, Sequence) or len(seed) != num_rows:
        got = len(seed) if isinstance(seed, Sequence) else repr(seed)
        raise ValueError(f"expected one seed, or one per row of the batch of {num_rows}, got {got}; pass seed=0")
    return tuple(operator.index(one) for one in seed)


def _engine_options(config: Any) -> EngineOptions:
    wants = config.return_dict_in_generate
    return EngineOptions(
        keep_scores=bool(wants and config.output_scores),
        keep_logits=bool(wants and config.output_logits),
        keep_tables=bool(wants and config.use_cache),
    )


def _steps_by_row(rounds: Sequence[Round], num_rows: int) -> list[list[Step]]:
    steps: list[list[Step]] = [[] for _ in range(num_rows)]
    for event in rounds:
        for step in event.steps:
            steps[step.request_id].append(step)
    return steps


def _sequences(input_ids: Tensor, rounds: Sequence[Round], pad: Tensor | None) -> Tensor:
    """[batch, length]: the prompts and what follows them, filled up with the padding token."""
    texts = [[token for step in row for token in step.tokens] for row in _steps_by_row(rounds, len(input_ids))]
    width, filler = max(map(len, texts)), 0 if pad is None else int(pad)
    emitted = torch.tensor([[*text, *[filler] * (width - len(text))] for text in texts], device=input_ids.device)
    return torch.cat([input_ids, emitted], dim=1)


def _output(sequences: Tensor, speculation: Speculation, engine: Engine, prompts: Prompts) -> SpeculativeOutput:
    steps = _steps_by_row(speculation.rounds, len(sequences))
    width = max(sum(len(step.tokens) for step in row) for row in steps)
    return SpeculativeOutput(
        sequences=sequences,  # type: ignore[arg-type]  # declared as a legacy tensor type
        scores=_columns([[step.scores for step in row] for row in steps], width),  # type: ignore[arg-type]
        logits=_columns([[step.logits for step in row] for row in steps], width),  # type: ignore[arg-type]
        past_key_values=export_cache(engine, prompts.padding, sequences.shape[1] - 1) if engine.tables else None,
        speculation=speculation,
    )


def _columns(rows: list[list[Tensor | None]], width: int) -> tuple[Tensor, ...] | None:  # width x [batch, vocab]
    """Per-step rows as transformers returns them: one [batch, vocab] per new token; zero after a row has ended."""
    if rows[0][0] is None:
        return None
    stacked = [torch.cat([part for part in row if part is not None]) for row in rows]
    padded = [torch.nn.functional.pad(part, (0, 0, 0, width - len(part))) for part in stacked]
    return tuple(torch.stack(padded, dim=1).unbind(0))
