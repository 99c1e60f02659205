"""How MTP modules lie in the checkpoints of their targets: which tensors are theirs, and what we call them.

keys in the checkpoint              of                     projection reads   what is handed on to the next step
mtp.fc, mtp.layers.0.*, ...         Qwen3-Next and kin     embedding, state   behind mtp.norm
model.layers.N.eh_proj, ...         DeepSeek-V3, GLM-4.5   embedding, state   behind shared_head.norm; in vLLM before it
model.mtp_layers.0.input_proj, ...  MiMo                   state, embedding   behind final_layernorm

N is the number of the target's layers. All of vLLM, SGLang and transformers feed the target's last hidden state behind
its last norm. vLLM zeroes the embedding at the first position, but for Qwen3-Next, SGLang in MiMo only, transformers
nowhere; here nothing is zeroed. Where there are several modules, vLLM takes the next one at each step; here the first
one is read and drafts all tokens, as vLLM does where there is one only.
"""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

BORROWED = {"embed_tokens": "embed_tokens", "shared_head.head": "lm_head", "lm_head": "lm_head"}


class MtpLayout(NamedTuple):
    """How the tensors of modules are called."""

    mark: str  # pattern of a name that every module has; its group is what all names of the module begin with
    parts: Mapping[str, str]  # theirs -> ours; what is named nowhere is the layer's
    layer: str = ""  # what names of the layer begin with
    is_state_first: bool = False


MTP_LAYOUTS = (
    MtpLayout(
        r"((?:.+\.)?layers\.\d+\.)eh_proj\.weight",
        {"enorm": "enorm", "hnorm": "hnorm", "eh_proj": "eh_proj", "shared_head.norm": "norm", **BORROWED},
    ),
    MtpLayout(
        r"((?:.+\.)?mtp\.)fc\.weight",
        {"pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "fc": "eh_proj", "norm": "norm", **BORROWED},
        layer="layers.0.",
    ),
    MtpLayout(
        r"((?:.+\.)?mtp_layers\.\d+\.)input_proj\.weight",
        {"token_layernorm": "enorm", "hidden_layernorm": "hnorm", "input_proj": "eh_proj", "final_layernorm": "norm"},
        is_state_first=True,
    ),
)


def mtp_names(names: Iterable[str]) -> tuple[MtpLayout, dict[str, str]] | None:
    """The layout of the first module, and its tensors, theirs -> ours; None if there is no module.

    Example:
        >>> layout, names = mtp_names(["lm_head.weight", "mtp.fc.weight", "mtp.layers.0.mlp.up_proj.weight"])
        >>> names
        {'mtp.fc.weight': 'eh_proj.weight', 'mtp.layers.0.mlp.up_proj.weight': 'layer.mlp.up_proj.weight'}
    """
    listed = list(names)
    for layout in MTP_LAYOUTS:
        if prefixes := _prefixes(layout, listed):
            prefix = min(prefixes, key=lambda prefix: (len(prefix), prefix))
            ours = {name: _ours(layout, name.removeprefix(prefix)) for name in listed if name.startswith(prefix)}
            return layout, {name: one for name, one in ours.items() if one is not None}
    return None


def without_modules(names: Iterable[str]) -> list[str]:
    """The names of tensors that belong to no module.

    Example:
        >>> without_modules(["model.layers.4.eh_proj.weight", "model.layers.4.mlp.bias", "model.layers.5.mlp.bias"])
        ['model.layers.5.mlp.bias']
    """
    listed = list(names)
    prefixes = tuple({prefix for layout in MTP_LAYOUTS for prefix in _prefixes(layout, listed)})
    return [name for name in listed if not name.startswith(prefixes)]


def _prefixes(layout: MtpLayout, names: Iterable[str]) -> set[str]:
    """What the names of each module begin with."""
    return {found[1] for name in names if (found := re.fullmatch(layout.mark, name))}


def _ours(layout: MtpLayout, name: str) -> str | None:
    """What we call a tensor of the module; None for one of a second layer, or what is computed anew."""
    part, _, kind = name.rpartition(".")
    if part in layout.parts:
        return f"{layout.parts[part]}.{kind}"
    if name.endswith("rotary_emb.inv_freq") or (layout.layer and re.match(r"layers\.[1-9]", name)):
        return None
    return f"layer.{name.removeprefix(layout.layer)}"
