"""Are the texts the baseline's, and are they texts at all: a loop of the same words is the easiest draft there is."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .columns import Request, Run
from .estimates import Ratio

NGRAM = 4
# Prose and code repeat some fours of tokens (names, idioms, indentation); a text most of which was there before is a
# loop, and a drafter that copies is paid for it.
MAX_REPETITION = 0.5
# Shorter texts have too few fours for a share to mean anything.
MIN_TOKENS = 4 * NGRAM
# With more loops than one text in five, the figures are those of the loops.
MAX_FLAGGED = 0.2


def num_repeated(tokens: Sequence[int]) -> int:
    """How many tokens lie in a 4-gram that stood in the text before.

    Example:
        >>> num_repeated([1, 2, 3, 4, 9, 1, 2, 3, 4]), num_repeated([7] * 10), num_repeated([1, 2])
        (4, 9, 0)
    """
    if len(tokens) <= NGRAM:
        return 0
    grams = np.lib.stride_tricks.sliding_window_view(np.array(tokens, dtype=np.int64), NGRAM)
    _, first, group = np.unique(grams, axis=0, return_index=True, return_inverse=True)
    starts = np.flatnonzero(first[group.ravel()] < np.arange(len(grams)))
    inside = np.zeros(len(tokens), dtype=bool)
    for offset in range(NGRAM):
        inside[starts + offset] = True
    return int(inside.sum())


def is_degenerate(request: Request, repeated: int) -> bool:
    """Whether a text says nothing about drafting: mostly repetition, or over before it began.

    Example:
        >>> is_degenerate({"tokens": [2], "finish_reason": "eos"}, 0), is_degenerate({"tokens": [2] * 40}, 40)
        (True, True)
    """
    num_tokens = len(request["tokens"])
    if num_tokens < MIN_TOKENS:
        return num_tokens <= 1 and request["finish_reason"] == "eos"
    return repeated > MAX_REPETITION * num_tokens


def degeneracy(requests: Sequence[tuple[int, Request]], num_units: int) -> tuple[Ratio, dict[str, Any]]:
    """The ratio of repetition by prompt, and the other figures of the guard."""
    repeated, tokens = np.zeros(num_units), np.zeros(num_units)
    flagged: dict[str, None] = {}
    num_flagged = 0
    for unit, request in requests:
        count = num_repeated(request["tokens"])
        repeated[unit] += count
        tokens[unit] += len(request["tokens"])
        if is_degenerate(request, count):
            num_flagged += 1
            flagged[request["prompt"]] = None
    num_ended = sum(request["finish_reason"] == "eos" for _, request in requests)
    return (repeated, tokens), {
        "eos_rate": num_ended / len(requests) if requests else None,
        "is_flagged": bool(requests) and num_flagged > MAX_FLAGGED * len(requests),
        "flagged": list(flagged),
    }


def equality(runs: Iterable[Run], units: Mapping[str, int]) -> dict[str, Any]:
    """How many texts are the baseline's, over all repeats; the worst difference of those that are not.

    A turn after one that differs is not compared: it had another conversation before it.
    """
    worst: dict[tuple[str, int], Mapping[str, Any] | None] = {}
    for run in runs:
        differing: set[str] = set()
        for request in sorted(run["requests"], key=lambda request: request["turn"]):
            if request["prompt"] not in units or "difference" not in request or request["prompt"] in differing:
                continue
            key, found = (request["prompt"], request["turn"]), request["difference"]
            if found is not None:
                differing.add(request["prompt"])
            if worst.get(key) is None or (found is not None and _severity(found) > _severity(worst[key] or found)):
                worst[key] = found
    names = ("position", "margin", "resolution", "is_tie")
    differences = [
        {"prompt": prompt, "turn": turn, **{name: found[name] for name in names}}
        for (prompt, turn), found in worst.items()
        if found is not None
    ]
    return {
        "num_compared": len(worst),
        "num_identical": len(worst) - len(differences),
        "num_ties": sum(each["is_tie"] for each in differences),
        "differences": differences,
    }


def _severity(difference: Mapping[str, Any]) -> tuple[bool, float]:
    return not difference["is_tie"], difference["margin"]
