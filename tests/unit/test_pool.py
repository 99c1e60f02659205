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


def test_layers_of_a_device_move_together_however_many_rows_there_are(monkeypatch):
    """Sources and targets overlap; a layer that came later and storage that has grown are moved too."""
    monkeypatch.setattr("specdec.pool.MAX_MOVES", 4)
    cache = PagedKVCache(page_size=4)
    table, pool, path = cache.open(), cache.pool("target"), [2, 3, 5, *range(8, 24)]
    rows = torch.arange(24.0)[:, None, None]
    for num_layers in (1, 2, 2):
        fill(cache, table, 24)
        for layer in range(num_layers):
            pool.write(layer, rows, -rows, cache.slots(table, 0, 24))
        cache.commit(table, path, [0] * 20)
        assert rows_of(cache, table, 20) == [0, *path]
        for layer in range(num_layers):
            keys, values = pool.read(layer, cache.slots(table, 0, 20))
            assert keys.flatten().tolist() == [0, *path] and values.flatten().tolist() == [0, *(-row for row in path)]
        cache.truncate(table, 0)
        cache.stage(table, 2 * cache.num_pages * 4)
        cache.truncate(table, 0)


def test_a_pool_without_rows_moves_nothing():
    PagedKVCache().pool("draft").move([3], [2])


@pytest.mark.parametrize("name", ["fp8", "fp8_e4m3"])
def test_rows_of_eight_bits_come_back_rounded_and_in_their_own_dtype(name):
    cache = PagedKVCache(page_size=2, kv_cache_dtype=name)
    pool = cache.pool("target")
    pool.set_scales("scaled", torch.tensor([[0.5, 2.0], [1.0, 4.0]]))
    rows = torch.tensor([[0.3, -9.0], [1000.0, 17.0]]).bfloat16()[:, :, None]  # [rows, heads, 1]
    for layer in ("plain", "scaled"):
        pool.write(layer, rows, -rows, torch.tensor([5, 6]))
        assert pool.stored(layer).keys.dtype == torch.float8_e4m3fn
    for layer, keys, values in (
        ("plain", [[0.3125, -9.0], [448.0, 16.0]], [[-0.3125, 9.0], [-448.0, -16.0]]),
        ("scaled", [[0.3125, -9.0], [224.0, 16.0]], [[-0.3125, 9.0], [-448.0, -16.0]]),
    ):
        found = pool.read(layer, torch.tensor([5, 6]))
        assert [part.dtype for part in found] == [torch.bfloat16] * 2
        assert [part[:, :, 0].tolist() for part in found] == [keys, values]
    assert pool.slot_bytes() == {torch.device("cpu"): 8}
    assert pool.view("plain", 5, 2)[0].data_ptr() == pool.stored("plain").keys[5].data_ptr()


def test_rows_of_eight_bits_are_moved_copied_and_kept_when_the_pool_grows():
    cache = PagedKVCache(page_size=4, kv_cache_dtype="fp8")
    table = cache.open()
    with torch.inference_mode():
        fill(cache, table, 7)
    cache.commit(table, [2, 3, 6], [0] * 4)
    fork = cache.fork(table)
    cache.truncate(fork, 3)
    fill(cache, fork, 2, value=8)
    cache.stage(table, 80 * 4)
    assert rows_of(cache, table, 4) == [0, 2, 3, 6] and rows_of(cache, fork, 5) == [0, 2, 3, 8, 9]


def test_names_and_scales_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="expected kv_cache_dtype to be one of auto, fp8, fp8_e4m3, got 'fp8_e5m2'"):
        PagedKVCache(kv_cache_dtype="fp8_e5m2")
    with pytest.raises(ValueError, match="expected scales for a pool in fp8.* a pool that keeps them as they are"):
        PagedKVCache().pool("target").set_scales(0, torch.ones(2, 1))
    pool, rows = PagedKVCache(kv_cache_dtype="fp8").pool("target"), torch.ones(1, 2, 4)
    for scales in (torch.ones(2), torch.ones(3, 2), torch.zeros(2, 2), torch.full((2, 2), float("nan"))):
        with pytest.raises(ValueError, match=r"expected positive scales \[2, kv_heads\]"):
            pool.set_scales(0, scales)
    pool.set_scales(0, torch.ones(2, 3))
    with pytest.raises(ValueError, match="expected 2 scales for the heads of 0, got 3"):
        pool.write(0, rows, rows, torch.tensor([1]))
    pool.write(1, rows, rows, torch.tensor([1]))
    with pytest.raises(ValueError, match="before a layer's first rows, got them for a layer with rows"):
        pool.set_scales(1, torch.ones(2, 2))


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
