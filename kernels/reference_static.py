"""Tree attention in plain torch from the tables that kernels read, for rows in room that is filled again and again.

Nothing here looks at a number of the tables on the host, so a graph captured of it serves every forward of a bucket.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .fp8 import by_head, rows_at
from .rows import Scoring
from .tree_tables import StaticRows, Tables, tables_of


class _Strips(NamedTuple):
    """The columns of the strips, [strips, 1] each; see `tree_columns`."""

    request: Tensor
    row: Tensor
    size: Tensor
    seen: Tensor
    stop: Tensor
    start: Tensor
    node: Tensor
    tree: Tensor


def tree_attention(
    query: Tensor,  # [1, heads, T, k_dim]
    keys: Tensor,  # [num_slots, kv_heads, k_dim]
    values: Tensor,  # [num_slots, kv_heads, v_dim]
    rows: StaticRows,
    scoring: Scoring,
    sinks: Tensor | None = None,  # [heads]
    scales: Tensor | None = None,  # [2, kv_heads] float32
) -> Tensor:  # [1, T, heads, v_dim]
    """As `reference.tree_attention`; NaN for rows that are padding, which the kernel leaves as memory is."""
    (_, heads, num_rows, k_dim), (_, kv_heads, v_dim) = query.shape, values.shape
    bounds, tables = tables_of(rows, rows.bucket.num_nodes, query.device)
    strips = _Strips(*tables.strips.long()[:, :, None].unbind(1))
    index = torch.arange(bounds.num_pages * bounds.page, device=query.device)
    offsets = torch.arange(bounds.strip_rows, device=query.device)
    packed = strips.row + offsets  # [strips, N]
    is_row = offsets < strips.size
    is_seen = _visible(strips, tables, offsets, index, scoring) & is_row[:, :, None]  # [strips, N, S]
    slots = tables.pages.long()[:, index // bounds.page] + index % bounds.page  # [requests, S]
    is_key = (index < strips.stop) & (strips.size > 0)
    slots = torch.where(is_key, slots[strips.request[:, 0]], 0)
    pools = zip((keys, values), (None, None) if scales is None else scales, strict=True)
    key, value = (_gathered(pool, scale, slots, is_key, query.dtype) for pool, scale in pools)
    own = query[0].transpose(0, 1)[torch.where(is_row, packed, 0)]  # [strips, N, heads, k_dim]
    own = own.unflatten(2, (kv_heads, heads // kv_heads))
    scores = torch.einsum("bnkgd,bskd->bkgns", own, key).to(torch.promote_types(query.dtype, torch.float32))
    scores = scores * (k_dim**-0.5 if scoring.scaling is None else scoring.scaling)
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    scores = scores.masked_fill(~is_seen[:, None, None], -torch.inf)
    top = scores.amax(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).min)
    weights = torch.exp(scores - top)
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + torch.exp(sinks.to(scores.dtype).view(1, kv_heads, -1, 1, 1) - top)
    weights = (weights / total.clamp_min(torch.finfo(scores.dtype).tiny)).to(value.dtype)
    mixed = torch.einsum("bkgns,bskd->bnkgd", weights, value).flatten(2, 3)  # [strips, N, heads, v_dim]
    # One line more than there are rows takes what belongs to none.
    output = query.new_full((num_rows + 1, heads, v_dim), torch.nan)
    output[torch.where(is_row, packed, num_rows).flatten()] = mixed.flatten(0, 1)
    return output[None, :num_rows]


def _visible(strips: _Strips, tables: Tables, offsets: Tensor, index: Tensor, scoring: Scoring) -> Tensor:
    """Whether each row of each strip may attend each row of its request, [strips, N, S] bool."""
    is_tree = (strips.tree >= 0)[:, :, None]  # [strips, 1, 1]
    start, node = strips.start[:, :, None], (strips.node + offsets)[:, :, None]
    keys = index[None, None]
    last = torch.where(is_tree, start - 1, start + node)
    seen = (keys <= last) | (is_tree & _is_ancestor(strips, tables, node, keys - start))
    seen = seen & (keys < strips.stop[:, :, None])
    if scoring.window is None and scoring.chunk is None:
        return seen
    position = torch.where(is_tree, start + _depths(strips, tables, node), start + node)
    key_position = torch.where(is_tree & (keys >= start), start + _depths(strips, tables, keys - start), keys)
    if scoring.window is not None:
        seen = seen & (key_position > position - scoring.window)
    if scoring.chunk is not None:
        seen = seen & (key_position // scoring.chunk == position // scoring.chunk)
    return seen


def _is_ancestor(strips: _Strips, tables: Tables, node: Tensor, other: Tensor) -> Tensor:  # [strips, N, S] bool
    num_nodes, num_words = tables.words.shape
    line = (strips.tree[:, :, None] + node).clamp(0, num_nodes - 1)[:, :, 0]
    word = tables.words[line][:, :, :, None]  # [strips, N, words, 1]
    bits = (word >> torch.arange(64, device=word.device)) & 1
    bits = bits.flatten(2)  # [strips, N, 64 * words]
    is_node = (other >= 0) & (other < 64 * num_words)
    return is_node & (bits.gather(2, other.clamp(0, 64 * num_words - 1).expand(*bits.shape[:2], -1)) != 0)


def _depths(strips: _Strips, tables: Tables, node: Tensor) -> Tensor:  # [strips, N or 1, 1 or S] int64
    line = (strips.tree[:, :, None] + node).clamp(0, tables.depths.shape[0] - 1)
    return tables.depths.long()[line]


def _gathered(
    pool: Tensor, scale: Tensor | None, slots: Tensor, is_key: Tensor, dtype: torch.dtype
) -> Tensor:  # [strips, S, kv_heads, dim]
    """Rows of a pool, and zeros where there is none: what lies there may be NaN."""
    rows = rows_at(pool, slots.flatten()).view(*slots.shape, *pool.shape[1:])
    if scale is not None:
        rows = by_head(rows.to(dtype), scale)
    return torch.where(is_key[:, :, None, None], rows, 0)
