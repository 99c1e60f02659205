"""Training of Medusa heads: each learns what the target says so many tokens ahead, from one hidden state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from specdec.draft_models.head_network import HeadNetwork
from specdec.draft_models.medusa import MedusaNetwork

from .head_losses import Tally
from .head_recipe import HeadBatch, HeadConfig, Recipe, layer_config


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaConfig(HeadConfig):
    """Of Medusa heads."""

    num_heads: int = 4
    num_layers: int = 1  # residual blocks per head
    own_outputs: bool = False  # an output matrix per head; else all read the target's language model head


class MedusaRecipe(Recipe):
    """The sum of the heads' cross entropies, of decreasing weight (Medusa, 2401.10774, equation 1).

    Head j at row i learns the target's distribution at row i + 1 + j, where the paper has the one token that followed:
    the expectation is the same and the variance less.
    """

    config_type: ClassVar[type[HeadConfig]] = MedusaConfig
    kind, method, layout = "medusa", "medusa", "medusa"
    network: MedusaNetwork
    config: MedusaConfig

    @classmethod
    def network_for(
        cls, target: PreTrainedModel, config: MedusaConfig, draft_tokens: Sequence[int] | None
    ) -> HeadNetwork:
        """Heads of the target's hidden size and vocabulary."""
        sizes = layer_config(LlamaConfig, target, 1, None)
        return MedusaNetwork(sizes, config.num_heads, config.num_layers, config.own_outputs)

    @property
    def depth(self) -> int:
        return self.config.num_heads

    def forward(self, batch: HeadBatch) -> dict[str, Tensor]:
        (texts, rows), weights = self._chain_rows(batch)
        truth = self._truth(batch.last[texts, rows])
        tally = Tally(self.config.decay, self.config.acceptance_weight)
        for depth, head in enumerate(self.network.medusa_head):
            logits = head(batch.last[texts, rows - 1 - depth].to(self.network.dtype))
            tally.add(logits if self.config.own_outputs else self.vocabulary.outputs(logits), truth, weights)
        return self._chain_result(batch, tally, (texts, rows))

    def _begin(self) -> None:
        if self.config.own_outputs:
            heads: Any = self.network.medusa_head
            for head in heads:
                head[-1].weight.copy_(self.target.lm_rows)
