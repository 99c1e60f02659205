"""Answer files of Spec-Bench: ours written for its scripts, others' read for our reports.

One line per question: question_id, category, answer_id, model_id, choices, tstamp; of a choice: index, and per turn
`turns` (texts), `decoding_steps`, `new_tokens`, `wall_time`, and over all turns `accept_lengths`, the new tokens of
each step. EAGLE's own files have no category and `idxs`, the number of the last step from 0, in place of the steps.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .interop_figures import MOST, Figures, estimate
from .statistics import Totals, speedup

BASELINE = "vanilla"  # as Spec-Bench calls plain decoding
MAX_NAMED = 3  # lines that a warning names


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of a line: one question, all its turns."""

    question: str
    category: str | None
    turns: tuple[str, ...]
    num_tokens: tuple[int, ...]  # [turns]
    seconds: tuple[float, ...]  # [turns]
    num_steps: int
    accept_lengths: tuple[int, ...] | None  # None: the file does not say


@dataclass(frozen=True, slots=True)
class Answers:
    """An answer file."""

    label: str
    by_question: Mapping[str, Answer] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether every step brought one token, as far as the file tells of steps."""
        told = [one.accept_lengths for one in self.by_question.values()]
        return any(told) and all(lengths is not None and set(lengths) <= {1} for lengths in told)


def read_answers(text: str, path: Path) -> tuple[Answers, list[str]]:
    """The answers of a file and what was skipped, in words. Of a question that is there twice the last line counts.

    Raises:
        ValueError: no line is an answer.

    Example:
        >>> choice = {"turns": ["a b"], "decoding_steps": [2], "new_tokens": [4], "wall_time": [0.5]}
        >>> choice["accept_lengths"] = [3, 1]
        >>> line = json.dumps({"question_id": 81, "category": "qa", "model_id": "m", "choices": [choice]})
        >>> answers, skipped = read_answers(line + chr(10) + line[:50], Path("m.jsonl"))
        >>> answers.by_question["81"].num_steps, skipped
        (2, ['m.jsonl: 1 of 2 lines skipped, no answers: 2'])
    """
    found, skipped, labels, total = {}, [], set(), 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        total += 1
        try:
            record = json.loads(line)
            answer = _answer(record)
            labels.add(str(record["model_id"]))
            found[answer.question] = answer
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
            skipped.append(number)
    if not found:
        raise ValueError(f"expected answers of Spec-Bench, got none in {str(path)!r}; pass another file")
    named = ", ".join(map(str, skipped[:MAX_NAMED])) + (", ..." if len(skipped) > MAX_NAMED else "")
    warning = [f"{path.name}: {len(skipped)} of {total} lines skipped, no answers: {named}"] if skipped else []
    return Answers(labels.pop() if len(labels) == 1 else path.stem, found), warning


def figures_of(answers: Answers) -> dict[str | None, Figures]:
    """What follows from answers, for all and for each category."""
    return {name: _figures(group) for name, group in _groups(answers)}


def compare_answers(files: Sequence[Answers | None]) -> list[tuple[bool, dict[str | None, Figures]]]:
    """Of each file whether it is the baseline, and if not, how it stands against it.

    The baseline is the first file of plain decoding, one that is called vanilla before others. What is said of the
    others is speed-up and equality of texts, by category; nothing if there is no baseline.
    """
    candidates = [one for one in files if one is not None and one.is_plain]
    plain = min(candidates, key=lambda one: BASELINE not in one.label, default=None)
    return [
        (one is plain and one is not None, {} if plain is None or one is None or one is plain else _against(one, plain))
        for one in files
    ]


def _answer(record: Mapping[str, Any]) -> Answer:
    choice = record["choices"][0]
    turns = [str(turn) for turn in choice["turns"]]
    num_tokens, seconds = [int(n) for n in choice["new_tokens"]], [float(s) for s in choice["wall_time"]]
    lengths = choice.get("accept_lengths")
    given = choice["decoding_steps"] if "decoding_steps" in choice else [int(last) + 1 for last in choice["idxs"]]
    steps = [int(n) for n in given]
    counts = [*num_tokens, *steps, *map(int, lengths or ())]
    if not turns or not len(turns) == len(num_tokens) == len(seconds) == len(steps):
        raise ValueError("lists of different lengths")
    if not 0 <= min(counts) <= max(counts) <= MOST or not 0 < sum(seconds) < math.inf or not sum(steps):
        raise ValueError("counts or times that cannot be")
    category = record.get("category")
    return Answer(
        str(record["question_id"]),
        None if category is None else str(category),
        tuple(turns),
        tuple(num_tokens),
        tuple(seconds),
        sum(steps),
        None if lengths is None else tuple(map(int, lengths)),
    )


def _groups(answers: Answers) -> Iterator[tuple[str | None, list[Answer]]]:
    """All answers, then those of each category."""
    everything = list(answers.by_question.values())
    yield None, everything
    for name in dict.fromkeys(one.category for one in everything if one.category is not None):
        yield name, [one for one in everything if one.category == name]


def _figures(group: Sequence[Answer]) -> Figures:
    tokens = [sum(one.num_tokens) for one in group]
    return {
        "num_prompts": len(group),
        "num_requests": sum(len(one.turns) for one in group),
        "num_tokens": sum(tokens),
        "num_steps": sum(one.num_steps for one in group),
        "tokens_per_step": estimate(map(_per_step, group)),
        "target_calls_per_token": estimate(_per_step(one)[::-1] for one in group),
        "tokens_per_second": estimate((count, sum(one.seconds)) for count, one in zip(tokens, group, strict=True)),
        "seconds": {"total": sum(sum(one.seconds) for one in group)},
    }


def _per_step(answer: Answer) -> tuple[float, float]:
    """New tokens and steps: Spec-Bench takes the mean of the lengths, which may leave out what a method cut off."""
    if answer.accept_lengths:
        return sum(answer.accept_lengths), len(answer.accept_lengths)
    return sum(answer.num_tokens), answer.num_steps


def _against(own: Answers, plain: Answers) -> dict[str | None, Figures]:
    held: dict[str | None, Figures] = {}
    for name, group in _groups(own):
        pairs = [(one, plain.by_question[one.question]) for one in group if one.question in plain.by_question]
        if pairs:
            held[name] = {"speedup": _speedup(pairs), "text": _text(pairs)}
    return held


def _speedup(pairs: Sequence[tuple[Answer, Answer]]) -> dict[str, float | None]:
    sums = [[(float(sum(one.num_tokens)), sum(one.seconds)) for one in side] for side in zip(*pairs, strict=True)]
    found = speedup(Totals.of(sums[0]), Totals.of(sums[1]))
    rates = [[tokens / seconds for tokens, seconds in side] for side in sums]
    macro = sum(rates[0]) / sum(rates[1]) if sum(rates[1]) else None
    return {"ratio": found.ratio, "low": found.low, "high": found.high, "macro": macro}


def _text(pairs: Sequence[tuple[Answer, Answer]]) -> Figures:
    identical = sum(own.turns == other.turns for own, other in pairs)
    return {"num_compared": len(pairs), "num_identical": identical, "num_ties": None, "differences": []}
