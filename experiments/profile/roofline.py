"""Where a pass stands under the roofs of its machine (Williams, Waterman and Patterson, CACM 52(4), 2009)."""

from typing import Any

from .counting import Work
from .machine import Machine

MEMORY, COMPUTE = "memory", "compute"


def point(work: Work, seconds: float, machine: Machine) -> dict[str, Any]:
    """What a pass achieves, and what share of the fastest possible that is.

    Example:
        >>> machine = Machine("cpu", "float32", 100.0, 10.0, None, {}, {})
        >>> found = point(Work(flops=40.0, bytes=10.0), 2.0, machine)
        >>> found["intensity"], found["flops_per_second"], found["roofline_seconds"], found["bound"]
        (4.0, 20.0, 1.0, 'memory')
    """
    computing, reading = work.flops / machine.peak_flops, work.bytes / machine.bandwidth
    return {
        "flops": work.flops,
        "bytes": work.bytes,
        "intensity": work.intensity,
        "flops_per_second": work.flops / seconds,
        "bytes_per_second": work.bytes / seconds,
        "roofline_seconds": max(computing, reading),
        "roofline_share": max(computing, reading) / seconds,
        "bound": COMPUTE if computing > reading else MEMORY,
    }
