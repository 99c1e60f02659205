"""What the system benchmark measures: a model of a real shape, and this toolkit around it in several modes."""

from typing import NamedTuple, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from specdec.target import PagedModel

from .shapes import random_model, weight_bytes

EAGER, CAPTURED, COMPILED = MODES = "eager", "captured", "compiled"


class Sizes(NamedTuple):
    """How much is measured; lists as in JSON."""

    prefix: int  # tokens of a prompt
    new_tokens: int
    repeats: int
    batches: list[int]  # of forward passes
    nodes: list[int]  # of the tree of each request
    acceptances: list[float]  # of replayed tokens
    lengths: list[int]  # of replayed drafts


REAL = Sizes(1024, 128, 5, [1, 8], [1, 2, 4, 8, 16, 32, 64], [0.6, 0.8, 0.9], [4, 8])
DRY = Sizes(24, 12, 2, [1, 2], [1, 2, 4, 16], [0.8], [4])


class Subject:
    """A model of one shape with random weights on a device, and a `PagedModel` for each mode that is asked for.

    Args:
        shape: of `shapes.SHAPES`, or "tiny".
        device: where the model is made.
        sizes: how much is measured.
        ceiling: GB/s at which memory is read.

    Example:
        >>> subject = Subject("tiny", torch.device("cpu"), DRY, ceiling=10.0)
        >>> subject.best, subject.prompts(2).shape
        ('eager', torch.Size([2, 24]))
    """

    def __init__(self, shape: str, device: torch.device, sizes: Sizes, ceiling: float) -> None:
        self.device, self.sizes = device, sizes
        self.model: PreTrainedModel = random_model(shape, device)
        self.floor_ms = weight_bytes(self.model) / ceiling / 1e6  # weights read once
        self._targets = {EAGER: PagedModel(self.model)}

    @property
    def best(self) -> str:
        """The mode in which plain and speculative decoding are compared."""
        return EAGER if absent(CAPTURED, self.device) else CAPTURED

    def target(self, mode: str) -> PagedModel:
        """The model in this mode, checked once for all of them."""
        if mode not in self._targets:
            model = torch.compile(self.model, dynamic=True) if mode == COMPILED else self.model
            learned = self._targets[EAGER].learned
            self._targets[mode] = PagedModel(cast(PreTrainedModel, model), learned=learned, graphs=True)
        return self._targets[mode]

    def prompts(self, count: int) -> Tensor:  # [count, prefix] int64
        """Random prompts, the same ones every time."""
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(self.model.config.vocab_size, (count, self.sizes.prefix), generator=generator)
        return drawn.to(self.device)


def absent(mode: str, device: torch.device) -> str | None:
    """Why a mode cannot be run there; None if it can.

    Example:
        >>> absent("eager", torch.device("cpu")), absent("captured", torch.device("cpu"))
        (None, 'needs a GPU')
    """
    return "needs a GPU" if mode != EAGER and device.type != "cuda" else None
