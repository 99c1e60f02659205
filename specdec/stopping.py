"""Where a request ends: the run of a round, cut at the first token that finishes it (algorithms.md 3.2)."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation.stopping_criteria import (
    ConfidenceCriteria,
    EosTokenCriteria,
    MaxLengthCriteria,
    MaxTimeCriteria,
    StopStringCriteria,
)

Criterion = Callable[..., Any]  # (input_ids [1, length] int64, tuple of scores [1, vocab] | None) -> whether to stop


class Stopping:
    """The stopping criteria of transformers, asked token by token in the order of the run.

    The first token at which a criterion holds is the last one; if it is also the last that fits, the criterion is the
    reason, not the length. As in transformers, every custom criterion is asked at every token up to that one.

    Args:
        criteria: as `generate` prepares them.
        max_length: tokens of the whole sequence, padding and prompt included; the smallest of this and of the
            `MaxLengthCriteria` counts.
        device: where custom criteria expect `input_ids`.

    Raises:
        ValueError: no maximal length is given, or something is not a criterion.

    Example:
        >>> stopping = Stopping([EosTokenCriteria([2])], max_length=8)
        >>> stopping.cut([1, 5], [6, 2, 7])  # the run ends with its second token
        (2, 'eos')
        >>> stopping.cut([1, 5, 6, 3, 4], [6, 7, 8, 9])
        (3, 'length')
        >>> stopping.cut([1, 5], [6, 7]), stopping.room(5)
        ((2, None), 3)
    """

    def __init__(
        self,
        criteria: Sequence[Criterion] = (),
        max_length: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        strange = next((criterion for criterion in criteria if not callable(criterion)), None)
        if strange is not None:
            raise ValueError(f"expected stopping criteria, got a {type(strange).__name__}; pass transformers' criteria")
        lengths = [criterion.max_length for criterion in criteria if type(criterion) is MaxLengthCriteria]
        lengths += [] if max_length is None else [max_length]
        if not lengths or min(lengths) < 1:
            raise ValueError(f"expected a positive max_length, got {lengths or None}; pass max_length=...")
        self.max_length = min(lengths)
        self.eos_tokens: frozenset[int] = frozenset(
            token
            for criterion in criteria
            if type(criterion) is EosTokenCriteria
            for token in criterion.eos_token_id.reshape(-1).tolist()
        )
        # Exact types: a subclass may decide by something else, and is then asked like any other criterion.
        self._clocks = [criterion for criterion in criteria if type(criterion) is MaxTimeCriteria]
        self._stop_strings = [
            _StopStrings(criterion) for criterion in criteria if type(criterion) is StopStringCriteria
        ]
        known = (MaxLengthCriteria, EosTokenCriteria, MaxTimeCriteria, StopStringCriteria)
        self._others = [criterion for criterion in criteria if type(criterion) not in known]
        self._device = torch.device(device)

    @property
    def asks_others(self) -> bool:
        """Whether there are criteria that are not known here."""
        return bool(self._others)

    def room(self, num_tokens: int) -> int:
        """How many more tokens a sequence of `num_tokens`, padding included, may get."""
        return max(0, self.max_length - num_tokens)

    def cut(
        self,
        tokens: Sequence[int],
        run: Sequence[int],
        scores: Sequence[Tensor] | Tensor | None = None,  # rows [vocab] or [1, vocab], the last ones those of the run
    ) -> tuple[int, str | None]:
        """How many tokens of the run, which follows `tokens`, count, and why the request ends there, if it does.

        Reasons are "eos", "stop_string", "criterion", "time" and "length", and the first of them that holds is given.
        """
        room = max(1, self.room(len(tokens)))  # a call of the target emits one, even beyond the length
        others = self._others_at(tokens, run, scores) if self._others else None
        for count, token in enumerate(run[:room], start=1):
            is_stopped_by_other = others is not None and others(count)
            if token in self.eos_tokens:
                return count, "eos"
            if self._stop_strings and any(rule.ends(tokens, run[:count]) for rule in self._stop_strings):
                return count, "stop_string"
            if is_stopped_by_other:
                return count, "criterion"
            if any(time.time() - clock.initial_timestamp > clock.max_time for clock in self._clocks):
                return count, "time"
        return (room, "length") if len(run) >= room else (len(run), None)

    def _others_at(
        self, tokens: Sequence[int], run: Sequence[int], scores: Sequence[Tensor] | Tensor | None
    ) -> Callable[[int], bool]:
        """Asks the criteria that are not known here, given a number of tokens of the run."""
        if scores is None and any(isinstance(criterion, ConfidenceCriteria) for criterion in self._others):
            raise ValueError(
                "expected scores for ConfidenceCriteria, got none; "
                "pass return_dict_in_generate=True and output_scores=True"
            )
        ids = torch.tensor([[*tokens, *run]], device=self._device)
        rows = None if scores is None else tuple(row.reshape(1, -1) for row in scores)
        num_earlier = 0 if rows is None else len(rows) - len(run)
        assert num_earlier >= 0, "a row of scores for each token of the run"

        def ask(count: int) -> bool:
            seen = None if rows is None else rows[: num_earlier + count]
            answers = [bool(criterion(ids[:, : len(tokens) + count], seen)) for criterion in self._others]
            return any(answers)

        return ask


class _StopStrings:
    """A `StopStringCriteria`, asked only about tokens with which one of its strings can end."""

    def __init__(self, criterion: StopStringCriteria) -> None:
        self._criterion = criterion
        vectors, num_strings = criterion.embedding_vec, criterion.num_stop_strings
        overlaps = vectors[:, criterion.max_valid_positions * num_strings : -1]  # [vocab + 1, strings * ...]
        self._last_tokens = frozenset((overlaps > 0).any(-1).nonzero().reshape(-1).tolist())
        self._is_always = int(criterion.target_lens.min()) == 0  # the empty string ends everywhere

    def ends(self, tokens: Sequence[int], run: Sequence[int]) -> bool:
        """Whether a stop string ends with the last token of the run."""
        if run[-1] not in self._last_tokens and not self._is_always:
            return False
        missing = max(0, self._criterion.maximum_token_len - len(run))
        tail = [*(tokens[-missing:] if missing else ()), *run]
        return bool(self._criterion(torch.tensor([tail]), None))
