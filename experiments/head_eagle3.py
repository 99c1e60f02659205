"""Training of EAGLE-3 heads, with training-time test: the head learns on its own states, as it will draft."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel

from specdec.draft_models.eagle3 import Eagle3Network, Norms
from specdec.draft_models.head_network import HeadNetwork

from .head_attention import Unrolled
from .head_losses import Tally
from .head_recipe import HeadBatch, HeadConfig, Recipe, default_layers, layer_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle3Config(HeadConfig):
    """Of an EAGLE-3 head."""

    feature_layers: tuple[int, ...] | None = None  # of the target, 0 is the first; None: a low, a middle and a high one
    draft_vocab_size: int | None = None  # the most frequent tokens of the responses; None: all
    intermediate_size: int | None = None  # of the MLP; None: as the target's
    unroll: int = 6  # steps of training-time test, the first of which is on the target's features


class Eagle3Recipe(Recipe):
    """Soft cross entropy over the steps of training-time test (EAGLE-3, 2503.01840, section 3.2).

    Row i of the first step reads token i + 1 and the features of row i, and says what follows; row i of step s reads
    token i + 1 + s and the state that row i of the step before ended with.
    """

    config_type: ClassVar[type[HeadConfig]] = Eagle3Config
    kind, method, layout = "eagle3", "eagle3", "speculators"
    network: Eagle3Network
    config: Eagle3Config

    @classmethod
    def network_for(
        cls, target: PreTrainedModel, config: Eagle3Config, draft_tokens: Sequence[int] | None
    ) -> HeadNetwork:
        """One layer of the target's sizes, with the norms that keep states steady from step to step (2605.09992)."""
        sizes = layer_config(LlamaConfig, target, 1, config.intermediate_size)
        layers = config.feature_layers or default_layers(target)
        return Eagle3Network(sizes, layers, draft_tokens, Norms(fc_norm=True, norm_output=True))

    @property
    def depth(self) -> int:
        return self.config.unroll

    def forward(self, batch: HeadBatch) -> dict[str, Tensor]:
        (texts, rows), weights = self._chain_rows(batch)
        truth = self._truth(batch.last[texts, rows])
        tally = Tally(self.config.decay, self.config.acceptance_weight)
        embedded = self.vocabulary.embedded(batch.tokens)
        states, attend = self.network.fused(batch.features.to(self.network.dtype)), Unrolled()
        length = batch.tokens.shape[1] - 2  # the last row says what is not in the text
        for step in range(self.depth):
            count = length - step
            positions = torch.arange(step, length, device=states.device)
            states, read = self.network(embedded[:, step + 1 : length + 1], states[:, :count], positions, attend)
            tally.add(self.vocabulary.outputs(read[texts, rows - 1 - step]), truth, weights)
        return self._chain_result(batch, tally, (texts, rows))
