"""The MTP module of a checkpoint, read: its tensors only, named and fused as those of the target's layers are."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

from specdec.anatomy import layer_of
from specdec.checkpoints import listed
from specdec.mtp_layouts import MtpLayout, mtp_names
from specdec.target import PagedModel
from specdec.tensor_files import read_chosen, require_finite

from .head_filling import fill, own_tensors
from .head_source import Source, errors_in_one_line
from .mtp import MtpNetwork, layer_index

LAYER = "layer."  # what our names of the layer's tensors begin with


def read_mtp(path: str, config: Mapping[str, Any], target: PagedModel) -> MtpNetwork:
    """The first MTP module of a folder or hub id, which is that of the target or of one like it.

    Args:
        config: that of the checkpoint.

    Raises:
        ValueError: there is no module, it is damaged or of another target, or no layer of the target can run it.
    """
    found: list[tuple[MtpLayout, dict[str, str]]] = []

    def choose(names: list[str]) -> list[str]:
        module = mtp_names(names)
        if module is None:
            raise ValueError(
                f"expected a multi-token-prediction module in {path!r}, got none of its tensors; take a checkpoint "
                "that was saved with it, or train a head: specdec train eagle3"
            )
        found.append(module)
        return list(module[1])

    published = read_chosen(path, choose)
    _require_precision(published, path)
    require_finite(published, path)
    ((layout, names),) = found
    tensors = {names[name]: part for name, part in published.items()}
    with _layer_errors(path), torch.device("meta"):  # an outline: the weights come from the file
        network = MtpNetwork(target.model, layout.is_state_first)
        tensors = _converted(tensors, target.model)
        own = own_tensors(network, Source(path, "mtp", config, tensors, target))
    fill(network, own, path)
    network.to(device=target.device, dtype=target.dtype)
    with _layer_errors(path):
        _finish(network, target.model)
    return network


def _require_precision(tensors: Mapping[str, Tensor], path: str) -> None:
    """Refuses weights of eight bits and less."""
    small = sorted(name for name, part in tensors.items() if part.element_size() < 2 and part.dtype != torch.bool)
    if small:
        raise ValueError(
            f"expected weights of 16 bits or more in {path!r}, got {tensors[small[0]].dtype} ({listed(small)}); "
            "take a checkpoint in bfloat16"
        )


def _converted(tensors: Mapping[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors as a layer of the model has them: with experts in one tensor, say, which are published one by one."""
    lender = layer_of(model, layer_index(model))
    place = next(name for name, module in model.named_modules() if module is lender)
    _, _, number = place.rpartition(".")
    mapping = get_model_conversion_mapping(model)
    renamings = [one for one in mapping if isinstance(one, WeightRenaming)]
    converters = [one for one in mapping if isinstance(one, WeightConverter)]
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    converted: dict[str, Tensor] = {}
    collected: dict[str, Any] = {}
    for name in sorted(tensors, key=dot_natural_key):
        if not name.startswith(LAYER):
            converted[name] = tensors[name]
            continue
        theirs = f"{place}.{name.removeprefix(LAYER)}"
        renamed, pattern = rename_source_key(theirs, renamings, converters)
        if pattern is None:
            converted[_in_layer(renamed, number)] = tensors[name]
            continue
        if renamed not in collected:
            collected[renamed] = copy.deepcopy(by_pattern[pattern])
        collected[renamed].add_tensor(renamed, theirs, pattern, tensors[name])
    for renamed, converter in collected.items():
        parts = converter.convert(renamed, model=model, config=model.config)
        for name, part in parts.items():
            converted[_in_layer(name, number)] = part[0] if isinstance(part, list) else part
    return converted


def _in_layer(name: str, number: str) -> str:
    """What we call a tensor of the layer of this number."""
    return LAYER + name.partition(f".{number}.")[2]


def _finish(network: MtpNetwork, model: PreTrainedModel) -> None:
    """Gives the layer's tensors the precision of those of the target's layer, where that is higher, and tries it."""
    theirs = layer_of(model, layer_index(model)).state_dict()
    with torch.no_grad():
        for name, part in network.layer.state_dict(keep_vars=True).items():
            lent = theirs.get(name, part)
            if lent.dtype.is_floating_point and lent.element_size() > part.element_size():
                part.data = part.data.to(lent.dtype)
    strange = [name for name, part in network.named_buffers() if part.is_meta]
    if strange:
        raise ValueError(f"{listed(strange)} that are in no checkpoint")
    calls = []

    def own_value(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        calls.append(layer)
        return values.repeat_interleave(queries.shape[1] // values.shape[1], 1)

    rows = torch.zeros(2, network.config.hidden_size, device=network.device, dtype=network.dtype)
    with torch.inference_mode():
        network(rows, rows, torch.arange(2, device=network.device), own_value)
    if len(calls) != 1:
        raise ValueError(f"{len(calls)} calls of its attention")


def _layer_errors(path: str) -> AbstractContextManager[None]:
    """While inside, what the module has that the target's layers have not is said in one line."""
    expected = f"expected an MTP module in {path!r} that is like a layer of the target"
    return errors_in_one_line(expected, "train a head for it: specdec train eagle3")
