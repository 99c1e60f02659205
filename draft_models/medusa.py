"""Medusa: a small head per depth, each of which guesses one of the next tokens from the target's last hidden state."""

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from specdec.cache import PagedKVCache
from specdec.chunk import Chunk, Inputs
from specdec.features import LAST
from specdec.kernels.rows import RequestRows

from .head_network import HeadNetwork
from .head_runner import HeadRunner
from .marginals import Marginals, OnePass


class ResidualBlock(nn.Module):
    """x + silu(linear(x)), which begins as x."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, rows: Tensor) -> Tensor:
        return rows + nn.functional.silu(self.linear(rows))


class MedusaNetwork(HeadNetwork):
    """The heads of Medusa (2401.10774, section 2.1.1): residual blocks, then an output matrix.

    Head j guesses the token behind the j + 1 that follow the row: of the row in front of the pending token, head 0
    guesses what follows the pending one. Published are two layouts: every head has an output matrix of its own, or all
    read the target's language model head.

    Args:
        config: with `hidden_size` and `vocab_size`; the target's own serves.
        num_heads: how many tokens ahead.
        num_layers: residual blocks per head.
        has_outputs: whether every head has an output matrix.

    Example:
        >>> network = MedusaNetwork(PretrainedConfig(hidden_size=8, vocab_size=32), num_heads=3)
        >>> network(torch.ones(5, 8)).shape
        torch.Size([5, 3, 32])
        >>> sorted(network.state_dict())[:3]
        ['medusa_head.0.0.linear.bias', 'medusa_head.0.0.linear.weight', 'medusa_head.0.1.weight']
    """

    def __init__(self, config: PretrainedConfig, num_heads: int, num_layers: int = 1, has_outputs: bool = True) -> None:
        super().__init__(config, (LAST,))
        self.has_outputs = has_outputs
        self.medusa_head = nn.ModuleList()
        for _ in range(num_heads):
            parts: list[nn.Module] = [ResidualBlock(config.hidden_size) for _ in range(num_layers)]
            if has_outputs:
                parts.append(nn.Linear(config.hidden_size, config.vocab_size, bias=False))
            self.medusa_head.append(nn.Sequential(*parts))

    @property
    def depth(self) -> int:
        """A token per head."""
        return len(self.medusa_head)

    def forward(self, features: Tensor, count: int | None = None) -> Tensor:  # [..., hidden] -> [..., heads, vocab]
        """Logits of the first `count` heads; without outputs of their own, what the language model head is to read."""
        return torch.stack([head(features) for head in self.medusa_head[:count]], -2)


class MedusaRows(Marginals):
    """The heads of Medusa at the last row that the target has run."""

    network: MedusaNetwork

    def rows_after(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Tensor:
        """Logits [requests, heads, vocab]."""
        tables = [chunk.table for chunk in chunks if chunk.num_logits]
        if not tables:
            return torch.empty(0)
        features = torch.cat([self.features[table].rows(table.length - 1, table.length) for table in tables])
        features = features.to(device=self.network.device, dtype=self.network.dtype)
        output = None
        if (graphs := self._graphs_over(cache)) is not None:
            output = graphs.run(lambda packed: (self._heads(packed.states), {}), _alone(features), "heads")
        return self._heads(features) if output is None else output[0]

    def _heads(self, features: Tensor | None) -> Tensor:  # [rows, hidden] -> [rows, heads, vocab]
        rows: Tensor = self.network(features, self.depth)
        return rows if self.network.has_outputs else self.vocabulary.outputs(rows)


def _alone(features: Tensor) -> Inputs:
    """Rows that have nothing but features, one per request; they are not stored, and see no others."""
    count = len(features)
    return Inputs([RequestRows(0, 1, 0, None, None, 0, None)] * count, [0] * count, [0] * count, [1] * count, features)


class Medusa(OnePass):
    """A drafter that runs Medusa heads; the options are those of `TokenDrafter`.

    As published it drafts a tree of fixed shape, `speculative_token_tree`, which `growth.best_choices` makes of how
    often each head was right at each rank. With `num_tree_nodes` the tree is the best one by what the heads say.

    Args:
        model: the heads, in the precision and on the device they shall run in.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> target = LlamaForCausalLM(LlamaConfig(**sizes))
        >>> drafter = Medusa(MedusaNetwork(target.config, num_heads=2), speculative_token_tree=[(0,), (1,), (0, 0)])
        >>> import specdec
        >>> prompt = torch.tensor([[3, 4, 5]])
        >>> text = specdec.generate(target, prompt, drafter=drafter, max_new_tokens=8, do_sample=False)
        >>> torch.equal(text, target.generate(prompt, max_new_tokens=8, do_sample=False))
        True
    """

    name = "medusa"
    network_type: ClassVar[type[HeadNetwork]] = MedusaNetwork
    has_rows: ClassVar[bool] = False

    def _head_over(self, network: Any) -> HeadRunner:
        return MedusaRows(network, network.depth, sys.maxsize)
