"""Which rows of a packed forward may attend which rows of the cache: what every body of `tree_attention` is told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_PADDED_ROWS = 32  # requests with more rows than this are attended one by one
PADDING_FACTOR, PADDING_ROWS = 4, 512  # keys of requests attended together differ by less than this
HIDDEN = float("-inf")  # what a mask adds to the score of a key that must not be seen


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer turns queries and keys into scores."""

    scaling: float | None  # None: 1 / sqrt(k_dim)
    window: int | None = None  # a row at position p sees positions p - window + 1 .. p
    chunk: int | None = None  # ... and positions of its own chunk only
    softcap: float | None = None  # score -> softcap * tanh(score / softcap)


class RequestRows(NamedTuple):
    """One request's rows: `start` rows that all may see, then a tree of which nodes `first` .. n - 1 are computed.

        rows of the request   0 ............ start ............ start + first ............ stop
                              | prefix        | nodes in the pool | nodes computed (queries) |

    A row before `start` has its index as position, a node has `start + depth`; so no position exceeds the row's index.
    A node sees its ancestors and itself. Those of a mutual chain, a block that is drafted at once, all see each other.
    """

    start: int
    num_nodes: int  # n
    first: int
    parents: list[int] | None  # [n], parents[0] == -1; None for a chain
    depths: list[int] | None  # [n]; None for a chain
    first_slot: int | None  # slot of row 0 if all rows lie one after the other
    slots: Tensor | None  # [stop] int64 or more on the CPU otherwise
    page_size: int = 1  # of these slots so many, from row 0 on, lie one after the other
    is_mutual: bool = False  # of a chain with parents and depths: its nodes see those behind them, too

    @property
    def stop(self) -> int:
        return self.start + self.num_nodes

    @property
    def num_rows(self) -> int:
        """Rows computed."""
        return self.num_nodes - self.first

    def positions(self) -> list[int]:  # [num_rows]
        """Positions of the computed nodes."""
        if self.depths is None:
            return list(range(self.start + self.first, self.stop))
        return [self.start + depth for depth in self.depths[self.first :]]

    def num_straight(self) -> int:
        """Leading nodes that form a chain."""
        if self.parents is None:
            return self.num_nodes
        return next((node for node, parent in enumerate(self.parents) if parent != node - 1), self.num_nodes)

    def branches(self) -> tuple[int, Tensor]:  # (row, [num_rows - row, n])
        """The first computed row behind the straight part, and what is added to the scores of nodes from there on."""
        if self.is_mutual:
            return 0, torch.zeros(self.num_rows, self.num_nodes)
        straight, parents = self.num_straight(), self.parents
        assert parents is not None
        rows: list[list[float]] = []  # by node behind the straight part
        for node in range(straight, self.num_nodes):
            parent = parents[node]
            if parent < straight:
                row = [0.0] * (parent + 1) + [HIDDEN] * (self.num_nodes - parent - 1)
            else:
                row = rows[parent - straight].copy()
            row[node] = 0.0
            rows.append(row)
        return max(straight - self.first, 0), torch.tensor(rows[max(self.first - straight, 0) :])


class View(NamedTuple):
    """What one kind of layer sees: the keys of each request of a group, and which rows may attend which of them."""

    first_slot: int  # of the keys of a request that lies contiguously; -1 otherwise
    num_keys: int  # S, of the longest
    slots: Tensor | None  # [B * S] int64 on the layer's device; None if contiguous
    mask: Tensor | None  # [B, 1, repeats * N, S], added to scores; None if all rows see all keys, or if causal
    is_causal: bool  # S == N and row i sees keys 0 .. i


class Group:
    """Requests attended by one call: one alone, or several padded to the longest. Views are made once per forward.

    Args:
        requests: who is in it.
        offsets: where the rows of each begin in the packed forward.
        num_packed: rows of the packed forward.
    """

    __slots__ = ("_moved", "_views", "is_all", "keep", "num_keys", "num_rows", "offsets", "pick", "place", "requests")

    def __init__(self, requests: Sequence[RequestRows], offsets: Sequence[int], num_packed: int) -> None:
        self.requests, self.offsets = requests, offsets
        self.num_rows = max([request.num_rows for request in requests])  # N
        self.num_keys = max([request.stop for request in requests])
        self.is_all = True  # the rows of the forward are this group's, in its order
        self.place: Tensor | None = None  # else [num_real] int64: where its rows lie in the packed forward
        self.pick: Tensor | None = None  # [B * N] packed row of each padded row; None if reshaping gives them
        self.keep: Tensor | None = None  # [num_real] padded rows that are real; None for all
        self._views: dict[tuple[object, ...], View] = {}
        self._moved: dict[tuple[int, torch.device], Tensor] = {}
        if self.num_rows != num_packed:  # several requests, here or in all
            self._settle_places(num_packed)

    def _settle_places(self, num_packed: int) -> None:
        spans = [(offset, request.num_rows) for offset, request in zip(self.offsets, self.requests, strict=True)]
        num_real, num_padded = sum(count for _, count in spans), len(spans) * self.num_rows
        if num_real != num_packed:
            self.is_all = False
            self.place = torch.tensor([row for offset, count in spans for row in range(offset, offset + count)])
        if len(spans) > 1 and not (self.is_all and num_real == num_padded):
            steps = range(self.num_rows)
            self.pick = torch.tensor([offset + min(i, count - 1) for offset, count in spans for i in steps])
            self.keep = torch.tensor(
                [b * self.num_rows + i for b, (_, count) in enumerate(spans) for i in range(count)]
            )

    def on(self, index: Tensor, device: torch.device) -> Tensor:
        """An index of this group on a device; copied once."""
        if index.device == device:
            return index
        key = (id(index), device)
        if key not in self._moved:
            self._moved[key] = index.to(device)
        return self._moved[key]

    def view(self, window: int | None, chunk: int | None, like: Tensor, repeats: int, may_be_causal: bool) -> View:
        """The view of layers with this sliding window or attention chunk, for queries like `like`."""
        if window is not None and window >= self.num_keys:
            window = None  # no position is larger than the last key's index: nobody is that far from its first key
        if chunk is not None and chunk >= self.num_keys:
            chunk = None
        key = (window, chunk, like.dtype, like.device, repeats, may_be_causal)
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = self._make_view(window, chunk, like, repeats, may_be_causal)
        return view

    def _make_view(
        self, window: int | None, chunk: int | None, like: Tensor, repeats: int, may_be_causal: bool
    ) -> View:
        lows = [_first_visible(request, window, chunk) for request in self.requests]
        num_keys = max(request.stop - low for request, low in zip(self.requests, lows, strict=True))
        request, low = self.requests[0], lows[0]
        first_slot, slots = -1, None
        if len(self.requests) == 1 and request.first_slot is not None:
            first_slot = request.first_slot + low
        else:
            slots = self._slots(lows).to(like.device)
        if len(self.requests) == 1 and request.is_mutual and window is None and chunk is None:
            return View(first_slot, num_keys, slots, None, False)
        if len(self.requests) == 1 and request.parents is None and window is None and chunk is None:
            if request.num_rows == 1 or (may_be_causal and request.num_rows == request.stop):
                return View(first_slot, num_keys, slots, None, request.num_rows > 1)
            mask = torch.full((request.num_rows, num_keys), HIDDEN, dtype=like.dtype, device=like.device)
            mask = mask.triu_(1 + request.start + request.first)[None]
        elif len(self.requests) == 1 and request.parents is None and request.num_rows == 1:
            return View(first_slot, num_keys, slots, None, False)  # a chain's only row sees all from `low` on
        else:
            mask = self._mask(lows, num_keys, window, chunk).to(device=like.device, dtype=like.dtype)
        return View(first_slot, num_keys, slots, mask.repeat(1, repeats, 1)[:, None], False)

    def _slots(self, lows: list[int]) -> Tensor:  # [B * S]
        """Slots of the visible keys of each request, padded with its own first one: a slot of another may hold NaN."""
        parts = []
        for request, low in zip(self.requests, lows, strict=True):
            if request.first_slot is not None:
                parts.append(torch.arange(request.first_slot + low, request.first_slot + request.stop))
            else:
                assert request.slots is not None
                parts.append(request.slots[low : request.stop])
        if len(parts) == 1:
            return parts[0]
        slots = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True, padding_value=-1)
        return torch.where(slots < 0, slots[:, :1], slots).flatten()

    def _mask(self, lows: list[int], num_keys: int, window: int | None, chunk: int | None) -> Tensor:  # [B, N, S]
        """What is added to scores. Padded rows repeat the last row of their request, so everybody sees something."""
        steps, keys = range(self.num_rows), torch.arange(num_keys)
        pairs = list(zip(self.requests, lows, strict=True))
        last = [[min(r.start + r.first + i, r.stop - 1) - low for i in steps] for r, low in pairs]
        mask = torch.zeros(len(pairs), self.num_rows, num_keys)
        mask.masked_fill_(keys > torch.tensor(last)[:, :, None], HIDDEN)
        for i, (r, low) in enumerate(pairs):
            if r.parents is not None:
                row, block = r.branches()
                begin = max(r.start, low)
                mask[i, row : r.num_rows, begin - low : r.stop - low] = block[:, begin - r.start :]
        if window is None and chunk is None:
            return mask
        key_positions = keys + torch.tensor(lows)[:, None]  # [B, S]
        for i, (r, low) in enumerate(pairs):
            if r.depths is not None:
                begin = max(r.start, low)
                key_positions[i, begin - low : r.stop - low] = r.start + torch.tensor(r.depths[begin - r.start :])
        positions = [[*p, *[p[-1]] * (self.num_rows - len(p))] for p in (r.positions() for r in self.requests)]
        query, key = torch.tensor(positions)[:, :, None], key_positions[:, None]
        if window is not None:
            mask.masked_fill_(key <= query - window, HIDDEN)
        if chunk is not None:
            mask.masked_fill_(key // chunk != query // chunk, HIDDEN)
        return mask


class PackedRows:
    """The rows of a ragged batch, one request after the other, as one sequence.

    Example:
        >>> rows = PackedRows([RequestRows(3, 2, 0, None, None, 0, None), RequestRows(9, 1, 0, None, None, 16, None)])
        >>> rows.num_rows, len(rows.groups)
        (3, 1)
    """

    __slots__ = ("_groups", "num_rows", "plans", "requests", "tables")

    def __init__(self, requests: Sequence[RequestRows]) -> None:
        self.requests = requests
        self.num_rows = sum([request.num_rows for request in requests])
        # What other bodies work out once per forward, by what it depends on.
        self.tables: dict[object, Any] = {}
        self.plans: dict[object, Any] = {}
        self._groups: list[Group] | None = None

    def most_rows(self) -> tuple[int, int]:
        """Computed rows of the largest tree and of the longest chain."""
        trees = [request.num_rows for request in self.requests if request.parents is not None]
        chains = [request.num_rows for request in self.requests if request.parents is None]
        return max(trees, default=0), max(chains, default=0)

    @property
    def groups(self) -> list[Group]:
        """The requests as the reference attends them."""
        if self._groups is None:
            self._groups = self._grouped()
        return self._groups

    def _grouped(self) -> list[Group]:
        requests = self.requests
        if len(requests) == 1:
            return [Group(requests, [0], self.num_rows)]
        offsets, row = [], 0
        for request in requests:
            offsets.append(row)
            row += request.num_rows
        return [
            Group([requests[i] for i in members], [offsets[i] for i in members], self.num_rows)
            for members in _attended_together(requests)
        ]


def _attended_together(requests: Sequence[RequestRows]) -> list[list[int]]:
    """Which requests are attended together: few rows each, and numbers of keys that do not differ by much."""
    groups: list[list[int]] = []
    limit = -1
    for index in sorted(range(len(requests)), key=lambda i: requests[i].stop):
        request = requests[index]
        if request.num_rows > MAX_PADDED_ROWS:
            groups.append([index])
            continue
        if request.stop > limit:
            groups.append([])
            limit, small = PADDING_FACTOR * request.stop + PADDING_ROWS, groups[-1]
        small.append(index)
    return [sorted(group) for group in groups]


def _first_visible(request: RequestRows, window: int | None, chunk: int | None) -> int:
    """A row before which no computed node sees anything."""
    if window is None and chunk is None:
        return 0
    position = min(request.positions())
    low = 0 if window is None else max(0, position - window + 1)
    return low if chunk is None else max(low, position // chunk * chunk)
