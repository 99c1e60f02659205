"""What kernels are measured on: trees of a batch of requests behind prefixes in pages, and the exact answer."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from specdec.kernels.rows import PackedRows, RequestRows
from specdec.tree import TokenTree

PAGE = 16
DTYPE = torch.bfloat16
NUM_CHECKED = 2  # requests whose output is held against float64
# Layers take turns, so that no keys are in the L2 from the turn before: four times what any GPU of today has (126 MB).
BYTES_IN_TURNS = 1 << 29


class Heads(NamedTuple):
    """Of one layer."""

    heads: int
    kv_heads: int
    dim: int


class Case(NamedTuple):
    """A batch of requests, each a tree of `num_nodes` behind `prefix` rows."""

    batch: int
    prefix: int
    num_nodes: int

    @property
    def num_keys(self) -> int:
        """Of one request."""
        return self.prefix + self.num_nodes

    def kv_bytes(self, heads: Heads) -> int:
        """Keys and values of one layer."""
        return 2 * self.batch * self.num_keys * heads.kv_heads * heads.dim * DTYPE.itemsize

    def min_bytes(self, heads: Heads) -> int:
        """What must be moved at least: keys, values and queries read once, the output written once."""
        return self.kv_bytes(heads) + 2 * self.batch * self.num_nodes * heads.heads * heads.dim * DTYPE.itemsize

    def num_layers(self, heads: Heads) -> int:
        """So many that all their keys and values take BYTES_IN_TURNS.

        Example:
            >>> Case(batch=1, prefix=1024, num_nodes=1).num_layers(Heads(32, 8, 128))
            128
        """
        return max(1, -(-BYTES_IN_TURNS // self.kv_bytes(heads)))

    def needed_bytes(self, heads: Heads, num_layers: int, is_gathered: bool) -> int:
        """Device memory for layers, the same gathered with a mask for each row, and the float64 answer."""
        needed = num_layers * (self.min_bytes(heads) + is_gathered * self.kv_bytes(heads))
        needed += is_gathered * 4 * self.batch * heads.heads * self.num_nodes * self.num_keys // heads.kv_heads
        return needed + 8 * self.num_keys * (4 * heads.heads * self.num_nodes + 3 * heads.heads * heads.dim)


@dataclass(frozen=True, slots=True)
class Problem:
    """A case on a device. As in a model, its layers share trees and page table, and each has keys of its own."""

    case: Case
    heads: Heads
    rows: PackedRows
    pages: Tensor  # [batch, pages of a request] int32
    visible: Tensor  # [batch, num_nodes, num_nodes] bool: ancestors
    queries: list[Tensor]  # of each layer [batch, num_nodes, heads, dim]
    keys: list[Tensor]  # of each layer [num_slots, kv_heads, dim]
    values: list[Tensor]  # likewise

    @property
    def device(self) -> torch.device:
        return self.pages.device

    def slots(self, count: int) -> Tensor:  # [count, num_keys] int64
        """Where the keys of the first `count` requests lie."""
        slots = self.pages[:count].long()[:, :, None] * PAGE + torch.arange(PAGE, device=self.device)
        return slots.flatten(1)[:, : self.case.num_keys]

    def dense_visible(self) -> Tensor:  # [batch, num_nodes, num_keys] bool
        """Which keys each node sees, the prefix included."""
        prefix = self.visible.new_ones(*self.visible.shape[:2], self.case.prefix)
        return torch.cat([prefix, self.visible], 2)


def problem_of(case: Case, heads: Heads, num_layers: int, device: torch.device) -> Problem:
    """A case with random trees, keys and pages; the same ones every time.

    Example:
        >>> problem = problem_of(Case(batch=2, prefix=20, num_nodes=3), Heads(4, 2, 8), 1, torch.device("cpu"))
        >>> problem.rows.num_rows, problem.slots(2).unique().numel(), list(problem.dense_visible().shape)
        (6, 46, [2, 3, 23])
    """
    rng, generator = random.Random(0), torch.Generator(device).manual_seed(0)
    num_pages = -(-case.num_keys // PAGE)
    pages = torch.randperm(case.batch * num_pages, generator=torch.Generator().manual_seed(0)).view(case.batch, -1)
    slots = (pages[:, :, None] * PAGE + torch.arange(PAGE)).flatten(1)[:, : case.num_keys]
    parents = [_tree(case.num_nodes, rng) for _ in range(case.batch)]
    requests = [_request(case, tree, own) for tree, own in zip(parents, slots, strict=True)]

    def layers(*shape: int) -> list[Tensor]:
        return [torch.randn(shape, generator=generator, dtype=DTYPE, device=device) for _ in range(num_layers)]

    return Problem(
        case,
        heads,
        PackedRows(requests),
        pages.to(device, torch.int32),
        torch.stack([_ancestors(tree) for tree in parents]).to(device),
        layers(case.batch, case.num_nodes, heads.heads, heads.dim),
        layers(pages.numel() * PAGE, heads.kv_heads, heads.dim),
        layers(pages.numel() * PAGE, heads.kv_heads, heads.dim),
    )


def largest_error(problem: Problem, output: Tensor) -> float:
    """The largest relative error (Euclidean norm) of a row's head in [batch, num_nodes, heads, dim]; NaN if any is."""
    errors = [
        ((got.double() - exact).norm(dim=-1) / exact.norm(dim=-1)).max()
        for got, exact in zip(output, _exact(problem), strict=False)
    ]
    return float(torch.stack(errors).max())


def _exact(problem: Problem) -> Iterator[Tensor]:
    """The attention of the first requests in the first layer, [num_nodes, heads, dim] float64 each."""
    heads, num_nodes = problem.heads, problem.case.num_nodes
    for slots, seen, query in zip(
        problem.slots(NUM_CHECKED), problem.dense_visible(), problem.queries[0], strict=False
    ):
        key, value = (pools[0][slots].double() for pools in (problem.keys, problem.values))
        grouped = query.double().view(num_nodes, heads.kv_heads, -1, heads.dim)
        scores = torch.einsum("nhgd,shd->hgns", grouped, key) * heads.dim**-0.5
        weights = scores.masked_fill_(~seen, -torch.inf).softmax(-1)
        yield torch.einsum("hgns,shd->nhgd", weights, value).reshape(num_nodes, heads.heads, heads.dim)


def _tree(num_nodes: int, rng: random.Random) -> list[int]:
    """Parents of a tree such as drafters grow: each node hangs at one of the eight before it."""
    return [-1, *(rng.randrange(max(0, node - 8), node) for node in range(1, num_nodes))]


def _request(case: Case, parents: list[int], slots: Tensor) -> RequestRows:
    if case.num_nodes == 1:
        return RequestRows(case.prefix, 1, 0, None, None, None, slots, PAGE)
    depths = TokenTree([0] * case.num_nodes, parents).depths
    return RequestRows(case.prefix, case.num_nodes, 0, parents, depths, None, slots, PAGE)


def _ancestors(parents: list[int]) -> Tensor:  # [num_nodes, num_nodes] bool
    seen = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents[1:], 1):
        seen[node] |= seen[parent]
    return seen
