"""The token tree: which tokens a draft proposes, and which continues which. Structure only."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Tokens and their parents, parents before children, siblings in draw order.

    Node 0 is the *pending* token: committed, but not yet in the cache. A chain is a tree with one child per node, and
    the empty draft is the tree of node 0 alone. Lists, because every round reads them many times on the host.

    Raises:
        ValueError: these are no lists, they are empty or differ in length, or a parent does not stand before its child.

    Example:
        >>> tree = TokenTree([5, 7, 8, 9], [-1, 0, 0, 2])  # pending 5, then 7 or 8, and 9 after 8
        >>> len(tree), tree.path_to(3), tree.depths
        (4, [2, 3], [0, 1, 1, 2])
    """

    tokens: list[int]  # [n]
    parents: list[int]  # [n]; parents[0] == -1, parents[i] < i
    depths: list[int] = field(init=False, compare=False)  # [n]; drafted tokens from the pending one to the node

    def __post_init__(self) -> None:
        num_nodes, parents = len(self.tokens), self.parents
        if type(self.tokens) is not list or type(parents) is not list:
            kinds = f"{type(self.tokens).__name__} and {type(parents).__name__}"
            raise ValueError(f"expected tokens and parents as lists of ints, got {kinds}; call .tolist() on a tensor")
        if not num_nodes or num_nodes != len(parents) or parents[0] != -1:
            raise ValueError(
                f"expected as many tokens as parents, at least the pending one with parent -1; "
                f"got {num_nodes} tokens and parents {list(parents)[:8]}"
            )
        if parents == list(range(-1, num_nodes - 1)):
            depths = list(range(num_nodes))
        else:
            depths = [0]
            for node, parent in enumerate(parents[1:], start=1):
                if not 0 <= parent < node:
                    raise ValueError(f"expected each parent before its child, got parents[{node}] == {parent}")
                depths.append(depths[parent] + 1)
        object.__setattr__(self, "depths", depths)

    @classmethod
    def chain(cls, tokens: Iterable[int]) -> Self:
        """The chain that starts at the pending token, the first of `tokens`.

        Example:
            >>> TokenTree.chain([5, 7, 9]).parents  # pending 5, drafted 7 then 9
            [-1, 0, 1]
        """
        listed = tokens.tolist() if isinstance(tokens, Tensor) else list(tokens)
        return cls(listed, list(range(-1, len(listed) - 1)))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether each node continues the one before it."""
        return self.depths[-1] == len(self.tokens) - 1

    def children(self) -> list[list[int]]:  # [n]
        """The children of each node, in draw order."""
        children: list[list[int]] = [[] for _ in range(len(self))]
        for node, parent in enumerate(self.parents[1:], start=1):
            children[parent].append(node)
        return children

    def path_to(self, node: int) -> list[int]:
        """The nodes from the root's child down to `node`; empty for the root."""
        path = []
        while node > 0:
            path.append(node)
            node = self.parents[node]
        return path[::-1]

    def tokens_at(self, nodes: Sequence[int]) -> list[int]:
        """The tokens of these nodes."""
        return [self.tokens[node] for node in nodes]
