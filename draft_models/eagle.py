"""EAGLE-1 and EAGLE-2: a layer that continues the target's last hidden states, and with them its text."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from specdec.features import LAST
from specdec.protocols import Noise, RequestView
from specdec.types import Draft

from .head_drafter import HeadDrafter
from .head_layers import Attend, HeadLayer, Rotary
from .head_network import HeadNetwork
from .head_runner import HeadRunner
from .paged_head import PagedHead, SteppingNetwork


class EagleNetwork(SteppingNetwork):
    """The network of EAGLE-1 and EAGLE-2 (2401.15077, figure 6; 2406.16858): what it ends with is its guess of the
    target's last hidden state, and the target's language model head reads it as such.

    Args:
        config: of its layers, of which the first one has no norm in front.
        has_bias: of the projection that joins embedding and state.

    Example:
        >>> from transformers import LlamaConfig
        >>> network = EagleNetwork(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        ...                                    num_attention_heads=2))
        >>> own_value = lambda layer, queries, keys, values: values
        >>> states, read = network(torch.ones(3, 8), torch.ones(3, 8), torch.arange(3), own_value)
        >>> states.shape, states is read
        (torch.Size([3, 8]), True)
    """

    def __init__(self, config: PretrainedConfig, has_bias: bool = True) -> None:
        super().__init__(config, (LAST,))
        self.num_layers = config.num_hidden_layers
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=has_bias)
        self.layers = nn.ModuleList(HeadLayer(config, i, has_input_norm=i > 0) for i in range(self.num_layers))
        self._rotary = Rotary(config)

    def fused(self, features: Tensor) -> Tensor:  # [..., rows, hidden], as it is
        """The target's last hidden state is what a state is meant to be."""
        return features

    def forward(
        self, embedded: Tensor, states: Tensor, positions: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor]:  # [..., rows, hidden] all
        rotation = self._rotary(positions, states.dtype)
        rows = self.fc(torch.cat((embedded, states), -1))
        for layer in self.layers:
            rows = layer(rows, rotation, attend)
        return rows, rows


class Eagle(HeadDrafter):
    """A drafter that runs an EAGLE head: as a draft model does, but on the target's features and in one layer.

    With `num_tree_nodes` it grows the dynamic tree of EAGLE-2, the best nodes by the head's own probabilities
    (algorithms.md 4.10). The options are those of `TokenDrafter`.

    Args:
        model: the head, in the precision and on the device it shall run in.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> target, head = LlamaForCausalLM(LlamaConfig(**sizes)), EagleNetwork(LlamaConfig(**sizes))
        >>> drafter = Eagle(head, num_speculative_tokens=3)
        >>> import specdec
        >>> prompt = torch.tensor([[3, 4, 5]])
        >>> text = specdec.generate(target, prompt, drafter=drafter, max_new_tokens=8, do_sample=False)
        >>> torch.equal(text, target.generate(prompt, max_new_tokens=8, do_sample=False))
        True
    """

    name = "eagle"
    network_type: ClassVar[type[HeadNetwork]] = EagleNetwork

    def _head_over(self, network: Any) -> HeadRunner:
        return PagedHead(network)

    def _proposals(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        for view in views:
            view.table.filled[self.pool] = max(1, view.table.filled[self.pool])  # row 0 is nothing
        drafts = super()._proposals(views, budgets, noises)
        for view in views:  # rows of drafted tokens hang on the head's own states
            view.table.filled[self.pool] = min(view.table.length + 1, view.table.filled[self.pool])
        return drafts
