"""Processors that remember their calls, forked along a tree: a node's state is its parent's, advanced once."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from .processors import Node, Prefix, row_of
from .warpers import Processor

# Where a processor keeps what it remembers. For both, this follows from the tokens alone, not from the scores.
STATES: dict[type, str] = {
    hf.SynthIDTextWatermarkLogitsProcessor: "state",
    hf.UnbatchedClassifierFreeGuidanceLogitsProcessor: "unconditional_context",
}


class ForkedStage:
    """One processor with a state that depends on the tokens it was called with, one call per token since the prompt.

    The state after a prefix is then a function of that prefix, and what is kept per row is a memory of it: the states
    after the nodes of the last trees that continue the committed tokens. A missing one is computed again.

    Example:
        >>> watermark = hf.SynthIDTextWatermarkLogitsProcessor(2, [5, 7], 16, 0, 8, torch.device("cpu"))
        >>> stage, prefix = ForkedStage(watermark), Prefix(0, [1, 2], torch.device("cpu"))
        >>> stage.apply(torch.zeros(2, 3), [Node(prefix, (), 0), Node(prefix, (1,), 1)]).shape
        torch.Size([2, 3])
        >>> watermark.state is None  # the processor of the caller stays as it was
        True
    """

    def __init__(self, processor: Processor, num_rows: int | None = None) -> None:
        self._processor = processor
        self._num_rows = num_rows
        self._histories: dict[int, _History] = {}

    @torch.no_grad()
    def apply(self, rows: Tensor, nodes: Sequence[Node]) -> Tensor:  # [n, vocab] -> [n, vocab]
        """The processed rows."""
        histories = {prefix: self._history(prefix) for prefix in {node.prefix for node in nodes}}
        return torch.cat([histories[node.prefix].apply(rows[node.index, None], node) for node in nodes])

    def forget(self, row: int) -> None:
        """Drops the states of this row; its next call is taken for the prompt."""
        self._histories.pop(row, None)

    def _history(self, prefix: Prefix) -> "_History":
        tokens = tuple(prefix.tokens)
        history = self._histories.get(prefix.row)
        if history is None or tokens[: len(history.prompt)] != history.prompt:
            history = _History(_fresh(self._processor, prefix.row, self._num_rows), tokens)
            self._histories[prefix.row] = history
        history.prune(tokens[:-1])
        return history


class _History:
    """The states of one request, by the prefix after whose call they are."""

    def __init__(self, fresh: Processor, prompt: tuple[int, ...]) -> None:
        self.prompt = prompt  # what the first call sees
        self._fresh = fresh
        self._states: dict[tuple[int, ...], Processor] = {}

    def apply(self, row: Tensor, node: Node) -> Tensor:  # [1, vocab] -> [1, vocab]
        """The processed row of this node; the state after it is kept for its children."""
        prefix = (*node.prefix.tokens, *node.path)
        state = _fork(self._after(prefix[:-1], row))
        self._states[prefix] = state
        return state(node.prefix.ids([node.path]), row)

    def prune(self, base: tuple[int, ...]) -> None:
        """Forgets the states after prefixes that do not continue `base`."""
        latest = [known for known in self._states if known[: len(base)] == base]
        if latest:
            self._states = {known: self._states[known] for known in latest}

    def _after(self, prefix: tuple[int, ...], row: Tensor) -> Processor:
        if prefix in self._states:
            return self._states[prefix]
        known = len(prefix)
        while known >= len(self.prompt) and prefix[:known] not in self._states:
            known -= 1
        state = _fork(self._states.get(prefix[:known], self._fresh))  # before the prompt there was no call
        ids = torch.tensor([prefix], device=row.device)
        for length in range(known + 1, len(prefix) + 1):
            state(ids[:, :length], row[:, :1])  # the scores do not matter
        self._states[prefix] = state
        return state


def _fresh(processor: Processor, row: int, num_rows: int | None) -> Processor:
    """The processor before its first call, for one row of the caller's batch."""
    result = _fork(processor)
    if isinstance(result, hf.UnbatchedClassifierFreeGuidanceLogitsProcessor):
        context: dict[str, Any] = result.unconditional_context
        for name in ("input_ids", "attention_mask"):
            if context[name] is not None:
                index = row_of(processor, row, len(context[name]), num_rows)
                context[name] = context[name][index : index + 1]
    return result


def _fork(processor: Processor) -> Processor:
    """A copy with a state of its own, which shares everything else."""
    result = copy.copy(processor)
    name = STATES[type(processor)]
    setattr(result, name, copy.deepcopy(getattr(processor, name)))
    return result
