"""What a machine can do at most, as measured: multiplications per second, and bytes read per second."""

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..device_timing import read_ceiling, seconds_of

PRODUCT_SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}  # of square matrices
REPEATS = 5
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
SMALLEST_READ, LARGEST_READ = 1 << 28, 1 << 30  # bytes that defeat the caches of a CPU, and that fit its memory


class Machine(NamedTuple):
    """The two roofs, and what they are the highest of."""

    device: str
    dtype: str
    peak_flops: float  # FLOP/s
    bandwidth: float  # bytes/s, of memory
    cached_bandwidth: float | None  # bytes/s of as many bytes as the weights take, which a cache may hold; CPU only
    products: dict[int, float]  # size of the square matrices -> FLOP/s
    reads: dict[int, float]  # bytes -> bytes/s

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "peak_flops": self.peak_flops,
            "bandwidth_bytes_per_second": self.bandwidth,
            "cached_bandwidth_bytes_per_second": self.cached_bandwidth,
            "ridge_flop_per_byte": self.peak_flops / self.bandwidth,
            "products": [{"size": size, "flops_per_second": speed} for size, speed in self.products.items()],
            "reads": [{"num_bytes": size, "bytes_per_second": speed} for size, speed in self.reads.items()],
        }


def measure_machine(device: torch.device, dtype: torch.dtype, weight_bytes: int) -> Machine:
    """The fastest product of square matrices of this type, and the fastest reading; each the median of several.

    On a CPU memory is read in pieces far larger than its caches, and once more in one as large as the weights.
    """
    products = {size: _product_speed(size, device, dtype) for size in PRODUCT_SIZES[device.type]}
    if device.type == "cuda":
        bandwidth = max(speed for name, speed in read_ceiling(device).items() if name != "copy") * 1e9
        reads, cached = {1 << 32: bandwidth}, None
    else:
        size = cache_defeating_bytes()
        cached_size = min(weight_bytes, size)
        reads = {each: _read_speed(each) for each in sorted({cached_size, size})}
        bandwidth, cached = reads[size], reads[cached_size]
    kind = str(dtype).removeprefix("torch.")
    return Machine(str(device), kind, max(products.values()), bandwidth, cached, products, reads)


def cache_defeating_bytes() -> int:
    """How much to read on a CPU so that little of it is found in a cache: four times the largest, within bounds.

    Example:
        >>> SMALLEST_READ <= cache_defeating_bytes() <= LARGEST_READ
        True
    """
    sizes = [_bytes_of(path.read_text().strip()) for path in CACHES.glob("index*/size")]
    return min(max(4 * max(sizes, default=0), SMALLEST_READ), LARGEST_READ)


def _bytes_of(size: str) -> int:
    """Of a size as Linux writes it.

    Example:
        >>> _bytes_of("48K"), _bytes_of("2M")
        (49152, 2097152)
    """
    return int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1:], 0)


def _product_speed(size: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _median(partial(torch.mm, left, right), device)


def _read_speed(num_bytes: int) -> float:
    """By the faster of two ways to read floats on a CPU."""
    values = torch.ones(max(1, num_bytes // 4))
    reads: list[Callable[[], Any]] = [values.sum, partial(torch.dot, values, values)]
    return values.nbytes / min(_median(read, torch.device("cpu")) for read in reads)


def _median(call: Callable[[], Any], device: torch.device) -> float:
    """Seconds of a call; several in a row where a launch takes time."""
    count = 20 if device.type == "cuda" else 1

    def calls() -> None:
        for _ in range(count):
            call()

    calls()
    return statistics.median(seconds_of(calls, device) / count for _ in range(REPEATS))
