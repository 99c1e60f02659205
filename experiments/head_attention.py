"""Attention over whole texts, for heads in training: what `attend` of a head layer is there.

Tensors are [b, rows, heads, dim]; queries may have more heads than keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from specdec.draft_models.block_network import KeysValues


class Unrolled:
    """Attention of training-time test (EAGLE-3, 2503.01840, section 3.2), step after step.

    In step s, row i is the one that lies s drafted tokens behind row i of the first step: it sees the rows of the first
    step up to row i, made of the target's features, and behind them its own chain, row i of the steps in between.

    Example:
        >>> attend, rows = Unrolled(), torch.ones(1, 5, 2, 4)
        >>> attend(0, rows, rows, rows).shape, attend(0, rows[:, :4], rows[:, :4], rows[:, :4]).shape
        (torch.Size([1, 5, 2, 4]), torch.Size([1, 4, 2, 4]))
    """

    def __init__(self) -> None:
        self._steps: dict[int, list[KeysValues]] = {}  # of each layer

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        steps = self._steps.setdefault(layer, [])
        steps.append((keys, values))
        (first_keys, first_values), *later = steps
        if not later:
            q, k, v = (part.transpose(1, 2) for part in (queries, keys, values))
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
        count, group = queries.shape[1], queries.shape[2] // keys.shape[2]
        grouped = _grouped(queries, group)  # [b, kv_heads, rows, group, dim]
        own_keys, own_values = (
            torch.stack([pair[part][:, :count] for pair in later], 3).transpose(1, 2) for part in (0, 1)
        )  # [b, kv_heads, rows, steps, dim]
        unseen = torch.ones(count, count, dtype=torch.bool, device=keys.device).triu(1).repeat_interleave(group, 0)
        first, own = _weights(
            (grouped.flatten(2, 3) @ _columns(first_keys[:, :count])).masked_fill(unseen, -torch.inf),
            (grouped @ own_keys.transpose(-1, -2)).flatten(2, 3),
        )
        mixed: Tensor = (first @ first_values[:, :count].transpose(1, 2)).unflatten(2, (count, group))
        mixed = mixed + own.unflatten(2, (count, group)) @ own_values
        return mixed.transpose(1, 2).flatten(2, 3)


class Blocks:
    """Attention of blocks of rows: they see all of their block, and the context rows up to their anchor.

    Args:
        context: keys and values of each layer, [b, rows of the text, kv_heads, dim].
        anchors: [b, blocks] int64, the last context row that each block sees.

    Example:
        >>> context, rows = [(torch.zeros(1, 9, 1, 4), torch.ones(1, 9, 1, 4))], torch.zeros(1, 6, 2, 4)
        >>> attend = Blocks(context, torch.tensor([[0, 4]]))  # of two blocks of three rows
        >>> attend(0, rows, rows[:, :, :1], rows[:, :, :1])[0, :, 0, 0].tolist()
        [0.25, 0.25, 0.25, 0.625, 0.625, 0.625]
    """

    def __init__(self, context: list[KeysValues], anchors: Tensor) -> None:
        self._context, self._anchors = context, anchors

    def __call__(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        context_keys, context_values = self._context[layer]
        count, group = self._anchors.shape[1], queries.shape[2] // keys.shape[2]
        unseen = torch.arange(context_keys.shape[1], device=keys.device) > self._anchors[..., None]
        unseen = unseen.repeat_interleave(group * queries.shape[1] // count, 1)[:, None]
        grouped = _grouped(queries, group).unflatten(2, (count, -1)).transpose(3, 4).flatten(3, 4)
        own_keys, own_values = (part.transpose(1, 2).unflatten(2, (count, -1)) for part in (keys, values))
        seen, own = _weights(  # rows are blocks, then group, then rows of the block
            (grouped.flatten(2, 3) @ _columns(context_keys)).masked_fill(unseen, -torch.inf),
            (grouped @ own_keys.transpose(-1, -2)).flatten(2, 3),
        )
        mixed: Tensor = (seen @ context_values.transpose(1, 2)).unflatten(2, (count, -1))
        mixed = mixed + own.unflatten(2, (count, -1)) @ own_values  # [b, kv_heads, blocks, group * size, dim]
        mixed = mixed.unflatten(3, (group, -1)).permute(0, 2, 4, 1, 3, 5)
        return mixed.flatten(1, 2).flatten(2, 3)


def _grouped(queries: Tensor, group: int) -> Tensor:  # -> [b, kv_heads, rows, group, dim], scaled
    grouped: Tensor = queries.unflatten(2, (-1, group)).transpose(1, 2) * queries.shape[-1] ** -0.5
    return grouped


def _columns(keys: Tensor) -> Tensor:  # [b, t, kv_heads, dim] -> [b, kv_heads, dim, t]
    return keys.permute(0, 2, 3, 1)


def _weights(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:  # [..., m], [..., n]
    """The softmax over both parts, in their precision."""
    scores = torch.cat((first, second), -1)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights[..., : first.shape[-1]].to(first.dtype), weights[..., first.shape[-1] :].to(first.dtype)
