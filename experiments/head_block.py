"""Training of block drafters: blocks of masked tokens at random places of the texts, filled in at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config

from specdec.draft_models.block_network import BlockNetwork, BlockShape, Correction
from specdec.draft_models.head_network import HeadNetwork

from .head_attention import Blocks
from .head_losses import Tally, expected_tokens, sequence_weights
from .head_recipe import HeadBatch, HeadConfig, Recipe, default_layers, layer_config


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig(HeadConfig):
    """Of a block drafter."""

    decay: float = exp(-1 / 4)  # DFlash, 2602.06036
    feature_layers: tuple[int, ...] | None = None  # of the target, 0 is the first; None: a low, a middle and a high one
    draft_vocab_size: int | None = None  # the most frequent tokens of the responses; None: the target's own head
    intermediate_size: int | None = None  # of the MLPs; None: as the target's
    num_layers: int = 2
    block_size: int = 8  # the pending token and the masked ones
    mask_token_id: int | None = None  # what masked tokens are read as; None: the rarest token of the responses
    from_anchor: bool = False  # whether the row of the pending token drafts, too
    markov_rank: int = 0  # of the correction by the token in front; 0: none
    confidence: bool = False  # whether a confidence head learns, too
    num_anchors: int = 32  # blocks per text and step


class BlockRecipe(Recipe):
    """The masked-block loss of DFlash (2602.06036), with the Markov and confidence heads of DSpark (2607.05147).

    A block with anchor i is the token i + 1, which is pending, and masked ones; it sees the features of rows up to i.
    """

    config_type: ClassVar[type[HeadConfig]] = BlockConfig
    kind, method, layout = "block", "dflash", "speculators"
    network: BlockNetwork
    config: BlockConfig

    @classmethod
    def network_for(
        cls, target: PreTrainedModel, config: BlockConfig, draft_tokens: Sequence[int] | None
    ) -> HeadNetwork:
        """Layers of the target's sizes, of Qwen3's kind."""
        sizes = layer_config(Qwen3Config, target, config.num_layers, config.intermediate_size)
        shape = BlockShape(config.block_size, config.mask_token_id or 0, config.from_anchor)
        layers = config.feature_layers or default_layers(target)
        kind: Correction = "vanilla"
        markov = (config.markov_rank, kind) if config.markov_rank else None
        return BlockNetwork(sizes, layers, shape, draft_tokens, markov, bool(config.confidence))

    @property
    def depth(self) -> int:
        return self.network.depth

    def forward(self, batch: HeadBatch) -> dict[str, Tensor]:
        anchors, is_anchor = self._anchors(batch)
        texts, last_row = torch.arange(len(anchors), device=anchors.device)[:, None], batch.tokens.shape[1] - 2
        tally, counted, confidence = Tally(self.config.decay, self.config.acceptance_weight), [], []
        for depth, hidden in enumerate(self._hidden(batch, anchors)):
            rows = (anchors + depth + 1).clamp_max(last_row)
            is_counted = batch.is_response[texts, rows + 1] & is_anchor & (anchors + depth < last_row)
            logits, tokens = self.vocabulary.outputs(hidden), batch.tokens[texts, rows].flatten()
            if self.network.markov_head is not None:
                logits = logits + self.network.markov_head(tokens, hidden)
            truth, weights = self._truth(batch.last[texts, rows].flatten(0, 1)), sequence_weights(is_counted).flatten()
            found = tally.add(logits, truth, weights)
            counted.append(is_counted.flatten())
            if self.network.confidence_head is not None:
                said = self.network.confidences(hidden, tokens).to(found.acceptance.dtype)
                confidence.append((F.binary_cross_entropy(said, found.acceptance, reduction="none") * weights).sum())
        expected = expected_tokens(torch.stack(tally.matches, -1), torch.stack(counted).all(0))
        loss = tally.loss + torch.stack(confidence).mean() if confidence else tally.loss
        return {"loss": loss, "agreement": tally.agreement, "expected": expected}

    def _anchors(self, batch: HeadBatch) -> tuple[Tensor, Tensor]:  # [b, blocks] int64, bool
        """Random rows behind which the target's response goes on for at least one drafted token."""
        is_possible = batch.is_response[:, 2:]
        generator = torch.Generator().manual_seed(batch.seed)
        scores = torch.rand(is_possible.shape, generator=generator).to(is_possible.device)
        count = min(self.config.num_anchors, is_possible.shape[1])
        best = scores.masked_fill(~is_possible, -1.0).topk(count)
        return best.indices, best.values >= 0

    def _hidden(self, batch: HeadBatch, anchors: Tensor) -> Tensor:  # [b, blocks] -> [depth, b * blocks, hidden]
        """What is drafted from, depth by depth."""
        size, count = self.config.block_size, anchors.shape[1]
        context_positions = torch.arange(batch.tokens.shape[1], device=anchors.device)
        context = self.network.context(batch.features.to(self.network.dtype), context_positions)
        tokens = anchors.new_full((*anchors.shape, size), self.network.shape.mask_token_id)
        tokens[..., 0] = batch.tokens.gather(1, anchors + 1)
        positions = anchors[..., None] + torch.arange(1, size + 1, device=anchors.device)
        embedded = self.vocabulary.embedded(tokens.flatten(1))
        hidden: Tensor = self.network(embedded, positions.flatten(1), Blocks(context, anchors))
        drafting: Tensor = hidden.unflatten(1, (count, size)).flatten(0, 1)[:, size - self.depth :]
        return drafting.transpose(0, 1)
