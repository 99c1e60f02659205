"""Features: outputs of the target's layers at the committed rows of a request, for drafters that read them.

Row v of the features describes what follows token v, as row v of the logits does. A drafter keeps in a pool of its own
what it makes of a row, so the row itself is handed over once:

    rows        0 ............ start ............ table.length | the pending token, not run yet
    features    | not here      | here            |

What is not here was handed over already, or never seen: the pages of the row came from the caller or another request.
If such a row is wanted, the target runs it again. The text does not depend on features, only what is drafted does.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LAST = -1  # as a feature layer: the last hidden state, after the last norm, which the language model head reads
MAX_SPARE_ROWS = 64  # kept beyond what is wanted, rather than to copy the rest


class FeatureRows:
    """The features of consecutive committed rows of one request.

    Example:
        >>> features = FeatureRows(start=2)
        >>> features.extend(torch.tensor([[2.0], [30.0], [3.0]]), kept=[0, 2])  # of three nodes two were accepted
        >>> features.stop, features.rows(3, 4).tolist()
        (4, [[3.0]])
    """

    __slots__ = ("_parts", "start")

    def __init__(self, start: int = 0) -> None:
        self.start = start
        self._parts: list[Tensor] = []  # [rows, size] each, one after the other

    @property
    def stop(self) -> int:
        """The row behind the last one."""
        return self.start + sum(part.shape[0] for part in self._parts)

    def extend(self, rows: Tensor, kept: Sequence[int]) -> None:  # [n, size]
        """Adds rows `kept` of these."""
        count = len(kept)
        is_leading = kept[-1] == count - 1  # ascending, so these are 0, 1, ...
        self._parts.append(rows[:count] if is_leading else rows[list(kept)])

    def precede(self, rows: Tensor) -> None:  # [n, size]
        """Adds the rows in front of `start`."""
        self._parts.insert(0, rows)
        self.start -= rows.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:  # [stop - start, size]
        """The features of rows start .. stop - 1, which must be here."""
        assert self.start <= start <= stop <= self.stop, f"rows {start} to {stop} of {self.start} to {self.stop}"
        found, first = [], self.start
        for part in self._parts:
            behind = first + part.shape[0]
            if behind > start and first < stop:
                found.append(part[max(start - first, 0) : stop - first])
            first = behind
        return found[0] if len(found) == 1 else torch.cat(found)

    def forget(self, before: int) -> None:
        """Rows in front of this one are not wanted any more."""
        while self._parts and self.start + self._parts[0].shape[0] <= before:
            self.start += self._parts.pop(0).shape[0]
        if before - self.start > MAX_SPARE_ROWS and self._parts:
            self._parts[0] = self._parts[0][before - self.start :].clone()
            self.start = before

    def fork(self, stop: int) -> "FeatureRows":
        """For a request that begins with the first `stop` rows of this one."""
        fork = FeatureRows(min(self.start, stop))
        if self.start < stop:
            fork._parts.append(self.rows(self.start, stop))
        return fork
