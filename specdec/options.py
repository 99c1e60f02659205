"""The options of a call to `generate`: where each is found, other spellings, and what this loop does not have."""

import copy
from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel, StoppingCriteriaList
from transformers.generation.stopping_criteria import StopStringCriteria

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
# Options of transformers' own assisted generation, and of several processes, without a counterpart here.
NO_COUNTERPART: dict[str, Any] = {
    "synced_gpus": None,
    "token_healing": None,
    "assistant_tokenizer": None,
    "num_assistant_tokens_schedule": "constant",
    "assistant_lookbehind": 10,
    "target_lookbehind": 10,
    "assistant_ensemble_weight": None,
    "speculation_type": None,
    "use_mtp": None,
}
UNAVAILABLE_OUTPUTS = ("output_attentions", "output_hidden_states")
# Options that mean something together with another one only.
COMPANIONS = {
    "num_assistant_tokens": "assistant_model",
    "assistant_confidence_threshold": "assistant_model",
    "max_matching_ngram_size": "prompt_lookup_num_tokens",
}


class Options:
    """The keywords of a call, and behind them its `generation_config` and the model's own.

    Example:
        >>> from types import SimpleNamespace
        >>> from transformers import GenerationConfig
        >>> model = SimpleNamespace(generation_config=GenerationConfig(stop_strings=["x"]))
        >>> options = Options(model, {"top_k": 3})
        >>> options.take("stop_strings"), options.kwargs  # the model's own is hidden, not changed
        (['x'], {'top_k': 3, 'stop_strings': None})
    """

    def __init__(self, model: PreTrainedModel, kwargs: Mapping[str, Any]) -> None:
        self.kwargs = dict(kwargs)
        self._own = model.generation_config

    def get(self, name: str) -> Any:
        """Its value where it weighs most; None if it is set nowhere."""
        if name in self.kwargs:
            return self.kwargs[name]
        given = getattr(self.kwargs.get("generation_config"), name, None)
        return getattr(self._own, name, None) if given is None else given

    def take(self, name: str) -> Any:
        """Its value; transformers does not see it any more."""
        value = self.get(name)
        self.kwargs.pop(name, None)
        config = self.kwargs.get("generation_config")
        if getattr(config, name, None) is not None:
            config = self.kwargs["generation_config"] = copy.copy(config)
            setattr(config, name, None)
        if getattr(self._own, name, None) is not None:
            self.kwargs[name] = None  # or the model's own would fill the gap
        return value


def require_available(options: Options) -> None:
    """Raises for what transformers would not pass on to this loop, and what the loop does not have."""
    if options.get("custom_generate") is not None:
        raise ValueError("expected no custom_generate, got one; call model.generate with it, or specdec without it")
    for name, off in NO_COUNTERPART.items():
        _require_off(name, options.get(name), off)


def with_aliases(drafter: Any, options: Options) -> Any:
    """The drafter that Hugging Face's own options describe, if they are used; they are taken out of the options."""
    names = ("assistant_model", "prompt_lookup_num_tokens", *COMPANIONS)
    given = {name for name in names if options.kwargs.get(name) is not None}
    assistant, lookup, count, threshold, ngram_size = [options.take(name) for name in names]
    if (drafter is not None) + len(given - COMPANIONS.keys()) > 1:
        raise ValueError(
            "expected one drafter, got several; pass one of drafter, assistant_model, prompt_lookup_num_tokens"
        )
    if assistant is not None:
        method = "assistant_model"
    else:
        method = "prompt_lookup_num_tokens" if drafter is None and lookup is not None else "drafter"
    for name in given & COMPANIONS.keys():
        if COMPANIONS[name] != method:
            raise ValueError(
                f"expected {name} together with {COMPANIONS[name]}, got it without; pass both, or drafter={{...}}"
            )
    if method == "drafter":
        return drafter
    if method == "assistant_model":
        spec = {"method": "draft_model", "model": assistant}
        spec |= {"num_speculative_tokens": count, "confidence_threshold": threshold or None}
    else:
        spec = {"method": "ngram", "num_speculative_tokens": lookup}
        spec |= {} if ngram_size is None else {"prompt_lookup_max": ngram_size, "prompt_lookup_min": 1}
    return {name: value for name, value in spec.items() if value is not None}


def with_stop_strings(options: Options) -> None:
    """Makes the stop strings a criterion: transformers does not pass the tokenizer on to a loop of ours."""
    tokenizer, stop_strings = options.take("tokenizer"), options.take("stop_strings")
    if stop_strings is None:
        return
    if tokenizer is None:
        raise ValueError("expected tokenizer= together with stop_strings, got none; pass the model's tokenizer")
    criteria = options.kwargs.get("stopping_criteria") or []
    options.kwargs["stopping_criteria"] = StoppingCriteriaList([*criteria, StopStringCriteria(tokenizer, stop_strings)])


def refuse(config: Any, model_kwargs: Mapping[str, Any], synced_gpus: bool) -> None:
    """Raises for what this loop cannot honour."""
    for name, off in {**OTHER_METHODS, **NO_COUNTERPART}.items():
        _require_off(name, getattr(config, name, off), off)
    _require_off("synced_gpus", synced_gpus, None)
    for name in UNAVAILABLE_OUTPUTS:
        if getattr(config, name, False):
            raise ValueError(f"expected {name}=False, got True; paged attention does not return it, run model.forward")
    if config.cache_implementation == "quantized":
        raise ValueError("expected an exact cache, got cache_implementation='quantized'; leave it unset")
    for name, value in model_kwargs.items():
        if value is not None and name not in HANDLED_KWARGS:
            raise ValueError(f"expected token ids only, got the model input {name!r}; call model.generate for it")
    past = model_kwargs.get("past_key_values")
    is_given = past is not None and (getattr(past, "_is_user_defined", False) or past.get_seq_length() > 0)
    if is_given and not config.return_dict_in_generate:
        raise ValueError(
            "expected return_dict_in_generate=True with past_key_values, got False; the given cache is not extended, "
            "the extended one is in the output"
        )


def require_no_lookup(config: Any) -> None:
    """Raises for a drafter of transformers that a loop would leave out: it has been given its own, or none."""
    count = config.prompt_lookup_num_tokens
    if count is not None:
        raise ValueError(
            f"expected the drafter as speculate(...), got prompt_lookup_num_tokens={count}; "
            f"pass speculate({{'method': 'ngram', 'num_speculative_tokens': {count}}}), or call specdec.generate"
        )


def _require_off(name: str, value: Any, off: Any) -> None:
    if value not in (off, None, 0, False):
        shown = repr(value) if isinstance(value, str | int | float) else type(value).__name__
        raise ValueError(f"expected {name}={off!r}, got {shown}; call model.generate for it")
