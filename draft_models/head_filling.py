"""The weights of a published head, given to its network: all of them, of the right shape, and no others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from specdec.checkpoints import listed

from .head_layouts import BORROWED, MASK_HIDDEN
from .head_network import HeadNetwork
from .head_source import VOCABULARY, Source


def own_tensors(network: HeadNetwork, source: Source) -> dict[str, Tensor]:
    """Its tensors without embedding and language model head if they are the target's; else it keeps them as its own."""
    own = {name: part for name, part in source.tensors.items() if name not in VOCABULARY}
    if MASK_HIDDEN in own:  # of P-EAGLE; some leave out the first of its dimensions
        own[MASK_HIDDEN] = own[MASK_HIDDEN].reshape(1, 1, -1)
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


def fill(network: HeadNetwork, own: Mapping[str, Tensor], path: str) -> None:
    """Gives the network these weights, which have to be all of its own, and nothing else."""
    state = network.state_dict()
    wanted = {name: tuple(part.shape) for name, part in state.items() if name not in VOCABULARY}
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
    kept = {name: part for name, part in state.items() if name in VOCABULARY}
    network.load_state_dict({**own, **kept}, assign=True)
