"""FLOPs and bytes of a forward pass, from a model's parameters and config: what has to be done, whoever does it.

    FLOPs = rows x 2 x weights that multiply a row  +  pairs x 2 x heads x (key + value dimensions)  +  logits x head
    bytes = weights, once a pass  +  K and V of every visible row, once a request  +  K and V of the new rows

A pair is a query row and a key row that it sees. Of experts, a row is multiplied by those it is routed to, and a pass
reads as many as it is expected to touch. Norms, rotations, activations and logits in memory are not counted.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
ACTIVE_EXPERTS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")


class Rows(NamedTuple):
    """What a pass does for one request."""

    start: int  # rows in the cache before
    num_rows: int  # new ones, each sees those before it
    num_logits: int = 1  # of so many of them logits are wanted


class Work(NamedTuple):
    """Of one forward pass."""

    flops: float
    bytes: float

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's."""

    pair_flops: int  # of a query row and a key row, all heads
    kv_bytes: int  # of a row
    window: int | None  # rows that a row sees, itself included; None for all

    def pairs(self, rows: Rows) -> int:
        """Query and key rows that see each other.

        Example:
            >>> Attention(1, 1, None).pairs(Rows(10, 3)), Attention(1, 1, window=12).pairs(Rows(10, 3))
            (36, 35)
        """
        seen = range(rows.start + 1, rows.start + rows.num_rows + 1)
        if self.window is None:
            return rows.num_rows * (seen[0] + seen[-1]) // 2
        return sum(min(visible, self.window) for visible in seen)

    def rows_read(self, rows: Rows) -> int:
        """Rows of the cache that some new row sees, the new ones included."""
        stop = rows.start + rows.num_rows
        return stop if self.window is None else min(stop, self.window + rows.num_rows - 1)


@dataclass(frozen=True, slots=True)
class Experts:
    """Of all layers together."""

    count: int  # per layer
    active: int  # of them, per row
    bytes: int

    def bytes_read(self, num_rows: int) -> float:
        """By so many rows, if each is routed evenly and independently: E (1 - (1 - k / E)^rows) experts of E.

        Example:
            >>> Experts(count=8, active=2, bytes=800).bytes_read(1), Experts(8, 2, 800).bytes_read(2)
            (200.0, 350.0)
        """
        return self.bytes * (1 - (1 - self.active / self.count) ** num_rows)


@dataclass(frozen=True, slots=True)
class ModelCounts:
    """What a model's passes are made of."""

    row_flops: int  # of the linear layers, the language model head not among them
    logit_flops: int  # of one row of logits
    attentions: tuple[Attention, ...]  # by layer
    dense_bytes: int  # of weights that every pass reads: no experts, no embedding table unless it is the head
    experts: Experts | None
    num_parameters: int

    @property
    def weight_bytes(self) -> int:
        """Weights that passes read, all experts among them."""
        return self.dense_bytes + (0 if self.experts is None else self.experts.bytes)

    @property
    def kv_bytes(self) -> int:
        """K and V of one token, all layers."""
        return sum(layer.kv_bytes for layer in self.attentions)

    def kv_bytes_at(self, context: int, batch: int = 1) -> int:
        """K and V that requests of so many tokens read for one more."""
        rows = Rows(context - 1, 1)
        return batch * sum(layer.kv_bytes * layer.rows_read(rows) for layer in self.attentions)

    def work(self, requests: Sequence[Rows]) -> Work:
        """Of one pass over these requests."""
        num_rows, num_logits = (sum(getattr(each, name) for each in requests) for name in ("num_rows", "num_logits"))
        flops, size = num_rows * self.row_flops + num_logits * self.logit_flops, float(self.dense_bytes)
        if self.experts is not None:
            size += self.experts.bytes_read(num_rows)
        for layer in self.attentions:
            flops += layer.pair_flops * sum(layer.pairs(each) for each in requests)
            size += layer.kv_bytes * sum(layer.rows_read(each) + each.num_rows for each in requests)
        return Work(float(flops), size)


def counts_of(model: PreTrainedModel) -> ModelCounts:
    """The counts of a decoder.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=16, num_hidden_layers=1,
        ...                      num_attention_heads=2, num_key_value_heads=1, head_dim=4)
        >>> counts = counts_of(LlamaForCausalLM(config))
        >>> counts.row_flops == 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16)
        True
        >>> counts.logit_flops, counts.kv_bytes, counts.attentions[0].pair_flops
        (512, 32, 32)
    """
    config = model.config.get_text_config(decoder=True)
    head: nn.Parameter = model.get_output_embeddings().weight
    count, active = (_first(config, names) for names in (EXPERT_COUNTS, ACTIVE_EXPERTS))
    is_sparse = bool(count and active)
    row_flops = dense_bytes = expert_bytes = 0
    # Tables, those of positions too, are looked up: nothing is multiplied, and of a row little is read.
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, weight in model.named_parameters():
        if weight is head or id(weight) in tables:
            continue
        is_expert = is_sparse and _is_expert(name, weight, count)
        if weight.dim() > 1 and not name.endswith("bias"):
            row_flops += 2 * weight.numel() * active // count if is_expert else 2 * weight.numel()
        if is_expert:
            expert_bytes += weight.nbytes
        else:
            dense_bytes += weight.nbytes
    return ModelCounts(
        row_flops=row_flops,
        logit_flops=2 * head.numel(),
        attentions=tuple(_attentions(config, model.dtype)),
        dense_bytes=dense_bytes + head.nbytes,
        experts=Experts(count, active, expert_bytes) if is_sparse else None,
        num_parameters=model.num_parameters(),
    )


def _is_expert(name: str, weight: nn.Parameter, count: int) -> bool:
    """Experts are stacked in one parameter, or numbered modules of a list."""
    return re.search(r"\bexperts\.\d+\.", name) is not None or (".experts." in name and weight.shape[0] == count)


def _attentions(config: Any, dtype: torch.dtype) -> list[Attention]:
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_dim, value_dim = (
        getattr(config, "qk_head_dim", None) or head_dim,
        getattr(config, "v_head_dim", None) or head_dim,
    )
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    # Without types of its own (Mistral) every layer has the window.
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return [
        Attention(
            pair_flops=2 * heads * (key_dim + value_dim),
            kv_bytes=kv_heads * (key_dim + value_dim) * dtype.itemsize,
            window=window if kind == "sliding_attention" else None,
        )
        for kind in kinds
    ]


def _first(config: Any, names: Sequence[str]) -> int:
    return next((value for name in names if isinstance(value := getattr(config, name, None), int)), 0)
