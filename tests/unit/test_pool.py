"""Pools: sizes, devices, and where storage may come from."""

import pytest
import torch

from specdec.cache import CacheFull, PagedKVCache
from specdec.pool import pages_that_fit
from tests.toys.rows import fill, rows_of


def test_growth_stops_at_the_memory_fraction(monkeypatch):
    """A slot of one layer is 2 * (4 + 3) * 8 = 112 bytes, a page of two slots 224; 64 pages are there already."""
    monkeypatch.setattr("specdec.pool._free_bytes", lambda device: 36 * 224)
    cache = PagedKVCache(page_size=2, memory_fraction=0.8)
    table = cache.open()
    fill(cache, table, 4)
    assert pages_that_fit([cache.pool("target")], 64, 2, 0.8) == 80
    with pytest.raises(CacheFull) as caught:
        cache.stage(table, 162)
    assert (caught.value.pages_wanted, caught.value.pages_free) == (79, 78) and cache.num_pages == 64
    cache.stage(table, 160)
    assert cache.num_pages == 80


def test_device_that_is_out_of_memory_is_a_full_cache(monkeypatch):
    def refuse(self, num_slots):
        raise torch.OutOfMemoryError("no memory left")

    cache = PagedKVCache(page_size=2)
    table = cache.open()
    fill(cache, table, 4)
    monkeypatch.setattr("specdec.pool.KVPool.grow", refuse)
    with pytest.raises(CacheFull):
        cache.stage(table, 1000)
    cache.check()
    assert len(table.pages) == 2


def test_pools_made_in_inference_mode_can_be_used_outside_of_it():
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    with torch.inference_mode():
        fill(cache, table, 6)
    cache.commit(table, [2, 4], [0, 0, 0])
    fork = cache.fork(table)
    fill(cache, fork, 80 * 4)
    with torch.inference_mode():
        fill(cache, fork, 1)
    assert rows_of(cache, table, 3) == [0, 2, 4]


def test_layers_may_differ_in_shape_and_dtype_and_fresh_rows_are_zero():
    cache = PagedKVCache(page_size=4)
    pool = cache.pool("target")
    for key, heads, dtype in (("a", 1, torch.bfloat16), ("b", 3, torch.float64)):
        pool.write(
            key, torch.ones(2, heads, 5, dtype=dtype), torch.ones(2, heads, 2, dtype=dtype), torch.tensor([4, 6])
        )
        keys, values = pool.read(key, torch.tensor([6, 5]))
        assert keys.shape == (2, heads, 5) and values.shape == (2, heads, 2) and keys.dtype == values.dtype == dtype
        assert keys[:, 0, 0].tolist() == [1, 0]


@pytest.mark.gpu
def test_rows_live_where_their_layer_does():
    cache = PagedKVCache(page_size=4)
    pool, slots = cache.pool("target"), torch.tensor([1, 3])
    for device in ("cpu", "cuda"):
        pool.write(device, torch.ones(2, 1, 4, device=device), torch.ones(2, 1, 4, device=device), slots)
        assert pool.read(device, slots)[0].device.type == device
        assert pool.read(device, slots.to("cuda"))[0].sum().item() == 8
    table = cache.open()
    cache.stage(table, 4)
    table.filled["target"] = 4
    cache.commit(table, [3], [0, 0])
    cache.stage(table, 65 * 4)
    for device in ("cpu", "cuda"):
        assert pool.read(device, torch.arange(4))[0][:, 0, 0].tolist() == [0, 1, 0, 1]
    assert cache.num_pages == 128
