"""All randomness of a request: Philox words as a pure function of (seed, role, position), so nothing is ever consumed.

A draw does not depend on how many draws came before it. That is why the same seed gives the same text whatever the
drafter, the tree, the batch or the order of the rounds (algorithms.md 3.3).
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor

from .kernels.ops import argmax, gumbels, philox, pick

_WORD = 0xFFFFFFFF
_LONG = 0xFFFFFFFFFFFFFFFF


class Role(IntEnum):
    """What a random word is for: the second counter word, so that the roles are disjoint streams."""

    TARGET = 0
    DRAFT = 1
    ACCEPT = 2
    RESIDUAL = 3


# Below so many entries a Philox call costs its launches and no arithmetic, so further rows come almost for free.
_CHEAP_ENTRIES = {"cpu": 1 << 14, "cuda": 1 << 20}
# A drafter that shares the noise asks for the rows of a round before the target does: keep those of a usual depth.
_KEPT_ROWS = 8
# Draws of a chain come one by one, with a model in between: their uniforms are made for so many nodes at once.
_DRAFT_BLOCK = 8


class PhiloxNoise:
    """The noise of one request, keyed by a 64-bit seed; implements `protocols.Noise`.

    Target and coupled draws are Gumbel races: the token of the largest `scores + g`, with one `g` per position and
    token. The other draws need one uniform each. `residual_token` is keyed by `start`, for which a rule passes the
    position of the token it emits: each position is emitted once, so no key is used twice.

    Example:
        >>> noise = PhiloxNoise(seed=7)
        >>> scores = torch.tensor([[0.0, 1.0, -torch.inf], [0.0, -torch.inf, -torch.inf]])
        >>> noise.target_tokens(scores, [4, 5]) == PhiloxNoise(seed=7).target_tokens(scores, [4, 5])
        True
    """

    def __init__(self, seed: int) -> None:
        self.seed = _checked(seed)
        self._keys = round_keys(seed)
        self._draft_block, self._draft_uniforms = (-1, -1), [0.0]  # (start, first node), by node
        self._first = 0  # position of the first row of the window
        self._window = torch.empty(0, 0)  # [rows, vocab] float32: Gumbel noise of consecutive positions

    def target_tokens(self, scores: Tensor, positions: Sequence[int]) -> list[int]:
        """The target's draw of each row of `scores` [n, vocab]; the lowest token id wins ties."""
        tokens: list[int] = argmax(scores + self._gumbels(scores, positions)).tolist()
        return tokens

    def coupled_tokens(self, scores: Tensor, position: int, count: int) -> list[int]:
        """The best `count` tokens of `scores` [vocab] plus the target's noise, as far as they have a probability."""
        raced = scores + self._gumbels(scores, (position,))[0]
        if count == 1:
            token = int(argmax(raced[None]))
            return [token] if float(raced[token]) > -torch.inf else []
        best = raced.topk(min(count, raced.shape[0]))
        tokens: list[int] = best.indices[best.values > -torch.inf].tolist()
        return tokens

    def draft_token(self, probs: Tensor, start: int, node: int, draw: int) -> int:
        """Draw number `draw` below `node` from `probs` [vocab]."""
        if draw:
            return pick(probs, self._uniform(Role.DRAFT, start, node, draw))
        place = node % _DRAFT_BLOCK
        block = start, node - place
        if block != self._draft_block:  # one after the other they take a quarter of the time
            nodes = range(node - place, node - place + _DRAFT_BLOCK)
            self._draft_uniforms = [self._uniform(Role.DRAFT, start, each, 0) for each in nodes]
            self._draft_block = block
        return pick(probs, self._draft_uniforms[place])

    def accept(self, ratio: float, start: int, node: int, draw: int) -> bool:
        """Whether u < ratio, strictly, for the test of draw `draw` below `node`: a ratio of zero never passes."""
        return ratio >= 1 or (ratio > 0 and self._uniform(Role.ACCEPT, start, node, draw) < ratio)

    def residual_token(self, probs: Tensor, position: int) -> int:
        """The token that a rule which uses q emits at `position`, from `probs` [vocab]."""
        return pick(probs, self._uniform(Role.RESIDUAL, position, 0, 0))

    def _uniform(self, role: Role, position: int, node: int, draw: int) -> float:
        """A multiple of 2**-53 in [0, 1)."""
        assert max(node, draw) < 1 << 16, "the sub-index holds 16 bits of node and 16 bits of draw"
        first, second, _, _ = philox_words(self._keys, (position, role, node << 16 | draw, 0))
        return (first << 21 | second >> 11) * 2.0**-53

    def _gumbels(self, scores: Tensor, positions: Sequence[int]) -> Tensor:  # [n, vocab] float32
        """The noise of these positions, in the width and on the device of `scores`."""
        low, high, count = min(positions), max(positions), len(positions)
        self._cover(low, high + 1, scores)
        if list(positions) == list(range(low, low + count)):
            return self._window[low - self._first : high + 1 - self._first]
        rows = torch.tensor(positions, device=self._window.device) - self._first
        return self._window[rows]

    def _cover(self, low: int, stop: int, scores: Tensor) -> None:
        """Makes the window hold positions `low` to `stop - 1`, and some more if they are cheap."""
        window, vocab = self._window, scores.shape[-1]
        end = self._first + len(window)
        extends = self._first <= low <= end and window.shape[1] == vocab and window.device == scores.device
        if extends and stop <= end:
            return
        begin = end if extends else low
        cheap = _CHEAP_ENTRIES.get(scores.device.type, 1 << 16) // vocab
        fresh = _gumbel_rows(self.seed, range(begin, max(stop, begin + cheap)), vocab, scores.device)
        first = max(self._first, min(low, end - _KEPT_ROWS)) if extends else low
        self._window = torch.cat((window[first - self._first :], fresh)) if extends else fresh
        self._first = first


def request_seed(seed: int, row: int) -> int:
    """The seed of sample `row` of a call: distinct for distinct rows, unrelated for neighbouring seeds (splitmix64).

    Example:
        >>> len({request_seed(0, row) for row in range(1000)})
        1000
    """
    return _mix((_mix(_checked(seed)) + 0x9E3779B97F4A7C15 * row) & _LONG)


def round_keys(seed: int) -> list[tuple[int, int]]:
    """The two key words of each of the ten rounds of Philox."""
    low, high = seed & _WORD, seed >> 32
    return [(low + 0x9E3779B9 * turn & _WORD, high + 0xBB67AE85 * turn & _WORD) for turn in range(10)]


def philox_words(keys: Sequence[tuple[int, int]], counter: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """The words of one counter, as `ops.philox` computes them; in Python, which is faster for one than any tensor op.

    Example:
        >>> [hex(word) for word in philox_words(round_keys(0), (0, 0, 0, 0))]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    for low, high in keys:
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ low, b & _WORD, a >> 32 ^ c3 ^ high, a & _WORD
    return c0, c1, c2, c3


def _gumbel_rows(seed: int, positions: range, vocab: int, device: torch.device) -> Tensor:  # [n, vocab] float32
    """Target noise of these positions."""
    rows = torch.arange(positions.start, positions.stop, device=device)[:, None]
    blocks = torch.arange(-(-vocab // 4), device=device)
    zero = torch.zeros((), dtype=torch.int64, device=device)
    words = philox(seed, rows, zero + int(Role.TARGET), zero, blocks).flatten(1)[:, :vocab]
    return gumbels(words)


def _checked(seed: int) -> int:
    if not 0 <= seed <= _LONG:
        raise ValueError(f"expected a seed of 64 bits, got {seed}; pass an int from 0 to 2**64 - 1")
    return seed


def _mix(word: int) -> int:
    """A bijection of 64-bit words: the finaliser of splitmix64 (Steele et al. 2014)."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _LONG
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _LONG
    return word ^ word >> 31
