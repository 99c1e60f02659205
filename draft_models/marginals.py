"""Heads that say in one pass what follows the pending token and the next few: one row of logits per depth.

A row does not know which tokens were drafted in front of its own, unless the network corrects it by them; so drafting
from the rows needs no further pass. The best tree of given rows is that of DDTree (2604.12989): the nodes with the
largest products of probabilities.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from specdec.cache import PagedKVCache, PageTable
from specdec.chunk import Chunk, Scores
from specdec.features import FeatureRows
from specdec.growth import best_choices, parents_of
from specdec.protocols import Noise, RequestView
from specdec.rollout import catch_up
from specdec.tree import TokenTree
from specdec.types import Draft

from .head_drafter import HeadDrafter
from .head_network import HeadNetwork
from .head_runner import HeadRunner, on_device


class Marginals(HeadRunner):
    """Runs a network once per draft, and then looks its rows up.

    Args:
        network: left as it is found.
        depth: how many rows it gives.
        max_positions: the longest text it can be used on.
    """

    def __init__(self, network: HeadNetwork, depth: int, max_positions: int) -> None:
        super().__init__(network, max_positions)
        self.depth = depth
        self._rows = torch.empty(0)  # [requests * depth, draft vocab]
        self._firsts: dict[PageTable, int] = {}  # the row that follows the pending token

    def require_mask(self, token: int) -> None:
        """Of a network that reads a mask token where it drafts.

        Raises:
            ValueError: there is no embedding for it.
        """
        if token >= self.num_embeddings:
            raise ValueError(
                f"expected a mask token below the {self.num_embeddings} that have embeddings, got {token}; give the "
                "mask_token_id that the head was trained with"
            )

    def read(self, features: Mapping[PageTable, FeatureRows]) -> None:
        """What is known of the committed rows, until the next call."""
        super().read(features)
        self._firsts = {}

    def score(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Scores:
        """Logits after the wanted nodes; the network is run where a chunk ends with the pending token."""
        with self.running():
            if not chunks[0].first:
                self.begin(cache, chunks)
            if not any(chunk.num_logits for chunk in chunks):  # pieces of what the pool has missed
                return Scores(torch.empty(0, self.vocab_size), None)
            wanted = [range(len(chunk.tree) - chunk.num_logits, len(chunk.tree)) for chunk in chunks]
            places = [
                self._firsts[chunk.table] + chunk.start + chunk.tree.depths[node] - chunk.table.length
                for chunk, nodes in zip(chunks, wanted, strict=True)
                for node in nodes
            ]
            tokens = [chunk.tree.tokens[node] for chunk, nodes in zip(chunks, wanted, strict=True) for node in nodes]
            logits = self._looked_up(places, tokens)
        return Scores(logits if torch.is_inference_mode_enabled() else logits.clone(), None)

    def step(
        self, cache: PagedKVCache, tables: Sequence[PageTable], rows: Sequence[int], tokens: Sequence[int]
    ) -> Tensor:
        """Logits [b, vocab] after one more token per request."""
        with self.running():
            places = [self._firsts[table] + row - table.length for table, row in zip(tables, rows, strict=True)]
            logits = self._looked_up(places, tokens)
        return logits if torch.is_inference_mode_enabled() else logits.clone()

    def chain(self, cache: PagedKVCache, chunks: Sequence[Chunk], count: int) -> list[list[int]] | None:
        """The `count` likeliest tokens behind each chunk; the host waits for them once."""
        with self.running():
            self.begin(cache, chunks)
            rows = self._rows.view(-1, self.depth, self._rows.shape[-1])
            if not self.is_corrected:
                drafted = self.vocabulary.likeliest(rows[:, :count])
            else:
                ends, levels = [chunk.tree.tokens[-1] for chunk in chunks], []
                tokens = on_device(ends, rows.device)
                for level in range(count):
                    places = range(level, len(self._rows), self.depth)
                    tokens = self.vocabulary.likeliest(self.corrected(rows[:, level], places, tokens))
                    levels.append(tokens)
                drafted = torch.stack(levels, 1)
        listed: list[list[int]] = drafted.tolist()
        return listed

    def begin(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> None:
        """Runs the network for the requests of these chunks, whose last row is that of the pending token; a chunk that
        ends in front of it is a piece of what the pool has missed."""
        ending = [chunk for chunk in chunks if chunk.num_logits]
        self._firsts = {chunk.table: index * self.depth for index, chunk in enumerate(ending)}
        rows = self.rows_after(cache, chunks)
        if ending:
            self._rows = rows.flatten(0, 1)
        for chunk in chunks:
            chunk.table.filled[self.pool_name] = chunk.start + len(chunk.tree)

    def rows_after(self, cache: PagedKVCache, chunks: Sequence[Chunk]) -> Tensor:
        """Logits [requests, depth, draft vocab] of the requests whose chunk ends with the pending token; with graphs
        they are good until the next pass."""
        raise NotImplementedError

    @property
    def is_corrected(self) -> bool:
        """Whether a drafted token changes the rows behind it."""
        return False

    def corrected(self, rows: Tensor, places: Sequence[int], tokens: Tensor) -> Tensor:  # [n, draft vocab], [n]
        """The rows, which stand at these places of all rows, after these tokens."""
        return rows

    def all_rows(self) -> Tensor:  # [requests, depth, vocab]
        """The rows of all requests as they are."""
        return self._widened(self._rows).view(-1, self.depth, self.vocab_size)

    def _looked_up(self, places: list[int], tokens: Sequence[int]) -> Tensor:  # [n, vocab]
        if len(places) == 1:
            rows = self._rows.narrow(0, places[0], 1)
        else:
            rows = self._rows.index_select(0, on_device(places, self._rows.device))
        if self.is_corrected:
            rows = self.corrected(rows, places, on_device(tokens, rows.device))
        return self._widened(rows)

    def _widened(self, rows: Tensor) -> Tensor:  # [n, draft vocab] -> [n, vocab]
        return self.vocabulary.widened(rows)


class OnePass(HeadDrafter):
    """What drafters share whose head runs once per draft; the options are those of `TokenDrafter`.

    Likeliest tokens come from all rows at once. Where a token changes the rows behind it, by a correction of the
    network or a processor of the request, and where tokens are drawn, drafts grow token by token, without more passes.
    """

    def __post_init__(self, model: Any) -> None:
        super().__post_init__(model)
        self._marginals.depth = self._max_depth  # rows further down are not wanted

    def _reach(self) -> int:
        return self._marginals.depth

    @property
    def _marginals(self) -> Marginals:
        head = self._head
        assert isinstance(head, Marginals)
        return head

    def _proposals(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        is_given = not (self._threshold or self._choices or self._marginals.is_corrected)  # one row after the other
        if not self._is_tree or not is_given or not self._is_plain(views):
            return super()._proposals(views, budgets, noises)
        drafts = [Draft.empty(view.tokens[-1], self.name) for view in views]
        depths = [self._depth(view, budget) for view, budget in zip(views, budgets, strict=True)]
        live = [index for index, depth in enumerate(depths) if depth > 0]
        if not live:
            return drafts
        cache, head = views[0].cache, self._marginals
        for index in live:
            cache.stage(views[index].table, 1)
        with head.running():
            head.score(cache, [catch_up(head, cache, views[index]) for index in live])
            rows = head.all_rows()
            best = rows.float().softmax(-1).topk(min(self.tree_width or self._num_nodes, rows.shape[-1]))
        for index, tokens, probs in zip(live, best.indices.tolist(), best.values.tolist(), strict=True):
            drafts[index] = self._best_tree(views[index].tokens[-1], tokens, probs[: depths[index]])
        return drafts

    def _best_tree(self, pending: int, tokens: list[list[int]], probs: list[list[float]]) -> Draft:
        choices, scores = best_choices(probs, self._num_nodes), [0.0]
        for path in choices:
            scores.append(sum(math.log(probs[level][rank]) for level, rank in enumerate(path)))
        nodes = [pending, *(tokens[len(path) - 1][path[-1]] for path in choices)]
        return Draft.chosen(TokenTree(nodes, parents_of(choices)), self.name, torch.tensor(scores))
