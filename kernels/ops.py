"""The ops the toolkit calls: checks its arguments and picks the body, `SPECDEC_KERNELS=reference|triton`."""

from collections.abc import Sequence

from torch import Tensor

from . import reference, reference_static
from .bodies import body_of, current, is_reference
from .rows import PackedRows, Scoring
from .tree_tables import StaticRows


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> Tensor:
    """Four random 32-bit words per counter, [*shape, 4] int64; see `reference.philox`."""
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"expected a seed of 64 bits, got {seed}; pass an int from 0 to 2**64 - 1")
    return reference.philox(seed, c0, c1, c2, c3)


def gumbels(words: Tensor) -> Tensor:  # any shape, random words -> float32
    """Gumbel noise; see `reference.gumbels`."""
    return reference.gumbels(words)


def pick(probs: Tensor, uniform: float) -> int:  # [vocab]
    """The token whose stretch of the running sum holds `uniform` of the total; see `reference.pick`."""
    return reference.pick(probs, uniform)


def argmax(rows: Tensor) -> Tensor:  # [..., vocab] -> [...] int64
    """The column of the largest entry of each row, the lowest of several; see `reference.argmax`."""
    if is_reference(rows):
        return reference.argmax(rows)
    from . import draw_kernels

    with current(rows):
        return draw_kernels.argmax(rows)


def entries(rows: Tensor, indices: Sequence[int], columns: Sequence[int]) -> list[float]:  # rows [n, vocab]
    """`rows[indices[i], columns[i]]` for each i, on the host; see `reference.entries`."""
    return reference.entries(rows, indices, columns)


def tree_attention(
    query: Tensor,  # [1, heads, T, k_dim]
    keys: Tensor,  # [num_slots, kv_heads, k_dim]
    values: Tensor,  # [num_slots, kv_heads, v_dim]
    rows: PackedRows,
    scoring: Scoring,
    sinks: Tensor | None = None,  # [heads]
    scales: Tensor | None = None,  # [2, kv_heads] float32, of keys and values in e4m3
) -> Tensor:  # [1, T, heads, v_dim]
    """Attention of each packed row over its request's prefix and its own ancestors; see `reference.tree_attention`."""
    if query.shape[2] != rows.num_rows or query.shape[1] % keys.shape[1] or query.shape[3] != keys.shape[2]:
        raise ValueError(
            f"expected queries [1, multiple of {keys.shape[1]}, {rows.num_rows}, {keys.shape[2]}], "
            f"got {list(query.shape)}; rows and pool are of another forward or layer"
        )
    if body_of(query) == "reference":
        if isinstance(rows, StaticRows):
            return reference_static.tree_attention(query, keys, values, rows, scoring, sinks, scales)
        return reference.tree_attention(query, keys, values, rows, scoring, sinks, scales)
    from . import tree_attention as triton_body  # not needed, and maybe not there, where the reference runs

    return triton_body.tree_attention(query, keys, values, rows, scoring, sinks, scales)
