"""Requests of records as flat columns: one entry per step, with the prompt it belongs to."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..statistics import Vector

Request = Mapping[str, Any]  # one of a record's "requests"
Run = Mapping[str, Any]  # one record
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Steps:
    """Every step of some requests, in their order."""

    unit: Integers  # [num_steps] index of the prompt
    emitted: Integers  # [num_steps] tokens, after the stop cut
    accepted: Integers  # [num_steps] drafted ones among them
    drafted: Integers  # [num_steps] depth of the draft
    nodes: Integers  # [num_steps]
    wasted: Integers  # [num_steps] tokens behind the finishing one
    sources: tuple[str, ...]  # [num_steps]
    ranks: tuple[Sequence[int], ...]  # [num_steps] of [accepted]: which of its siblings each emitted drafted node was
    offered: tuple[Sequence[int], ...]  # [num_steps] of [accepted + 1]: children of the pending token and those nodes
    num_units: int

    def per_unit(self, values: npt.NDArray[Any]) -> Vector:  # [num_steps] -> [num_units]
        """The sums of the values over the steps of each prompt.

        Example:
            >>> told = {"emitted": [1, 3], "accepted": [0, 2], "drafted": [0, 4], "nodes": [0, 4], "wasted": [0, 0]}
            >>> steps = steps_of([(0, {"steps": {**told, "source": ["", "ngram"]}}), (1, {"steps": None})], 2)
            >>> steps.per_unit(steps.emitted), steps.offered
            (array([4., 0.]), ([0], [1, 1, 1]))
        """
        return np.bincount(self.unit, weights=values, minlength=self.num_units).astype(np.float64)


def steps_of(requests: Iterable[tuple[int, Request]], num_units: int) -> Steps:
    """The steps of these requests, each given with the index of its prompt; those without steps add nothing."""
    names = ("emitted", "accepted", "drafted", "nodes", "wasted", "source", "ranks", "offered")
    told: dict[str, list[Any]] = {name: [] for name in names}
    units: list[int] = []
    for unit, request in requests:
        steps = request["steps"]
        if steps is None:
            continue
        units.extend([unit] * len(steps["emitted"]))
        for name in names[:-2]:
            told[name].extend(steps[name])
        told["ranks"].extend(steps.get("ranks") or ([0] * n for n in steps["accepted"]))
        told["offered"].extend(steps.get("offered") or _chain_offers(steps))
    emitted, accepted, drafted, nodes, wasted = (np.array(told[name], dtype=np.int64) for name in names[:5])
    sources, ranks, offered = (tuple(told[name]) for name in names[5:])
    index = np.array(units, dtype=np.int64)
    return Steps(index, emitted, accepted, drafted, nodes, wasted, sources, ranks, offered, num_units)


def _chain_offers(steps: Mapping[str, Sequence[int]]) -> Iterable[list[int]]:
    """One child of every node but the last of a chain."""
    for accepted, drafted in zip(steps["accepted"], steps["drafted"], strict=True):
        yield [int(depth < drafted) for depth in range(accepted + 1)]
