"""What every kind of head has in training: a config, a batch of texts, a network for the target, and its losses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from specdec.draft_models.head_layers import BOUND_TO_LENGTH, head_dim_of
from specdec.draft_models.head_network import HeadNetwork, Vocabulary

from .head_features import FrozenTarget
from .head_losses import Tally, Truth, expected_tokens, sequence_weights, truth_of

DEFAULT_ROTATION = {"rope_type": "default", "rope_theta": 10000.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """How a head is trained, whatever its kind. Lengths in tokens."""

    epochs: float = 3.0  # passes over the texts
    batch_size: int = 16  # texts per step, of all processes together
    sequence_length: int = 512  # texts are cut there
    learning_rate: float = 8e-3  # of Muon, for matrices, after the warm-up; then it falls along a cosine
    adamw_rate: float = 3e-3  # of AdamW, for what belongs to the vocabulary and for vectors
    warmup_share: float = 0.04  # of all steps
    weight_decay: float = 0.05  # of matrices
    temperature: float = 1.0  # at which the target is served; 0: greedily
    decay: float = 0.8  # what a depth weighs, compared with the one above
    acceptance_weight: float = 0.3  # share of the acceptance-aware loss; the rest is cross entropy
    num_measurements: int = 20  # of tokens per step, spread evenly over the run
    patience: int = 5  # so many measurements in a row that are no better end the run; 0: none do
    seed: int = 0


class HeadBatch(NamedTuple):
    """Texts to learn on, padded on the right, and what the target says about them."""

    tokens: Tensor  # [b, t] int64
    is_response: Tensor  # [b, t] bool: whether the target wrote the token; False for padding
    features: Tensor  # [b, t, layers * hidden]
    last: Tensor  # [b, t, hidden]
    seed: int  # of what is drawn for this step


class Recipe(nn.Module):
    """A head in training. Called with a batch it returns the loss, and figures that describe it; `head_run.recipe_of`
    makes one of a config.

    Args:
        network: the head.
        target: whose embeddings and language model head it may borrow.
        config: how it is trained.
    """

    config_type: ClassVar[type[HeadConfig]]
    kind: ClassVar[str]  # what `specdec train` calls it
    method: ClassVar[str]  # the name of the drafter that runs it
    layout: ClassVar[str]  # in which it is written

    def __init__(self, network: HeadNetwork, target: FrozenTarget, config: Any) -> None:
        super().__init__()
        self.network, self.target, self.config = network, target, config
        self.vocabulary = Vocabulary(network, target.paged)
        self._known: Tensor | None = None
        if network.d2t is not None:
            self._known = network.d2t + torch.arange(len(network.d2t), device=network.d2t.device)
        with torch.no_grad():
            self._begin()

    @classmethod
    def network_for(cls, target: PreTrainedModel, config: Any, draft_tokens: Sequence[int] | None) -> HeadNetwork:
        """The untrained network of this config, which may draft these tokens; None for all."""
        raise NotImplementedError

    @property
    def depth(self) -> int:
        """How many tokens ahead are learnt."""
        raise NotImplementedError

    @property
    def shortest(self) -> int:
        """Tokens of a text of which every depth learns something."""
        return self.depth + 2

    def forward(self, batch: HeadBatch) -> dict[str, Tensor]:
        """`loss`, `agreement` [depth], and `expected`: tokens per step of greedy chains, estimated."""
        raise NotImplementedError

    def _begin(self) -> None:
        """A language model head of the network's own begins as the target's rows of the same tokens."""
        if self.network.lm_head is not None:
            rows = self.target.lm_rows
            if self._known is not None:
                rows = rows[self._known.to(rows.device)]
            self.network.lm_head.weight.copy_(rows)

    def _truth(self, last: Tensor) -> Truth:  # [n, hidden]
        known = None if self._known is None else self._known.to(last.device)
        return truth_of(self.target.logits(last), known, self.config.temperature or 1.0)

    def _chain_rows(self, batch: HeadBatch) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Rows (text, row) [n] at which the target says a token of its response, and what they weigh; so far from the
        beginning that a chain of every depth can end there."""
        says_response = batch.is_response[:, 1:].clone()
        says_response[:, : self.depth] = False
        texts, rows = says_response.nonzero(as_tuple=True)
        return (texts, rows), sequence_weights(says_response)[texts, rows]

    def _chain_result(self, batch: HeadBatch, tally: Tally, places: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The result for a tally over `_chain_rows`, in which depth s ends with the chain from s + 1 rows above."""
        shape, (texts, rows) = batch.tokens.shape, places
        ends = torch.zeros(shape, dtype=torch.bool, device=texts.device)
        ends[texts, rows] = True
        count = max(0, shape[1] - self.depth - 1)
        matches, is_anchor = [], torch.ones(shape[0], count, dtype=torch.bool, device=texts.device)
        for depth, match in enumerate(tally.matches):
            at_row = torch.zeros_like(ends)
            at_row[texts, rows] = match
            matches.append(at_row[:, depth + 1 : depth + 1 + count])
            is_anchor &= ends[:, depth + 1 : depth + 1 + count]
        expected = expected_tokens(torch.stack(matches, -1).flatten(0, 1), is_anchor.flatten())
        return {"loss": tally.loss, "agreement": tally.agreement, "expected": expected}


def layer_config(
    kind: Callable[..., PretrainedConfig], target: PreTrainedModel, num_layers: int, intermediate_size: int | None
) -> PretrainedConfig:
    """The config of head layers that have the target's sizes, and its rotation if a head can use it.

    Example:
        >>> import specdec
        >>> from transformers import LlamaConfig
        >>> config = layer_config(LlamaConfig, specdec.load_embedded()[0], num_layers=1, intermediate_size=512)
        >>> config.hidden_size, config.intermediate_size, config.num_key_value_heads
        (256, 512, 2)
    """
    sizes: Any = target.config.get_text_config(decoder=True)
    parameters = getattr(sizes, "rope_parameters", None) or {}
    is_usable = "rope_type" in parameters and parameters["rope_type"] not in BOUND_TO_LENGTH
    return kind(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        intermediate_size=intermediate_size or getattr(sizes, "intermediate_size", None) or 4 * sizes.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=getattr(sizes, "num_key_value_heads", None) or sizes.num_attention_heads,
        head_dim=head_dim_of(sizes),
        max_position_embeddings=sizes.max_position_embeddings,
        rms_norm_eps=getattr(sizes, "rms_norm_eps", None) or 1e-6,
        rope_parameters=dict(parameters if is_usable else DEFAULT_ROTATION),
        tie_word_embeddings=False,
    )


def default_layers(target: PreTrainedModel) -> tuple[int, ...]:
    """A low, a middle and a high layer: those whose outputs EAGLE-3 reads (2503.01840, section 3.1).

    Example:
        >>> import specdec
        >>> default_layers(specdec.load_embedded()[0])  # of 14
        (1, 6, 10)
    """
    count: int = target.config.get_text_config(decoder=True).num_hidden_layers
    return tuple(sorted({min(1, count - 1), max(0, count // 2 - 1), max(0, count - 4)}))
