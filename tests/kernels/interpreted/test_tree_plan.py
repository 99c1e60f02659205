"""How the planner shares out the key tiles of a forward, and what the tables say, against their definitions."""

import random
from itertools import pairwise

import pytest
import torch

from specdec.kernels import tree_plan, tree_tables
from specdec.kernels.rows import PackedRows
from specdec.kernels.tree_plan import Kind, plan_of
from tests.toys.ragged import chain, random_tree, request

CPU = torch.device("cpu")


def forward(rng, max_start=2000, max_requests=12):
    """Trees and chains of all sizes, some of them empty, but for the first."""
    taken, requests = set(), []
    for i in range(rng.randint(1, max_requests)):
        size = rng.choice([0 if i else 2, 1, 1, 7, 40, rng.randint(1, 300)])
        parents = chain(size) if rng.random() < 0.5 else random_tree(size, rng)
        first = rng.randrange(size) if size and rng.random() < 0.3 else 0
        requests.append(request(rng.choice([0, 1, rng.randint(0, max_start)]), parents, 16, taken, rng, first))
    return PackedRows(requests)


def tiles_of(plan, kind):
    """First tile that some row of each strip sees, and the tile behind the last, by definition."""
    tile = plan.shape.tile
    for _, _, count, _, stop, start, node, tree in plan.tables.strips.tolist():
        lowest = start if tree >= 0 else start + node
        low = max(0, lowest - kind.window + 1) if kind.window else 0
        low = max(low, lowest // kind.chunk * kind.chunk) if kind.chunk else low
        yield (low // tile, -(-stop // tile)) if count else None


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("num_processors", [1, 5, 132])
def test_every_tile_is_in_one_item_and_no_share_is_larger_than_another(monkeypatch, seed, num_processors):
    rng = random.Random(100 * num_processors + seed)
    monkeypatch.setattr(tree_plan, "facts_of", lambda device: (num_processors, 90))
    monkeypatch.setattr(tree_plan, "MIN_KEYS", rng.choice([16, 256]))
    rows = forward(rng)
    window, chunk = rng.choice([(None, None), (None, None), (100, None), (None, 64), (700, 512)])
    kind = Kind(rng.choice([1, 4, 7]), rng.choice([1, 2]), rng.choice([64, 256]), 2, window, chunk, CPU)
    plan = plan_of(rows, kind)
    tiles = list(tiles_of(plan, kind))
    chunks, cuts = plan.chunks.tolist(), plan.cuts.tolist()
    items = plan.items[: chunks[-1]].tolist()

    assert chunks[0] == 0 and chunks == sorted(chunks) and len(items) <= len(plan.items)
    by_strip = {}
    for strip, begin, end, place in items:
        assert begin < end
        by_strip.setdefault(strip, []).append((begin, end, place))
    assert list(by_strip) == [strip for strip, found in enumerate(tiles) if found]  # in their order
    for strip, parts in by_strip.items():
        assert parts[0][0] == tiles[strip][0] and parts[-1][1] == tiles[strip][1]
        assert all(one[1] == other[0] for one, other in pairwise(parts))

    total = sum(end - begin for _, begin, end, _ in items)
    min_tiles = -(-max(tree_plan.MIN_KEYS, 4 * plan.shape.block_m) // plan.shape.tile)
    share = max(-(-total // plan.num_chunks), min_tiles)
    sizes = [sum(end - begin for _, begin, end, _ in items[one:other]) for one, other in pairwise(chunks)]
    assert sizes == [min(share, max(0, total - i * share)) for i in range(plan.num_chunks)]

    cut = {strip: parts for strip, parts in by_strip.items() if len(parts) > 1}
    assert all(parts[0][2] == -1 for strip, parts in by_strip.items() if strip not in cut)
    expected, place = [], 0
    for strip, parts in cut.items():
        assert [each[2] for each in parts] == list(range(place, place + len(parts)))
        expected.append([strip, place, len(parts)])
        place += len(parts)
    assert [entry[:3] for entry in cuts[: len(expected)]] == expected
    assert not any(entry[2] for entry in cuts[len(expected) :])
    assert place * kind.kv_heads * plan.shape.num_blocks * plan.shape.block_m <= len(plan.totals)


@pytest.mark.parametrize("seed", range(8))
def test_tables_say_where_rows_lie_and_who_sees_whom(seed):
    rng = random.Random(seed)
    rows, strip_rows = forward(rng, 60, 6), rng.choice([1, 5, 64])
    bounds = tree_tables.bounds_of(rows, strip_rows)
    words, depths, strips, pages = tree_tables.split(tree_tables.written(rows, bounds, False), bounds)
    seen = []
    for request_index, row, count, num_seen, stop, start, node, tree in strips.tolist():
        rows_of = rows.requests[request_index]
        assert row == len(seen) and 0 < count <= strip_rows and start == rows_of.start
        slots = [pages[request_index, i // bounds.page].item() + i % bounds.page for i in range(stop)]
        assert slots == rows_of.slots[:stop].tolist()
        for each in range(node, node + count):
            seen.append((request_index, each))
            at, path = each, {each}
            if rows_of.parents is None:
                assert tree == -1 and num_seen == start + node + 1 and stop == start + node + count
                continue
            while (at := rows_of.parents[at]) >= 0:
                path.add(at)
            bits = "".join(f"{word & (1 << 64) - 1:064b}"[::-1] for word in words[tree + each].tolist())
            assert {i for i, bit in enumerate(bits) if bit == "1"} == path
            assert depths[tree + each] == len(path) - 1 and num_seen == start and stop == rows_of.stop
    assert seen == [(i, node) for i, r in enumerate(rows.requests) for node in range(r.first, r.num_nodes)]


def test_tables_with_room_to_spare_say_the_same():
    """As of a buffer that is filled again and again."""
    rng = random.Random(5)
    rows = forward(rng, 60, 3)
    exact = tree_tables.bounds_of(rows, 8)
    roomy = tree_tables.Bounds(8, exact.page, *[3 * size + 2 for size in exact[2:]])
    tables = [tree_tables.split(tree_tables.written(rows, bounds, False), bounds) for bounds in (exact, roomy)]
    for one, other in zip(*tables, strict=True):
        assert torch.equal(other[tuple(slice(size) for size in one.shape)], one)
    assert not tables[1].strips[exact.num_strips :].any()
