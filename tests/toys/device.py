"""Ragged batches made on the device that attends them, and what tests do to a GPU's memory and launches."""

import math
from contextlib import contextmanager

import torch

from specdec.kernels.rows import PackedRows
from tests.toys.ragged import Batch, request


def batch_on(device, described, shape, scoring, rng, has_sinks=False, num_slots=0):
    """As `ragged.batch_of`, but for large batches; in a pool of at least so many slots."""
    taken = set()
    requests = [request(start, parents, layout, taken, rng, first) for start, parents, layout, first in described]
    generator = torch.Generator(device).manual_seed(rng.randrange(1 << 30))
    used, rows = torch.tensor(sorted(taken), device=device), PackedRows(requests)

    def normal(*size):
        return torch.randn(size, generator=generator, device=device).to(shape.dtype)

    pools = []
    for dim in (shape.k_dim, shape.v_dim):
        size = (max(num_slots, max(taken) + 9), shape.kv_heads, dim)
        pools.append(torch.full(size, math.nan, dtype=shape.dtype, device=device))
        pools[-1][used] = normal(len(used), *size[1:])
    query = normal(1, rows.num_rows, shape.heads, shape.k_dim).transpose(1, 2)
    return Batch(query, *pools, rows, scoring, normal(shape.heads) if has_sinks else None)


@contextmanager
def poisoned():
    """Memory that nobody has written is NaN, or the largest integer."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def unwaited():
    """Whatever would wait for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(function):
    """What replays the function's kernels as a CUDA graph, and the tensors that it writes; it has run before."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = function()
    return graph.replay, output
