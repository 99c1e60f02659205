"""The trees of a batch on the device: what ops are told about them, and those that grow there."""

from typing import NamedTuple

import torch
from torch import Tensor

PADDING = -2  # the parent of a node that is only padding, in a tree whose rows have to stand where they are


class PackedTrees(NamedTuple):
    """Trees one after the other; a tree without nodes is a request that is only padding.

    The two bounds are of the shapes, not of the contents, so that a captured graph may serve other trees.
    """

    tokens: Tensor  # [T] int64; the first of each tree is pending
    parents: Tensor  # [T] int32: node of the same tree, before the child; -1 for the first, or PADDING
    depths: Tensor  # [T] int32
    cu_nodes: Tensor  # [B + 1] int32: tree b has the nodes cu_nodes[b] .. cu_nodes[b + 1] - 1
    max_nodes: int  # of a tree
    max_depth: int


class Growth(NamedTuple):
    """How trees grow, as in `specdec.growth.BestFirst`: bounds of shapes, the same for all requests."""

    width: int  # children per node at most, and nodes of a level that may have children
    depth: int  # of the deepest node at most
    num_nodes: int  # drafted nodes to keep
    log_threshold: float = -torch.inf  # a node less probable stays, but gets no children

    @property
    def max_nodes(self) -> int:
        """Most nodes that come up, with the root."""
        return 1 + self.width + (self.depth - 1) * self.width**2

    @property
    def max_runs(self) -> int:
        """Most nodes that the draft model runs: the root and those that may have children."""
        return 1 + (self.depth - 1) * self.width

    def rows(self, level: int) -> slice:
        """Where, among the nodes that are run, those of a level stand; the root is level 0."""
        return slice(1 + (level - 1) * self.width, 1 + level * self.width) if level else slice(0, 1)


class GrowingTrees(NamedTuple):
    """Best-first trees while they grow: every node that came up, and which of them a draft model runs.

    All nodes of a request stand in the order in which they came up. Those that are run form a tree of their own,
    `runs`: row 0 is the root, and `width` rows per level follow, best first, the unused ones padding.
    """

    tokens: Tensor  # [B, max_nodes] int64
    parents: Tensor  # [B, max_nodes] int32
    depths: Tensor  # [B, max_nodes] int32
    scores: Tensor  # [B, max_nodes] float64: sum of log-probabilities on the way to the node
    counts: Tensor  # [B] int32: nodes so far
    nodes: Tensor  # [B, max_runs] int32: the node that is run in a row; -1 for padding
    runs: PackedTrees  # B trees of max_runs nodes
    growth: Growth

    @classmethod
    def empty(cls, num_requests: int, growth: Growth, device: torch.device) -> "GrowingTrees":
        """Room for trees that `plant` begins.

        Example:
            >>> GrowingTrees.empty(2, Growth(width=3, depth=4, num_nodes=8), torch.device("cpu")).tokens.shape
            torch.Size([2, 31])
        """

        def room(count: int, kind: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(num_requests, count, dtype=kind, device=device)

        nodes, runs, depth = growth.max_nodes, growth.max_runs, growth.depth
        cu_nodes = torch.arange(0, num_requests * runs + 1, runs, dtype=torch.int32, device=device)
        tokens, parents, depths = room(runs, torch.int64).view(-1), room(runs).view(-1), room(runs).view(-1)
        return cls(
            room(nodes, torch.int64),
            room(nodes),
            room(nodes),
            room(nodes, torch.float64),
            room(1).view(-1),
            room(runs),
            PackedTrees(tokens, parents, depths, cu_nodes, runs, depth - 1),
            growth,
        )
