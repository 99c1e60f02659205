"""The cache on a GPU: what it holds is what it holds on a CPU, and a commit is one launch that nobody waits for."""

import pytest
import torch

from specdec.cache import PagedKVCache
from tests.toys.device import unwaited

pytestmark = pytest.mark.gpu
cache_kernels = pytest.importorskip("specdec.kernels.cache_kernels")

DEVICE = torch.device("cuda")
NUM_LAYERS, HEADS, DIM = 32, 8, 128  # of Llama-3.1-8B
NUM_ROWS, PATH = 24, [1, 3, 4, 9, 23]


def filled(device, kv_cache_dtype, first_row=0):
    """A cache with a table whose staged rows are written in all layers."""
    cache = PagedKVCache(kv_cache_dtype=kv_cache_dtype)
    table, generator = cache.open(), torch.Generator().manual_seed(0)
    cache.stage(table, NUM_ROWS)
    for layer in range(NUM_LAYERS):
        rows = torch.randn(2, NUM_ROWS, HEADS, DIM, generator=generator).bfloat16().to(device)
        cache.pool("target").write(layer, *rows, cache.slots(table, 0, NUM_ROWS))
    table.filled["target"] = NUM_ROWS
    return cache, table


def same(cache, table, other, other_table):
    """Whether all committed rows are, bit for bit."""
    for layer in range(NUM_LAYERS):
        slots = cache.slots(table, 0, table.length), other.slots(other_table, 0, table.length)
        pairs = cache.pool("target").read(layer, slots[0]), other.pool("target").read(layer, slots[1])
        if not all(torch.equal(one.cpu(), two.cpu()) for one, two in zip(*pairs, strict=True)):
            return False
    return True


@pytest.fixture
def launches(monkeypatch):
    """The calls of the kernel that moves rows."""
    calls, kernel = [], cache_kernels.move_rows
    monkeypatch.setattr(cache_kernels, "move_rows", lambda *given: calls.append(given) or kernel(*given))
    return calls


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_a_commit_is_one_launch_that_nobody_waits_for(kv_cache_dtype, launches):
    filled(DEVICE, kv_cache_dtype)[0].pool("target").move([3], [2])  # compiles the kernel
    wanted, found = (filled(device, kv_cache_dtype) for device in (torch.device("cpu"), DEVICE))
    launches.clear()
    with unwaited():
        found[0].commit(found[1], PATH, [0] * (len(PATH) + 1))
    assert len(launches) == 1
    wanted[0].commit(wanted[1], PATH, [0] * (len(PATH) + 1))
    assert same(*wanted, *found)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_a_page_is_copied_on_write_by_one_launch(launches):
    cache, table = filled(DEVICE, "auto")
    cache.commit(table, list(range(1, NUM_ROWS)), [0] * NUM_ROWS)
    fork = cache.fork(table)
    cache.pool("target").move([3], [3])  # compiles the kernel
    launches.clear()
    with unwaited():
        cache.stage(fork, 1)
    assert len(launches) == 1 and fork.pages != table.pages
    assert same(cache, table, cache, fork)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kv_cache_dtype", ["auto", "fp8"])
def test_writing_waits_for_nothing(kv_cache_dtype):
    cache, table = filled(DEVICE, kv_cache_dtype)
    rows = torch.randn(2, NUM_ROWS, HEADS, DIM, device=DEVICE).bfloat16()
    slots = cache.slots(table, 0, NUM_ROWS).to(DEVICE)
    slots[-3:] = -1
    with unwaited():
        cache.pool("target").write(0, *rows, slots)
    dtype = torch.float8_e4m3fn if kv_cache_dtype == "fp8" else torch.bfloat16
    assert torch.equal(cache.pool("target").read(0, slots[:-3])[0], rows[0, :-3].to(dtype).bfloat16())
