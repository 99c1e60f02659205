"""Texts by transformers and by this toolkit, in turns in one process: time per token, and what speculation gains.

The time of a token is that between two arrivals on the host, from the first new token to the last: without the prompt,
and with everything that a caller waits for.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.draft_models.replay import Replay
from specdec.events import Round
from specdec.generation import speculate
from specdec.protocols import Drafter
from specdec.target import PagedModel

from .bench_results import Row
from .statistics import median_index
from .system_bench_passes import chain_ms
from .system_bench_subject import CAPTURED, COMPILED, EAGER, Subject, absent

THEIRS, THEIRS_STATIC = "transformers", "transformers static cache"
MAY_FAIL = (THEIRS, THEIRS_STATIC, f"specdec {COMPILED}")
COMPILED_CALL = "_compiled_call"  # where transformers keeps the compiled model


@dataclass(frozen=True, slots=True)
class Text:
    """What one call generated."""

    tokens: list[int]
    times: list[float]  # when each of them was on the host, in seconds
    rounds: tuple[Round, ...] = ()  # of this toolkit

    @property
    def ms_per_token(self) -> float:
        """From the first token to the last."""
        return 1e3 * (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    @property
    def decoding(self) -> list[Round]:
        """The rounds behind the prompt's."""
        return [event for event in self.rounds if not event.is_prefill]

    @property
    def tokens_per_round(self) -> float:
        """E: tokens that a round behind the prompt emits."""
        return sum(len(step.tokens) for event in self.decoding for step in event.steps) / len(self.decoding)


Way = Callable[[Tensor], Text]  # of generating, given a prompt [1, length]


class Arrivals:
    """A streamer that notes the time.

    Example:
        >>> arrivals = Arrivals()
        >>> arrivals.put(torch.tensor([[5, 6]]))  # the prompt
        >>> arrivals.put(torch.tensor([7]))
        >>> arrivals.tokens
        [7]
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []

    def put(self, tokens: Tensor) -> None:
        """Takes the prompt, then token by token."""
        if tokens.numel() == 1:
            self.times.append(time.perf_counter())
            self.tokens.append(int(tokens))

    def end(self) -> None:
        """Nothing is held back."""


def theirs(model: PreTrainedModel, num_tokens: int, **options: Any) -> Way:
    """`model.generate`, greedy."""

    def run(prompt: Tensor) -> Text:
        arrivals = Arrivals()
        _generate(model, prompt, num_tokens, streamer=arrivals, **options)
        return Text(arrivals.tokens, arrivals.times)

    return run


def ours(target: PagedModel, num_tokens: int, drafter: Drafter | None = None) -> Way:
    """This toolkit, greedy."""

    def run(prompt: Tensor) -> Text:
        arrivals = Arrivals()
        loop = speculate(drafter, streamer=arrivals, target=target)
        _generate(target.model, prompt, num_tokens, custom_generate=loop)
        return Text(arrivals.tokens, arrivals.times, loop.last.rounds)

    return run


def _generate(model: Any, prompt: Tensor, num_tokens: int, **options: Any) -> None:
    mask = torch.ones_like(prompt)
    model.generate(prompt, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, **options)


def interleaved(ways: Mapping[str, Way], prompt: Tensor, repeats: int) -> tuple[dict[str, list[Text]], dict[str, str]]:
    """The texts of all ways, in turns, after a first turn that does not count; and why a way failed that may."""
    texts: dict[str, list[Text]] = {name: [] for name in ways}
    failures: dict[str, str] = {}
    names = list(ways)
    for turn in range(repeats + 1):
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            if name in failures:
                continue
            try:
                text = ways[name](prompt)
            except Exception as error:  # of a compiler or another library: the row says why, the others go on
                if name not in MAY_FAIL:
                    raise
                failures[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            else:
                texts[name] += [text] if turn else []
    return texts, failures


def decoding_rows(subject: Subject) -> list[Row]:
    """Plain decoding: transformers as it is, and this toolkit without and with captured passes."""
    modes = [CAPTURED, EAGER] if subject.best == CAPTURED else [EAGER]
    ways = {f"specdec {mode}": ours(subject.target(mode), subject.sizes.new_tokens) for mode in modes}
    return _plain_rows(subject, {**ways, THEIRS: theirs(subject.model, subject.sizes.new_tokens)})


def static_rows(subject: Subject) -> list[Row]:
    """Plain decoding by transformers with a static cache, which it compiles the model for on a GPU."""
    num_tokens, mode = subject.sizes.new_tokens, subject.best
    static = theirs(subject.model, num_tokens, cache_implementation="static")
    try:
        rows = _plain_rows(subject, {f"specdec {mode}": ours(subject.target(mode), num_tokens), THEIRS_STATIC: static})
        return [*rows[:-1], {**rows[-1], "is_compiled": hasattr(subject.model, COMPILED_CALL)}]
    finally:
        if hasattr(subject.model, COMPILED_CALL):
            delattr(subject.model, COMPILED_CALL)
        torch.compiler.reset()


def compiled_rows(subject: Subject) -> list[Row]:
    """Plain decoding with the target's layers compiled by torch.compile, and without; both captured."""
    if absent(COMPILED, subject.device):
        return []
    num_tokens = subject.sizes.new_tokens

    def compiled(prompt: Tensor) -> Text:  # made when first called: what goes wrong then is its failure
        return ours(subject.target(COMPILED), num_tokens)(prompt)

    try:
        plain = ours(subject.target(CAPTURED), num_tokens)
        return _plain_rows(subject, {f"specdec {CAPTURED}": plain, f"specdec {COMPILED}": compiled})
    finally:
        torch.compiler.reset()


def _plain_rows(subject: Subject, ways: Mapping[str, Way]) -> list[Row]:
    texts, failures = interleaved(ways, subject.prompts(1), subject.sizes.repeats)
    said = next(iter(texts.values()))[0].tokens
    rows: list[Row] = []
    for name, found in texts.items():
        if name in failures:
            rows.append({"name": name, "failed": failures[name]})
        else:
            gaps = [1e3 * (late - early) for text in found for early, late in pairwise(text.times)]
            rows.append({**token_row(subject, name, found, said), "ms_between": statistics.median(gaps)})
    return rows


def token_row(subject: Subject, name: str, texts: list[Text], said: list[int]) -> Row:
    """What texts of one way come to."""
    times = [text.ms_per_token for text in texts]
    ms = statistics.median(times)
    return {
        "name": name,
        "ms": ms,
        "ms_low": min(times),
        "ms_high": max(times),
        "share": subject.floor_ms / ms,
        "same_text": all(text.tokens == said for text in texts),
    }


def replay_rows(subject: Subject, acceptance: float, length: int) -> list[Row]:
    """Speculative decoding with replayed drafts against plain decoding and against what their costs let expect.

        formula = E / (draft / T(1) + T(length + 1) / T(1))        E tokens per round, T(n) of a forward pass

    E is that of the run; the expected one is (1 - a^(length + 1)) / (1 - a) (Leviathan et al. 2023, equation 1).
    """
    target, num_tokens = subject.target(subject.best), subject.sizes.new_tokens
    prompt, plain = subject.prompts(1), ours(target, num_tokens)
    said = plain(prompt).tokens
    drafter = Replay([said], acceptance, length)
    texts, _ = interleaved({"plain": plain, "replay": ours(target, num_tokens, drafter)}, prompt, subject.sizes.repeats)
    rows = [token_row(subject, name, found, said) for name, found in texts.items()]
    found = texts["replay"]
    kept = found[median_index([text.ms_per_token for text in found])]
    t_one, t_wide = chain_ms(subject, [1, length + 1])
    shares, draft_ms = laps(kept.decoding)
    speedup = rows[0]["ms"] / rows[1]["ms"]
    expected, formula = expected_tokens(acceptance, length), kept.tokens_per_round * t_one / (draft_ms + t_wide)
    costs = {"plain_ms": rows[0]["ms"], "t_one_ms": t_one, "t_wide_ms": t_wide, "draft_ms": draft_ms}
    return [
        {
            **rows[1],
            "mode": subject.best,
            "acceptance": acceptance,
            "length": length,
            "speedup": speedup,
            "tokens_per_round": kept.tokens_per_round,
            "expected_tokens": expected,
            **costs,
            "formula": formula,
            "formula_expected": formula * expected / kept.tokens_per_round,
            "of_formula": speedup / formula,
            "shares": shares,
            "graphs": None if target.graph_report is None else asdict(target.graph_report),
        }
    ]


def laps(rounds: list[Round]) -> tuple[dict[str, float], float]:
    """Shares of the time of rounds, and the milliseconds of a round that drafting takes; as the host sees them.

    What a GPU does is waited for where its result is read, so scoring and the rule are one share.
    """
    names = ("draft", "score", "rule", "cache", "host")
    spent = {name: sum(getattr(event.seconds, name) for event in rounds) for name in names}
    total = sum(spent.values())
    parts = {"score_and_rule": spent["score"] + spent["rule"], **{n: spent[n] for n in ("draft", "cache", "host")}}
    return {name: seconds / total for name, seconds in parts.items()}, 1e3 * spent["draft"] / len(rounds)


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens of a round whose drafted tokens are accepted independently of each other.

    Example:
        >>> round(expected_tokens(0.8, 4), 2), expected_tokens(1.0, 4)
        (3.36, 5.0)
    """
    return float(sum(acceptance**depth for depth in range(length + 1)))
