"""EAGLE-3: a layer that reads several layers of the target at once, and its own states further on."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .eagle import Eagle
from .head_layers import Attend, GatedMLP, HeadAttention, HeadLayer, Rotary, Rotation
from .paged_head import SteppingNetwork


@dataclass(frozen=True, slots=True)
class Norms:
    """Where a head of EAGLE-3 norms; the names are those of published configs."""

    norm_before_residual: bool = False  # the residual goes past the norm of the state, or begins behind it
    norm_before_fc: bool = False  # of the features side by side
    fc_norm: bool = False  # of the features of each layer
    norm_output: bool = False  # the state handed on is the normed one (EAGLE 3.1; Attention Drift, 2605.09992)


class Eagle3Layer(nn.Module):
    """A decoder layer that reads embedding and state side by side, and adds to the state."""

    def __init__(self, config: PretrainedConfig, norm_before_residual: bool) -> None:
        super().__init__()
        self.norm_before_residual = norm_before_residual
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hidden_norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = HeadAttention(config, 0, input_size=2 * config.hidden_size)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(config)

    def forward(self, embedded: Tensor, states: Tensor, rotation: Rotation, attend: Attend) -> Tensor:
        normed = self.hidden_norm(states)
        rows = torch.cat((self.input_layernorm(embedded), normed), -1)
        states = (normed if self.norm_before_residual else states) + self.self_attn(rows, rotation, attend)
        output: Tensor = states + self.mlp(self.post_attention_layernorm(states))
        return output


class Eagle3Network(SteppingNetwork):
    """The network of EAGLE-3 (2503.01840, section 3.1).

    Args:
        config: of its layers; `num_hidden_layers` is 1 in published heads.
        feature_layers: of the target, a low, a middle and a high one, say.
        draft_tokens: the target's tokens that it may draft; None for all.
        norms: where it norms.
        has_embeddings: whether it has embeddings of its own.
        target_size: hidden size of the target, if it is another.

    Example:
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                      num_attention_heads=2)
        >>> network = Eagle3Network(config, feature_layers=[0, 2, 3], draft_tokens=range(2, 12))
        >>> network.fused(torch.ones(5, 24)).shape, network.lm_head.out_features
        (torch.Size([5, 8]), 10)
    """

    lm_head: nn.Linear

    def __init__(
        self,
        config: PretrainedConfig,
        feature_layers: Sequence[int],
        draft_tokens: Sequence[int] | None = None,
        norms: Norms | None = None,
        has_embeddings: bool = False,
        target_size: int | None = None,
    ) -> None:
        super().__init__(config, feature_layers, draft_tokens)
        norms, size, eps = norms or Norms(), config.hidden_size, config.rms_norm_eps
        width, count = target_size or size, len(self.feature_layers)
        self.norms, self.num_layers = norms, config.num_hidden_layers
        if has_embeddings:
            self.embed_tokens = nn.Embedding(config.vocab_size, size)
        self.input_norm = nn.RMSNorm(count * width, eps) if norms.norm_before_fc else None
        self.fc_norm = nn.ModuleList(nn.RMSNorm(width, eps) for _ in range(count)) if norms.fc_norm else None
        self.fc = nn.Linear(count * width, size, bias=False)
        layers: list[nn.Module] = [Eagle3Layer(config, norms.norm_before_residual)]
        self.layers = nn.ModuleList(layers + [HeadLayer(config, i) for i in range(1, self.num_layers)])
        self.norm = nn.RMSNorm(size, eps)
        self.lm_head = nn.Linear(size, config.vocab_size if draft_tokens is None else len(draft_tokens), bias=False)
        self._rotary = Rotary(config)

    def fused(self, features: Tensor) -> Tensor:  # [..., rows, layers * target size] -> [..., rows, hidden]
        """The outputs of all feature layers as one state."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            parts = zip(self.fc_norm, features.chunk(len(self.fc_norm), -1), strict=True)
            features = torch.cat([norm(part) for norm, part in parts], -1)
        fused: Tensor = self.fc(features)
        return fused

    def forward(
        self, embedded: Tensor, states: Tensor, positions: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor]:  # [..., rows, hidden] all
        rotation = self._rotary(positions, states.dtype)
        first, *others = self.layers
        states = first(embedded, states, rotation, attend)
        for layer in others:
            states = layer(states, rotation, attend)
        read = self.norm(states)
        return (read if self.norms.norm_output else states), read


class Eagle3(Eagle):
    """A drafter that runs an EAGLE-3 head; the options are those of `TokenDrafter`.

    Args:
        model: the head, in the precision and on the device it shall run in.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
        >>> head = Eagle3Network(LlamaConfig(**{**sizes, "num_hidden_layers": 1}), feature_layers=[0, 1, 2])
        >>> drafter = {"method": "eagle3", "model": head, "num_speculative_tokens": 4, "num_tree_nodes": 8}
        >>> import specdec
        >>> target, prompt = LlamaForCausalLM(LlamaConfig(**sizes)), torch.tensor([[3, 4, 5]])
        >>> text = specdec.generate(target, prompt, drafter=drafter, max_new_tokens=8, do_sample=False)
        >>> torch.equal(text, target.generate(prompt, max_new_tokens=8, do_sample=False))
        True
    """

    name = "eagle3"
    network_type = Eagle3Network
