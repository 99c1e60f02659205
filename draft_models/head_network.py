"""What all self-draft heads share: what they read of the target, whose vocabulary they speak, where their rows lie."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from specdec.attention import AttentionStep
from specdec.cache import PagedKVCache
from specdec.chunk import Packed
from specdec.kernels import ops
from specdec.kernels.ops import argmax
from specdec.kernels.rows import Scoring
from specdec.target import PagedModel

from .head_layers import Attend
from .token_drafter import UNKNOWN


class HeadNetwork(nn.Module):
    """A network that drafts from the target's features; what a subclass computes is its own.

    Embedding and language model head are the target's unless the network has some of its own. A language model head of
    its own may know a part of the target's tokens only: its output i is token i + d2t[i].

    Args:
        config: of the network's layers, one of transformers.
        feature_layers: of the target; their outputs are read side by side.
        draft_tokens: the target's tokens that the network's own language model head knows, ascending.

    Example:
        >>> from transformers import LlamaConfig
        >>> network = HeadNetwork(LlamaConfig(vocab_size=9), [0, 2], draft_tokens=[1, 2, 5])
        >>> network.d2t.tolist(), network.t2d.int().tolist()
        ([1, 1, 3], [0, 1, 1, 0, 0, 1, 0, 0, 0])
    """

    embed_tokens: nn.Embedding | None
    lm_head: nn.Linear | None
    d2t: Tensor | None  # [draft vocab] int64
    t2d: Tensor | None  # [vocab] bool: whether the network knows the token
    _place: tuple[nn.Module, str] | None = None  # module and name of a weight
    choices: Sequence[Sequence[int]] | None = None  # rank paths of the tree that it was calibrated for

    def __init__(
        self, config: PretrainedConfig, feature_layers: Sequence[int], draft_tokens: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.config, self.feature_layers = config, tuple(feature_layers)
        self.embed_tokens = self.lm_head = None
        d2t = t2d = None
        if draft_tokens is not None:
            known = torch.tensor(draft_tokens, device="cpu")  # also where a network is only outlined
            if not len(known) or not (
                0 <= known[0] and known[-1] < config.vocab_size and bool((known.diff() > 0).all())
            ):
                raise ValueError(
                    f"expected ascending draft_tokens below the vocabulary of {config.vocab_size}, got "
                    f"{list(draft_tokens)[:8]}; sort them"
                )
            d2t = known - torch.arange(len(known), device="cpu")
            t2d = torch.zeros(config.vocab_size, dtype=torch.bool, device="cpu").index_fill_(0, known, True)
        self.register_buffer("d2t", d2t)
        self.register_buffer("t2d", t2d)

    @property
    def depth(self) -> int | None:
        """How many tokens it can draft; None if it goes on as long as it is asked to."""
        return None

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self._any_weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are kept in."""
        return self._any_weight.dtype

    @property
    def _any_weight(self) -> Tensor:
        """Asked for at every pass, so where it lies is looked up once."""
        if self._place is None:
            self._place = next((m, name) for m in self.modules() for name, p in m._parameters.items() if p is not None)
        module, name = self._place
        weight = module._parameters[name]
        assert weight is not None
        return weight


class Vocabulary:
    """Embedding and logits of a head on its target, in the target's vocabulary.

    Raises:
        ValueError: the head was made for a target of another size.
    """

    def __init__(self, network: HeadNetwork, target: PagedModel) -> None:
        self.size, self._network = target.vocab_size, network
        self._embedding: nn.Module = network.embed_tokens or target.model.get_input_embeddings()
        self._lm_head: nn.Module = network.lm_head or target.model.get_output_embeddings()
        weight: Any = self._embedding.weight
        self.num_embeddings: int = weight.shape[0]
        width: int = weight.shape[1]
        if width != network.config.hidden_size:
            raise ValueError(
                f"expected a head of the target's hidden size {width}, got {network.config.hidden_size}; "
                "take the head that was trained for this target"
            )
        self._known: Tensor | None = None  # the target's token of each output, if they are not the same
        if network.d2t is not None:
            self._known = network.d2t + torch.arange(len(network.d2t), device=network.d2t.device)
            if int(self._known[-1]) >= self.size:
                raise ValueError(
                    f"expected a head that drafts tokens below the target's vocabulary of {self.size}, got "
                    f"{int(self._known[-1])}; take the head that was trained for this target"
                )

    @property
    def weights(self) -> list[Tensor]:
        """Of embedding and language model head."""
        modules: tuple[Any, Any] = self._embedding, self._lm_head
        return [module.weight for module in modules]

    def is_same(self, other: "Vocabulary") -> bool:
        """Whether the other one serves as well."""
        known, others = self._known, other._known
        if known is None or others is None:
            is_known = known is others
        else:
            is_known = known.device == others.device and torch.equal(known, others)
        mine, theirs = ((each.size, each._embedding, each._lm_head) for each in (self, other))
        return is_known and mine == theirs

    def embedded(self, tokens: Tensor) -> Tensor:  # [rows] -> [rows, hidden]
        """The tokens as the network reads them."""
        embedded: Tensor = self._embedding(tokens)
        return embedded.to(device=self._network.device, dtype=self._network.dtype)

    def outputs(self, rows: Tensor) -> Tensor:  # [..., hidden] -> [..., draft vocab]
        """Logits of the tokens that the network knows."""
        weight: Any = self._lm_head.weight
        logits: Tensor = self._lm_head(rows.to(device=weight.device, dtype=weight.dtype))
        return logits

    def logits(self, rows: Tensor) -> Tensor:  # [rows, hidden] -> [rows, size]
        """Logits of the target's tokens; those that the network does not know are all but impossible."""
        return self.widened(self.outputs(rows))

    def likeliest(self, logits: Tensor) -> Tensor:  # [..., draft vocab] -> [...] int64
        """The target's tokens of the largest logits."""
        return argmax(self.widened(logits)) if self._known is None else self._known.take(argmax(logits))

    def widened(self, logits: Tensor) -> Tensor:  # [..., draft vocab] -> [..., size]
        """Of the tokens that the network knows, to all of the target's."""
        if self._known is not None:
            return logits.new_full((*logits.shape[:-1], self.size), UNKNOWN).index_copy_(-1, self._known, logits)
        surplus = logits.shape[-1] - self.size
        if surplus > 0:
            return logits[..., : self.size]
        return nn.functional.pad(logits, (0, -surplus), value=UNKNOWN) if surplus else logits


def attention_over(cache: PagedKVCache, pool: str, packed: Packed, scorings: Sequence[Scoring]) -> Attend:
    """Attention of packed rows over the pages of a pool, in which their keys and values are stored.

    Args:
        scorings: how each layer scores; looked up when the layer attends.
    """
    step = AttentionStep(cache.pool(pool), packed, {})

    def attend(layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:  # [rows, heads, dim] all
        stored = step.store(layer, keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
        query, scoring = queries.transpose(0, 1)[None], scorings[layer]
        return ops.tree_attention(query, stored.keys, stored.values, packed.rows, scoring, None, stored.scales)[0]

    return attend


def scorings_of(config: PretrainedConfig, num_layers: int) -> list[Scoring]:
    """How each layer scores: some have a sliding window.

    Example:
        >>> from transformers import Qwen3Config
        >>> kinds = ["sliding_attention", "full_attention"]
        >>> config = Qwen3Config(num_hidden_layers=2, layer_types=kinds, use_sliding_window=True, sliding_window=64)
        >>> [scoring.window for scoring in scorings_of(config, 2)]
        [64, None]
    """
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * num_layers
    windows = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds[:num_layers]]
    return [Scoring(scaling=None, window=window) for window in windows]
