"""Drafting with a head that was trained for the target and reads its features."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from specdec.protocols import Noise, RequestView
from specdec.rollout import DraftNetwork
from specdec.target import PagedModel
from specdec.types import Draft

from .head_network import HeadNetwork
from .head_runner import HeadRunner
from .token_drafter import TokenDrafter


@dataclass(eq=False, repr=False)
class HeadDrafter(TokenDrafter):
    """What drafters with heads share; the options are those of `TokenDrafter`.

    Args:
        model: the head's network, in the precision and on the device it shall run in.
    """

    network_type: ClassVar[type[HeadNetwork]] = HeadNetwork
    has_rows: ClassVar[bool] = True  # in a pool, made of all features; else the last row's are all it reads

    def __post_init__(self, model: Any) -> None:
        super().__post_init__(model)
        self.needs = replace(self.needs, feature_layers=model.feature_layers, pool=self.pool if self.has_rows else None)

    def _runner(self, model: Any) -> DraftNetwork:
        if not isinstance(model, self.network_type):
            raise ValueError(
                f"expected a head of type {self.network_type.__name__} for the method {self.name!r}, got "
                f"{type(model).__name__}; build or load one"
            )
        self._head = self._head_over(model)
        return self._head

    def _head_over(self, network: Any) -> HeadRunner:
        """The network over pages."""
        raise NotImplementedError

    def check(self, target: PagedModel) -> None:
        """Borrows from the target what the head lacks.

        Raises:
            ValueError: the head was made for another target.
        """
        self._head.adopt(target)
        super().check(target)

    def propose(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        """What the head says next, a chain or tree per view."""
        # Of a text of one token the target has run nothing yet: there is nothing to read.
        budgets = [budget if view.table.length else 0 for view, budget in zip(views, budgets, strict=True)]
        self._head.read({view.table: view.features for view in views if view.features is not None})
        try:
            return self._proposals(views, budgets, noises)
        finally:
            self._head.read({})

    def _proposals(self, views: Sequence[RequestView], budgets: Sequence[int], noises: Sequence[Noise]) -> list[Draft]:
        return super().propose(views, budgets, noises)
