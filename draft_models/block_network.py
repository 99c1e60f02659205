"""The network of block drafters: it fills in a block of masked tokens at once, reading the target's features as K/V."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .head_layers import Attend, HeadAttention, HeadLayer, Rotary
from .head_network import HeadNetwork

Correction: TypeAlias = Literal["vanilla", "gated"]
KeysValues: TypeAlias = tuple[Tensor, Tensor]  # [..., rows, kv_heads, dim] each


@dataclass(frozen=True, slots=True)
class BlockShape:
    """What a block looks like; the names are those of published configs."""

    block_size: int  # the pending token and the masked ones
    mask_token_id: int
    sample_from_anchor: bool = False  # whether the row of the pending token drafts, too, or only those of masked ones
    causal_layers: tuple[int, ...] = ()  # in which a row sees only those of its block that are in front of it


class MarkovHead(nn.Module):
    """A correction of a row's logits by the token in front of it, W2 W1[token] (DSpark, 2607.05147).

    Args:
        sizes: of the target's vocabulary, of what the network drafts, of the hidden state.
        rank: of the correction.
        kind: "gated" if the row's hidden state says how much of it counts.

    Example:
        >>> MarkovHead((32, 10, 8), rank=4, kind="gated")(torch.tensor([3, 5]), torch.ones(2, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, sizes: tuple[int, int, int], rank: int, kind: Correction = "vanilla") -> None:
        super().__init__()
        vocab_size, draft_size, hidden_size = sizes
        self.markov_w1 = nn.Embedding(vocab_size, rank)
        self.markov_w2 = nn.Linear(rank, draft_size, bias=False)
        self.gate_proj = nn.Linear(hidden_size + rank, rank) if kind == "gated" else None

    def embedded(self, tokens: Tensor) -> Tensor:  # [...] -> [..., rank]
        """W1 of these tokens, of its last one in place of those it lacks: a target may have more."""
        embedded: Tensor = self.markov_w1(tokens.clamp(max=self.markov_w1.num_embeddings - 1))
        return embedded

    def forward(self, tokens: Tensor, hidden: Tensor) -> Tensor:  # [...], [..., hidden] -> [..., draft vocab]
        """What is added to the logits of rows behind these tokens."""
        latent = self.embedded(tokens)
        if self.gate_proj is not None:
            latent = torch.sigmoid(self.gate_proj(torch.cat((hidden, latent), -1))) * latent
        bias: Tensor = self.markov_w2(latent)
        return bias


class ConfidenceHead(nn.Module):
    """How likely a row's token is to be accepted if those in front of it were (DSpark, 2607.05147), as a logit.

    Example:
        >>> ConfidenceHead(8)(torch.ones(3, 8)).shape
        torch.Size([3])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, 1)

    def forward(self, rows: Tensor) -> Tensor:  # [..., size] -> [...]
        logits: Tensor = self.proj(rows)[..., 0]
        return logits


class BlockNetwork(HeadNetwork):
    """The network of DFlash (2602.06036), with the corrections of DSpark (2607.05147) if it has some.

    A block is the pending token and masked ones behind it. Its rows see each other, and in every layer keys and values
    that are made of the target's features at all rows in front of it.

    Args:
        config: of its layers, of Qwen3's kind as published.
        feature_layers: of the target.
        shape: of its blocks.
        draft_tokens: the target's tokens that it may draft, by a language model head of its own; None for the target's.
        markov: rank and kind of the Markov head, if it has one.
        confidence: whether it has a confidence head: "markov" for one that reads the Markov embedding, too.

    Example:
        >>> from transformers import Qwen3Config
        >>> config = Qwen3Config(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, head_dim=4,
        ...                      num_attention_heads=2, num_key_value_heads=2)
        >>> network = BlockNetwork(config, [0, 2], BlockShape(block_size=4, mask_token_id=31))
        >>> context = network.context(torch.ones(9, 16), torch.arange(9))
        >>> def attend(layer, queries, keys, values):  # not at all what it should see
        ...     return values + context[layer][1][:4]
        >>> network(torch.ones(4, 8), torch.arange(9, 13), attend).shape
        torch.Size([4, 8])
    """

    def __init__(
        self,
        config: PretrainedConfig,
        feature_layers: Sequence[int],
        shape: BlockShape,
        draft_tokens: Sequence[int] | None = None,
        markov: tuple[int, Correction] | None = None,
        confidence: bool | Literal["markov"] = False,
    ) -> None:
        super().__init__(config, feature_layers, draft_tokens)
        size, eps = config.hidden_size, config.rms_norm_eps
        self.shape, self.num_layers = shape, config.num_hidden_layers
        self.fc = nn.Linear(len(self.feature_layers) * size, size, bias=False)
        self.hidden_norm = nn.RMSNorm(size, eps)
        self.layers = nn.ModuleList(HeadLayer(config, i) for i in range(self.num_layers))
        self.norm = nn.RMSNorm(size, eps)
        draft_size = config.vocab_size if draft_tokens is None else len(draft_tokens)
        if draft_tokens is not None:
            self.lm_head = nn.Linear(size, draft_size, bias=False)
        self.markov_head = MarkovHead((config.vocab_size, draft_size, size), *markov) if markov else None
        self.confidence_head: ConfidenceHead | None = None
        if confidence == "markov" and markov is None:
            raise ValueError("expected a Markov head beside a confidence head that reads it, got none; pass markov")
        if confidence:
            self.confidence_head = ConfidenceHead(size + (markov[0] if markov and confidence == "markov" else 0))
        self._rotary = Rotary(config)

    @property
    def depth(self) -> int:
        """Tokens that it drafts in one pass."""
        return self.shape.block_size - (not self.shape.sample_from_anchor)

    def context(self, features: Tensor, positions: Tensor) -> list[KeysValues]:
        """Keys and values of each layer, made of the target's features [..., rows, layers * size], at positions."""
        rows = self.hidden_norm(self.fc(features))
        rotation = self._rotary(positions, rows.dtype)
        attentions: list[HeadAttention] = [layer.self_attn for layer in self.layers]  # type: ignore[misc]
        return [attention.keys_values(rows, rotation) for attention in attentions]

    def forward(self, embedded: Tensor, positions: Tensor, attend: Attend) -> Tensor:  # [..., rows, hidden] -> same
        """What the language model head reads of the rows of blocks; `attend` knows the context, too."""
        rotation = self._rotary(positions, embedded.dtype)
        rows = embedded
        for layer in self.layers:
            rows = layer(rows, rotation, attend)
        output: Tensor = self.norm(rows)
        return output

    def confidences(self, hidden: Tensor, tokens: Tensor) -> Tensor:  # [..., hidden], [...] -> [...]
        """The probability that the tokens of these rows are accepted, from the tokens in front of them."""
        assert self.confidence_head is not None
        if self.markov_head is not None and self.confidence_head.proj.in_features > hidden.shape[-1]:
            hidden = torch.cat((hidden, self.markov_head.embedded(tokens)), -1)
        return torch.sigmoid(self.confidence_head(hidden))
