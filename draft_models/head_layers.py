"""What self-draft heads are made of: transformer layers whose attention is handed in, for pages as for training.

Weights are named as in published checkpoints. Tensors are [..., rows, size]; rows of a batch may be packed or padded.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

# Layer, queries [..., rows, heads, dim], keys and values [..., rows, kv_heads, dim] -> [..., rows, heads, dim]. It is
# told what a layer computes for its new rows, and knows which other rows each of them may see.
Attend: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Rotation: TypeAlias = tuple[Tensor, Tensor]  # cosines and sines [..., rows, 1, dim]

BOUND_TO_LENGTH = ("dynamic", "longrope")  # rotations of a row that depend on what else is in the forward pass


def head_dim_of(config: PretrainedConfig) -> int:
    """Size of an attention head."""
    size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size


class Rotary:
    """The rotation of positions (RoPE, 2104.09864), of any type whose table does not change with the length.

    Example:
        >>> from transformers import LlamaConfig
        >>> rotary = Rotary(LlamaConfig(hidden_size=8, num_attention_heads=2))
        >>> [part.shape for part in rotary(torch.tensor([0, 5, 6]), torch.float32)]
        [torch.Size([3, 1, 4]), torch.Size([3, 1, 4])]
    """

    def __init__(self, config: PretrainedConfig) -> None:
        parameters = getattr(config, "rope_parameters", None) or {}
        kind = parameters.get("rope_type", "default")
        if kind in BOUND_TO_LENGTH:
            raise ValueError(f"expected a rope_type that rotates a row always alike, got {kind!r}; train another head")
        with torch.device("cpu"):  # also where a network is only outlined, on the device "meta"
            table = LlamaRotaryEmbedding(config)  # type: ignore[arg-type]  # reads what all such configs have
        self._frequencies: Tensor = table.inv_freq.float()  # [dim / 2]
        self._scale: float = table.attention_scaling

    def __call__(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """Cosines and sines for positions [..., rows]."""
        if self._frequencies.device != positions.device:
            self._frequencies = self._frequencies.to(positions.device)
        angles = positions[..., None, None] * self._frequencies
        angles = torch.cat((angles, angles), -1)
        if self._scale == 1.0:
            return angles.cos().to(dtype), angles.sin().to(dtype)
        return (angles.cos() * self._scale).to(dtype), (angles.sin() * self._scale).to(dtype)


def rotated(rows: Tensor, rotation: Rotation) -> Tensor:  # [..., rows, heads, dim] both
    """The rows turned to their positions: the first half of a head is turned against the second.

    Example:
        >>> right_angle = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
        >>> rotated(torch.tensor([[[1.0, 2.0]]]), right_angle).tolist()
        [[[-2.0, 1.0]]]
    """
    cos, sin = rotation
    first, second = rows.chunk(2, -1)
    return rows * cos + torch.cat((-second, first), -1) * sin


class HeadAttention(nn.Module):
    """Grouped-query attention; with norms of queries and keys if the config is one of Qwen3's.

    Args:
        config: of a Llama-like layer.
        layer: number that `attend` is told.
        input_size: of its rows, if it is not the hidden size.
    """

    def __init__(self, config: PretrainedConfig, layer: int, input_size: int | None = None) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, head_dim_of(config)
        size, bias = input_size or config.hidden_size, getattr(config, "attention_bias", False)
        heads = config.num_attention_heads
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        self.q_proj = nn.Linear(size, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(size, kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(size, kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=bias)
        self.q_norm: nn.Module | None = None
        self.k_norm: nn.Module | None = None
        if "qwen3" in config.model_type:
            self.q_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = nn.RMSNorm(self.head_dim, config.rms_norm_eps)

    def keys_values(self, rows: Tensor, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys and values [..., rows, kv_heads, dim] of rows [..., rows, input size]."""
        keys, values = self.k_proj(rows), self.v_proj(rows)
        keys, values = keys.unflatten(-1, (-1, self.head_dim)), values.unflatten(-1, (-1, self.head_dim))
        if self.k_norm is not None:
            keys = self.k_norm(keys)
        return rotated(keys, rotation), values

    def forward(self, rows: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        queries = self.q_proj(rows).unflatten(-1, (-1, self.head_dim))
        if self.q_norm is not None:
            queries = self.q_norm(queries)
        mixed = attend(self.layer, rotated(queries, rotation), *self.keys_values(rows, rotation))
        output: Tensor = self.o_proj(mixed.flatten(-2))
        return output


class GatedMLP(nn.Module):
    """The MLP of Llama: down(act(gate(x)) * up(x))."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        bias = getattr(config, "mlp_bias", False)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=bias)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, rows: Tensor) -> Tensor:
        output: Tensor = self.down_proj(self.act(self.gate_proj(rows)) * self.up_proj(rows))
        return output


class HeadLayer(nn.Module):
    """A decoder layer of Llama or Qwen3.

    Example:
        >>> from transformers import LlamaConfig
        >>> sizes = dict(hidden_size=8, intermediate_size=8, num_attention_heads=2)
        >>> config = LlamaConfig(**sizes, num_key_value_heads=1)
        >>> layer, rotary = HeadLayer(config, 0), Rotary(config)
        >>> own_value = lambda layer, queries, keys, values: values.expand_as(queries)  # each row sees itself only
        >>> layer(torch.ones(3, 8), rotary(torch.arange(3), torch.float32), own_value).shape
        torch.Size([3, 8])
    """

    def __init__(self, config: PretrainedConfig, layer: int, has_input_norm: bool = True) -> None:
        super().__init__()
        norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps) if has_input_norm else nn.Identity()
        self.input_layernorm: nn.Module = norm
        self.self_attn = HeadAttention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, rows: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        rows = rows + self.self_attn(self.input_layernorm(rows), rotation, attend)
        output: Tensor = rows + self.mlp(self.post_attention_layernorm(rows))
        return output
