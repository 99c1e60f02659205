"""The loop: propose -> score -> verify -> commit, for one request or many. Read `Engine.rounds` first."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Self, TypeVar

import torch
from torch import Tensor

from .batched import BatchDecider
from .cache import CacheFull, PagedKVCache, PageTable
from .events import Clock, Round, Step
from .feed import features_of, feed_of
from .protocols import Drafter, Verifier, is_foreign
from .request import LiveRequest, Request
from .target import Chunk, PagedModel
from .tree import TokenTree
from .types import Draft, TargetRows, Verdict, ordinary

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Sizes, and what is kept for the caller."""

    max_batch_size: int | None = None  # requests in one forward pass; None for all
    max_prefill_tokens: int = 2048  # longest piece of a prompt in one forward pass
    keep_scores: bool = False  # steps carry the final scores their tokens came from
    keep_logits: bool = False  # steps carry the logits before any processor
    keep_tables: bool = False  # pages of finished requests stay, in `tables`, until the engine is closed


class Engine:
    """Runs requests to their end, a round at a time.

    A request's first round is plain: its prompt and its first token are one forward pass, so speculation never delays
    the first token. When pages run out, the youngest request is preempted and computed again later: to the same text
    with a pathwise rule, to a text of the same distribution with the others, whose draws depend on the rounds.

    Args:
        target: the model whose text is wanted.
        drafter: who proposes; None for plain decoding, which is the same loop with the empty draft.
        verifier: the rule.
        cache: pages shared by target and drafter.
        options: sizes, and what is kept.
    """

    def __init__(
        self,
        target: PagedModel,
        drafter: Drafter | None,
        verifier: Verifier,
        cache: PagedKVCache,
        options: EngineOptions | None = None,
    ) -> None:
        self.target, self.drafter, self.verifier, self.cache = target, drafter, verifier, cache
        self.options = options or EngineOptions()
        self._decider = BatchDecider(verifier, target.replayed)
        self.tables: dict[int, PageTable] = {}  # of finished requests, if kept
        self._waiting: deque[tuple[int, Request, list[int]]] = deque()
        self._live: list[LiveRequest] = []
        self._is_full = False  # a request was preempted, and none has ended since
        self._feed = feed_of(target, drafter, cache, self.options.max_prefill_tokens)

    def rounds(self, requests: Iterable[Request]) -> Generator[Round]:
        """Rounds until every request has finished; request ids count from 0 in the order given.

        Whatever happens, also when the iterator is dropped, all pages are returned.
        """
        self._waiting.extend((rank, request, list(request.tokens)) for rank, request in enumerate(requests))
        # Tensors that foreign code keeps must be ordinary ones; without such code all of a round is cheaper.
        has_foreign = any(is_foreign(part) for part in (self.drafter, self.verifier)) or any(
            each.sampler.reads_prefix or each.stopping.asks_others for _, each, _ in self._waiting
        )
        mode = torch.no_grad() if has_foreign else torch.inference_mode()
        try:
            with nullcontext() if self._feed is None else self._feed.tapped():
                while self._waiting or self._live:
                    with mode:
                        event = self._round()
                    yield event
        finally:
            self._stop()

    def _round(self) -> Round:
        """The four verbs: propose -> score -> verify -> commit."""
        clock = Clock()
        self._admit()
        clock.lap("cache")
        num_early = self._with_room(self._prefill)
        clock.lap("score")
        drafts = self._with_room(self._propose, alone=lambda: self._staged(self._empty_drafts()))
        clock.lap("draft")
        chunks = [live.chunk(draft.tree) for live, draft in zip(self._live, drafts, strict=True)]
        clock.lap("cache")
        raw = self.target.score(self.cache, chunks)
        clock.lap("score")
        scores = self._finalize(raw.logits, drafts)
        verdicts = self._verify(scores, drafts)
        clock.lap("rule")
        is_prefill = any(not live.is_prefilled for live in self._live)
        steps = self._emit(drafts, verdicts, scores, raw.logits)
        clock.lap("host")
        self._commit(verdicts, steps, raw.split_features(chunks))
        clock.lap("cache")
        num_rows = num_early + sum(chunk.num_rows for chunk in chunks)
        return Round(tuple(steps), clock.seconds(), num_rows, is_prefill)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Returns the pages of finished requests that were kept."""
        for table in self.tables.values():
            self.cache.close(table)
        self.tables.clear()

    # ---- admission and preemption

    def _admit(self) -> None:
        """Opens waiting requests while there is room; equal prompts wait for the first of them and share its pages."""
        limit = self.options.max_batch_size or len(self._waiting) + len(self._live)
        budget = self.options.max_prefill_tokens
        if self._is_full and self._live:
            return
        for _ in range(len(self._waiting)):
            if len(self._live) >= limit or budget <= 0:
                return
            rank, request, tokens = self._waiting.popleft()
            prompt = list(request.tokens)
            twin = next((live for live in self._live if live.tokens[: len(prompt)] == prompt), None)
            if twin is not None and not twin.is_prefilled:
                self._waiting.append((rank, request, tokens))  # its pages are there next round
                continue
            table = self._open(request, tokens, twin)
            features = None if self._feed is None else features_of(table, twin.view if twin else None)
            live = LiveRequest(rank, request, tokens, table, self.cache, features)
            self._live.append(live)
            budget -= live.missing

    def _open(self, request: Request, tokens: list[int], twin: LiveRequest | None) -> PageTable:
        if request.table is not None:
            return self.cache.fork(request.table)
        if twin is None:
            return self.cache.open(tokens)
        table = self.cache.fork(twin.table)
        self.cache.truncate(table, len(request.tokens) - 1)
        return table

    def _with_room(self, action: Callable[[], T], alone: Callable[[], T] | None = None) -> T:
        """The action's result; when pages run out, preempts the youngest request and tries again.

        The last request tries `alone` instead, which wants fewer pages. A preempted one waits until another has ended.
        """
        while True:
            try:
                return action()
            except CacheFull:
                if len(self._live) == 1 and alone is None:
                    raise
                if len(self._live) == 1 and alone is not None:
                    action, alone = alone, None
                else:
                    self._preempt(max(self._live, key=lambda live: live.rank))
                for live in self._live:
                    self.cache.truncate(live.table, live.table.length)  # what was staged will be drafted anew

    def _preempt(self, live: LiveRequest) -> None:
        self._live.remove(live)
        self._forget([live])
        self._waiting.appendleft((live.rank, live.request, live.tokens))
        self._is_full = True

    def _forget(self, gone: Sequence[LiveRequest]) -> None:
        """Returns the pages of requests that ended or were preempted; the sampler keeps what it knows of the latter."""
        for live in gone:
            self.cache.close(live.table)
        if self.drafter is not None:
            self.drafter.close([live.rank for live in gone])

    def _stop(self) -> None:
        live, self._live, self._is_full = self._live, [], False
        unfinished = [each.request for each in live] + [request for _, request, _ in self._waiting]
        self._waiting.clear()
        self._forget(live)
        for request in unfinished:
            request.sampler.forget(request.row)

    # ---- the four verbs

    def _prefill(self) -> int:
        """The number of prompt rows that were run ahead, so that what is left fits into one forward pass."""
        num_rows, size = 0, self.options.max_prefill_tokens
        for live in self._live:
            while live.missing >= size:
                piece = TokenTree.chain(live.tokens[live.table.length :][:size])
                self.cache.stage(live.table, len(piece))
                raw = self.target.score(self.cache, [Chunk(live.table, live.table.length, piece)])
                self.cache.commit(live.table, list(range(1, len(piece))), piece.tokens)
                live.keep_features(raw.features, range(len(piece)))
                num_rows += len(piece)
        return num_rows

    def _propose(self) -> list[Draft]:
        """A draft per live request, with pages for it; the empty one in a request's first round."""
        drafts = self._empty_drafts()
        ready = [index for index, live in enumerate(self._live) if live.is_prefilled]
        if self.drafter is not None and ready:
            views = [self._live[index].view for index in ready]
            budgets = [self._budget(self._live[index]) for index in ready]
            noises = [self._live[index].request.noise for index in ready]
            proposals = (self._feed or self.drafter).propose(views, budgets, noises)
            for index, draft, budget in zip(ready, proposals, budgets, strict=True):
                draft.require_sound(self._live[index].tokens[-1], budget, self.target.vocab_size)
                drafts[index] = draft
        return self._staged(drafts)

    def _empty_drafts(self) -> list[Draft]:
        return [Draft.empty(live.tokens[-1]) for live in self._live]

    def _staged(self, drafts: list[Draft]) -> list[Draft]:
        for live, draft in zip(self._live, drafts, strict=True):
            self.cache.stage(live.table, live.missing + len(draft))
        return drafts

    def _budget(self, live: LiveRequest) -> int:
        """Deepest useful draft: one token of the round is the target's own."""
        room = live.request.stopping.room(len(live.request.padding) + len(live.tokens)) - 1
        return max(0, min(room, self.target.max_positions - len(live.tokens)))

    def _finalize(self, logits: Tensor, drafts: Sequence[Draft]) -> Tensor:  # [sum of nodes, vocab]
        samplers = [live.request.sampler for live in self._live]
        is_one = all(sampler is samplers[0] for sampler in samplers)
        if is_one and not samplers[0].reads_prefix:
            return samplers[0].scores(logits, ())
        contexts = [live.context(draft.tree) for live, draft in zip(self._live, drafts, strict=True)]
        if is_one:
            return samplers[0].scores(logits, contexts)
        parts, first = [], 0
        for sampler, group in groupby(zip(samplers, contexts, strict=True), key=lambda pair: pair[0]):
            members = [context for _, context in group]
            count = sum(len(context.tree) for context in members)
            parts.append(sampler.scores(logits[first : first + count], members))
            first += count
        return torch.cat(parts)

    def _verify(self, scores: Tensor, drafts: Sequence[Draft]) -> list[Verdict]:
        together = self._decider.verdicts(scores, drafts, self._live)
        if together is not None:
            return together
        verdicts, first = [], 0
        for live, draft in zip(self._live, drafts, strict=True):
            rows = TargetRows(
                scores[first : first + len(draft)] if len(drafts) > 1 else scores,
                start=len(live.tokens),
                depths=draft.tree.depths,
                is_greedy=not live.request.sampler.do_sample,
            )
            verdicts.append(self.verifier.verify(draft, rows, live.request.noise))
            first += len(draft)
        return verdicts

    def _emit(self, drafts: Sequence[Draft], verdicts: Sequence[Verdict], scores: Tensor, logits: Tensor) -> list[Step]:
        steps, first = [], 0
        for live, draft, verdict in zip(self._live, drafts, verdicts, strict=True):
            rows = [first + node for node in (0, *verdict.path)]
            kept = ordinary(scores, rows) if self.options.keep_scores else None
            raw = ordinary(logits, rows) if self.options.keep_logits else None
            steps.append(live.step(draft, verdict, kept, raw))
            first += len(draft)
        return steps

    def _commit(self, verdicts: Sequence[Verdict], steps: Sequence[Step], features: Sequence[Tensor | None]) -> None:
        """Keeps the rows of what was emitted, its last token excepted: that one is pending."""
        ended = []
        for live, verdict, step, rows in zip(list(self._live), verdicts, steps, features, strict=True):
            missing = live.missing
            path = verdict.path[: len(step.tokens) - 1]
            kept = [*range(1, missing + 1), *(missing + node for node in path)]
            live.tokens.extend(step.tokens)
            self.cache.commit(live.table, kept, live.tokens[live.table.length : -1])
            live.keep_features(rows, [0, *kept])
            if step.finish_reason is not None:
                ended.append(live)
                live.request.sampler.forget(live.request.row)
        for live in ended:
            self._live.remove(live)
            if self.options.keep_tables:
                self.tables[live.rank] = self.cache.fork(live.table)
        if ended:
            self._is_full = False
            self._forget(ended)
