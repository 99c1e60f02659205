"""How long calls take on a device, and how fast its memory is read: figures of the device, not of the host."""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

REPLAYS = 15
CEILING_BYTES = {"cuda": 1 << 32, "cpu": 1 << 22}  # read in one go; on a GPU far more than its L2


class Timing(NamedTuple):
    """Microseconds of one call: the median of several replays, the fastest and the slowest."""

    median: float
    low: float
    high: float


def time_calls(calls: Sequence[Callable[[], Any]], rounds: int, device: torch.device) -> Timing:
    """The time of one of the calls, all done one after the other, `rounds` times; the first ones are not counted.

    On a GPU they replay as one CUDA graph between two events, so no launch is waited for.

    Example:
        >>> timing = time_calls([lambda: sum(range(1000))] * 3, rounds=2, device=torch.device("cpu"))
        >>> 0 < timing.low <= timing.median <= timing.high
        True
    """
    replay = _captured(calls, rounds) if device.type == "cuda" else partial(_called, calls, rounds)
    return _timing(replay, rounds * len(calls), device)


def time_unaided(call: Callable[[], Any], count: int, device: torch.device) -> Timing:
    """The time of a call as it is, done `count` times one after the other; the first ones are not counted.

    On a GPU none is waited for before the next begins: the time is the device's, or the host's if that is longer. One
    call alone has what the host does before the device can begin in its time.

    Example:
        >>> timing = time_unaided(lambda: sum(range(1000)), count=3, device=torch.device("cpu"))
        >>> 0 < timing.low <= timing.median <= timing.high
        True
    """
    return _timing(partial(_called, [call], count), count, device)


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """From the start of a call to the end of what it has the device do, which must have nothing to do before.

    Example:
        >>> 0 < seconds_of(lambda: sum(range(1000)), torch.device("cpu")) < 1
        True
    """
    if device.type != "cuda":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def read_ceiling(device: torch.device) -> dict[str, float]:
    """GB/s at which memory is read, by way of reading; for a copy, of bytes read and written.

    Example:
        >>> sorted(read_ceiling(torch.device("cpu")))
        ['amax', 'copy']
    """
    num_bytes = CEILING_BYTES[device.type]
    data = torch.randint(-(1 << 31), 1 << 31, (num_bytes // 4,), dtype=torch.int32, device=device)
    floats = data.view(torch.bfloat16).nan_to_num_()  # for the reduction: a NaN could be a short cut
    reads: dict[str, Callable[[], Any]] = {"amax": partial(floats.view(-1, 1 << 12).amax, 1)}
    if device.type == "cuda":
        from .read_kernel import SHAPES, block_sums  # triton is there with every CUDA build of torch

        sums = torch.empty(num_bytes // 4 // min(block for block, _ in SHAPES), dtype=torch.int32, device=device)
        for block, num_warps in SHAPES:
            reads[f"sums of {block}"] = partial(block_sums, data, sums, block, num_warps)
    half = data.numel() // 2
    reads = {"copy": partial(data[:half].copy_, data[half:]), **reads}  # first: by then the clocks are up
    return {name: num_bytes / time_calls([read], 2, device).median / 1e3 for name, read in reads.items()}


def free_bytes(device: torch.device) -> int | None:
    """Memory of a GPU that can still be taken; None on a CPU, where what is measured is small."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return int(torch.cuda.mem_get_info(device)[0])


def _captured(calls: Sequence[Callable[[], Any]], rounds: int) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph.replay


def _called(calls: Sequence[Callable[[], Any]], rounds: int) -> None:
    for _ in range(rounds):
        for call in calls:
            call()


def _timing(run: Callable[[], Any], count: int, device: torch.device) -> Timing:
    """Of one of the `count` calls that a run makes."""
    num_warm = 3 if device.type == "cuda" else 1
    seconds = [seconds_of(run, device) for _ in range(REPLAYS + num_warm)][num_warm:]
    times = [1e6 * each / count for each in seconds]
    return Timing(statistics.median(times), min(times), max(times))
