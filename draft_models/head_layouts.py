"""Layouts of published heads: how each is recognised, how it names tensors, and which layers of the target it means.

layout               its config has                                   its tensors are called
speculators eagle3   speculators_model_type                           layers.0.*, fc, norm, lm_head, d2t, t2d
speculators peagle   speculators_model_type                           the same, mask_hidden
speculators dflash   speculators_model_type, also dspark              layers.*, fc, hidden_norm, norm
eagle                (nothing of its own)                             layers.*, fc, embed_tokens
eagle3               draft_vocab_size, an architecture ...Eagle3...   midlayer.*, fc, norm, lm_head, d2t, t2d
peagle               an architecture PEagle..., or as eagle3          those of EAGLE-3, mask_hidden
medusa               medusa_num_heads                                 0.0.linear, and 0.1 if outputs are its own
dflash               dflash_config, an architecture DFlash...         layers.*, fc, hidden_norm, norm
dspark               an architecture ...DSpark...                     the same, markov_head.*, confidence_head.*
mtp                  (a target's) num_nextn_predict_layers, ...       see `mtp_layouts`
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from specdec.features import LAST
from specdec.mtp_layouts import mtp_names

# What a number of a layer means: what goes into that layer (speculators, vLLM); what comes out of it (SGLang); or the
# same by `hidden_states[i + 1]`, which behind the last layer is normed (z-lab, DeepSpec).
Counting: TypeAlias = Literal["inputs", "outputs", "states"]

# Layout -> the drafter that runs it.
METHODS = {
    "speculators eagle3": "eagle3",
    "speculators peagle": "peagle",
    "speculators dflash": "dflash",
    "speculators dspark": "dflash",
    "eagle": "eagle",
    "eagle3": "eagle3",
    "peagle": "peagle",
    "medusa": "medusa",
    "dflash": "dflash",
    "dspark": "dflash",
    "mtp": "mtp",
}
ARCHITECTURES = (  # part of the name of an architecture -> layout; the first that fits
    ("peagle", "peagle"),
    ("domino", "domino"),
    ("dflash2", "dflash2"),
    ("dspark", "dspark"),
    ("dflash", "dflash"),
    ("eagle3", "eagle3"),
    ("medusa", "medusa"),
)
FIELDS = (("medusa_num_heads", "medusa"), ("dflash_config", "dflash"), ("draft_vocab_size", "eagle3"))
TENSORS = (  # name that we give a tensor -> layout
    (r"mask_hidden$", "peagle"),
    (r"layers\.\d+\.hidden_norm\.", "eagle3"),
    (r"hidden_norm\.", "dflash"),
    (r"fc\.", "eagle"),
    (r"medusa_head\.\d+\.\d+\.linear\.", "medusa"),
)
MTP_FIELDS = ("num_nextn_predict_layers", "num_mtp_layers", "mtp_num_hidden_layers")

# Published name -> ours.
RENAMED = (
    (r"(model|logit_head)\.", ""),
    (r"midlayer\.", "layers.0."),
    (r"(\d+\.\d+\.(?:linear\.)?(?:weight|bias))$", r"medusa_head.\1"),
)
MASK_HIDDEN = "mask_hidden"  # what P-EAGLE learns for masks
# What the target has, too. It is taken from there if it is the same.
BORROWED = ("embed_tokens.weight", "lm_head.weight")
# What is computed anew, or was for training only.
SURPLUS = r"(.*\.)?rotary_emb\.inv_freq$|verifier_(norm|lm_head)\.weight$"


def layout_of(config: Mapping[str, Any]) -> str | None:
    """The layout that a config tells of; None if it does not.

    Example:
        >>> layout_of({"speculators_model_type": "eagle3"}), layout_of({"architectures": ["LlamaForCausalLMEagle3"]})
        ('speculators eagle3', 'eagle3')
    """
    kind = config.get("speculators_model_type")
    if kind is not None:
        return f"speculators {kind}"
    projector = (config.get("dflash_config") or {}).get("projector_type")
    named = " ".join([*(config.get("architectures") or ()), projector or "", config.get("model_type") or ""]).lower()
    for part, layout in ARCHITECTURES:
        if part in named:
            return layout
    for field, layout in FIELDS:
        if field in config:
            return layout
    sizes = config.get("text_config") or config
    return "mtp" if any(sizes.get(field) for field in MTP_FIELDS) else None


def layout_of_tensors(names: Iterable[str]) -> str | None:
    """The layout that tensors have that we call so, if it is known."""
    listed = list(names)
    if mtp_names(listed) is not None:
        return "mtp"
    return next((layout for pattern, layout in TENSORS if any(re.match(pattern, name) for name in listed)), None)


def our_name(name: str) -> str | None:
    """What we call a published tensor; None for one that is not wanted.

    Example:
        >>> our_name("midlayer.mlp.up_proj.weight"), our_name("2.0.linear.bias"), our_name("rotary_emb.inv_freq")
        ('layers.0.mlp.up_proj.weight', 'medusa_head.2.0.linear.bias', None)
    """
    for pattern, replacement in RENAMED:
        name = re.sub(f"^{pattern}", replacement, name)
    return None if re.match(SURPLUS, name) else name


def stated_layers(layout: str, config: Mapping[str, Any], num_layers: int) -> tuple[list[int], Counting]:
    """The numbers of the feature layers that a config states or implies, and how they count.

    Raises:
        ValueError: it states none, though it has to; or two that do not agree.

    Example:
        >>> stated_layers("eagle3", {}, 32), stated_layers("eagle3", {"target_layer_ids": [1, 17, 28]}, 32)
        (([2, 16, 29], 'inputs'), ([1, 17, 28], 'states'))
    """
    inputs = config.get("eagle_aux_hidden_state_layer_ids") or config.get("aux_hidden_state_layer_ids")
    outputs = (config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    states = (config.get("dflash_config") or {}).get("target_layer_ids") or config.get("target_layer_ids")
    if inputs and outputs and list(inputs) != [number + 1 for number in outputs]:
        raise ValueError(
            f"expected eagle_aux_hidden_state_layer_ids one above those of eagle_config, got {inputs} and {outputs}; "
            "delete those that are wrong"
        )
    if inputs:
        return list(inputs), "inputs"
    if outputs:
        return list(outputs), "outputs"
    if states:
        return list(states), "states"
    if METHODS[layout] in ("eagle3", "peagle"):  # as in EAGLE's own code
        return [2, num_layers // 2, num_layers - 3], "inputs"
    if layout.startswith("speculators"):
        raise ValueError("expected aux_hidden_state_layer_ids in the config, got none; add those of the training")
    return _spread(config["num_hidden_layers"], num_layers), "states"


def feature_layers(numbers: Sequence[int], counting: Counting, num_layers: int) -> tuple[int, ...]:
    """The same layers as we count them: 0 is what comes out of the first one.

    Raises:
        ValueError: the target has no such layers.

    Example:
        >>> feature_layers([2, 16, 29], "inputs", 32), feature_layers([1, 31], "states", 32)
        ((1, 15, 28), (1, -1))
    """
    layers = [number - (counting == "inputs") for number in numbers]
    if not all(0 <= layer < num_layers for layer in layers):
        raise ValueError(
            f"expected feature layers of a target of {num_layers} layers, got {list(numbers)} (counted by {counting}); "
            "take the head that was trained for this target"
        )
    return tuple(LAST if counting == "states" and layer == num_layers - 1 else layer for layer in layers)


def other_layers(numbers: Sequence[int], counting: Counting, num_layers: int) -> tuple[int, ...] | None:
    """What the same numbers mean to those who count the other way; None if it cannot be meant."""
    try:
        return feature_layers(numbers, "outputs" if counting == "inputs" else "inputs", num_layers)
    except ValueError:
        return None


def _spread(count: int, num_layers: int) -> list[int]:
    """As many layers as a DFlash head has itself, where its config names none: evenly from the second to the last but
    two (z-lab)."""
    if count == 1:
        return [num_layers // 2]
    return [round(1 + place * (num_layers - 4) / (count - 1)) for place in range(count)]
