"""MTP: a decoder layer of the target's own kind, trained with it to predict one token more, kept in its checkpoint."""

import copy
import inspect
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from specdec.anatomy import layer_of
from specdec.attention import scoring_of
from specdec.features import LAST
from specdec.kernels.rows import Scoring

from .eagle import Eagle
from .head_layers import BOUND_TO_LENGTH, Attend
from .head_network import HeadNetwork
from .paged_head import SteppingNetwork

NAME = "specdec_head"  # of the attention function that hands over to `attend`


class MtpNetwork(SteppingNetwork):
    """The module of multi-token prediction (DeepSeek-V3, 2412.19437, section 2.2):

        state' = norm(layer(proj [ norm(embedding) ; norm(state) ]))

    The layer is one of the target's own class, unpatched, with its experts, norms and latent attention; what it
    hands to its attention goes to `attend`, scaling, window and softcap honoured. A state is handed on behind the last
    norm, as the target's last hidden states come in: one module drafts as many tokens as are wanted.

    Args:
        model: the target, whose classes and config are used; its weights are not.
        is_state_first: the projection reads [ state ; embedding ] instead, as in MiMo.

    Example:
        >>> from transformers import Qwen3Config, Qwen3ForCausalLM
        >>> config = Qwen3Config(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=2,
        ...                      num_attention_heads=2, num_key_value_heads=2, head_dim=8)
        >>> network = MtpNetwork(Qwen3ForCausalLM(config))
        >>> own_value = lambda layer, queries, keys, values: values
        >>> states, read = network(torch.ones(3, 16), torch.ones(3, 16), torch.arange(3), own_value)
        >>> states.shape, states is read, [scoring.window for scoring in network.scorings]
        (torch.Size([3, 16]), True, [None])
    """

    num_layers = 1

    def __init__(self, model: PreTrainedModel, is_state_first: bool = False) -> None:
        index = layer_index(model)
        decoder, lender = layer_of(model, LAST), layer_of(model, index)
        config: PretrainedConfig = copy.deepcopy(model.config.get_text_config(decoder=True))
        config._attn_implementation = NAME
        super().__init__(config, (LAST,))
        size, norm = config.hidden_size, _norm_of(lender)
        self.is_state_first = is_state_first
        self.enorm, self.hnorm, self.norm = (norm(size, eps=config.rms_norm_eps) for _ in range(3))
        self.eh_proj = nn.Linear(2 * size, size, bias=False)
        self.layer: nn.Module = type(lender)(config, index)
        self._rotary = _TargetRotary(decoder, config, index)
        self._scorings: list[Scoring] = []
        self.eval()  # experts are chosen without noise

    @property
    def scorings(self) -> Sequence[Scoring]:
        """How the layer scores; it is known once it has attended for the first time."""
        return self._scorings

    def fused(self, features: Tensor) -> Tensor:  # [..., rows, hidden], as it is
        """The target's last hidden state is a state."""
        return features

    def forward(
        self, embedded: Tensor, states: Tensor, positions: Tensor, attend: Attend
    ) -> tuple[Tensor, Tensor]:  # [rows, hidden] all
        pair = self.enorm(embedded), self.hnorm(states)
        rows = self.eh_proj(torch.cat(pair[::-1] if self.is_state_first else pair, -1))[None]
        given = {"position_ids": positions[None], "position_embeddings": self._rotary(rows, positions[None])}
        token = _handed.set((self._scorings, attend))
        try:
            output = self.layer(rows, attention_mask=None, past_key_values=None, **given)
        finally:
            _handed.reset(token)
        read: Tensor = self.norm((output[0] if isinstance(output, tuple) else output)[0])
        return read, read


class Mtp(Eagle):
    """A drafter that runs the MTP module of its target; the options are those of `TokenDrafter`.

    Args:
        model: the module, in the precision and on the device it shall run in.

    Example:
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(vocab_size=32, hidden_size=16, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2)
        >>> target = LlamaForCausalLM(LlamaConfig(**sizes))
        >>> drafter = Mtp(MtpNetwork(target), num_speculative_tokens=3)
        >>> import specdec
        >>> prompt = torch.tensor([[3, 4, 5]])
        >>> text = specdec.generate(target, prompt, drafter=drafter, max_new_tokens=8, do_sample=False)
        >>> torch.equal(text, target.generate(prompt, max_new_tokens=8, do_sample=False))
        True
    """

    name = "mtp"
    network_type: ClassVar[type[HeadNetwork]] = MtpNetwork


def layer_index(model: PreTrainedModel) -> int:
    """Which of the target's layers the module's is like: the last one that attends to all, unless the config says.

    Example:
        >>> from transformers import Gemma3ForCausalLM, Gemma3TextConfig
        >>> kinds = ["full_attention", "sliding_attention"]
        >>> layer_index(Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=9, hidden_size=8, intermediate_size=8,
        ...             num_hidden_layers=2, num_attention_heads=1, num_key_value_heads=1, head_dim=8,
        ...             layer_types=kinds)))
        0
    """
    config = model.config.get_text_config(decoder=True)
    kinds = list(getattr(config, "layer_types", None) or ())
    wanted = (getattr(config, "mtp_layer_types", None) or ["full_attention"])[0]
    count: int = config.num_hidden_layers
    return max((layer for layer, kind in enumerate(kinds) if kind == wanted), default=count - 1)


def attend_handed(
    module: nn.Module,
    query: Tensor,  # [1, heads, rows, k_dim]
    key: Tensor,  # [1, kv_heads, rows, k_dim]
    value: Tensor,  # [1, kv_heads, rows, v_dim]
    attention_mask: Tensor | None = None,  # there is none
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention output [1, rows, heads, v_dim] of a head's layer, as transformers calls for it."""
    scorings, attend = _handed.get()
    if not scorings:
        if options.get("s_aux") is not None:
            raise ValueError(f"{type(module).__name__} attends to sinks")
        scorings.append(scoring_of(module, options))
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    return attend(0, queries, keys, values)[None], None


AttentionInterface.register(NAME, attend_handed)
# The attention of the head that is running, and how its layer scores: to be filled in when it first attends.
_handed: ContextVar[tuple[list[Scoring], Attend]] = ContextVar("specdec_handed")


class _TargetRotary:
    """The rotation of positions of the target's own class; no module, so that its table stays as precise as it is."""

    def __init__(self, decoder: nn.Module, config: PretrainedConfig, layer: int) -> None:
        parameters = getattr(config, "rope_parameters", None) or {}
        kinds = {part.get("rope_type") for part in (parameters, *parameters.values()) if isinstance(part, dict)}
        for kind in kinds.intersection(BOUND_TO_LENGTH):
            raise ValueError(f"expected a rope_type that rotates a row always alike, got {kind!r}; train another head")
        rotary: Any = type(decoder.rotary_emb)
        with torch.device("cpu"):  # also where a network is only outlined, on the device "meta"
            self._table: nn.Module = rotary(config)
        self._device = torch.device("cpu")
        by_layer = "layer_type" in inspect.signature(self._table.forward).parameters
        self._options = {"layer_type": config.layer_types[layer]} if by_layer else {}

    def __call__(self, rows: Tensor, positions: Tensor) -> Any:  # [1, rows, hidden], [1, rows]
        """What the target's layers are handed as their position embeddings."""
        if self._device != positions.device:
            self._device = positions.device
            self._table.to(self._device)
        return self._table(rows, positions, **self._options)


def _norm_of(layer: nn.Module) -> Any:
    """The class of the layer's norms: some norm with 1 + weight."""
    norms = [type(part) for name, part in layer.named_children() if "norm" in name]
    if not norms:
        raise ValueError(f"expected norms in a {type(layer).__name__}, got none; train a head: specdec train eagle3")
    return norms[0]
