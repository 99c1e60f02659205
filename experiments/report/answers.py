"""What a benchmark's figures say in words: which drafter, which length, by how much, how sure, is the text the same."""

from collections.abc import Iterator, Sequence

from ..figures.verdicts import LEVEL
from .arms import Arm, by_cell, by_series, fastest
from .arms import ties as tied
from .blocks import Answers
from .words import interval, is_number, listing, number, percent

MAX_NAMED = 6  # of a list of arms in a sentence


def answers(arms: Sequence[Arm]) -> list[Answers]:
    """The answers for each cell.

    Example:
        >>> rows = [("plain", 0, None), ("ngram k=2", 2, {"ratio": 1.5, "low": 1.4, "high": 1.6})]
        >>> arms = [
        ...     Arm(name, "cell", "ngram", k, not k, True, {}, {"speedup": speedup, "num_prompts": 9}, {})
        ...     for name, k, speedup in rows
        ... ]
        >>> for question, answer in answers(arms)[0].pairs:
        ...     print(question, answer)
        Which drafter? ngram.
        Which length? 2 drafted tokens.
        By how much? 1.50 times the tokens per second of plain decoding, 95 % interval 1.40–1.60.
        How sure? The interval lies above 1, so this is a gain, measured on 9 prompts.
        Is the text the same? No texts were compared.
    """
    return [Answers(cell, tuple(_pairs(own))) for cell, own in by_cell(arms).items()]


def _pairs(arms: Sequence[Arm]) -> Iterator[tuple[str, str]]:
    field = [arm for arm in arms if arm.can_win]
    best = fastest(field)
    if best is None:
        yield "Which drafter?", "No arm has a speed-up over plain decoding that was measured."
    else:
        ties = sorted(_ties(best, field), key=lambda arm: -(arm.ratio or 0.0))
        yield "Which drafter?", _which(best, [arm for arm in ties if arm.series != best.series])
        yield "Which length?", _length(best, [arm for arm in ties if arm.series == best.series])
        yield "By how much?", _by_how_much(best)
        yield "How sure?", _how_sure(best, ties, field)
    yield "Is the text the same?", _text(arms)


def _ties(best: Arm, field: Sequence[Arm]) -> list[Arm]:
    return [arm for arm in field if arm is not best and tied(best, arm)]


def _which(best: Arm, rivals: Sequence[Arm]) -> str:
    if not rivals:
        return f"{best.series}."
    shown = listing(dict.fromkeys(arm.series for arm in rivals))
    return f"A tie: {best.series} is ahead, but the measurements do not tell it from {shown}."


def _length(best: Arm, rivals: Sequence[Arm]) -> str:
    if best.length is None:
        return f"{best.label} has no fixed length."
    tokens = "drafted token" if best.length == 1 else "drafted tokens"
    if not rivals:
        return f"{best.length} {tokens}."
    others = listing(str(arm.length) for arm in sorted(rivals, key=lambda arm: arm.length or 0))
    return (
        f"A tie: for {best.series}, {best.length} {tokens} are ahead; the measurements do not tell this from {others}."
    )


def _by_how_much(best: Arm) -> str:
    around = interval(best.speedup)
    shown = f", 95 % interval {around}" if around else ""
    return f"{number(best.ratio)} times the tokens per second of plain decoding{shown}."


def _p_value(arm: Arm) -> float | None:
    return (arm.over or {}).get("p_holm")


def _how_sure(best: Arm, ties: Sequence[Arm], field: Sequence[Arm]) -> str:
    num_prompts = best.overall.get("num_prompts")
    low, high = ((best.speedup or {}).get(end) for end in ("low", "high"))
    if not (is_number(low) and is_number(high)):
        return f"Not known: no interval can be given for {num_prompts} prompts; measure at least 3, better 20."
    prompts = f"measured on {num_prompts} prompts"
    if low > 1:
        said = f"The interval lies above 1, so this is a gain, {prompts}."
    elif high < 1:
        said = f"The interval lies below 1: no drafter here is faster than plain decoding, {prompts}."
    else:
        said = f"The interval holds 1: a gain over plain decoding is not shown, {prompts}."
    slower = [arm for arm in field if arm is not best and arm not in ties]
    rank = []
    if ties:
        named = [f"{arm.label} ({number(arm.ratio)}, {interval(arm.speedup) or 'no interval'})" for arm in ties]
        more = [f"{len(ties) - MAX_NAMED} more"] if len(ties) > MAX_NAMED else []
        rank.append(f"Its rank is not sure: {listing([*named[:MAX_NAMED], *more])} may be as fast.")
    if slower:
        rank.append(_faster(best, slower, bool(ties)))
    return " ".join([said, *rank])


def _faster(best: Arm, slower: Sequence[Arm], has_ties: bool) -> str:
    """That it is faster than these, and how probable that is to be chance where they were held against each other."""
    who = listing(dict.fromkeys(arm.label for arm in slower[:MAX_NAMED])) if has_ties else "every other arm"
    over = max(filter(is_number, map(_p_value, slower)), default=None) if best.is_leader else None
    if over is None:
        return f"It is faster than {who}."
    if over <= LEVEL:
        return f"It is faster than {who} (paired by prompts, p at most {over:.2g}, Holm-corrected)."
    return (
        f"It is faster than {who} by the paired intervals, but with p up to {over:.2g} over all arms (Holm): more "
        "prompts would tell more."
    )


def _text(arms: Sequence[Arm]) -> str:
    found = [(arm, arm.overall["text"]) for arm in arms if arm.overall.get("text")]
    compared = sum(text["num_compared"] for _, text in found)
    if not compared:
        return "No texts were compared."
    differing = [(arm, text) for arm, text in found if text["num_identical"] < text["num_compared"]]
    if not differing:
        return f"Yes: all {compared:,} texts are token for token those of plain decoding."
    ties = sum(text["num_ties"] for _, text in differing)
    others = sum(text["num_compared"] - text["num_identical"] for _, text in differing) - ties
    names = [arm.label for arm, _ in differing]
    shown = listing([*names[:MAX_NAMED], *([f"{len(names) - MAX_NAMED} more"] if len(names) > MAX_NAMED else [])])
    share = f"{compared - ties - others:,} of {compared:,} texts are token for token those of plain decoding"
    if others:
        return f"No: {share}; {others} differ by more than a tie of two logits ({shown}). See the differing texts."
    return f"But for ties, yes: {share}; {ties} part where rounding decides between two logits ({shown})."


def findings(arms: Sequence[Arm]) -> Iterator[str]:
    """What a reader has to be warned of: rows that are not what they seem."""
    for arm in arms:
        if arm.is_flagged:
            share = percent((arm.overall["degeneracy"].get("repetition") or {}).get("value"))
            yield f"{arm.label} ({arm.cell}): degenerate text ({share} repeats itself); it does not compete."
        if not arm.is_lossless:
            yield f"{arm.label} ({arm.cell}): the rule is lossy ({arm.about.get('level')}); it does not compete."
        yield from (f"{arm.label} ({arm.cell}): {line}" for line in arm.about.get("warnings") or ())


def best_lengths(arms: Sequence[Arm]) -> Iterator[tuple[str, Arm, str]]:
    """Of each series the best arm, and the lengths it ties with in words."""
    for name, own in by_series(arms).items():
        best = fastest(own)
        if best is not None:
            ties = [arm for arm in own if arm is not best and tied(best, arm)]
            yield name, best, listing([str(arm.length) for arm in ties]) if ties else ""
