"""Drafting with a small language model that has the target's vocabulary."""

from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from itertools import groupby
from typing import TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from specdec.cache import PagedKVCache
from specdec.chains import Chain, SampleMethod, grow_chains
from specdec.growth import BestFirst, Drawn, static_shape
from specdec.protocols import DrafterNeeds, Noise, RequestView
from specdec.rollout import Rollout, catch_up, running
from specdec.sampling import Sampler
from specdec.target import PagedModel
from specdec.types import Draft
from specdec.vocabulary import check_vocabulary

DEFAULT_WIDTH = 4
UNKNOWN = -3e4  # logit of a token that the draft model does not know: probability 0, unless the others are excluded
# A guess of P(the child of rank r is accepted | its parent was). It gives drawn trees their shape, and nothing else.
RANK_ACCEPTANCE = 0.7, 0.3  # of rank 0, and factor per rank


def pool_of(model: PreTrainedModel) -> str:
    """The name of a draft model's pool: its own, so that no cache takes another model's rows for its rows."""
    return f"draft {id(model):x}"


@dataclass(eq=False, repr=False)
class DraftModel:
    """A drafter that runs a causal language model of Hugging Face, one forward pass per level of all drafts.

    Its rows lie in the pages of the target's cache. Each round begins with what it missed: the rows of accepted tokens
    that it has not run, then the pending token.

    Args:
        model: any causal LM with the target's vocabulary; or a `PagedModel` of one, with a pool of its own.
        num_speculative_tokens: depth of the draft.
        draft_sample_method: how a sampling request is drafted for. "greedy": the likeliest tokens, chosen;
            "probabilistic": drawn from the request's own final distribution over the draft logits, for a rule that uses
            q; "coupled": drawn from the same with the target's own noise (Daliri et al., 2408.07978). A greedy request
            gets the tokens its own processors leave likeliest, whatever the method.
        num_tree_nodes: drafted nodes of a tree; None for a chain. Likeliest tokens make the best-first tree of EAGLE-2
            (algorithms.md 4.10), drawn ones fill a shape that is fixed beforehand.
        tree_width: children per node at most, and nodes of a level with children; 4 in a tree.
        confidence_threshold: nothing is drafted after a token whose own probability is below; the token itself stays.
        draft_temperature: drawn tokens only: divides the final draft scores once more.

    Example:
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> sizes = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
        >>> drafter = DraftModel(LlamaForCausalLM(LlamaConfig(vocab_size=32, **sizes)), num_speculative_tokens=3)
        >>> from specdec.noise import PhiloxNoise
        >>> from specdec.sampling import Sampler
        >>> cache = PagedKVCache()
        >>> view = RequestView(0, [5, 7], prompt_length=2, table=cache.open([5]), sampler=Sampler(), cache=cache)
        >>> cache.stage(view.table, 1)
        >>> cache.commit(view.table, [], [5])  # the target has run the prompt but for the pending token
        >>> len(drafter.propose([view], [9], [PhiloxNoise(0)])[0])  # the pending token and three drafted ones
        4
    """

    model: InitVar[PreTrainedModel | PagedModel]
    num_speculative_tokens: int = 5
    draft_sample_method: SampleMethod = "greedy"
    num_tree_nodes: int | None = None
    tree_width: int | None = None
    confidence_threshold: float | None = None
    draft_temperature: float | None = None
    needs: DrafterNeeds = field(init=False)

    name = "draft_model"

    def __post_init__(self, model: PreTrainedModel | PagedModel) -> None:
        self._require_sense()
        self._model = model if isinstance(model, PagedModel) else PagedModel(model, pool=pool_of(model))
        self.pool = self._model.pool_name
        self._vocab_size = self._model.vocab_size  # of the target, as far as is known
        self._width = 1 if self.num_tree_nodes is None else self.tree_width or DEFAULT_WIDTH
        self._num_nodes = self.num_tree_nodes or self.num_speculative_tokens
        self._threshold = self.confidence_threshold or 0.0
        first, factor = RANK_ACCEPTANCE
        guess = [first * factor**rank for rank in range(self._width)]
        depths = range(self.num_speculative_tokens + 1) if self.num_tree_nodes is not None else ()
        self._shapes = [static_shape(guess, self._num_nodes, depth) for depth in depths]  # of drawn trees, by depth
        self.needs = DrafterNeeds(
            tree=self.num_tree_nodes is not None,
            sampled=self.draft_sample_method == "probabilistic",
        )

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
        """What the draft model says next, a chain or tree per view."""
        if not views:
            return []
        depths = [self._depth(view, budget) for view, budget in zip(views, budgets, strict=True)]
        if self.num_tree_nodes is not None:
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
        return min(budget, self.num_speculative_tokens, room)

    def _is_plain(self, views: Sequence[RequestView]) -> bool:
        """Whether all of them want the likeliest tokens by the logits as they are."""
        return self._model.vocab_size == self._vocab_size and all(
            self._method(view) == "greedy" and (view.sampler.do_sample or not view.sampler.processors) for view in views
        )

    def _method(self, view: RequestView) -> SampleMethod:
        return self.draft_sample_method if view.sampler.do_sample else "greedy"

    def _trees(self, views: Sequence[RequestView], depths: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        cache = views[0].cache
        chosen: dict[int, Rollout[BestFirst]] = {}
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

    def _chosen_run(self, cache: PagedKVCache, view: RequestView, depth: int) -> Rollout[BestFirst]:
        growth = BestFirst(view.tokens[-1], self._num_nodes, self._width, depth, self._threshold)
        cache.stage(view.table, 1 + self._width * (depth - 1))
        return Rollout(view, growth, self._model)

    def _drawn_run(self, cache: PagedKVCache, view: RequestView, depth: int, noise: Noise) -> Rollout[Drawn]:
        is_coupled = self.draft_sample_method == "coupled"
        shape = self._shapes[depth]
        growth = Drawn(view.tokens[-1], shape, len(view.tokens), noise, is_coupled, self._threshold)
        cache.stage(view.table, len(shape))
        return Rollout(view, growth, self._model)

    def _grow(self, cache: PagedKVCache, chosen: list[Rollout[BestFirst]], drawn: list[Rollout[Drawn]]) -> None:
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

    def _expand_chosen(self, runs: Sequence[Rollout[BestFirst]], scores: Tensor) -> None:  # [frontiers, vocab]
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

    def _require_sense(self) -> None:
        """Refuses options that mean nothing, alone or together."""
        methods = get_args(SampleMethod)
        if self.draft_sample_method not in methods:
            raise ValueError(f"expected draft_sample_method of {', '.join(methods)}, got {self.draft_sample_method!r}")
        for name in ("num_speculative_tokens", "num_tree_nodes", "tree_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} of at least 1, got {value}; pass no drafter for plain decoding")
        if self.tree_width is not None and self.num_tree_nodes is None:
            raise ValueError("expected num_tree_nodes beside tree_width, got tree_width alone; a chain has no width")
        if self.confidence_threshold is not None and not 0 <= self.confidence_threshold <= 1:
            raise ValueError(
                f"expected confidence_threshold from 0 to 1, got {self.confidence_threshold}; it is a probability"
            )
        if self.draft_temperature is not None and not self.draft_temperature > 0:
            raise ValueError(
                f"expected draft_temperature above 0, got {self.draft_temperature}; "
                "for the likeliest tokens pass draft_sample_method='greedy'"
            )
        if self.draft_temperature is not None and self.draft_sample_method == "greedy":
            raise ValueError(
                "expected draft_temperature with drawn tokens, got draft_sample_method='greedy'; "
                "pass 'probabilistic' or 'coupled', or drop it"
            )


_AnyRun: TypeAlias = Rollout[BestFirst] | Rollout[Drawn]


def _part(rows: Tensor, start: int, stop: int) -> Tensor:  # [n, vocab] -> [stop - start, vocab]
    """Rows `start` to `stop - 1`; all of them cost nothing."""
    return rows if stop - start == rows.shape[0] else rows[start:stop]
