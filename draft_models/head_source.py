"""What a published head says of itself: sizes, the layers of the target it reads, the tokens it knows."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig, Qwen3Config

from specdec.checkpoints import first_line
from specdec.target import PagedModel
from specdec.vocabulary import check_vocabulary

from .head_layouts import feature_layers, other_layers, stated_layers

VOCABULARY = ("d2t", "t2d")
FAMILIES = ("llama", "mistral", "mixtral", "qwen2", "qwen3")  # whose layers are Llama's or Qwen3's
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
OPTIONAL = (
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "mlp_bias"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
)
WINDOWS = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers")
# What changes what layers compute, and what leaves it as it is: no head here knows anything else.
FACTORS = (
    "partial_rotary_factor",
    "logit_scale",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
)
NEUTRAL: dict[str, tuple[Any, ...]] = dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), ())
NEUTRAL |= dict.fromkeys(FACTORS, (1.0,))


# What comes of fields that are not of the type they should be.
TYPE_ERRORS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError, StrictDataclassError)


def config_errors(path: str) -> AbstractContextManager[None]:
    """While inside, what a config is not fit for is said in one line."""
    return errors_in_one_line(f"expected a config.json that fits a head in {path!r}", "correct the field")


@contextmanager
def errors_in_one_line(expected: str, remedy: str) -> Iterator[None]:
    """While inside, what goes wrong because of what was read is said in one line; what says so itself, passes."""
    try:
        yield
    except TYPE_ERRORS as error:
        if isinstance(error, ValueError) and str(error).startswith("expected "):
            raise
        raise ValueError(f"{expected}, got {first_line(error)!r}; {remedy}") from error


@dataclass(frozen=True, slots=True)
class Source:
    """What a head is read from."""

    path: str
    layout: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]  # by our names
    target: PagedModel

    @property
    def sizes(self) -> Mapping[str, Any]:
        """What the config says of the layers."""
        sizes: Mapping[str, Any] = self.config.get("transformer_layer_config") or self.config
        return sizes

    @property
    def num_target_layers(self) -> int:
        count: int = self.target.model.config.get_text_config(decoder=True).num_hidden_layers
        return count

    @property
    def target_width(self) -> int:
        width: int = self.target.model.config.get_text_config(decoder=True).hidden_size
        return width

    def field(self, name: str, fields: Mapping[str, Any]) -> Any:
        """A field that the config must have.

        Raises:
            ValueError: it does not.
        """
        if fields.get(name) is None:
            raise ValueError(f"expected {name} in the config of {self.path!r}, got none; add that of the training")
        return fields[name]

    def count(self, name: str, fields: Mapping[str, Any], least: int) -> int:
        """A number that the config must have.

        Raises:
            ValueError: it does not, or not such a one.
        """
        number = self.field(name, fields)
        if not isinstance(number, int) or number < least:
            raise ValueError(
                f"expected {name} of at least {least} in the config of {self.path!r}, got {number!r}; correct it"
            )
        return number


def require_neutral(source: Source, fields: Mapping[str, Any], neutral: Mapping[str, tuple[Any, ...]]) -> None:
    """Raises for a field that changes what is computed in a way that is not known here."""
    for name, values in neutral.items():
        if fields.get(name) is not None and fields[name] not in values:
            raise ValueError(
                f"expected layers of Llama's or Qwen3's kind in {source.path!r}, got {name}={fields[name]!r}; "
                "take another head"
            )


def layer_config(source: Source, num_layers: int | None = None) -> PretrainedConfig:
    """The config of the head's layers, of which only what is known to be honoured is taken."""
    sizes = source.sizes
    family = sizes.get("model_type", "llama")
    require_neutral(source, {"model_type": family, **sizes}, {"model_type": FAMILIES, **NEUTRAL})
    values = {name: source.field(name, sizes) for name in REQUIRED}
    width = source.config.get("target_hidden_size") or values["hidden_size"]
    if width != source.target_width:
        raise ValueError(
            f"expected a head for hidden states of {source.target_width}, got one for {width} in {source.path!r}; "
            "take the head that was trained for this target"
        )
    values |= {name: sizes[name] for name in OPTIONAL if sizes.get(name) is not None}
    values.setdefault("num_key_value_heads", values["num_attention_heads"])
    is_sliding = sizes.get("use_sliding_window") or "sliding_attention" in (sizes.get("layer_types") or ())
    if is_sliding:
        values |= {name: sizes[name] for name in WINDOWS if sizes.get(name) is not None} | {"use_sliding_window": True}
        source.field("sliding_window", sizes)
    if num_layers is not None:
        values["num_hidden_layers"] = num_layers
    has_biases = any(name.endswith("self_attn.q_proj.bias") for name in source.tensors)
    values["attention_bias"] = has_biases or bool(sizes.get("attention_bias"))
    check_vocabulary(source.target.vocab_size, values["vocab_size"])
    is_qwen = any(name.endswith("self_attn.q_norm.weight") for name in source.tensors)
    config: PretrainedConfig = (Qwen3Config if is_qwen else LlamaConfig)(**values)
    if is_sliding and not getattr(config, "layer_types", None):  # Qwen3's makes them of the other fields
        source.field("layer_types", sizes)
    rotation = getattr(config, "rope_parameters", None) or {}
    if "rope_type" not in rotation:
        raise ValueError(f"expected one rotation for all layers in {source.path!r}, got {rotation}; take another head")
    return config


def layers_read(source: Source) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """As the config states them, and as it may mean them."""
    count = source.num_target_layers
    numbers, counting = stated_layers(source.layout, source.config, count)
    return feature_layers(numbers, counting, count), other_layers(numbers, counting, count)


def draft_tokens(source: Source) -> list[int] | None:
    """The target's tokens that the head knows; None for all.

    Raises:
        ValueError: d2t and t2d do not say the same, or not what they should.
    """
    offsets, mask = (source.tensors.get(name) for name in VOCABULARY)
    vocab_size = source.sizes["vocab_size"]
    count = source.config.get("draft_vocab_size") or (vocab_size if offsets is None else len(offsets))
    if offsets is None and count == vocab_size:
        return None
    shapes = [None if part is None else list(part.shape) for part in (offsets, mask)]
    if offsets is None or shapes[0] != [count] or shapes[1] not in (None, [vocab_size]):
        raise ValueError(
            f"expected d2t [{count}] and t2d [{vocab_size}] in {source.path!r}, got {shapes[0]} and {shapes[1]}; "
            "get the checkpoint anew"
        )
    if count == vocab_size and not offsets.any():
        return None  # t2d is all ones or, as nobody reads it then, all zeros
    tokens = offsets.long() + torch.arange(count, device="cpu")
    known = tokens if mask is None else mask.nonzero()[:, 0]
    if mask is not None and torch.equal(known, offsets.long()):
        raise ValueError(
            f"expected offsets in d2t of {source.path!r}, got the token ids themselves; subtract arange({count})"
        )
    is_order = bool((tokens.diff() > 0).all()) and 0 <= int(tokens[0]) and int(tokens[-1]) < vocab_size
    if not is_order or not torch.equal(known, tokens):
        raise ValueError(
            f"expected d2t and t2d of {source.path!r} to name the same ascending tokens below {vocab_size}, got "
            "others; get the checkpoint anew"
        )
    found: list[int] = tokens.tolist()
    return found
