"""Every op in plain torch: what it computes, on any device, with the same name and signature as the fast body."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .fp8 import E4M3, by_head, rows_at
from .rows import Group, PackedRows, Scoring, View

# Query heads that share a key head become rows of one matrix from so many keys on (CPU: fewer keys are faster with
# SDPA's own grouping; measured for 1 to 8 rows), and up to so many rows (the mask is repeated for each head).
MIN_KEYS_TO_FOLD, MAX_ROWS_TO_FOLD = 192, 32


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """Four random 32-bit words per counter, [*shape, 4] int64: Philox-4x32 with ten rounds (Salmon et al. 2011).

    The counter words (int64, below 2**32, broadcast against each other) and the key, which is the 64-bit `seed` as two
    words, low word first, are those of `tl.philox`. A product of two words fills 64 bits, so int64 wraps to the right
    bits; only the sign of the shifted high word has to be masked off.

    Example:
        >>> zero = torch.zeros((), dtype=torch.int64)
        >>> [hex(word) for word in philox(0, zero, zero, zero, zero).tolist()]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    word = 0xFFFFFFFF
    low, high = seed & word, seed >> 32 & word
    keys = [((low + 0x9E3779B9 * turn) & word, (high + 0xBB67AE85 * turn) & word) for turn in range(10)]
    shape = (c0 + c1 + c2 + c3).shape
    even = torch.stack((c0.expand(shape), c2.expand(shape)))  # [2, *shape]
    odd = torch.stack((c1.expand(shape), c3.expand(shape)))
    across = (2,) + (1,) * len(shape)
    factors = torch.tensor((0xD2511F53, 0xCD9E8D57), device=c0.device).view(across)
    for key in torch.tensor(keys, device=c0.device).view(10, *across):
        product = even.mul_(factors).flip(0)
        even = odd.bitwise_xor_(product >> 32).bitwise_xor_(key).bitwise_and_(word)
        odd = product  # its high half is garbage that the mask removes one round later
    odd &= word
    return torch.stack((even[0], odd[0], even[1], odd[1]), -1)


def gumbels(words: Tensor) -> Tensor:  # any shape, random words -> float32
    """Gumbel noise: g = -log E with E = -log1p(-(b + 0.5) * 2**-32), which float32 never rounds to zero.

    Example:
        >>> gumbels(torch.tensor([0, 2**31, 2**32 - 1])).isfinite().all()
        tensor(True)
    """
    # The clamp keeps E finite: float32 rounds the last 128 of the 2**32 words to one.
    uniform = words.to(torch.float32).add_(0.5).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def pick(probs: Tensor, uniform: float) -> int:  # [vocab]
    """The token whose stretch of the running sum holds `uniform` of the total; never one without probability.

    In float64: with 53 bits on both sides the draw follows the stored row itself, whatever its precision.

    Example:
        >>> pick(torch.tensor([0.25, 0.0, 0.75]), 0.25)
        2
    """
    sums = probs.cumsum(0, dtype=torch.float64)
    return int(torch.searchsorted(sums, sums[-1] * uniform, right=True))


def argmax(rows: Tensor) -> Tensor:  # [..., vocab] -> [...] int64
    """The column of the largest entry of each row, the lowest of several.

    On a CPU by numpy, which takes a tenth of the time that torch does on a large vocabulary.

    Example:
        >>> argmax(torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]]))
        tensor([1, 0])
    """
    if rows.shape[-1] <= 1024 or not rows.is_cpu:
        return rows.argmax(-1)
    if rows.dtype.itemsize < 4:
        rows = rows.float()  # numpy has no bfloat16
    return torch.as_tensor(rows.detach().numpy().argmax(-1))


def entries(rows: Tensor, indices: Sequence[int], columns: Sequence[int]) -> list[float]:  # rows [n, vocab]
    """`rows[indices[i], columns[i]]` for each i, on the host.

    Example:
        >>> entries(torch.tensor([[0.0, 2.0, 1.0], [3.0, 3.0, 0.0]]), [0, 0, 1], [1, 2, 0])
        [2.0, 1.0, 3.0]
    """
    if rows.device.type == "cpu" and rows.dtype.itemsize >= 4:  # without a tensor op: one takes longer than all of it
        table = rows.detach().numpy()
        return [table.item(index, column) for index, column in zip(indices, columns, strict=True)]
    picked: list[float] = rows[list(indices), list(columns)].tolist()
    return picked


def tree_attention(
    query: Tensor,  # [1, heads, T, k_dim], any strides
    keys: Tensor,  # [num_slots, kv_heads, k_dim]: the pool of the layer
    values: Tensor,  # [num_slots, kv_heads, v_dim]
    rows: PackedRows,  # whose T rows these are, where their keys lie, who sees what
    scoring: Scoring,
    sinks: Tensor | None = None,  # [heads]: score of a key without a value
    scales: Tensor | None = None,  # [2, kv_heads] float32: what keys and values in e4m3 are to be multiplied by
) -> Tensor:  # [1, T, heads, v_dim]
    """Attention of each row over its request's prefix and its own ancestors.

    Example:
        >>> from specdec.kernels.rows import RequestRows
        >>> keys = torch.zeros(4, 1, 2)
        >>> values = torch.tensor([[3.0], [6.0], [9.0], [12.0]])[:, None]
        >>> tree = RequestRows(1, 3, 0, parents=[-1, 0, 0], depths=[0, 1, 1], first_slot=0, slots=None)
        >>> output = tree_attention(torch.zeros(1, 1, 3, 2), keys, values, PackedRows([tree]), Scoring(1.0))
        >>> output.flatten().round(decimals=3).tolist()  # means of what each node sees
        [4.5, 6.0, 7.0]
    """
    if scales is not None:
        query = by_head(query.transpose(1, 2), scales[0]).transpose(1, 2)
        return by_head(tree_attention(query, keys, values, rows, scoring, sinks), scales[1])
    if len(rows.groups) == 1:
        return _attend(query, keys, values, rows.groups[0], scoring, sinks)
    output = query.new_empty(1, query.shape[2], query.shape[1], values.shape[2])
    for group in rows.groups:
        part = _attend(query, keys, values, group, scoring, sinks)
        assert group.place is not None
        output.index_copy_(1, group.on(group.place, query.device), part)
    return output


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, group: Group, scoring: Scoring, sinks: Tensor | None
) -> Tensor:  # [1, rows of the group, heads, v_dim]
    num_heads, kv_heads, num_rows = query.shape[1], keys.shape[1], group.num_rows
    is_plain = scoring.softcap is None and sinks is None  # what SDPA can do
    repeats = num_heads // kv_heads
    folded = repeats if not is_plain or _folds(group, query) else 1
    view = group.view(scoring.window, scoring.chunk, query, folded, folded == 1 and is_plain)
    query, key, value = _queries(query, group), *(_visible(pool, view, query.dtype) for pool in (keys, values))
    if folded > 1:  # head h reads key head h // repeats, so `repeats` heads in a row share one
        query = query.reshape(-1, kv_heads, repeats * num_rows, query.shape[3])
    if not is_plain:
        output = _scored(query, key, value, view.mask, scoring, sinks)
    else:
        if folded != repeats and view.mask is not None and query.is_cuda:  # grouping and a mask: no fast kernel there
            key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        output = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=view.mask,
            is_causal=view.is_causal,
            scale=scoring.scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    if folded > 1:
        output = output.reshape(-1, num_heads, num_rows, output.shape[3])
    output = output.transpose(1, 2)  # [B, N, heads, v_dim]
    if len(group.requests) == 1:
        return output
    output = output.reshape(1, -1, num_heads, output.shape[3])
    return output if group.keep is None else output.index_select(1, group.on(group.keep, output.device))


def _folds(group: Group, query: Tensor) -> bool:
    return group.num_rows <= MAX_ROWS_TO_FOLD and (query.is_cuda or group.num_keys >= MIN_KEYS_TO_FOLD)


def _queries(query: Tensor, group: Group) -> Tensor:  # [1, heads, T, dim] -> [B, heads, N, dim]
    """The rows of a group, padded."""
    if len(group.requests) == 1:
        return query if group.is_all else query.narrow(2, group.offsets[0], group.num_rows)
    rows = query.transpose(1, 2)
    if group.pick is not None:
        rows = rows.index_select(1, group.on(group.pick, rows.device))
    return rows.reshape(-1, group.num_rows, *rows.shape[2:]).transpose(1, 2)


def _visible(pool: Tensor, view: View, dtype: torch.dtype) -> Tensor:  # [num_slots, kv_heads, dim] -> [B, .., S, dim]
    """The keys or values that a view looks at; not copied where they lie one after the other and need no conversion."""
    if view.slots is not None:
        rows = rows_at(pool, view.slots).view(-1, view.num_keys, *pool.shape[1:]).transpose(1, 2)
    else:
        slot, head, one = pool.stride()
        shape = (1, pool.shape[1], view.num_keys, pool.shape[2])
        rows = pool.as_strided(shape, (slot, head, slot, one), pool.storage_offset() + view.first_slot * slot)
    return rows.to(dtype) if pool.dtype is E4M3 else rows


def _scored(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scoring: Scoring, sinks: Tensor | None
) -> Tensor:  # [B, kv_heads, rows, v_dim]
    """Attention with softcap (Gemma 2, 2408.00118) or sinks (gpt-oss): softmax in float32 or wider."""
    scaling = query.shape[3] ** -0.5 if scoring.scaling is None else scoring.scaling
    scores = (query @ key.transpose(2, 3)) * scaling
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if mask is not None:
        scores = scores + mask
    if scores.dtype.itemsize < 4:
        scores = scores.float()
    if sinks is None:
        weights = scores.softmax(-1)
    else:
        kv_heads, num_rows = scores.shape[1:3]
        sink = sinks.to(scores.dtype).view(kv_heads, -1, 1).expand(-1, -1, num_rows * kv_heads // sinks.shape[0])
        sink = sink.reshape(1, kv_heads, num_rows, 1).expand(scores.shape[0], -1, -1, -1)
        weights = torch.cat([scores, sink], -1).softmax(-1)[..., :-1]
    return weights.to(value.dtype) @ value
