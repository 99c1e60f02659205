"""Drafting token by token with a network: chains and trees, of likeliest or of drawn tokens."""

import sys
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from itertools import groupby
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from specdec.cache import PagedKVCache
from specdec.chains import Chain, SampleMethod, grow_chains
from specdec.graphs import GraphReport
from specdec.growth import BestFirst, Drawn, Ranked, parents_of, static_shape
from specdec.protocols import DrafterNeeds, Noise, RequestView
from specdec.rollout import DraftNetwork, Rollout, catch_up, running
from specdec.sampling import Sampler
from specdec.target import PagedModel
from specdec.types import Draft
from specdec.vocabulary import check_vocabulary

from .draft_options import require_sense, tree_choices

DEFAULT_DEPTH, DEFAULT_WIDTH = 5, 4
UNKNOWN = -3e4  # logit of a token that the network does not know: probability 0, unless the others are excluded
# A guess of P(the child of rank r is accepted | its parent was). It gives drawn trees their shape, and nothing else.
RANK_ACCEPTANCE = 0.7, 0.3  # of rank 0, and factor per rank


@dataclass(eq=False, repr=False)
class TokenDrafter:
    """What all drafters share that ask a network for one token after the other; a subclass says which network.

    Args:
        model: what drafts.
        num_speculative_tokens: depth of the draft; None for 5, or for less if the network reaches no further.
        draft_sample_method: how a sampling request is drafted for. "greedy": the likeliest tokens, chosen;
            "probabilistic": drawn from the request's own final distribution over the draft logits, for a rule that uses
            q; "coupled": drawn from the same with the target's own noise (Daliri et al., 2408.07978). A greedy request
            gets the tokens its own processors leave likeliest, whatever the method.
        num_tree_nodes: drafted nodes of a tree; None for a chain. Likeliest tokens make the best-first tree of EAGLE-2
            (algorithms.md 4.10), drawn ones fill a shape that is fixed beforehand.
        tree_width: children per node at most, and nodes of a level with children; 4 in a tree.
        speculative_token_tree: the shape of a tree instead: of each node the ranks on the way to it, as in
            [(0,), (1,), (0, 0)]; a string of that, too.
        confidence_threshold: nothing is drafted after a token whose own probability is below; the token itself stays.
        draft_temperature: drawn tokens only: divides the final draft scores once more.
    """

    model: InitVar[Any]
    num_speculative_tokens: int | None = None
    draft_sample_method: SampleMethod = "greedy"
    num_tree_nodes: int | None = None
    tree_width: int | None = None
    speculative_token_tree: str | Sequence[Sequence[int]] | None = None
    confidence_threshold: float | None = None
    draft_temperature: float | None = None
    needs: DrafterNeeds = field(init=False)

    name = "token_drafter"

    def __post_init__(self, model: Any) -> None:
        require_sense(self)
        self._model = self._runner(model)
        self.pool = self._model.pool_name
        self._vocab_size = self._model.vocab_size  # of the target, as far as is known
        self._choices = tree_choices(self.speculative_token_tree)
        self._is_tree = self.num_tree_nodes is not None or bool(self._choices)
        self._max_depth = self._settled_depth()
        self._width = 1 + max((path[-1] for path in self._choices), default=0)
        if self.num_tree_nodes is not None:
            self._width = self.tree_width or DEFAULT_WIDTH
        self._num_nodes = self.num_tree_nodes or self._max_depth
        self._threshold = self.confidence_threshold or 0.0
        self._shapes = [self._shape(depth) for depth in range(self._max_depth + 1)] if self._is_tree else []
        self.needs = DrafterNeeds(tree=self._is_tree, sampled=self.draft_sample_method == "probabilistic")

    @property
    def graph_report(self) -> GraphReport | None:
        """What capturing the network's passes has cost and saved; None without graphs."""
        return self._model.graph_report

    def _runner(self, model: Any) -> DraftNetwork:
        """The network over pages."""
        raise NotImplementedError

    def _reach(self) -> int:
        """How many tokens the network can draft."""
        return sys.maxsize

    def _settled_depth(self) -> int:
        reach, wanted = self._reach(), max(map(len, self._choices), default=self.num_speculative_tokens or 0)
        if max(wanted, self.num_speculative_tokens or 0) > reach:
            raise ValueError(
                f"expected at most {reach} drafted tokens of this network, got {wanted}; lower num_speculative_tokens"
            )
        return wanted or min(DEFAULT_DEPTH, reach)

    def _shape(self, depth: int) -> list[int]:
        """The parents of a drawn tree."""
        if self._choices:
            return parents_of([path for path in self._choices if len(path) <= depth])
        first, factor = RANK_ACCEPTANCE
        return static_shape([first * factor**rank for rank in range(self._width)], self._num_nodes, depth)

    def check(self, target: PagedModel) -> None:
        """Adopts the width of the target's rows.

        Raises:
            ValueError: the vocabularies cannot be the same, or the target keeps its rows in the same pool.
        """
        if self.pool == target.pool_name:
            raise ValueError(
                f"expected a draft model with a pool of its own, got the target's {self.pool!r}; pass the model, "
                "or PagedModel(model, pool='draft')"
            )
        check_vocabulary(target.vocab_size, self._model.vocab_size)
        self._vocab_size = target.vocab_size

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """What the network says next, a chain or tree per view."""
        if not views:
            return []
        depths = [self._depth(view, budget) for view, budget in zip(views, budgets, strict=True)]
        if self._is_tree:
            return self._trees(views, depths, noises)
        per_view = zip(views, depths, noises, strict=True)
        chains = [Chain(view, depth, self._method(view), noise) for view, depth, noise in per_view]
        grow_chains(
            self._model, views[0].cache, chains, None if self._is_plain(views) else self._final, self._threshold
        )
        return [chain.draft(self.name) for chain in chains]

    def close(self, request_ids: Sequence[int]) -> None:
        """Nothing to forget: all there is lies in the request's page table."""

    def _depth(self, view: RequestView, budget: int) -> int:
        room = self._model.max_positions - len(view.tokens) + 1  # the last drafted token is not run
        return min(budget, self._max_depth, room)

    def _is_plain(self, views: Sequence[RequestView]) -> bool:
        """Whether all of them want the likeliest tokens by the logits as they are."""
        return self._model.vocab_size == self._vocab_size and all(
            self._method(view) == "greedy" and (view.sampler.do_sample or not view.sampler.processors) for view in views
        )

    def _method(self, view: RequestView) -> SampleMethod:
        return self.draft_sample_method if view.sampler.do_sample else "greedy"

    def _trees(self, views: Sequence[RequestView], depths: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        cache = views[0].cache
        chosen: dict[int, _ChosenRun] = {}
        drawn: dict[int, Rollout[Drawn]] = {}
        for index, (view, depth, noise) in enumerate(zip(views, depths, noises, strict=True)):
            if depth < 1:
                continue
            if self._method(view) == "greedy":
                chosen[index] = self._chosen_run(cache, view, depth)
            else:
                drawn[index] = self._drawn_run(cache, view, depth, noise)
        self._grow(cache, list(chosen.values()), list(drawn.values()))
        runs: dict[int, _AnyRun] = {**chosen, **drawn}
        for run in runs.values():  # accepted rows of a tree do not lie where they would have to stay
            run.table.filled[self.pool] = run.table.length + 1
        return [
            runs[index].growth.draft(self.name) if index in runs else Draft.empty(view.tokens[-1], self.name)
            for index, view in enumerate(views)
        ]

    def _chosen_run(self, cache: PagedKVCache, view: RequestView, depth: int) -> "_ChosenRun":
        if self._choices:
            cache.stage(view.table, len(self._shapes[depth]))
            return Rollout(view, Ranked(view.tokens[-1], self._choices, depth, self._threshold), self._model)
        growth = BestFirst(view.tokens[-1], self._num_nodes, self._width, depth, self._threshold)
        cache.stage(view.table, 1 + self._width * (depth - 1))
        return Rollout(view, growth, self._model)

    def _drawn_run(self, cache: PagedKVCache, view: RequestView, depth: int, noise: Noise) -> Rollout[Drawn]:
        is_coupled = self.draft_sample_method == "coupled"
        shape = self._shapes[depth]
        growth = Drawn(view.tokens[-1], shape, len(view.tokens), noise, is_coupled, self._threshold)
        cache.stage(view.table, len(shape))
        return Rollout(view, growth, self._model)

    def _grow(self, cache: PagedKVCache, chosen: list["_ChosenRun"], drawn: list[Rollout[Drawn]]) -> None:
        """A level per forward pass, for all requests at once, until no draft grows any more."""
        runs: list[_AnyRun] = [*chosen, *drawn]
        chunks = [catch_up(self._model, cache, run.view) for run in runs]
        with running(self._model, [run.view.sampler for run in runs]):
            while chunks:
                scores = self._final(runs, self._model.score(cache, chunks).logits)
                num_chosen = sum(run.num_rows for run in chosen)
                if chosen:
                    self._expand_chosen(chosen, _part(scores, 0, num_chosen))
                if drawn:
                    self._expand_drawn(drawn, _part(scores, num_chosen, len(scores)))
                chosen = [run for run in chosen if run.growth.frontier]
                drawn = [run for run in drawn if run.growth.frontier]
                runs = [*chosen, *drawn]
                chunks = [run.next_chunk() for run in runs]

    def _expand_chosen(self, runs: Sequence["_ChosenRun"], scores: Tensor) -> None:  # [frontiers, vocab]
        tokens = scores.topk(min(self._width, scores.shape[-1])).indices
        log_probs, lists = scores.log_softmax(-1).gather(-1, tokens).tolist(), tokens.tolist()
        first = 0
        for run in runs:
            stop = first + run.num_rows
            run.growth.expand(lists[first:stop], log_probs[first:stop])
            first = stop

    def _expand_drawn(self, runs: Sequence[Rollout[Drawn]], scores: Tensor) -> None:  # [frontiers, vocab]
        first = 0
        for run in runs:
            stop = first + run.num_rows
            run.growth.expand(_part(scores, first, stop))
            first = stop

    def _final(self, runs: Sequence["Chain | _AnyRun"], logits: Tensor) -> Tensor:  # [n, draft vocab] -> [n, vocab]
        """What tokens are chosen or drawn by, float32, for the last rows of the runs."""
        logits = self._fitted(logits)
        if len(runs) == 1:
            return self._scores(runs[0].view.sampler, runs, logits)
        parts, first = [], 0
        for sampler, group in groupby(runs, key=lambda run: run.view.sampler):
            members = list(group)
            stop = first + sum(run.num_rows for run in members)
            parts.append(self._scores(sampler, members, _part(logits, first, stop)))
            first = stop
        return torch.cat(parts)

    def _scores(self, sampler: Sampler, runs: Sequence["Chain | _AnyRun"], rows: Tensor) -> Tensor:  # [n, vocab] both
        """Final scores. The likeliest tokens of a sampling request go by the logits: its warpers would cost time and
        change little."""
        if sampler.do_sample and self.draft_sample_method == "greedy":
            return rows.float()
        scores = sampler.scores(rows, [run.context() for run in runs] if sampler.reads_prefix else ())
        return scores / self.draft_temperature if sampler.do_sample and self.draft_temperature is not None else scores

    def _fitted(self, logits: Tensor) -> Tensor:  # [n, draft vocab] -> [n, target vocab]
        surplus = logits.shape[-1] - self._vocab_size
        if surplus > 0:
            return logits[:, : self._vocab_size]
        return pad(logits, (0, -surplus), value=UNKNOWN) if surplus else logits


_ChosenRun: TypeAlias = Rollout[BestFirst] | Rollout[Ranked]
_AnyRun: TypeAlias = _ChosenRun | Rollout[Drawn]


def _part(rows: Tensor, start: int, stop: int) -> Tensor:  # [n, vocab] -> [stop - start, vocab]
    """Rows `start` to `stop - 1`; all of them cost nothing."""
    return rows if stop - start == rows.shape[0] else rows[start:stop]
