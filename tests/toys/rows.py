"""Recognisable rows for cache tests."""

import torch


def chain(n):
    """The path that keeps all of a chain of n nodes."""
    return list(range(1, n))


def fill(cache, table, count, pool="target", value=0.0):
    """Stages `count` rows and writes value, value + 1, ... into one layer of the pool."""
    cache.stage(table, count)
    rows = torch.arange(count, dtype=torch.float64)[:, None, None] + value
    slots = cache.slots(table, table.length, table.length + count)
    cache.pool(pool).write("layer", rows.expand(count, 2, 4), -rows.expand(count, 2, 3), slots)
    table.filled[pool] = table.length + count


def rows_of(cache, table, stop, pool="target"):
    """The values in rows 0 .. stop - 1."""
    keys, values = cache.pool(pool).read("layer", cache.slots(table, 0, stop))
    assert torch.equal(keys[:, 0, :3], -values[:, 0]), "keys and values parted"
    return keys[:, 0, 0].tolist()
