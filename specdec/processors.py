"""Processors that look at the prefix, at the nodes of a tree: each node with its own prefix and its request's row."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers.generation import logits_process as hf

from .warpers import Processor

# Lengths of the prefix at which a processor returns the scores as they are.
IDLE: dict[type, Callable[[Any, int], bool]] = {
    hf.MinLengthLogitsProcessor: lambda p, length: length >= p.min_length,
    hf.MinNewTokensLengthLogitsProcessor: lambda p, length: length - p.prompt_length_to_skip >= p.min_new_tokens,
    hf.ForcedBOSTokenLogitsProcessor: lambda p, length: length != 1,
    hf.ForcedEOSTokenLogitsProcessor: lambda p, length: length != p.max_length - 1,
    hf.ExponentialDecayLengthPenalty: lambda p, length: length <= p.regulation_start,
    hf.SuppressTokensAtBeginLogitsProcessor: lambda p, length: length != p.begin_index,
}

# The same function for every request, so that requests may share a call.
SHARED = {
    *IDLE,
    hf.NoRepeatNGramLogitsProcessor,
    hf.SequenceBiasLogitsProcessor,
    hf.NoBadWordsLogitsProcessor,
    hf.WatermarkLogitsProcessor,
}


class Prefix:
    """The committed tokens of one request; they become a tensor when a stage asks."""

    __slots__ = ("_device", "_ids", "row", "tokens")

    def __init__(self, row: int, tokens: Sequence[int], device: torch.device) -> None:
        self.row = row
        self.tokens = tokens
        self._device = device
        self._ids: Tensor | None = None  # [1, len(tokens)]

    def ids(self, paths: Sequence[tuple[int, ...]]) -> Tensor:  # [len(paths), len(tokens) + depth] int64
        """The prefixes that end with these paths; shorter ones are filled up with the pending token."""
        if self._ids is None:  # numpy reads a list eight times faster than torch.tensor does
            self._ids = torch.from_numpy(np.array(self.tokens, dtype=np.int64)).to(self._device).unsqueeze(0)
        committed = self._ids.expand(len(paths), -1)
        depth = max(map(len, paths))
        if depth == 0:
            return committed
        filled = [path + (self.tokens[-1],) * (depth - len(path)) for path in paths]
        return torch.cat((committed, torch.tensor(filled, device=self._device)), dim=1)


@dataclass(frozen=True, slots=True)
class Node:
    """One row of logits and what stands before it."""

    prefix: Prefix
    path: tuple[int, ...]  # drafted tokens from below the pending one down to the node
    index: int  # row of the logits

    @property
    def length(self) -> int:
        return len(self.prefix.tokens) + len(self.path)


class Stage(Protocol):
    """Some neighbouring processors of one kind, applied to all rows."""

    def apply(self, rows: Tensor, nodes: Sequence[Node]) -> Tensor:  # [n, vocab] -> [n, vocab]
        """The processed rows; `nodes` describes them in order."""
        ...

    def forget(self, row: int) -> None:
        """Drops what is kept for this row of the caller's batch."""
        ...


class PrefixStage:
    """Functions of (prefix, scores): one call for all nodes of equal row and prefix length.

    Processors that are not known here are taken for such functions, which is how transformers documents them. They see
    shorter prefixes first, so that one which remembers a result per prefix finds that of the parent.

    Example:
        >>> stage = PrefixStage([hf.NoRepeatNGramLogitsProcessor(2)])
        >>> prefix = Prefix(0, [1, 2], torch.device("cpu"))  # and the drafted token 1, which 2 may not follow
        >>> stage.apply(torch.zeros(2, 3), [Node(prefix, (), 0), Node(prefix, (1,), 1)]).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, -inf]]
    """

    def __init__(self, processors: Sequence[Processor], num_rows: int | None = None) -> None:
        self._processors = processors
        self._num_rows = num_rows
        self._is_shared = all(type(processor) in SHARED for processor in processors)
        self._views: dict[int, list[Processor]] = {}

    def apply(self, rows: Tensor, nodes: Sequence[Node]) -> Tensor:  # [n, vocab] -> [n, vocab]
        """The processed rows."""
        groups: dict[tuple[int, int], list[Node]] = {}
        for node in nodes:
            groups.setdefault(self._group(node), []).append(node)
        out = rows
        for (length, row), group in sorted(groups.items()):
            active = [p for p in self._view(row) if type(p) not in IDLE or not IDLE[type(p)](p, length)]
            if not active:
                continue
            if len(group) == len(rows):
                return _run(active, group, rows)
            out = rows.clone() if out is rows else out
            indices = [node.index for node in group]
            where = slice(indices[0], indices[0] + 1) if len(indices) == 1 else indices
            out[where] = _run(active, group, out[where])
        return out

    def forget(self, row: int) -> None:
        """Drops the views of this row."""
        self._views.pop(row, None)

    def _group(self, node: Node) -> tuple[int, int]:
        return node.length, 0 if self._is_shared else node.prefix.row

    def _view(self, row: int) -> list[Processor]:
        if row not in self._views:
            self._views[row] = [view(processor, row, self._num_rows) for processor in self._processors]
        return self._views[row]


class PenaltyStage(PrefixStage):
    """Repetition penalties, which depend on the set of the tokens in the prefix: one call per request.

    Filling shorter prefixes up with a token that they contain does not change that set.
    """

    def _group(self, node: Node) -> tuple[int, int]:
        num_committed = len(node.prefix.tokens)
        ignored = [getattr(processor, "prompt_ignore_length", None) for processor in self._view(node.prefix.row)]
        sees_pending = all((length or 0) < num_committed for length in ignored)
        return 0 if sees_pending else node.length, node.prefix.row


def _run(processors: Sequence[Processor], group: Sequence[Node], rows: Tensor) -> Tensor:
    by_request = [list(members) for _, members in groupby(group, key=lambda node: node.prefix)]
    parts = [members[0].prefix.ids([node.path for node in members]) for members in by_request]
    ids = parts[0] if len(parts) == 1 else torch.cat(parts)
    for processor in processors:
        rows = processor(ids, rows)
    return rows


def view(processor: Any, row: int, num_rows: int | None = None) -> Processor:
    """The processor as this row of the caller's batch of `num_rows` knows it, for any number of rows of scores."""
    if isinstance(processor, hf.RepetitionPenaltyLogitsProcessor):
        ignored = processor.prompt_ignore_length
        if isinstance(ignored, Tensor):
            index = row_of(processor, row, len(ignored), num_rows)
            return _with(processor, prompt_ignore_length=int(ignored[index]))
    elif isinstance(processor, hf.EncoderRepetitionPenaltyLogitsProcessor):
        index = row_of(processor, row, len(processor.encoder_input_ids), num_rows)
        prompt = processor.encoder_input_ids[index : index + 1]
        # older versions of transformers change only as many rows of scores as there are prompts
        return lambda ids, rows: _with(processor, encoder_input_ids=prompt.expand(len(rows), -1))(ids, rows)
    elif isinstance(processor, hf.EncoderNoRepeatNGramLogitsProcessor):
        index = row_of(processor, row, processor.batch_size, num_rows)
        return _with(processor, batch_size=1, generated_ngrams=processor.generated_ngrams[index : index + 1])
    elif isinstance(processor, hf.PrefixConstrainedLogitsProcessor):
        allowed = processor._prefix_allowed_tokens_fn
        return _with(processor, _num_beams=1, _prefix_allowed_tokens_fn=lambda _, prefix: allowed(row, prefix))
    result: Processor = processor
    return result


def row_of(processor: object, row: int, num_kept: int, num_rows: int | None) -> int:
    """Which of the processor's `num_kept` rows belongs to this row of the batch; several may share one.

    Raises:
        ValueError: the processor was made for fewer rows.
    """
    index = row // (num_rows // num_kept) if num_rows is not None and num_rows > num_kept else row
    if index >= num_kept:
        raise ValueError(
            f"expected {type(processor).__name__} made for every row of the batch, got {num_kept} rows and row {row}; "
            f"build it from the whole batch"
        )
    return index


def _with(processor: Any, **attributes: object) -> Processor:
    result: Processor = copy.copy(processor)
    for name, value in attributes.items():
        setattr(result, name, value)
    return result
