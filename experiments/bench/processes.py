"""One process or many: `accelerate launch` starts them, and each runs its share of the groups.

With a target that lies over all of them (tensor parallelism), every process runs every group, and the first one writes.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch

SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # as torchrun and MPI name them


@dataclass(frozen=True, slots=True)
class Processes:
    """Which process of how many this is.

    Example:
        >>> here = processes()
        >>> here.rank, here.count, here.share(5)
        (0, 1, [0, 1, 2, 3, 4])
    """

    rank: int = 0
    count: int = 1
    state: Any = None  # accelerate's PartialState, if there are several
    is_together: bool = False  # they share one target

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def writes(self) -> bool:
        """Whether this process has runs of its own to write."""
        return self.is_first or not self.is_together

    @property
    def device(self) -> str | None:
        """The device that accelerate gave this process; None if there is one process."""
        return None if self.state is None else str(self.state.device)

    def share(self, num_groups: int) -> list[int]:
        """The groups of this process."""
        return list(range(num_groups) if self.is_together else range(self.rank, num_groups, self.count))

    def barrier(self) -> None:
        """Waits for the others."""
        if self.state is not None:
            self.state.wait_for_everyone()

    def close(self) -> None:
        """Takes leave of the others."""
        if self.state is not None:
            self.state.destroy_process_group()


def processes(device: str | None = None, is_together: bool = False) -> Processes:
    """This process among those that were launched together.

    Raises:
        ValueError: they are to share one target, and there is one of them.
    """
    if all(int(os.environ.get(name, "1")) < 2 for name in SIZES):
        if is_together:
            raise ValueError(
                "expected several processes with tp_plan, got one; start `torchrun --nproc-per-node 2 -m specdec bench`"
            )
        return Processes()
    from accelerate import PartialState

    is_on_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=is_on_cpu)
    return Processes(state.process_index, state.num_processes, state, is_together)
