"""The attention function registered with transformers: K and V go to a pool, rows attend over prefix and ancestors.

A model runs with it while its configs say `specdec_tree`, and finds the step it belongs to in the keyword argument
`specdec_step` or, where a family drops keyword arguments on the way to its attention, in a context variable.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from .chunk import Packed
from .kernels import ops
from .kernels.rows import Scoring
from .pool import KVPool, Stored

# No "flash", "/" or ":" in it, nor "paged|" before it: transformers reads these as something else.
NAME = "specdec_tree"
NAME_COMPILED = "specdec_tree_uncompiled"  # in a compiled model: called as it is
# Arguments of attention functions that do not change scores here, or that `scoring_of` reads.
KNOWN_OPTIONS = frozenset(
    "scaling dropout sliding_window softcap s_aux specdec_step is_causal position_ids output_attentions "
    "output_hidden_states output_router_logits use_cache return_dict cache_position past_key_values "
    "position_embeddings max_length_q max_length_k cu_seq_lens_q cu_seq_lens_k seq_idx deterministic".split()
)
Call = tuple[nn.Module, int]  # an attention module, and how often it was called before in the same forward


class Running:
    """What a model that runs with our attention is doing; setting an attribute is cheaper than a context variable."""

    __slots__ = ("step",)

    step: "AttentionStep"  # of the forward pass it is in


# Where the attention function looks for its step if the model does not hand it over.
running_now: ContextVar[Running] = ContextVar("specdec_running")


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What is known of one call of one attention module; the same in every forward."""

    key: int  # of the pool
    is_writer: bool  # False if its K and V are another layer's, stored already
    scoring: Scoring


class AttentionStep:
    """What one forward pass needs to know in its attention layers; made once, used by all of them.

    Layers that share K and V are recognised in a model's first forward, where they are handed the very same tensors.
    """

    __slots__ = ("_calls", "_is_first", "_packed", "_pool", "_seen", "_slots", "plans", "rows")

    def __init__(self, pool: KVPool, packed: Packed, plans: dict[Call, LayerPlan]) -> None:
        self.rows = packed.rows
        self.plans = plans  # of all calls so far; empty in the first forward of a model
        self._pool, self._packed, self._slots = pool, packed, packed.slots
        self._is_first = not plans
        self._calls: dict[nn.Module, int] = {}  # how often each module was called: some run several times per forward
        # K and V by identity; kept alive, since Python gives the identity of a dead object anew.
        self._seen: dict[tuple[int, int], tuple[LayerPlan, Tensor, Tensor]] = {}

    def plan(self, module: nn.Module, key: Tensor, value: Tensor, options: dict[str, Any]) -> LayerPlan:
        """The plan of this call."""
        count = self._calls.get(module, 0)
        self._calls[module] = count + 1
        plan = self.plans.get((module, count))
        if plan is None:
            owner = self._seen.get((id(key), id(value)))
            layer = owner[0].key if owner else len(self.plans)
            plan = self.plans[module, count] = LayerPlan(layer, owner is None, scoring_of(module, options))
            if self._is_first:
                self._seen.setdefault((id(key), id(value)), (plan, key, value))
        return plan

    def store(self, layer: int, key: Tensor, value: Tensor) -> Stored:
        """The storage of a layer after the new rows were written to it."""
        first = self._packed.write_slot
        if first is not None and self._slots is None:
            try:
                stored = self._pool.stored(layer)
            except KeyError:  # the layer's first rows
                pass
            else:
                if stored.scales is None:
                    _overwrite(stored.keys, first, key)
                    _overwrite(stored.values, first, value)
                    return stored
            self._slots = torch.arange(first, first + key.shape[2])
        assert self._slots is not None
        self._pool.write(layer, key[0].transpose(0, 1), value[0].transpose(0, 1), self._slots)
        return self._pool.stored(layer)

    def storage(self, layer: int) -> Stored:
        """All rows of a layer."""
        return self._pool.stored(layer)


def attend(
    module: nn.Module,
    query: Tensor,  # [1, heads, T, k_dim]
    key: Tensor,  # [1, kv_heads, T, k_dim]
    value: Tensor,  # [1, kv_heads, T, v_dim]
    attention_mask: Tensor | None = None,  # ours is made from the step
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention output [1, T, heads, v_dim] of one layer, as transformers calls for it."""
    step: AttentionStep = options.get("specdec_step") or running_now.get().step
    plan = step.plan(module, key, value, options)
    stored = step.store(plan.key, key, value) if plan.is_writer else step.storage(plan.key)
    keys, values, scales = stored[:3]
    return ops.tree_attention(query, keys, values, step.rows, plan.scoring, options.get("s_aux"), scales), None


# And no mask functions of these names: then transformers makes no mask.
AttentionInterface.register(NAME, attend)
AttentionInterface.register(NAME_COMPILED, torch.compiler.disable(attend))  # which costs as much as a small view


def _overwrite(pool: Tensor, first_slot: int, rows: Tensor) -> None:
    """Copies rows [1, heads, T, dim] to consecutive slots of [num_slots, heads, dim]; one view cheaper than slicing."""
    slot, head, one = pool.stride()
    pool.as_strided(rows.shape, (slot, head, slot, one), pool.storage_offset() + first_slot * slot).copy_(rows)


def scoring_of(module: nn.Module, options: dict[str, Any]) -> Scoring:
    """How a module scores, from what it hands over and its config.

    Raises:
        ValueError: it hands over something that would change the scores in a way unknown here.
    """
    for name, option in options.items():
        if name not in KNOWN_OPTIONS and isinstance(option, Tensor | float):
            raise ValueError(f"{type(module).__name__} hands {name!r} to its attention")
    config, index = getattr(module, "config", None), getattr(module, "layer_idx", None)
    kinds = getattr(config, "layer_types", None)
    kind = kinds[index] if kinds and index is not None and index < len(kinds) else None
    if "sliding_window" in options:
        window = options["sliding_window"]
    else:  # some families do not hand it over (Qwen2-MoE)
        window = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
        if kind is not None and kind != "sliding_attention":
            window = None
    return Scoring(
        scaling=options.get("scaling"),
        window=window if window is not None and window > 0 else None,
        chunk=getattr(config, "attention_chunk_size", None) if kind == "chunked_attention" else None,
        softcap=options.get("softcap"),
    )
