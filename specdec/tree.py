"""The token tree: which tokens a draft proposes, and which continues which. Structure only."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Tokens and their parents, parents before children, siblings in draw order.

    Node 0 is the *pending* token: committed, but not yet in the cache. A chain is a tree with one child per node, and
    the empty draft is the tree of node 0 alone.

    Example:
        >>> tree = TokenTree.chain([5, 7, 9])  # pending 5, drafted 7 then 9
        >>> len(tree), tree.path_to(2)
        (3, [1, 2])
    """

    tokens: Tensor  # [n] int64
    parents: Tensor  # [n] int64; parents[0] == -1, parents[i] < i

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> Self:
        """The chain that starts at the pending token `tokens[0]`."""
        return cls(torch.tensor(tokens, dtype=torch.int64), torch.arange(-1, len(tokens) - 1))

    @classmethod
    def of(cls, tokens: Sequence[int], parents: Sequence[int]) -> Self:
        """The tree of these lists, checked.

        Raises:
            ValueError: the lists are empty, differ in length, or a parent does not stand before its child.
        """
        if not tokens or len(tokens) != len(parents) or parents[0] != -1:
            raise ValueError(
                f"expected as many tokens as parents, at least the pending one with parent -1; "
                f"got {len(tokens)} tokens and parents {list(parents)[:8]}"
            )
        late = [node for node in range(1, len(parents)) if not 0 <= parents[node] < node]
        if late:
            raise ValueError(f"expected each parent before its child, got parents[{late[0]}] == {parents[late[0]]}")
        return cls(torch.tensor(tokens, dtype=torch.int64), torch.tensor(parents, dtype=torch.int64))

    def __len__(self) -> int:
        return self.tokens.shape[0]

    @property
    def is_chain(self) -> bool:
        """Whether each node continues the one before it."""
        return self.parents.tolist() == list(range(-1, len(self) - 1))

    def depths(self) -> list[int]:  # [n]; the pending token has depth 0
        """How many drafted tokens lie on the way from the pending token to each node, the node included."""
        depths = [0]
        for parent in self.parents.tolist()[1:]:
            depths.append(depths[parent] + 1)
        return depths

    def children(self) -> list[list[int]]:  # [n]
        """The children of each node, in draw order."""
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node, parent in enumerate(self.parents.tolist()[1:], start=1):
            children[parent].append(node)
        return children

    def path_to(self, node: int) -> list[int]:
        """The nodes from the root's child down to `node`; empty for the root."""
        parents = self.parents.tolist()
        path = []
        while node > 0:
            path.append(node)
            node = parents[node]
        return path[::-1]

    def ancestor_mask(self) -> Tensor:  # [n, n] bool, True = row may attend column
        """Which nodes each node may see: its ancestors and itself."""
        n = len(self)
        if self.is_chain:
            return torch.ones(n, n, dtype=torch.bool).tril_()
        mask = torch.eye(n, dtype=torch.bool)
        for node, parent in enumerate(self.parents.tolist()[1:], start=1):
            mask[node] |= mask[parent]
        return mask
