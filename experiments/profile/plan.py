"""From a profile and acceptance: how fast each way to decode would be, which is best, and when not to speculate."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..stamp import environment
from .acceptance import Acceptance
from .cost import Costs, Prediction, Yield, even_acceptance, predict

Row = dict[str, Any]
PLAIN = "plain"
DEFINITIONS = {
    "tokens_per_second": "predicted, of all requests of the batch together, behind their prompts: batch_size x "
    "tokens_per_step / seconds of a round; of plain decoding 1 per step",
    "low, high": "of tokens_per_second at the ends of the 95 % interval of tokens_per_step; null if that has none",
    "seconds": "of a round: draft, verify (the target's pass, where only drafted_share of the rounds have a draft) and "
    "overhead (rule, cache, host; of plain decoding all of it is verify), "
    "from the profile; between lengths, batches and contexts measured there, linearly; a draft takes what it takes at "
    "the shortest of these contexts",
    "tokens_per_step": "behind prompts, the correction or bonus included",
    "speedup": "over plain decoding of the same batch",
    "break_even_tokens_per_step": "at which it would be as fast as plain decoding; break_even_acceptance: the rate at "
    "which independent tokens of a chain, in drafted_share of the rounds, yield so many, null if none does or the "
    "draft is a tree",
    "margin": "tokens_per_second of the best / of the best with another drafter, plain decoding among them",
}


def plan(profile: Mapping[str, Any], acceptance: Acceptance, batches: Sequence[int] | None, context: float) -> Row:
    """The plan as plain values for JSON.

    Args:
        batches: batch sizes; None for those of the profile.
        context: tokens that a request has behind it, on average.

    Raises:
        ValueError: nothing is known of the drafters that were profiled.
    """
    costs = Costs.of(profile)
    predictions = predictions_of(costs, acceptance, batches or costs.passes.batches, context)
    advised = [advice(found) for found in predictions]
    return {
        "kind": "plan",
        "version": 1,
        "environment": environment(),
        "definitions": DEFINITIONS,
        "warnings": [*profile.get("warnings", []), *_beyond(costs, batches or (), context)],
        "model": profile["model"],
        "profiled_with": profile["environment"],
        "acceptance": acceptance.source,
        "context_length": context,
        "rows": [row_of(each) for found in predictions for each in found],
        "best": [best_of(found) for found in predictions],
        "advice": " ".join(advised),
        "advice_by_batch": advised,
    }


def _beyond(costs: Costs, batches: Sequence[int], context: float) -> Iterator[str]:
    """Where a plan goes on along the lines of its profile."""
    for name, measured, wanted in (
        ("batch sizes", costs.passes.batches, batches),
        ("contexts", costs.passes.contexts, [max(context, costs.passes.contexts[0])]),  # a shorter one costs no more
    ):
        outside = [f"{each:g}" for each in wanted if not measured[0] <= each <= measured[-1]]
        if outside:
            yield (
                f"the profile has {name} from {measured[0]} to {measured[-1]}; what is said of {', '.join(outside)} "
                "follows from the nearest two and is no more than a guess"
            )


def predictions_of(
    costs: Costs, acceptance: Acceptance, batches: Sequence[int], context: float
) -> list[list[Prediction]]:
    """Of each batch size, the fastest first; plain decoding is among them."""
    known = {setting: found for setting in costs.settings() if (found := acceptance.of(setting)) is not None}
    if not known:
        names = ", ".join(dict.fromkeys(setting.drafter for setting in costs.settings()))
        raise ValueError(
            f"expected acceptance of some drafter of the profile ({names}), got none of them in {acceptance.source}; "
            "measure both with the same drafters"
        )
    ranked = []
    for batch in batches:
        ways = [predict(costs, setting, batch, context, yields) for setting, yields in known.items()]
        ways.append(predict(costs, None, batch, context, Yield(1.0, 0.0, 1.0, 1.0)))
        ranked.append(sorted(ways, key=lambda way: -way.tokens_per_second))
    return ranked


def label_of(way: Prediction) -> str:
    """For people."""
    return PLAIN if way.setting is None else way.setting.label


def row_of(way: Prediction) -> Row:
    """Plain values."""
    setting, yields = way.setting, way.yields
    ends = (None if end is None else way.batch_size * end / way.seconds for end in (yields.low, yields.high))
    low, high = ends
    return {
        "label": label_of(way),
        "drafter": None if setting is None else setting.drafter,
        "num_speculative_tokens": None if setting is None else setting.num_speculative_tokens,
        "num_tree_nodes": None if setting is None else setting.num_tree_nodes,
        "batch_size": way.batch_size,
        "tokens_per_second": way.tokens_per_second,
        "low": low,
        "high": high,
        "speedup": way.speedup,
        "tokens_per_step": yields.tokens_per_step,
        "drafted_share": yields.drafted_share,
        "seconds": {"draft": way.draft, "verify": way.verify, "overhead": way.overhead, "total": way.seconds},
        "break_even_tokens_per_step": None if setting is None else way.break_even_tokens,
        "break_even_acceptance": _even_rate(way),
    }


def best_of(ways: Sequence[Prediction]) -> Row:
    """The fastest of a batch, and by how much."""
    best, other = ways[0], _rival(ways)
    return {**row_of(best), "margin": best.tokens_per_second / other.tokens_per_second, "runner_up": label_of(other)}


def advice(ways: Sequence[Prediction]) -> str:
    """What to do with a batch of this size, and why, in a sentence or two."""
    best = ways[0]
    return " ".join(_to_speculate(ways) if best.setting is not None else _not_to_speculate(ways))


def _to_speculate(ways: Sequence[Prediction]) -> Iterator[str]:
    best, other = ways[0], _rival(ways)
    interval = ""
    if best.yields.low is not None and best.yields.high is not None:
        scale = best.plain / best.seconds
        interval = f" ({best.yields.low * scale:.2f}-{best.yields.high * scale:.2f})"
    margin = best.tokens_per_second / other.tokens_per_second
    yield (
        f"Batch {best.batch_size}: draft with {label_of(best)}, {best.tokens_per_second:.0f} tokens/s, "
        f"{best.speedup:.2f}{interval} times plain decoding and {margin:.2f} times the next, {label_of(other)};"
    )
    yield f"{_costs(best)}, so it pays from {_needed(best)} on, and has {best.yields.tokens_per_step:.2f}."
    if best.yields.low is not None and best.yields.low < best.break_even_tokens:
        yield f"That is not certain: {best.yields.low:.2f} are in its interval, too. More prompts would tell more."


def _not_to_speculate(ways: Sequence[Prediction]) -> Iterator[str]:
    best = next(way for way in ways if way.setting is not None)
    yield (
        f"Batch {best.batch_size}: do not speculate; the best drafter, {label_of(best)}, would give "
        f"{best.speedup:.2f} times plain decoding:"
    )
    yield f"{_costs(best)}, so it would need {_needed(best)}, and has {best.yields.tokens_per_step:.2f}."


def _costs(way: Prediction) -> str:
    assert way.setting is not None, "plain decoding has no costs beside its own"
    return (
        f"a draft takes {1e3 * way.draft:.2f} ms and checking {way.setting.num_rows - 1} drafted tokens "
        f"{1e3 * (way.verify + way.overhead):.2f} ms where a plain step takes {1e3 * way.plain:.2f} ms"
    )


def _needed(way: Prediction) -> str:
    assert way.setting is not None, "plain decoding has nothing to break even with"
    said = f"{way.break_even_tokens:.2f} tokens per step"
    if way.setting.num_tree_nodes is not None:
        return said
    rate = _even_rate(way)
    return f"{said} ({'more than it drafts' if rate is None else f'{100 * rate:.0f} % of tokens accepted'})"


def _even_rate(way: Prediction) -> float | None:
    """None for trees, for plain decoding, and where no rate is enough."""
    if way.setting is None or way.setting.num_tree_nodes is not None:
        return None
    return even_acceptance(way.break_even_tokens, way.setting.num_speculative_tokens, way.yields.drafted_share)


def _rival(ways: Sequence[Prediction]) -> Prediction:
    """The fastest with another drafter, plain decoding among them."""
    best = ways[0].setting
    name = None if best is None else best.drafter
    return next(way for way in ways if (None if way.setting is None else way.setting.drafter) != name)
