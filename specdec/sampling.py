"""Logits -> final distribution: the one function that plain decoding, speculative decoding and drafters share."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from .forking import STATES, ForkedStage
from .processors import Node, PenaltyStage, Prefix, PrefixStage, Stage
from .tree import TokenTree
from .warpers import ROW_PROCESSORS, Processor, RowStage

REFUSED: dict[type, str] = {
    hf.ClassifierFreeGuidanceLogitsProcessor: "wants two rows of logits per token; pass guidance_scale to generate",
    hf.DiaClassifierFreeGuidanceLogitsProcessor: "wants two rows of logits per token; pass guidance_scale to generate",
    hf.DiaEOSChannelFilterLogitsProcessor: "is made for the audio channels of Dia; remove it",
    hf.DiaEOSDelayPatternLogitsProcessor: "is made for the audio channels of Dia; remove it",
    hf.WhisperNoSpeechDetection: "is made for the encoder of Whisper; remove it",
}


@dataclass(frozen=True, slots=True)
class Context:
    """What stands before the rows of one request: node v of its tree has the prefix tokens + path(v)."""

    tokens: Sequence[int]  # what processors see: left padding + committed tokens, pending last
    tree: TokenTree
    row: int  # row of the caller's batch
    first: int = 0  # the rows of logits begin at this node


class Sampler:
    """Turns raw logits into final scores as transformers' `generate` does, at every node of every request's tree.

    `softmax(scores)` is what a sampling request draws from; a greedy one takes the argmax. Processors are applied in
    their order. Those that look at the prefix see that of each node; those with data per batch row see the row of the
    request; those that remember their calls are forked along the tree. Processors that this toolkit does not know are
    taken for functions of (prefix, scores), which is how transformers documents them.

    Args:
        processors: as `generate` prepares them for the whole batch.
        do_sample: what the request does with the scores; kept for whoever asks.
        num_rows: rows of the batch, if some processor was made for fewer (`num_return_sequences`).

    Raises:
        ValueError: a processor cannot be evaluated at the nodes of a tree.

    Example:
        >>> sampler = Sampler([hf.RepetitionPenaltyLogitsProcessor(2.0)])
        >>> tree = TokenTree.chain([0, 2])  # pending 0, drafted 2
        >>> sampler.scores(torch.ones(2, 3), [Context([1, 0], tree, row=0)]).tolist()
        [[0.5, 0.5, 1.0], [0.5, 0.5, 0.5]]
    """

    def __init__(
        self, processors: Sequence[Processor] = (), do_sample: bool = False, num_rows: int | None = None
    ) -> None:
        for processor in processors:
            _check(processor)
        self.do_sample = do_sample
        self.processors = tuple(processors)
        self._stages = _stages(processors, num_rows)
        # Whether some processor looks at more than a row of scores.
        self.reads_prefix = any(not isinstance(stage, RowStage) for stage in self._stages)
        # No processor of transformers changes its argument; others may.
        self._may_write = any(type(processor).__module__ != hf.__name__ for processor in processors)

    def scores(self, logits: Tensor, contexts: Sequence[Context]) -> Tensor:  # [n, vocab] -> [n, vocab] float32
        """The final scores of the rows, which are those of the contexts' trees one after the other.

        The result is `logits` itself where nothing had to be done.
        """
        rows = logits.to(torch.float32)
        if not self._stages:
            return rows
        if self._may_write and rows is logits:
            rows = rows.clone()
        nodes = _nodes(contexts, rows) if self.reads_prefix else []
        for stage in self._stages:
            rows = stage.apply(rows, nodes)
        return rows

    def forget(self, row: int) -> None:
        """Drops what is kept for this row of the batch: its request has ended."""
        for stage in self._stages:
            stage.forget(row)


def _stages(processors: Sequence[Processor], num_rows: int | None) -> list[Stage]:
    stages: list[Stage] = []
    for kind, group in groupby(processors, key=_kind):
        members = list(group)
        if kind is ForkedStage:
            stages.extend(ForkedStage(member, num_rows) for member in members)
        elif kind is RowStage:
            stages.append(RowStage(members))
        else:
            stages.append(kind(members, num_rows))
    return stages


def _kind(processor: Processor) -> type:
    # Exact types: a subclass may look at whatever it likes.
    if type(processor) in STATES:
        return ForkedStage
    if type(processor) is hf.RepetitionPenaltyLogitsProcessor:
        return PenaltyStage
    return RowStage if type(processor) in ROW_PROCESSORS else PrefixStage


def _nodes(contexts: Sequence[Context], rows: Tensor) -> list[Node]:
    nodes: list[Node] = []
    for context in contexts:
        tokens, parents = context.tree.tokens, context.tree.parents
        assert context.tokens[-1] == tokens[0], "the root of a tree is the pending token"
        prefix = Prefix(context.row, context.tokens, rows.device)
        paths: list[tuple[int, ...]] = [()]
        for node in range(1, len(tokens)):
            paths.append((*paths[parents[node]], tokens[node]))
        nodes += [Node(prefix, path, index) for index, path in enumerate(paths[context.first :], start=len(nodes))]
    assert len(nodes) == len(rows), f"{len(nodes)} nodes and {len(rows)} rows of logits"
    return nodes


def _check(processor: Processor) -> None:
    name = type(processor).__name__
    if not callable(processor):
        raise ValueError(f"expected callables (input_ids, scores) -> scores as processors, got {name}; remove it")
    for refused, why in REFUSED.items():
        if isinstance(processor, refused):
            raise ValueError(f"expected processors that work at the nodes of a draft tree, got {name}, which {why}")
    if len(inspect.signature(processor.__call__).parameters) > 2:  # type: ignore[operator]
        raise ValueError(f"expected processors called with (input_ids, scores), got {name}, which wants more; bind it")
    for known, attribute in STATES.items():
        if not isinstance(processor, known):
            continue
        if type(processor) is not known:
            raise ValueError(
                f"expected {known.__name__} itself, got a subclass, {name}, of unknown state; use the base"
            )
        state = getattr(processor, attribute)
        if state is not None and not (isinstance(state, dict) and state["first_pass"]):
            raise ValueError(f"expected an unused {name}, got one that was called before; build a new one")
