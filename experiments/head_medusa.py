"""Training of Medusa heads: each learns what the target says so many tokens ahead, from one hidden state."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from specdec.draft_models.head_network import HeadNetwork
from specdec.draft_models.medusa import MedusaNetwork
from specdec.growth import best_choices

from .head_batches import batch_of
from .head_features import Features
from .head_losses import Tally
from .head_recipe import HeadBatch, HeadConfig, Recipe, layer_config
from .head_samples import Samples

RANKS = 10  # tokens of a head that a calibrated tree may hold
CALIBRATED, TOGETHER = 256, 16  # texts that calibrate it, and how many at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class MedusaConfig(HeadConfig):
    """Of Medusa heads."""

    num_heads: int = 4
    num_layers: int = 1  # residual blocks per head
    num_tree_nodes: int = 24  # of the tree that the heads are calibrated for when they are trained; 0: none
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
        for depth in range(self.depth):
            tally.add(self._guesses(depth, batch.last[texts, rows - 1 - depth]), truth, weights)
        return self._chain_result(batch, tally, (texts, rows))

    @torch.no_grad()
    def rank_counts(self, batch: HeadBatch) -> tuple[Tensor, Tensor]:  # [heads, RANKS], [heads]
        """How often the token of each rank of each head was the target's, and of how many rows: those where all heads
        in front had the target's among their ranks."""
        says_response = batch.is_response[:, 1:]
        count = max(0, says_response.shape[1] - self.depth)
        is_begin = torch.stack([says_response[:, d : d + count] for d in range(1 + self.depth)]).all(0)
        texts, rows = is_begin.nonzero(as_tuple=True)
        hits, totals = torch.zeros(self.depth, RANKS), torch.zeros(self.depth)
        for depth in range(self.depth):
            said = self.target.logits(batch.last[texts, rows + 1 + depth]).max(-1).indices
            if self.config.temperature:
                said = batch.tokens[texts, rows + 2 + depth]
            is_hit = self._guesses(depth, batch.last[texts, rows]).topk(RANKS).indices == said[:, None]
            hits[depth], totals[depth] = is_hit.sum(0).cpu(), len(rows)
            texts, rows = texts[is_hit.any(-1)], rows[is_hit.any(-1)]
        return hits, totals

    def _guesses(self, depth: int, last: Tensor) -> Tensor:  # [n, hidden] -> [n, vocab]
        rows: Tensor = self.network.medusa_head[depth](last.to(self.network.dtype))
        return rows if self.config.own_outputs else self.vocabulary.outputs(rows)

    def _begin(self) -> None:
        if self.config.own_outputs:
            heads: Any = self.network.medusa_head
            for head in heads:
                head[-1].weight.copy_(self.target.lm_rows)


def calibrated_choices(
    recipe: MedusaRecipe, samples: Samples, features: Features, num_nodes: int
) -> list[tuple[int, ...]]:
    """The tree that is expected to be accepted deepest on such texts, as rank paths (Medusa, 2401.10774, 2.3.3).

    Example:
        >>> from specdec import load_embedded
        >>> from specdec.methods import paged
        >>> from specdec.experiments.head_features import FrozenTarget, online
        >>> target = FrozenTarget(paged(load_embedded()[0]), layers=[-1])
        >>> config = MedusaConfig(num_heads=2)
        >>> recipe = MedusaRecipe(MedusaRecipe.network_for(target.paged.model, config, None).bfloat16(), target, config)
        >>> samples = Samples.of([[5, 6, 7, 8, 9]] * 4, prompt_lengths=[1] * 4)
        >>> len(calibrated_choices(recipe, samples, online(target), num_nodes=4)) <= 4
        True
    """
    device, count = recipe.network.device, min(CALIBRATED, len(samples))
    parts = [range(first, min(first + TOGETHER, count)) for first in range(0, count, TOGETHER)]
    counts = [recipe.rank_counts(batch_of(samples, numbers, features, device, seed=0)) for numbers in parts]
    hits, totals = (sum(part[1:], part[0]) for part in zip(*counts, strict=True))
    return best_choices((hits / totals.clamp_min(1)[:, None]).tolist(), num_nodes)
