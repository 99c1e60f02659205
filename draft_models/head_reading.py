"""Published heads, read: config and tensors in, a network for the target out, or a refusal in one line."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from specdec.checkpoints import listed
from specdec.target import PagedModel
from specdec.tensor_files import read_config, read_tensors, require_finite
from specdec.vocabulary import check_vocabulary

from .block_network import BlockNetwork, BlockShape
from .eagle import EagleNetwork
from .eagle3 import Eagle3Network, Norms
from .head_layouts import BORROWED, METHODS, layout_of, layout_of_tensors, our_name
from .head_network import HeadNetwork
from .head_source import VOCABULARY, Source, config_errors, draft_tokens, layer_config, layers_read, require_neutral
from .medusa import MedusaNetwork

NORMS = [field.name for field in fields(Norms)]
DSPARK = {"markov_rank": 256, "enable_confidence_head": True, "confidence_head_with_markov": True}  # unless stated
# Of fields of block heads what leaves them as they are known here.
NEUTRAL_BLOCKS = {"use_swa": (False,), "input_embedding_scale": (1.0,), "use_aux_hidden_state": (True,)}
NOT_LOADED = {  # layout -> what it is, and what to do
    "peagle": ("a P-EAGLE head, which drafts in parallel rows", "take an EAGLE-3 or DFlash head of this target"),
    "domino": ("a Domino head, which corrects with a GRU", "take a DFlash or DSpark head of this target"),
    "dflash2": ("a DFlash-2 head", "take a DFlash or DSpark head of this target"),
    "mtp": ("a multi-token-prediction module of a target", "train a head for it: specdec train eagle3"),
}


class Head(NamedTuple):
    """A published head, for its target, in the target's precision and on its device."""

    network: HeadNetwork
    layout: str
    method: str  # the drafter that runs it
    other_layers: tuple[int, ...] | None = None  # what its feature layers are if its config counts the other way
    num_tokens: int | None = None  # to draft, if its config says so


def read_head(path: str, target: PagedModel) -> Head:
    """The head of a folder or hub id. Its feature layers are those that its config states.

    Raises:
        ValueError: it is no head, none that can be run, damaged, or made for another target.
    """
    config = read_config(path)
    with config_errors(path):
        layout = layout_of(config)
    if layout is not None:
        _require_known(layout, path)
    tensors = {ours: part for name, part in read_tensors(path).items() if (ours := our_name(name)) is not None}
    layout = layout or layout_of_tensors(tensors)
    if layout is None:
        raise ValueError(
            f"expected a head in {path!r}, got {config.get('architectures') or 'no architecture'} without its marks; "
            'a whole language model is drafted with as {"method": "draft_model", "model": PATH}'
        )
    _require_known(layout, path)
    require_finite(tensors, path)
    method = METHODS[layout]
    with config_errors(path), torch.device("meta"):  # an outline: the weights come from the file
        source = Source(path, layout, config, _with_output_biases(tensors, config), target)
        network, other = READERS[method](source)
        own, num_tokens = _own_tensors(network, source), _num_tokens(config)
    _fill(network, own, path)
    if method != "medusa":  # rotations go on: a head may be used as far as its target
        reach = network.config.max_position_embeddings, target.max_positions
        network.config.max_position_embeddings = max(reach)
    network.to(device=target.device, dtype=target.dtype).eval()
    return Head(network, layout, method, other, num_tokens)


def _eagle(source: Source) -> tuple[HeadNetwork, None]:
    return EagleNetwork(layer_config(source), has_bias="fc.bias" in source.tensors), None


def _eagle3(source: Source) -> tuple[HeadNetwork, tuple[int, ...] | None]:
    config = source.config
    if source.layout.startswith("speculators"):
        source.field("norm_before_residual", config)  # where it is missing, vLLM takes it for True, speculators do not
        sizes = layer_config(source)
    else:  # one layer, whatever the config says (EAGLE3-Vicuna1.3-13B: 40)
        numbers = [int(found[1]) for name in source.tensors if (found := re.match(r"layers\.(\d+)\.", name))]
        sizes = layer_config(source, num_layers=1 + max(numbers, default=0))
    layers, other = layers_read(source)
    norms = Norms(**{name: bool(config.get(name)) for name in NORMS})
    width = config.get("target_hidden_size")
    return Eagle3Network(sizes, layers, draft_tokens(source), norms, target_size=width), other


def _medusa(source: Source) -> tuple[HeadNetwork, None]:
    """By its tensors alone: configs of published heads tell of fewer."""
    places = [re.match(r"medusa_head\.(\d+)\.(\d+)\.linear\.weight", name) for name in source.tensors]
    found = [(int(place[1]), int(place[2])) for place in places if place]
    num_heads, num_layers = (1 + max(numbers) for numbers in zip(*found, strict=True)) if found else (1, 1)
    outputs = source.tensors.get(f"medusa_head.0.{num_layers}.weight")
    vocab_size = source.target.vocab_size if outputs is None else outputs.shape[0]
    check_vocabulary(source.target.vocab_size, vocab_size)
    config = PretrainedConfig(hidden_size=source.target_width, vocab_size=vocab_size)  # type: ignore[call-arg]
    return MedusaNetwork(config, num_heads, num_layers, has_outputs=outputs is not None), None


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


def _own_tensors(network: HeadNetwork, source: Source) -> dict[str, Tensor]:
    """Its tensors without embedding and language model head if they are the target's; else it keeps them as its own."""
    own = {name: part for name, part in source.tensors.items() if name not in VOCABULARY}
    model = source.target.model
    for name, lender in zip(BORROWED, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        part, attribute = own.get(name), name.removesuffix(".weight")
        if part is None or getattr(network, attribute) is not None:
            continue
        lent: Any = lender.weight
        is_plain = type(lender) in (nn.Embedding, nn.Linear)  # some targets scale what they look up
        if is_plain and part.shape == lent.shape and torch.equal(part.to(lent), lent):
            del own[name]
        elif attribute == "embed_tokens":
            network.embed_tokens = nn.Embedding(*part.shape)
        else:
            network.lm_head = nn.Linear(part.shape[1], part.shape[0], bias=False)
    return own


def _fill(network: HeadNetwork, own: Mapping[str, Tensor], path: str) -> None:
    """Gives the network these weights, which have to be all of its own, and nothing else."""
    wanted = {name: tuple(part.shape) for name, part in network.named_parameters()}
    shapes = {name: tuple(own[name].shape) for name in wanted if name in own}
    wrong = [f"{name} {shape}, not {wanted[name]}" for name, shape in shapes.items() if shape != wanted[name]]
    wrong += [f"{name} {own[name].dtype}" for name in shapes if not own[name].is_floating_point()]
    named = {"missing": wanted.keys() - own.keys(), "unexpected": own.keys() - wanted.keys(), "mismatched": wrong}
    for kind, names in named.items():
        if names:
            raise ValueError(
                f"expected the weights of a {type(network).__name__} in {path!r}, got {len(names)} {kind} "
                f"({listed(sorted(names))}); correct its config.json or get the checkpoint anew"
            )
    network.load_state_dict({**own, **dict(network.named_buffers())}, assign=True)


def _num_tokens(config: Mapping[str, Any]) -> int | None:
    """How many tokens a config of speculators proposes to draft."""
    about = config.get("speculators_config") or {}
    chosen = [way for way in about.get("proposal_methods") or () if way.get("speculative_tokens")]
    default = [way for way in chosen if way.get("proposal_type") == about.get("default_proposal_method")]
    return int((default or chosen)[0]["speculative_tokens"]) if chosen else None
