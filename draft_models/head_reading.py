"""Published heads, read: config and tensors in, a network for the target out, or a refusal in one line."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PretrainedConfig

from specdec.target import PagedModel
from specdec.tensor_files import read_config, read_tensors, require_finite
from specdec.vocabulary import check_vocabulary

from .block_network import BlockNetwork, BlockShape
from .draft_options import tree_choices
from .eagle import EagleNetwork
from .eagle3 import Eagle3Network, Norms
from .head_filling import fill, own_tensors
from .head_layouts import MASK_HIDDEN, METHODS, layout_of, layout_of_tensors, our_name
from .head_network import HeadNetwork
from .head_source import Source, config_errors, draft_tokens, layer_config, layers_read, require_neutral
from .medusa import MedusaNetwork
from .mtp_reading import read_mtp
from .peagle import PEagleNetwork

NORMS = [field.name for field in fields(Norms)]
DSPARK = {"markov_rank": 256, "enable_confidence_head": True, "confidence_head_with_markov": True}  # unless stated
MASK_TOKENS = ("mask_token_id", "ptd_token_id", "pard_token")  # of P-EAGLE: in speculators, and as vLLM knows it
# Of fields of block heads what leaves them as they are known here.
NEUTRAL_BLOCKS = {"use_swa": (False,), "input_embedding_scale": (1.0,), "use_aux_hidden_state": (True,)}
NOT_LOADED = {  # layout -> what it is, and what to do
    "domino": ("a Domino head, which corrects with a GRU", "take a DFlash or DSpark head of this target"),
    "dflash2": ("a DFlash-2 head", "take a DFlash or DSpark head of this target"),
    "mtp": ("a multi-token-prediction module of its own", "take the checkpoint of the target, which has one inside"),
}


class Head(NamedTuple):
    """A published head, for its target, in the target's precision and on its device."""

    network: HeadNetwork
    layout: str
    method: str  # the drafter that runs it
    other_layers: tuple[int, ...] | None = None  # what its feature layers are if its config counts the other way
    num_tokens: int | None = None  # to draft, if its config says so


def read_head(path: str, target: PagedModel, method: str | None = None) -> Head:
    """The head of a folder or hub id. Its feature layers are those that its config states.

    Args:
        method: "mtp" if the module is meant that lies among the tensors of a target; else the head says what it is.

    Raises:
        ValueError: it is no head, none that can be run, damaged, or made for another target.
    """
    config = read_config(path)
    with config_errors(path):
        layout = "mtp" if method == "mtp" else layout_of(config)
    if layout is not None:
        _require_known(layout, path)
    published = {} if layout == "mtp" else read_tensors(path)  # of a target, only some are read
    tensors = {ours: part for name, part in published.items() if (ours := our_name(name)) is not None}
    if layout is None or (layout == "eagle3" and MASK_HIDDEN in tensors):  # a P-EAGLE head with vLLM's name for it
        layout = layout_of_tensors(tensors)
    if layout is None:
        raise ValueError(
            f"expected a head in {path!r}, got {config.get('architectures') or 'no architecture'} without its marks; "
            'a whole language model is drafted with as {"method": "draft_model", "model": PATH}'
        )
    _require_known(layout, path)
    if layout == "mtp":
        return Head(read_mtp(path, config, target), layout, METHODS[layout])
    require_finite(tensors, path)
    method = METHODS[layout]
    with config_errors(path), torch.device("meta"):  # an outline: the weights come from the file
        source = Source(path, layout, config, _with_output_biases(tensors, config), target)
        network, other = READERS[method](source)
        own, num_tokens = own_tensors(network, source), _num_tokens(config)
    fill(network, own, path)
    if method != "medusa":  # rotations go on: a head may be used as far as its target
        reach = network.config.max_position_embeddings, target.max_positions
        network.config.max_position_embeddings = max(reach)
    network.to(device=target.device, dtype=target.dtype).eval()
    return Head(network, layout, method, other, num_tokens)


def _eagle(source: Source) -> tuple[HeadNetwork, None]:
    return EagleNetwork(layer_config(source), has_bias="fc.bias" in source.tensors), None


def _eagle3(source: Source) -> tuple[HeadNetwork, tuple[int, ...] | None]:
    sizes, norms, width = _fusing(source)
    layers, other = layers_read(source)
    return Eagle3Network(sizes, layers, draft_tokens(source), norms, target_size=width), other


def _peagle(source: Source) -> tuple[HeadNetwork, tuple[int, ...] | None]:
    sizes, norms, width = _fusing(source)
    layers, other = layers_read(source)
    name = next((name for name in MASK_TOKENS if source.config.get(name) is not None), MASK_TOKENS[0])
    mask = source.count(name, source.config, least=0)
    return PEagleNetwork(sizes, layers, mask, draft_tokens(source), norms, width), other


def _fusing(source: Source) -> tuple[PretrainedConfig, Norms, int | None]:
    """What an EAGLE-3 head says of itself: its layers, where it norms, the target's hidden size if it is another."""
    config = source.config
    if source.layout.startswith("speculators"):
        source.field("norm_before_residual", config)  # where it is missing, vLLM takes it for True, speculators do not
        sizes = layer_config(source)
    else:  # one layer, whatever the config says (EAGLE3-Vicuna1.3-13B: 40)
        numbers = [int(found[1]) for name in source.tensors if (found := re.match(r"layers\.(\d+)\.", name))]
        sizes = layer_config(source, num_layers=1 + max(numbers, default=0))
    return sizes, Norms(**{name: bool(config.get(name)) for name in NORMS}), config.get("target_hidden_size")


def _medusa(source: Source) -> tuple[HeadNetwork, None]:
    """By its tensors alone: configs of published heads tell of fewer."""
    places = [re.match(r"medusa_head\.(\d+)\.(\d+)\.linear\.weight", name) for name in source.tensors]
    found = [(int(place[1]), int(place[2])) for place in places if place]
    num_heads, num_layers = (1 + max(numbers) for numbers in zip(*found, strict=True)) if found else (1, 1)
    outputs = source.tensors.get(f"medusa_head.0.{num_layers}.weight")
    vocab_size = source.target.vocab_size if outputs is None else outputs.shape[0]
    check_vocabulary(source.target.vocab_size, vocab_size)
    config = PretrainedConfig(hidden_size=source.target_width, vocab_size=vocab_size)  # type: ignore[call-arg]
    network = MedusaNetwork(config, num_heads, num_layers, has_outputs=outputs is not None)
    network.choices = tree_choices(source.config.get("medusa_choices")) or None
    return network, None


def _block(source: Source) -> tuple[HeadNetwork, tuple[int, ...] | None]:
    is_dspark = source.layout.endswith("dspark")
    fields = {**(DSPARK if is_dspark else {}), **source.config, **(source.config.get("dflash_config") or {})}
    sizes = layer_config(source)
    sliding = [i for i, kind in enumerate(getattr(sizes, "layer_types", None) or ()) if kind == "sliding_attention"]
    require_neutral(source, fields, NEUTRAL_BLOCKS)
    has_anchor = bool(fields.get("sample_from_anchor", is_dspark))
    shape = BlockShape(
        block_size=source.count("block_size", fields, least=2 - has_anchor),
        mask_token_id=source.count("mask_token_id", fields, least=0),
        sample_from_anchor=has_anchor,
        causal_layers=_causal_layers(fields, sliding, sizes.num_hidden_layers),
    )
    kind, rank = fields.get("markov_head_type") or "vanilla", fields.get("markov_rank") or 0
    if rank and kind not in ("vanilla", "gated"):
        raise ValueError(f"expected a Markov head of vanilla or gated in {source.path!r}, got {kind!r}; take another")
    with_markov = bool(rank) and bool(fields.get("confidence_head_with_markov"))
    confidence: Any = bool(fields.get("enable_confidence_head")) and ("markov" if with_markov else True)
    layers, other = layers_read(source)
    markov: Any = (rank, kind) if rank else None
    return BlockNetwork(sizes, layers, shape, draft_tokens(source), markov, confidence), other


def _causal_layers(fields: Mapping[str, Any], sliding: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Those in which a row sees only what is in front of it: as a config says for all, or those with windows."""
    stated = next((fields[name] for name in ("is_causal", "causal") if fields.get(name) is not None), None)
    if stated is not None:
        return tuple(range(num_layers)) if stated else ()
    return () if fields.get("sliding_window_non_causal") else tuple(sliding)


READERS: dict[str, Callable[[Source], tuple[HeadNetwork, tuple[int, ...] | None]]] = {
    "eagle": _eagle,
    "eagle3": _eagle3,
    "peagle": _peagle,
    "medusa": _medusa,
    "dflash": _block,
}


def _require_known(layout: str, path: str) -> None:
    if layout in METHODS:
        return
    kind = layout.removeprefix("speculators ")
    what, remedy = NOT_LOADED.get(kind, (f"one of layout {layout!r}", f"one of {', '.join(METHODS)} can be loaded"))
    raise ValueError(f"expected a head that can be run in {path!r}, got {what}; {remedy}")


def _with_output_biases(tensors: dict[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """With output biases of zero in layers like Qwen2's, where only queries, keys and values have biases."""
    if (config.get("transformer_layer_config") or config).get("attention_bias"):
        return tensors
    added = {}
    for name in tensors:
        output = name.replace(".q_proj.bias", ".o_proj.bias")
        weight = tensors.get(output.removesuffix("bias") + "weight")
        if output != name and output not in tensors and weight is not None:
            added[output] = weight.new_zeros(weight.shape[0])
    return {**tensors, **added}


def _num_tokens(config: Mapping[str, Any]) -> int | None:
    """How many tokens a config of speculators proposes to draft."""
    about = config.get("speculators_config") or {}
    chosen = [way for way in about.get("proposal_methods") or () if way.get("speculative_tokens")]
    default = [way for way in chosen if way.get("proposal_type") == about.get("default_proposal_method")]
    return int((default or chosen)[0]["speculative_tokens"]) if chosen else None
