"""How draft trees grow: best first by the drafter's own probabilities, or in a shape fixed beforehand, chosen or drawn.

All grow level by level: the caller runs its model on `frontier`, the nodes whose continuations are wanted next, and
hands the rows to `expand`, until the frontier is empty. Chains are drafted in chains.py.
"""

import heapq
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .protocols import Noise
from .rules import without
from .tree import TokenTree
from .types import Draft


class BestFirst:
    """A tree of chosen nodes: the likeliest ones under the drafter (EAGLE-2, 2406.16858; algorithms.md 4.10).

    The score of a node is the sum of the log-probabilities on the way to it, so it falls along every path, and the
    best nodes, ties going to the shallower, are closed under parents.

    Args:
        pending: token of the root.
        num_nodes: how many drafted nodes to keep.
        width: how many nodes of a level may have children.
        depth: of the deepest node.
        threshold: a node whose own probability is below it stays, but gets no children.

    Example:
        >>> tree = BestFirst(pending=9, num_nodes=3, width=2, depth=2)
        >>> tree.expand([[4, 5]], [[-0.1, -2.5]])  # children 4 and 5 of the root
        >>> tree.expand([[6, 7], [8, 1]], [[-0.2, -1.7], [-0.1, -2.0]])  # children of 4 and of 5
        >>> tree.draft("example").tree.tokens  # 5 and its children scored below 7
        [9, 4, 6, 7]
    """

    def __init__(self, pending: int, num_nodes: int, width: int, depth: int, threshold: float = 0.0) -> None:
        self.tokens, self.parents, self._scores = [pending], [-1], [0.0]
        self.frontier = [0]
        self._num_nodes, self._width, self._levels_left = num_nodes, width, depth
        self._log_threshold = math.log(threshold) if threshold > 0 else -math.inf

    def expand(self, tokens: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]]) -> None:
        """Adds children to the frontier: per frontier node the tokens and their log-probabilities, best first."""
        born = []  # (score, node) of those that may have children
        for parent, row, row_log_probs in zip(self.frontier, tokens, log_probs, strict=True):
            for token, log_prob in zip(row, row_log_probs, strict=True):
                if log_prob == -math.inf:
                    break
                score = self._scores[parent] + log_prob
                if log_prob >= self._log_threshold:
                    born.append((score, len(self.tokens)))
                self.tokens.append(token)
                self.parents.append(parent)
                self._scores.append(score)
        self._levels_left -= 1
        self.frontier = self._fruitful(born) if self._levels_left else []

    def _fruitful(self, born: list[tuple[float, int]]) -> list[int]:
        """The best `width` of the new nodes, as far as a child of theirs could still be among the best `num_nodes`."""
        if len(born) > 1:
            born = heapq.nsmallest(self._width, born, key=lambda pair: (-pair[0], pair[1]))
        if len(self.tokens) > self._num_nodes:
            last = heapq.nlargest(self._num_nodes, self._scores[1:])[-1]
            born = [pair for pair in born if pair[0] > last]
        return [node for _, node in born]

    def draft(self, source: str) -> Draft:
        """The best nodes as a draft, with their scores."""
        kept = list(range(len(self.tokens)))
        if len(kept) > self._num_nodes + 1:  # nodes stand in order of depth, so the first of equals is the shallower
            best = heapq.nsmallest(self._num_nodes, kept[1:], key=lambda node: (-self._scores[node], node))
            kept = [0, *sorted(best)]
        new = {node: place for place, node in enumerate(kept)}
        parents = [-1, *(new[self.parents[node]] for node in kept[1:])]
        tree = TokenTree([self.tokens[node] for node in kept], parents)
        scores = torch.tensor([self._scores[node] for node in kept], dtype=torch.float32)
        return Draft.chosen(tree, source, scores)


class Drawn:
    """A tree whose nodes are drawn, in a shape that was fixed before the first draw.

    Fixed, because a drawn node must not be dropped for what it turned out to be (principle P2 of algorithms.md). With
    `is_coupled` the draws share the target's noise (algorithms.md 1.7, 2.7) and the nodes claim no probability.
    Otherwise the children of a node are drawn without replacement, and its row of probabilities is kept.

    Args:
        pending: token of the root.
        shape: the parents of the tree, as `static_shape` gives them.
        start: number of committed tokens.
        noise: of the request.
        is_coupled: see above.
        threshold: below a node whose own probability is less, nothing more is drawn; the node itself stays.

    Example:
        >>> from specdec.noise import PhiloxNoise
        >>> tree = Drawn(9, [-1, 0, 0], start=4, noise=PhiloxNoise(0), is_coupled=False)
        >>> tree.expand(torch.tensor([[0.0, 1.0, -torch.inf]]))
        >>> draft = tree.draft("example")
        >>> sorted(draft.tree.tokens), draft.sampled
        ([0, 1, 9], [False, True, True])
    """

    def __init__(
        self, pending: int, shape: Sequence[int], start: int, noise: Noise, is_coupled: bool, threshold: float = 0.0
    ) -> None:
        self.tokens, self.parents = [pending], [-1]
        self.frontier = [0]
        self._counts = [0] * len(shape)  # children per node of the shape
        for parent in shape[1:]:
            self._counts[parent] += 1
        self._firsts = [1]  # node of the shape -> its first child
        for count in self._counts[:-1]:
            self._firsts.append(self._firsts[-1] + count)
        self._places = [0]  # node -> its place in the shape; some places stay empty
        self._rows: dict[int, Tensor] = {}  # node -> [vocab], what its children were drawn from
        self._position = start  # of the next level's tokens
        self._start, self._noise, self._is_coupled, self._threshold = start, noise, is_coupled, threshold

    def expand(self, scores: Tensor) -> None:  # [len(frontier), vocab] float32
        """Draws the children of the frontier from softmax of these rows, which are final (see `Sampler.scores`)."""
        probs = scores.softmax(-1) if self._threshold or not self._is_coupled else scores
        frontier = []
        for row, parent in enumerate(self.frontier):
            place = self._places[parent]
            if self._is_coupled:
                tokens = self._noise.coupled_tokens(scores[row], self._position, self._counts[place])
            else:
                self._rows[parent] = probs[row]
                tokens = self._draws(probs[row], parent, self._counts[place])
            for child, token in enumerate(tokens, start=self._firsts[place]):
                if self._counts[child] and not (self._threshold and float(probs[row, token]) < self._threshold):
                    frontier.append(len(self.tokens))
                self.tokens.append(token)
                self.parents.append(parent)
                self._places.append(child)
        self._position += 1
        self.frontier = frontier

    def _draws(self, probs: Tensor, node: int, count: int) -> list[int]:
        """Up to `count` tokens drawn from `probs` [vocab] without replacement (Sequoia, 2402.12374)."""
        tokens: list[int] = []
        while True:
            tokens.append(self._noise.draft_token(probs, self._start, node, len(tokens)))
            if len(tokens) == count:
                return tokens
            probs = without(probs, tokens[-1])
            if not probs.any():
                return tokens

    def draft(self, source: str) -> Draft:
        """Everything drawn, in draw order."""
        tree = TokenTree(self.tokens, self.parents)
        if self._is_coupled:
            return Draft.chosen(tree, source)
        some_row = self._rows[0]
        probs = some_row.new_zeros(len(self.tokens), some_row.shape[0])
        for node, row in self._rows.items():
            probs[node] = row
        return Draft(tree, [False] + [True] * (len(tree) - 1), probs, source=source)


class Ranked:
    """A tree of chosen nodes in a shape that was fixed beforehand: which ranks are tried below which (Medusa,
    2401.10774, section 2.1.2).

    Args:
        pending: token of the root.
        choices: of each node the ranks on the way to it, parents included, as `best_choices` gives them.
        depth: of the deepest node; choices further down are left out.
        threshold: a node whose own probability is below it stays, but gets no children.

    Example:
        >>> tree = Ranked(pending=9, choices=[(0,), (1,), (1, 0)], depth=2)
        >>> tree.expand([[4, 5]], [[-0.1, -2.5]])
        >>> tree.expand([[6, 7]], [[-0.2, -1.7]])  # below 5, which is the only one with children
        >>> draft = tree.draft("example").tree
        >>> draft.tokens, draft.parents
        ([9, 4, 5, 6], [-1, 0, 0, 2])
    """

    def __init__(self, pending: int, choices: Sequence[Sequence[int]], depth: int, threshold: float = 0.0) -> None:
        self.tokens, self.parents, self._scores = [pending], [-1], [0.0]
        self._log_threshold = math.log(threshold) if threshold > 0 else -math.inf
        self._ranks: dict[tuple[int, ...], list[int]] = {}  # path of ranks -> ranks tried below it
        for path in choices:
            if len(path) <= depth:
                self._ranks.setdefault(tuple(path[:-1]), []).append(path[-1])
        self._paths: list[tuple[int, ...]] = [()]  # of each node
        self.frontier = [0] if () in self._ranks else []

    def expand(self, tokens: Sequence[Sequence[int]], log_probs: Sequence[Sequence[float]]) -> None:
        """Adds children to the frontier: per frontier node the tokens and their log-probabilities, best first."""
        frontier = []
        for parent, row, row_log_probs in zip(self.frontier, tokens, log_probs, strict=True):
            path = self._paths[parent]
            for rank in self._ranks[path]:
                if rank >= len(row) or row_log_probs[rank] == -math.inf:
                    continue
                if (*path, rank) in self._ranks and row_log_probs[rank] >= self._log_threshold:
                    frontier.append(len(self.tokens))
                self.tokens.append(row[rank])
                self.parents.append(parent)
                self._paths.append((*path, rank))
                self._scores.append(self._scores[parent] + row_log_probs[rank])
        self.frontier = frontier

    def draft(self, source: str) -> Draft:
        """All nodes as a draft, with their scores."""
        return Draft.chosen(TokenTree(self.tokens, self.parents), source, torch.tensor(self._scores))


def best_choices(acceptance: Sequence[Sequence[float]], num_nodes: int) -> list[tuple[int, ...]]:
    """The tree of at most `num_nodes` drafted nodes that is expected to be accepted deepest, its nodes as rank paths.

    `acceptance[d][r]` is the probability that the node of rank r at depth d + 1 is accepted if its parent was, falling
    with r: a guess, counts of a calibration, or what a drafter says of this text, in which case the tree is that of
    DDTree (2604.12989). The value of a tree is the sum of its nodes' path products, so the best one holds the largest
    products (Sequoia, 2402.12374, section 3.1; algorithms.md 5.3).

    Example:
        >>> best_choices([[0.6, 0.3], [0.5, 0.4]], num_nodes=4)
        [(0,), (1,), (0, 0), (0, 1)]
    """
    costs = [[-math.log(value) for value in row if value > 0] for row in acceptance]
    kept: list[tuple[int, ...]] = []
    heap: list[tuple[float, int, tuple[int, ...], float]] = []  # cost, depth, path, cost of the parent
    if costs and costs[0]:
        heap.append((costs[0][0], 1, (0,), 0.0))
    while heap and len(kept) < num_nodes:
        cost, depth, path, above = heapq.heappop(heap)
        kept.append(path)
        rank, level = path[-1] + 1, costs[depth - 1]
        if rank < len(level):
            heapq.heappush(heap, (above + level[rank], depth, (*path[:-1], rank), above))
        if depth < len(costs) and costs[depth]:
            heapq.heappush(heap, (cost + costs[depth][0], depth + 1, (*path, 0), cost))
    return sorted(kept, key=lambda path: (len(path), path))


def parents_of(choices: Sequence[Sequence[int]]) -> list[int]:
    """The parents of a tree whose nodes are these rank paths, level by level, in the order given; the root is node 0.

    Example:
        >>> parents_of([(0,), (1,), (1, 0)])
        [-1, 0, 0, 2]
    """
    places: dict[tuple[int, ...], int] = {(): 0}
    for place, path in enumerate(choices, start=1):
        places[tuple(path)] = place
    return [-1, *(places[tuple(path[:-1])] for path in choices)]


def static_shape(acceptance: Sequence[float], num_nodes: int, depth: int) -> list[int]:
    """The parents of the tree of `best_choices` for ranks that are as good at every depth.

    Example:
        >>> static_shape([0.6, 0.3], num_nodes=4, depth=2)  # 0.6, 0.36, 0.3, then 0.6 * 0.3 and 0.3 * 0.6: a tie
        [-1, 0, 0, 1, 1]
    """
    return parents_of(best_choices([acceptance] * depth, num_nodes))
