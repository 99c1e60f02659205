"""What a transformers model is made of: modules, configs that name its attention, layers, sizes; and their switch."""

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from .features import LAST

SWITCH = "_attn_implementation_internal"  # the attribute of a config that names the attention function
# What configs call the longest context.
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx", "max_sequence_length")


def max_positions_of(model: PreTrainedModel) -> int:
    """The longest context its config knows of."""
    config = model.config.get_text_config(decoder=True)
    return next((size for size in (getattr(config, name, None) for name in CONTEXT_NAMES) if size), sys.maxsize)


def logits_width_of(model: PreTrainedModel) -> int | None:
    """How many logits a row has, if its head says so."""
    width: int | None = getattr(model.get_output_embeddings(), "out_features", None)
    return width


def modules_of(model: nn.Module) -> list[nn.Module]:
    """`model.modules()`, in another order and a fifth of the time: it is asked for at every call of `generate`."""
    found: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in found:
            found[module] = None
            waiting.extend(module._modules.values())
    return list(found)


def attention_configs(modules: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """The attributes of every config that names an attention implementation; read as such, they cost nothing."""
    configs = {id(config): config for module in modules if (config := module.__dict__.get("config")) is not None}
    return [attributes for config in configs.values() if SWITCH in (attributes := getattr(config, "__dict__", {}))]


def options_of(model: PreTrainedModel) -> tuple[bool, bool]:
    parameters = inspect.signature(type(model).forward).parameters
    return "logits_to_keep" in parameters, any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def layer_of(model: PreTrainedModel, layer: int) -> nn.Module:
    """The module whose output is this feature layer: a decoder layer, or for `LAST` all of them and the last norm.

    Raises:
        ValueError: there is no such layer.
    """
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    owned = ((owner, child) for owner in model.modules() for child in owner.children())
    lists = ((owner, child) for owner, child in owned if isinstance(child, nn.ModuleList) and len(child) == count)
    owner, layers = next(lists, (model, None))
    if layers is None:
        raise ValueError(f"expected a list of {count} layers in the model, got none; use a drafter without features")
    if layer == LAST:
        return owner
    if not 0 <= layer < count:
        raise ValueError(
            f"expected feature_layers from 0 to {count - 1}, got {layer}; 0 is the first layer, "
            f"{LAST} what the language model head reads"
        )
    return layers[layer]


def hooked(model: PreTrainedModel, layers: Iterable[int], keep: Callable[[int, Tensor], None]) -> list[RemovableHandle]:
    """Hooks that hand over the output [1, rows, hidden] of each of these feature layers, whenever the model runs."""

    def hook(layer: int, _module: nn.Module, _inputs: Any, output: Any) -> None:
        rows: Tensor = output if isinstance(output, Tensor) else output[0]
        keep(layer, rows[0] if rows.dim() > 3 else rows)  # of several streams (Gemma 3n) the first is the active one

    modules = {layer: layer_of(model, layer) for layer in layers}  # all are there before one is hooked
    return [module.register_forward_hook(partial(hook, layer)) for layer, module in modules.items()]


def logits_of(output: Any) -> Tensor:  # [b, t, vocab]
    logits: Tensor = output[0] if isinstance(output, tuple) else output.logits
    return logits


def only_gpu_of(model: nn.Module) -> torch.device:
    """The GPU that all weights are on.

    Raises:
        ValueError: they are elsewhere, or on several.
    """
    devices = {weight.device for weight in model.parameters()}
    if len(devices) > 1 or {device.type for device in devices} != {"cuda"}:
        places = ", ".join(sorted(str(device) for device in devices))
        raise ValueError(
            f"expected all weights on one GPU for graphs=True, got {places}; pass graphs=False, or --no-graphs"
        )
    return devices.pop()


@contextmanager
def inferring(modules: Sequence[nn.Module], configs: Sequence[dict[str, Any]], attention: str | None) -> Iterator[None]:
    """While inside, nothing is recorded for gradients, the modules infer, and the configs name this attention."""
    training = [module for module in modules if module.training]
    configs = configs if attention else []
    found = [config[SWITCH] for config in configs]
    try:
        for module in training:
            module.training = False
        for config in configs:
            config[SWITCH] = attention
        with nullcontext() if torch.is_inference_mode_enabled() else torch.inference_mode():
            yield
    finally:
        for config, name in zip(configs, found, strict=True):
            config[SWITCH] = name
        for module in training:
            module.training = True
