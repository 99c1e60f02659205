"""The trees of a batch on the device: what the ops behind the target's scores are told about them."""

from typing import NamedTuple

from torch import Tensor


class PackedTrees(NamedTuple):
    """Trees one after the other; a tree without nodes is a request that is only padding.

    The two bounds are of the shapes, not of the contents, so that a captured graph may serve other trees.
    """

    tokens: Tensor  # [T] int64; the first of each tree is pending
    parents: Tensor  # [T] int32: node of the same tree, before the child; -1 for the first
    depths: Tensor  # [T] int32
    cu_nodes: Tensor  # [B + 1] int32: tree b has the nodes cu_nodes[b] .. cu_nodes[b + 1] - 1
    max_nodes: int  # of a tree
    max_depth: int
