"""Processors that look at nothing but the scores, applied to the rows of all requests at once.

Two of them have a shorter body here. It gives the bits of the one in transformers: the tests compare them, and what
cannot be promised (ties at a border) takes the original.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.generation import logits_process as hf

Processor = Callable[[Any, Tensor], Tensor]  # (input_ids [n, length] int64, scores [n, vocab]) -> [n, vocab]

ROW_PROCESSORS = frozenset(
    {
        hf.TemperatureLogitsWarper,
        hf.TopKLogitsWarper,
        hf.TopPLogitsWarper,
        hf.TopHLogitsWarper,
        hf.MinPLogitsWarper,
        hf.TypicalLogitsWarper,
        hf.EpsilonLogitsWarper,
        hf.EtaLogitsWarper,
        hf.SuppressTokensLogitsProcessor,
        hf.BarkEosPrioritizerLogitsProcessor,
        hf.InfNanRemoveLogitsProcessor,
        hf.LogitNormalization,
    }
)


class RowStage:
    """Calls each processor once, with all rows.

    Example:
        >>> stage = RowStage([hf.TopKLogitsWarper(3), hf.TopPLogitsWarper(0.5)])
        >>> stage.apply(torch.tensor([[0.0, 3.0, 1.0, 2.0]])).tolist()
        [[-inf, 3.0, -inf, -inf]]
    """

    def __init__(self, processors: Sequence[Processor]) -> None:
        self._functions = _row_functions(processors)

    def apply(self, rows: Tensor, nodes: object = None) -> Tensor:  # [n, vocab] -> [n, vocab]
        """The processed rows."""
        for function in self._functions:
            rows = function(rows)
        return rows

    def forget(self, row: int) -> None:
        """Nothing is kept for a row."""


def _row_functions(processors: Sequence[Any]) -> list[Callable[[Tensor], Tensor]]:
    functions: list[Callable[[Tensor], Tensor]] = []
    rest = list(processors)
    while rest:
        pair = rest[:2]
        is_pair = [type(member) for member in pair] == [hf.TopKLogitsWarper, hf.TopPLogitsWarper]
        if is_pair and all(member.filter_value == float("-inf") for member in pair):
            functions.append(_top_k_top_p(*pair))
            del rest[:2]
            continue
        first = rest.pop(0)
        if type(first) is hf.MinPLogitsWarper and first.min_tokens_to_keep == 1:
            functions.append(_min_p(first))
        else:
            functions.append(lambda rows, processor=first: processor(None, rows))  # type: ignore[misc]
    return functions


def _min_p(warper: Any) -> Callable[[Tensor], Tensor]:
    """`MinPLogitsWarper` without looking for the token to keep: the best is never below min_p <= 1 times itself."""

    def apply(rows: Tensor) -> Tensor:  # [n, vocab] -> [n, vocab]
        probs = rows.softmax(-1)
        return rows.masked_fill(probs < warper.min_p * probs.amax(-1, keepdim=True), warper.filter_value)

    return apply


def _top_k_top_p(top_k: Any, top_p: Any) -> Callable[[Tensor], Tensor]:
    """`TopKLogitsWarper` followed by `TopPLogitsWarper`, without sorting the tokens that the first has removed.

    Written for CPUs, where the sort of a vocabulary takes longer than the rest of a round, and where a running sum goes
    from left to right, so that leading zeros do not change it.
    """

    def plain(rows: Tensor) -> Tensor:
        result: Tensor = top_p(None, top_k(None, rows))
        return result

    def apply(rows: Tensor) -> Tensor:  # [n, vocab] -> [n, vocab]
        vocab_size, k = rows.shape[-1], top_k.top_k
        if rows.device.type != "cpu" or k >= vocab_size:
            return plain(rows)
        best, tokens = rows.topk(k + 1)
        is_clear = best[:, k - 1] > best[:, k]  # [n]; a tie would let the k-th and its equals through
        kept, tokens = best[:, :k].flip(-1), tokens[:, :k].flip(-1)  # ascending, as top-p sorts them
        # The softmax runs over rows as long as those of transformers, so that it adds up in the same order.
        ascending = torch.full_like(rows, float("-inf"))
        ascending[:, vocab_size - k :] = kept
        mass = ascending.softmax(-1)[:, vocab_size - k :].cumsum(-1)  # [n, k]
        removed = mass <= 1 - top_p.top_p
        removed[:, -top_p.min_tokens_to_keep :] = False
        is_split = removed[:, :-1] & ~removed[:, 1:] & (kept[:, :-1] == kept[:, 1:])  # which of the equals stays?
        if not is_clear.all() or is_split.any():
            return plain(rows)
        ascending.fill_(float("-inf"))
        return ascending.scatter_(1, tokens, kept.masked_fill(removed, float("-inf")))

    return apply
