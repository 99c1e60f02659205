"""What a summary says in words: the best arm of each cell, by how much, how sure, and whether the text is the same."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

EXACT = 1e-9  # ratios that are so close to 1 are 1
LEVEL = 0.05  # a difference with a larger corrected p-value may be chance
MAX_NAMES = 4
Arm = Mapping[str, Any]


def verdicts(summary: Mapping[str, Any]) -> Iterator[str]:
    """A few lines for each cell, the unwelcome included.

    Example:
        >>> figures = {"speedup": {"ratio": 0.8, "low": 0.7, "high": 0.9, "macro": 0.8}, "tokens_per_step": None}
        >>> arms = [{"id": "a", "label": "ngram k=3", "overall": figures | {"text": {"num_compared": 0}}}]
        >>> cell = {"cell": "toy", "baseline": "b", "arms": [{"arm": "a", "over": None}]}
        >>> print(*verdicts({"arms": arms, "cells": [cell]}), sep="\\n")
        toy: do not speculate; the best, ngram k=3, is slower than the baseline: 0.80x [0.70-0.90]
        toy: same text: not compared, the rules promise none
    """
    arms = {arm["id"]: arm for arm in summary["arms"]}
    for cell in summary["cells"]:
        ranked = [(arms[row["arm"]], row["over"]) for row in cell["arms"] if row["arm"] != cell["baseline"]]
        if ranked:
            yield f"{cell['cell']}: {_best(ranked[0][0])}"
            rivals = list(_rivals(ranked, is_best_first=cell["arms"][0]["arm"] != cell["baseline"]))
            if rivals:
                yield f"{cell['cell']}: {'; '.join(rivals)}"
            yield f"{cell['cell']}: {_texts([arm for arm, _ in ranked])}"


def _best(arm: Arm) -> str:
    """How the fastest of the arms that are not the baseline does against it."""
    figures, found = arm["overall"], arm["overall"]["speedup"]
    if found is None:
        return f"{name_of(arm)} is the fastest; there is no baseline of the same process, so no speed-up"
    steps = figures["tokens_per_step"]
    told = f"{interval_text(found['ratio'], found['low'], found['high'], unit='x')}" + (
        f", {steps['value']:.2f} tokens per step" if steps and found["ratio"] > 1 else ""
    )
    if found["low"] is None:
        return f"best is {name_of(arm)}: {told}; too few prompts to say how sure that is"
    if found["low"] > 1:
        return f"best is {name_of(arm)}: {told}; faster than the baseline"
    if found["high"] < 1:
        return f"do not speculate; the best, {name_of(arm)}, is slower than the baseline: {told}"
    return f"best is {name_of(arm)}: {told}; a tie with the baseline"


def _rivals(ranked: Sequence[tuple[Arm, Mapping[str, Any] | None]], is_best_first: bool) -> Iterator[str]:
    """Which other arms may be as fast, and how much slower the next one is that is not."""
    if not is_best_first:
        return
    told = [(arm, over) for arm, over in ranked[1:] if over is not None]
    if any(over["low"] is None for _, over in told):
        yield "too few prompts to say whether it is faster than the other arms"
        return
    ties = [name_of(arm) for arm, over in told if over["low"] <= 1]
    if ties:
        yield f"a tie with {_listed(ties)}: on these prompts they cannot be told apart"
    for arm, over in told:
        if over["low"] > 1:
            margin = interval_text(over["ratio"], over["low"], over["high"], unit="x")
            doubt = (
                "" if is_sure(over) else f"; with p {over['p_holm']:.2g} over all arms, more prompts would tell more"
            )
            yield f"faster than {name_of(arm)}, the next: {margin}{doubt}"
            return


def name_of(arm: Arm) -> str:
    """The arm's label, with a word if its rule changes the distribution of texts.

    Example:
        >>> name_of({"label": "medusa k=4", "is_lossless": False})
        'medusa k=4 (lossy)'
    """
    label: str = arm["label"]
    return label if arm.get("is_lossless", True) else f"{label} (lossy)"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} more"


def is_sure(over: Mapping[str, Any]) -> bool:
    """Whether one arm is faster than another beyond chance: by its interval, and by the p-value over all arms.

    Example:
        >>> is_sure({"low": 1.02, "p_holm": 0.01}), is_sure({"low": 1.02, "p_holm": 0.2})
        (True, False)
    """
    is_above = over["low"] is not None and over["low"] > 1
    return is_above and over["p_holm"] is not None and over["p_holm"] <= LEVEL


def is_change(ratio: Mapping[str, Any]) -> bool:
    """Whether a ratio is above or below 1 beyond chance: by its interval, and by the p-value over all arms.

    Example:
        >>> down = {"ratio": 0.8, "low": 0.7, "high": 0.9, "p_holm": 0.01}
        >>> is_change(down), is_change(down | {"p_holm": 0.2}), is_change(down | {"high": 1.1})
        (True, False, False)
    """
    if ratio["low"] is None or ratio["p_holm"] is None or abs(ratio["ratio"] - 1) <= EXACT:
        return False
    return bool(ratio["p_holm"] <= LEVEL and (ratio["low"] > 1 or ratio["high"] < 1))


def _texts(arms: Sequence[Arm]) -> str:
    compared = [arm for arm in arms if arm["overall"]["text"]["num_compared"]]
    if not compared:
        return "same text: not compared, the rules promise none"
    wrong = [name_of(arm) for arm in compared if same_text(arm["overall"]["text"]) == "NO"]
    tied = [name_of(arm) for arm in compared if same_text(arm["overall"]["text"]).startswith("tie")]
    if wrong:
        return f"same text: NO for {_listed(wrong)}, and not by rounding; please report this"
    if tied:
        return f"same text: yes, but for ties that rounding decided, for {_listed(tied)}"
    whose = "every arm" if len(compared) == len(arms) else "every arm that promises it"
    return f"same text: yes, of {whose} on every prompt"


def same_text(text: Mapping[str, Any]) -> str:
    """The answer in a word.

    Example:
        >>> same_text({"num_compared": 5, "num_identical": 4, "num_ties": 1})
        'tie (1)'
    """
    if not text["num_compared"]:
        return ""
    num_differing = text["num_compared"] - text["num_identical"]
    if num_differing > text["num_ties"]:
        return "NO"
    return f"tie ({num_differing})" if num_differing else "yes"


def how_many(count: int, thing: str) -> str:
    """A number of things.

    Example:
        >>> how_many(1, "cell"), how_many(2, "arm")
        ('1 cell', '2 arms')
    """
    return f"{count} {thing}{'' if count == 1 else 's'}"


def interval_text(value: float, low: float | None, high: float | None, unit: str = "") -> str:
    """A figure with its interval.

    Example:
        >>> interval_text(1.5, 1.4, 1.62, unit="x"), interval_text(1.5, None, None)
        ('1.50x [1.40-1.62]', '1.50')
    """
    return f"{value:.2f}{unit}" + (f" [{low:.2f}-{high:.2f}]" if low is not None and high is not None else "")
