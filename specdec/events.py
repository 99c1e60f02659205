"""What happened: one `Step` per request and round, one `Round` per target call. Metrics follow from these alone."""

from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from .tree import TokenTree


@dataclass(frozen=True, slots=True)
class Step:
    """What one round did for one request.

    The counts are those after the stop cut: what lies behind an end-of-text token was never emitted: `num_wasted`.
    """

    request_id: int
    tokens: tuple[int, ...]  # emitted: accepted drafted tokens, then the correction or bonus
    num_accepted: int  # how many of `tokens` were drafted
    num_drafted: int  # depth of the draft
    num_nodes: int  # drafted nodes, equal to num_drafted on a chain
    num_wasted: int = 0  # accepted or drawn behind the finishing token
    source: str = ""  # name of the drafter
    finish_reason: str | None = None  # "eos", "stop_string", "length", "time", "criterion"; None: goes on
    tree: TokenTree | None = None  # what was drafted, under the token that was pending
    path: tuple[int, ...] = ()  # [num_accepted] nodes of the tree that were emitted, from the root's child down
    scores: Tensor | None = None  # [len(tokens), vocab] final scores of the rows the tokens came from, if asked for
    logits: Tensor | None = None  # [len(tokens), vocab] the same rows before any processor, if asked for


@dataclass(frozen=True, slots=True)
class Seconds:
    """Where the time of a round went; the five parts sum to the round."""

    draft: float = 0.0
    score: float = 0.0  # target forward
    rule: float = 0.0  # processors, draws, verification
    cache: float = 0.0  # pages: staging and commit
    host: float = 0.0  # everything else, the stop rules included

    @property
    def total(self) -> float:
        return self.draft + self.score + self.rule + self.cache + self.host


@dataclass(frozen=True, slots=True)
class Round:
    """One target call over the live requests."""

    steps: tuple[Step, ...]
    seconds: Seconds
    num_rows: int  # rows of the target forward, prompts included
    is_prefill: bool  # whether a prompt was among them


class Clock:
    """Sums seconds under the names of `Seconds`."""

    __slots__ = ("_last", "_spent")

    def __init__(self) -> None:
        self._spent = {"draft": 0.0, "score": 0.0, "rule": 0.0, "cache": 0.0, "host": 0.0}
        self._last = perf_counter()

    def lap(self, name: str) -> None:
        now = perf_counter()
        self._spent[name] += now - self._last
        self._last = now

    def seconds(self) -> Seconds:
        return Seconds(**self._spent)
