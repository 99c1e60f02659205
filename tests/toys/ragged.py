"""Ragged batches for tests of attention: requests of any length, tree and layout, over a pool that is NaN elsewhere."""

import math
from typing import NamedTuple

import torch

from specdec.kernels import reference
from specdec.kernels.fp8 import E4M3, quantized
from specdec.kernels.rows import PackedRows, RequestRows, Scoring

CONTIGUOUS = 0  # a layout is the number of rows that lie one after the other; 0 for all


class Shape(NamedTuple):
    """Of the heads of a layer, and its numbers."""

    heads: int = 4
    kv_heads: int = 2
    k_dim: int = 32
    v_dim: int = 32
    dtype: torch.dtype = torch.float32


class Batch(NamedTuple):
    """The arguments of `tree_attention`."""

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    rows: PackedRows
    scoring: Scoring
    sinks: torch.Tensor | None
    scales: torch.Tensor | None = None

    def again(self):
        """The same with rows for which nothing was worked out."""
        return self._replace(rows=PackedRows(self.rows.requests))

    def in_eight_bits(self, seed=0):
        """The same with keys and values in e4m3, NaN where they were, and scales that differ from head to head."""
        generator = torch.Generator().manual_seed(seed)
        scales = torch.rand(2, self.keys.shape[1], generator=generator).add(0.02).to(self.keys.device)
        pools = [quantized(pool, scale).view(E4M3) for pool, scale in zip(self[1:3], scales, strict=True)]
        return self._replace(keys=pools[0], values=pools[1], scales=scales, rows=PackedRows(self.rows.requests))


def chain(size):
    """The parents of a chain."""
    return list(range(-1, size - 1))


def random_tree(size, rng, reach=5):
    """The parents of a tree in which nodes hang not far in front of themselves."""
    return [-1, *(rng.randrange(max(0, node - reach), node) for node in range(1, size))][:size]


def request(start, parents, layout, taken, rng, first=0):
    """Rows of a request, and the slots they lie at, which are added to `taken`."""
    depths = []
    for parent in parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    stop, unused = start + len(parents), max(taken, default=-1) + 1
    if layout == CONTIGUOUS:
        slots = list(range(unused + 3, unused + 3 + stop))
    else:
        num_pages = -(-stop // layout)
        pages = [-(-unused // layout) + page for page in rng.sample(range(2 * num_pages + 1), num_pages)]
        slots = [page * layout + i for page in pages for i in range(layout)][:stop]
    taken.update(slots)
    place = (slots[0], None) if layout == CONTIGUOUS else (None, torch.tensor(slots, dtype=torch.int64))
    is_chain = parents == chain(len(parents))
    tree = (None, None) if is_chain else (parents, depths)
    return RequestRows(start, len(parents), first, *tree, *place, layout or 1)


def batch(requests, taken, shape, scoring, has_sinks=False, seed=0):
    """Random queries, keys and values; NaN in slots that nobody uses."""
    generator = torch.Generator().manual_seed(seed)
    used, rows = sorted(taken), PackedRows(requests)
    pools = []
    for dim in (shape.k_dim, shape.v_dim):
        pool = torch.full((used[-1] + 9, shape.kv_heads, dim), math.nan, dtype=shape.dtype)
        pool[used] = torch.randn(len(used), shape.kv_heads, dim, generator=generator).to(shape.dtype)
        pools.append(pool)
    query = torch.randn(1, rows.num_rows, shape.heads, shape.k_dim, generator=generator).to(shape.dtype)
    sinks = torch.randn(shape.heads, generator=generator) if has_sinks else None
    return Batch(query.transpose(1, 2), *pools, rows, scoring, sinks)  # queries as models hand them over


def batch_of(described, shape, scoring, rng, has_sinks=False):
    """A batch of requests (start, parents, layout, first node computed)."""
    taken = set()
    requests = [request(start, parents, layout, taken, rng, first) for start, parents, layout, first in described]
    return batch(requests, taken, shape, scoring, has_sinks, rng.randrange(1 << 30))


def error_of(got, case):
    """The largest relative error of any row's output, against the reference in float64."""
    requests = [each for each in case.rows.requests if each.num_rows]
    query, keys, values = (tensor.double() for tensor in case[:3])
    sinks = None if case.sinks is None else case.sinks.double()
    wanted = reference.tree_attention(query, keys, values, PackedRows(requests), case.scoring, sinks, case.scales)
    assert got.shape == wanted.shape and got.dtype == case.query.dtype
    return ((got.double() - wanted).norm(dim=-1) / wanted.norm(dim=-1)).nan_to_num(math.inf).max().item()
