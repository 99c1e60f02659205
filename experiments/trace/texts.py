"""A trace in memory: the drafts that were made at every position of every text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class TracedDraft:
    """What was drafted behind the first `position` tokens; node 0 is the pending one."""

    position: int
    tokens: list[int]  # [n]
    parents: list[int]  # [n]
    depths: list[int]  # [n]
    sampled: list[bool]  # [n]
    scores: list[float] | None  # [n] log-probability of the way to each node
    p: list[float]  # [n] the target's probability of each token, given its parent
    q: list[float]  # [n] the probability it was drawn with
    first_row: int = 0  # of the table

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        return self.depths[-1] == len(self) - 1

    @property
    def is_drawn(self) -> bool:
        return any(self.sampled)

    def own_prob(self, node: int) -> float | None:
        """The drafter's probability of a token, given its parent; None if it was not said."""
        if self.sampled[node]:
            return self.q[node]
        if self.scores is None:
            return None
        return float(np.exp(self.scores[node] - self.scores[self.parents[node]]))


@dataclass(frozen=True, slots=True)
class TracedText:
    """A text and the draft at each of its positions; the first one is that of the round over the prompt."""

    request: int
    turn: int
    prompt: str  # its id
    tokens: tuple[int, ...]  # new ones, one per draft
    drafts: tuple[TracedDraft, ...]

    @property
    def key(self) -> tuple[str, int, tuple[int, ...]]:
        """Equal for the same text in traces of other arms."""
        return self.prompt, self.turn, self.tokens


@dataclass(frozen=True, slots=True)
class Tops:
    """The likeliest tokens after every row, and what they leave."""

    firsts: npt.NDArray[np.int64]  # [rows + 1]
    tokens: npt.NDArray[np.int32]  # of all rows, one after the other
    probs: npt.NDArray[np.float64]
    tails: npt.NDArray[np.float64]  # [rows]

    def row(self, row: int) -> tuple[dict[int, float], float]:
        """Token -> probability, and the probability of all others."""
        first, stop = self.firsts[row], self.firsts[row + 1]
        return dict(zip(self.tokens[first:stop].tolist(), self.probs[first:stop].tolist(), strict=True)), self.tails[
            row
        ]


@dataclass(frozen=True, slots=True)
class Trace:
    """A file of traced texts of one arm."""

    path: Path
    header: Mapping[str, Any]
    texts: tuple[TracedText, ...]
    p_top: Tops
    q_top: Tops
    num_bytes: int

    @property
    def arm(self) -> str:
        return str(self.header.get("arm", self.path.stem))

    @property
    def label(self) -> str:
        return str(self.header.get("label", self.header.get("drafter_name", self.path.stem)))

    @property
    def cell(self) -> str:
        """What it shares with the arms it can be held against; empty if it is of no sweep."""
        return str(self.header.get("cell", ""))

    @property
    def num_tokens(self) -> int:
        return sum(len(text.tokens) for text in self.texts)

    @property
    def drafts(self) -> Sequence[TracedDraft]:
        return [draft for text in self.texts for draft in text.drafts]


def joined(traces: Sequence[Trace]) -> Trace:
    """The files of one arm as one trace."""
    if len(traces) == 1:
        return traces[0]
    texts: list[TracedText] = []
    first = 0
    for trace in traces:
        for text in trace.texts:
            drafts = tuple(replace(draft, first_row=draft.first_row + first) for draft in text.drafts)
            texts.append(replace(text, drafts=drafts))
        first += len(trace.p_top.tails)
    differences = sum(int(trace.header.get("num_differences", 0)) for trace in traces)
    header = {**traces[0].header, "num_differences": differences}
    tops = _joined([trace.p_top for trace in traces]), _joined([trace.q_top for trace in traces])
    return Trace(traces[0].path, header, tuple(texts), *tops, sum(trace.num_bytes for trace in traces))


def _joined(tops: Sequence[Tops]) -> Tops:
    ends = np.cumsum([0, *(top.firsts[-1] for top in tops)])
    firsts = [top.firsts[:-1] + end for top, end in zip(tops, ends[:-1], strict=True)]
    parts = [np.concatenate([getattr(top, name) for top in tops]) for name in ("tokens", "probs", "tails")]
    return Tops(np.concatenate([*firsts, ends[-1:]]), *parts)
