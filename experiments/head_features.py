"""What a frozen target says and thinks about texts: the outputs of some layers at all rows, and logits from them."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from specdec.anatomy import layer_of
from specdec.features import LAST
from specdec.target import PagedModel

NUM_LOOKED_AT = 64  # numbers of each weight, to tell models apart
PROBE = 16  # tokens on which the logits are compared
TOLERANCE = 0.05  # of the largest logit: what rounding to bfloat16 may do to them


class TargetRows(NamedTuple):
    """The target at rows of texts."""

    features: Tensor  # [..., layers * hidden], of the feature layers
    last: Tensor  # [..., hidden], what its language model head reads


class FrozenTarget:
    """A target that is read and not trained.

    Args:
        target: the model, whose weights are frozen from now on.
        layers: whose outputs are wanted, side by side and in this order.

    Raises:
        ValueError: its logits are not what its language model head makes of its last hidden states.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> config = LlamaConfig(vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=3,
        ...                      num_attention_heads=2)
        >>> target = FrozenTarget(PagedModel(LlamaForCausalLM(config)), layers=[0, 2])
        >>> rows = target.split(target.outputs(torch.tensor([[5, 6, 7]])))
        >>> rows.features.shape, rows.last.shape, target.logits(rows.last).shape
        (torch.Size([1, 3, 16]), torch.Size([1, 3, 8]), torch.Size([1, 3, 32]))
    """

    def __init__(self, target: PagedModel, layers: Sequence[int]) -> None:
        self.paged, self.layers = target, tuple(layers)
        self._outputs = tuple(dict.fromkeys((*self.layers, LAST)))
        self._config: Any = target.model.config.get_text_config(decoder=True)
        self._size: int = self._config.hidden_size
        self._decoder: Any = layer_of(target.model, LAST)
        self._lm_head: Any = target.model.get_output_embeddings()
        target.model.requires_grad_(False).eval()
        self._check()

    @property
    def width(self) -> int:
        """Of a row of `outputs`."""
        return len(self._outputs) * self._size

    @property
    def lm_rows(self) -> Tensor:  # [vocab, hidden]
        """The weights of its language model head."""
        weight: Tensor = self._lm_head.weight
        return weight

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal for targets and layers that say the same."""
        return self._outputs, str(self.paged.dtype), fingerprint(self.paged.model)

    @torch.no_grad()
    def outputs(self, tokens: Tensor) -> Tensor:  # [b, t] int64, padded on the right -> [b, t, width]
        """The outputs of all wanted layers, for `split`."""
        taps: dict[int, Tensor] = {}
        hooks = [
            layer_of(self.paged.model, layer).register_forward_hook(partial(_keep, taps, layer))
            for layer in self._outputs
        ]
        try:
            self._decoder(input_ids=tokens.to(self.paged.device), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([taps[layer] for layer in self._outputs], -1).to(tokens.device)

    def split(self, outputs: Tensor) -> TargetRows:  # [..., width]
        """What of the outputs is what."""
        parts = dict(zip(self._outputs, outputs.split(self._size, -1), strict=True))
        return TargetRows(torch.cat([parts[layer] for layer in self.layers], -1), parts[LAST])

    @torch.no_grad()
    def logits(self, last: Tensor) -> Tensor:  # [..., hidden] -> [..., vocab]
        """The target's logits at rows of which this is the last hidden state."""
        logits: Tensor = self._lm_head(last.to(device=self.lm_rows.device, dtype=self.lm_rows.dtype))
        cap = getattr(self._config, "final_logit_softcapping", None)
        if cap:
            logits = (logits / cap).tanh() * cap
        logits = logits * (getattr(self._config, "logit_scale", None) or 1.0)
        return logits / (getattr(self._config, "logits_scaling", None) or 1.0)

    def _check(self) -> None:
        tokens = torch.arange(PROBE)[None] % self.paged.num_embeddings
        wanted = self.paged.plain(tokens).float()
        found = self.logits(self.split(self.outputs(tokens.to(self.paged.device))).last).float()
        if found.shape != wanted.shape or bool((found - wanted).abs().max() > TOLERANCE * wanted.abs().max()):
            raise ValueError(
                "expected a target whose logits are those of its language model head, got a "
                f"{type(self.paged.model).__name__} that changes them in a way of its own; train for another target"
            )


def fingerprint(model: nn.Module) -> str:
    """Equal for models of the same weights, of each of which some numbers are looked at.

    Example:
        >>> fingerprint(nn.Linear(1, 1)) == fingerprint(nn.Linear(1, 1))  # of random weights
        False
    """
    code = 0
    for name, weight in model.named_parameters():
        some = weight.detach().flatten()[:: 1 + weight.numel() // NUM_LOOKED_AT].float().cpu()
        code = zlib.crc32(some.numpy().tobytes(), zlib.crc32(name.encode(), code))
    return f"{code:08x}"


# Numbers of some texts, and their tokens [b, t], to what the target says about them.
Features = Callable[[Sequence[int], Tensor], TargetRows]


def online(target: FrozenTarget) -> Features:
    """Features that are computed when they are wanted."""
    return lambda _numbers, tokens: target.split(target.outputs(tokens))


def _keep(taps: dict[int, Tensor], layer: int, _module: Any, _inputs: Any, output: Any) -> None:
    taps[layer] = output if isinstance(output, Tensor) else output[0]
