"""Heads, written: speculators format, as vLLM serves it, and the layouts of EAGLE, EAGLE-3 and Medusa."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig
from transformers import __version__ as transformers_version

from specdec.features import LAST

from .block_network import BlockNetwork
from .eagle import EagleNetwork
from .eagle3 import Eagle3Network
from .head_network import HeadNetwork
from .medusa import MedusaNetwork
from .peagle import PEagleNetwork

SPECULATORS_VERSION = "0.9.0"  # of the schema that is written
DEFAULT_TOKENS = 5  # that an EAGLE-3 or P-EAGLE head proposes to draft
SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps"),
    *("attention_bias", "mlp_bias", "rope_parameters"),
)
WINDOWS = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers")


class Files(NamedTuple):
    """What a layout makes of a head."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    weights: str = "model.safetensors"


def write_head(network: HeadNetwork, folder: str | Path, layout: str, target: PretrainedConfig) -> Files:
    """Writes a head into a new folder, which is there whole or not at all.

    Args:
        network: the head.
        folder: must not exist.
        layout: "speculators" for networks of EAGLE-3, P-EAGLE and blocks; "eagle", "eagle3" or "medusa" for those of
            that name.
        target: the config of the model that the head was trained for.

    Returns:
        What was written.

    Raises:
        ValueError: the layout cannot say what the network is, or the folder exists.

    Example:
        >>> import tempfile
        >>> from transformers import LlamaConfig
        >>> sizes = dict(vocab_size=32, hidden_size=8, intermediate_size=8, num_attention_heads=2)
        >>> network = Eagle3Network(LlamaConfig(**sizes, num_hidden_layers=1), [1, 3, 4], range(2, 12))
        >>> folder = tempfile.mkdtemp() + "/head"
        >>> files = write_head(network, folder, "speculators", LlamaConfig(**sizes, num_hidden_layers=8))
        >>> files.config["eagle_aux_hidden_state_layer_ids"], files.config["draft_vocab_size"]
        ([2, 4, 5], 10)
    """
    place = new_place(folder)
    files = files_of(network, layout, target)
    partial = place.with_name(f"{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        partial.mkdir()
        tensors = {name: part.detach().cpu().contiguous() for name, part in files.tensors.items()}
        save_file(tensors, partial / files.weights, metadata={"format": "pt"})
        (partial / "config.json").write_text(json.dumps(files.config, indent=2) + "\n", encoding="utf-8")
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return files


def new_place(folder: str | Path) -> Path:
    """Where a folder is to be.

    Raises:
        ValueError: it is there already, or cannot be made there.
    """
    place = Path(folder).absolute()
    if place.exists() or not place.parent.is_dir():
        raise ValueError(f"expected a new folder in one that exists, got {str(folder)!r}; name another")
    return place


def files_of(network: HeadNetwork, layout: str, target: PretrainedConfig) -> Files:
    """What `write_head` writes."""
    writers = next((writers for kind, writers in WRITERS.items() if isinstance(network, kind)), {})
    if layout not in writers:
        raise ValueError(
            f"expected a layout for a {type(network).__name__} ({', '.join(writers)}), got {layout!r}; pick one of them"
        )
    return writers[layout](network, target)


def _speculators_eagle3(network: Any, target: PretrainedConfig, kind: str = "eagle3") -> Files:
    width = network.fc.in_features // len(network.feature_layers)
    about = {
        "draft_vocab_size": network.lm_head.out_features,
        **asdict(network.norms),
        "target_hidden_size": None if width == network.config.hidden_size else width,
        "eagle_aux_hidden_state_layer_ids": _as_inputs(network),
        "embed_requires_grad": network.embed_tokens is not None,
    }
    return Files(_speculators(kind, network, target, DEFAULT_TOKENS) | about, network.state_dict())


def _speculators_peagle(network: Any, target: PretrainedConfig) -> Files:
    files = _speculators_eagle3(network, target, "peagle")
    return files._replace(config=files.config | {"mask_token_id": network.mask_token_id})


def _speculators_block(network: Any, target: PretrainedConfig) -> Files:
    config, shape, markov, confidence = network.config, network.shape, network.markov_head, network.confidence_head
    kinds = getattr(config, "layer_types", None) or ()
    sliding = tuple(layer for layer, kind in enumerate(kinds) if kind == "sliding_attention")
    if shape.causal_layers not in ((), sliding):
        raise _unsaid(f"causal_layers {shape.causal_layers}, of which {sliding} have windows")
    if "qwen3" not in config.model_type:
        raise _unsaid(f"layers of the kind of {config.model_type!r}, not Qwen3's, in blocks")
    if network.embed_tokens is not None or (network.lm_head is not None and network.d2t is None):
        raise _unsaid("embeddings or a language model head of its own for blocks of all tokens")
    about: dict[str, Any] = {
        "draft_vocab_size": config.vocab_size if network.d2t is None else len(network.d2t),
        "block_size": shape.block_size,
        "target_hidden_size": None,
        "aux_hidden_state_layer_ids": _as_inputs(network),
        "mask_token_id": shape.mask_token_id,
        "sliding_window_non_causal": bool(sliding) and not shape.causal_layers,
        "sample_from_anchor": shape.sample_from_anchor,
    }
    if markov is not None or confidence is not None:
        about |= {
            "markov_rank": 0 if markov is None else markov.markov_w1.embedding_dim,
            "markov_head_type": "vanilla" if markov is None or markov.gate_proj is None else "gated",
            "enable_confidence_head": confidence is not None,
            "confidence_head_with_markov": confidence is not None and confidence.proj.in_features > config.hidden_size,
        }
    kind = "dspark" if "markov_rank" in about else "dflash"
    return Files(_speculators(kind, network, target, network.depth) | about, network.state_dict())


def _eagle(network: Any, target: PretrainedConfig) -> Files:
    config = {"architectures": ["LlamaForCausalLM"], **_layers(network), "bias": network.fc.bias is not None}
    return Files(config, network.state_dict())


def _eagle3(network: Any, target: PretrainedConfig) -> Files:
    """With the numbers of its layers twice, as vLLM and as SGLang count, and maps of the vocabulary in any case."""
    config, inputs = network.config, _as_inputs(network)
    if network.num_layers > 1 or "qwen3" in config.model_type:
        raise _unsaid(f"{network.num_layers} layers of the kind of {config.model_type!r}, not one of Llama's")
    about: dict[str, Any] = {
        "draft_vocab_size": network.lm_head.out_features,
        "eagle_aux_hidden_state_layer_ids": inputs,
        "eagle_config": {"eagle_aux_hidden_state_layer_ids": [number - 1 for number in inputs]},
        **{name: True for name, is_set in asdict(network.norms).items() if is_set},
    }
    width = network.fc.in_features // len(network.feature_layers)
    if width != config.hidden_size:
        about["target_hidden_size"] = width
    tensors = {name.replace("layers.0.", "midlayer."): part for name, part in network.state_dict().items()}
    if network.d2t is None:
        tensors["d2t"] = torch.zeros(config.vocab_size, dtype=torch.int64)
        tensors["t2d"] = torch.ones(config.vocab_size, dtype=torch.bool)
    return Files({"architectures": ["LlamaForCausalLMEagle3"], **_layers(network), **about}, tensors)


def _medusa(network: Any, target: PretrainedConfig) -> Files:
    config = {
        "model_type": "medusa",
        "medusa_num_heads": network.depth,
        "medusa_num_layers": len(network.medusa_head[0]) - network.has_outputs,
        "hidden_size": network.config.hidden_size,
        "vocab_size": network.config.vocab_size,
        "base_model_name_or_path": _name_of(target),
    }
    if network.choices:
        config["medusa_choices"] = [list(path) for path in network.choices]
    tensors = {name.removeprefix("medusa_head."): part for name, part in network.state_dict().items()}
    return Files(config, tensors, "medusa_lm_head.safetensors")


WRITERS: Mapping[type[HeadNetwork], Mapping[str, Callable[[Any, PretrainedConfig], Files]]] = {
    PEagleNetwork: {"speculators": _speculators_peagle},  # an Eagle3Network, too
    Eagle3Network: {"speculators": _speculators_eagle3, "eagle3": _eagle3},
    BlockNetwork: {"speculators": _speculators_block},
    EagleNetwork: {"eagle": _eagle},
    MedusaNetwork: {"medusa": _medusa},
}
LAYOUTS = sorted({layout for writers in WRITERS.values() for layout in writers})


def _speculators(kind: str, network: Any, target: PretrainedConfig, num_tokens: int) -> dict[str, Any]:
    """What all configs of speculators have."""
    names = {"dflash": "DFlash", "dspark": "DSpark", "eagle3": "Eagle3", "peagle": "PEagle"}
    greedy = {"proposal_type": "greedy", "speculative_tokens": num_tokens}
    return {
        "architectures": [f"{names[kind]}DraftModel"],
        "speculators_model_type": kind,
        "speculators_version": SPECULATORS_VERSION,
        "speculators_config": {
            "algorithm": kind,
            "default_proposal_method": "greedy",
            "proposal_methods": [{**greedy, "verifier_accept_k": 1, "accept_tolerance": 0.0}],
            "verifier": {"name_or_path": _name_of(target), "architectures": target.architectures or []},
        },
        "transformer_layer_config": _layers(network),
        "tie_word_embeddings": False,
        "torch_dtype": str(network.dtype).removeprefix("torch."),
        "transformers_version": transformers_version,
    }


def _layers(network: Any) -> dict[str, Any]:
    """The config of its layers, with the rotation also as it was written before transformers 5."""
    config = network.config
    rotation = dict(config.rope_parameters)
    legacy = {"rope_theta": rotation["rope_theta"]}
    if rotation["rope_type"] != "default":
        legacy["rope_scaling"] = {name: value for name, value in rotation.items() if name != "rope_theta"}
    has_windows = "sliding_attention" in (getattr(config, "layer_types", None) or ())
    names = (*SIZES, *WINDOWS) if has_windows else SIZES
    given = {name: getattr(config, name) for name in names if getattr(config, name, None) is not None}
    return {
        "model_type": config.model_type,
        **given,
        **legacy,
        "tie_word_embeddings": False,
        "torch_dtype": str(network.dtype).removeprefix("torch."),
    }


def _as_inputs(network: HeadNetwork) -> list[int]:
    """Its feature layers as speculators and vLLM count: what goes into a layer is what comes out of the one before."""
    if LAST in network.feature_layers:
        raise _unsaid(f"feature_layers {list(network.feature_layers)}, of which {LAST} is behind the last norm")
    return [layer + 1 for layer in network.feature_layers]


def _name_of(target: PretrainedConfig) -> str | None:
    return getattr(target, "name_or_path", None) or None


def _unsaid(what: str) -> ValueError:
    return ValueError(f"expected a head that this layout can describe, got {what}; write it in another layout")
