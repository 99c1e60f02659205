"""The kernels around attention, built for GPUs of two generations: no spills, and copies of 16 bytes."""

import pytest
import torch

from specdec.kernels import (
    ancestor_kernels,
    cache_kernels,
    draft_kernels,
    draw_kernels,
    growth_kernels,
    penalty_kernels,
    verify_kernels,
    warp_kernels,
)
from specdec.kernels.layers import Layers
from specdec.kernels.trees import GrowingTrees, Growth, PackedTrees
from tests.toys.compiled import SHARED_BYTES, building

VOCAB, REQUESTS, NODES = 128_256, 8, 8  # of Llama 3; a power of two is not the general case
WIDE_LOAD, WIDE_STORE, SPILL = r"LDG\.E[.\w]*\.128", r"STG\.E[.\w]*\.128", r"\b(LDL|STL)\b"


def integers(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


def doubles(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def trees(num_nodes=NODES, max_depth=NODES - 1):
    count = REQUESTS * num_nodes
    rows = integers(count, dtype=torch.int64), integers(count), integers(count)
    return PackedTrees(*rows, integers(REQUESTS + 1), num_nodes, max_depth)


def rows(dtype=torch.float32, num_nodes=NODES):
    return torch.empty(REQUESTS * num_nodes, VOCAB, dtype=dtype)


def cache():
    pool = [torch.empty(64, 8, 128, dtype=torch.bfloat16) for _ in range(4)]
    cache_kernels.kv_write(pool[0], pool[1], pool[2][:8], pool[3][:8], integers(8))
    for groups, moves in ((REQUESTS, NODES), (2, 16), (1, cache_kernels.MAX_MOVES)):
        slots = integers(groups, moves, dtype=torch.int64)
        cache_kernels.move_rows(Layers(pool), slots, slots)


def cache_in_eight_bits():
    pool = [torch.empty(64, 8, 128, dtype=torch.float8_e4m3fn) for _ in range(4)]
    rows = torch.empty(8, 8, 128, dtype=torch.bfloat16)
    cache_kernels.kv_write(pool[0], pool[1], rows, rows, integers(8), torch.ones(2, 8))
    slots = integers(REQUESTS, NODES, dtype=torch.int64)
    cache_kernels.move_rows(Layers(pool), slots, slots)


def draw():
    seeds = integers(REQUESTS * NODES, dtype=torch.int64)
    draw_kernels.argmax(rows())
    draw_kernels.argmax(rows(torch.bfloat16))
    draw_kernels.gumbel_argmax(rows(), seeds, integers(REQUESTS * NODES))
    draw_kernels.walk(trees(), seeds)


def verify():
    seeds, starts = integers(REQUESTS, dtype=torch.int64), integers(REQUESTS)
    for num_nodes, max_depth in ((NODES, NODES - 1), (64, 10), (128, 12)):
        sampled = integers(REQUESTS * num_nodes, dtype=torch.bool)
        for probs in (rows(num_nodes=num_nodes), None):
            drafted = rows(num_nodes=num_nodes), probs, trees(num_nodes, max_depth)
            verify_kernels.verify_rejection(*drafted, sampled, seeds, starts)
    sampled = integers(REQUESTS * NODES, dtype=torch.bool)
    verify_kernels.verify_block(rows(), rows(), trees(), sampled, seeds, starts)


def warp():
    numbers = doubles(REQUESTS * NODES)
    warp_kernels.warp(rows(), numbers, integers(REQUESTS * NODES), numbers, numbers)


def penalties():
    seen, pairs = integers(REQUESTS, 2, VOCAB // 32), integers(REQUESTS, 2)
    penalty_kernels.mark_seen(seen, integers(REQUESTS, 2000), pairs[:, 0], pairs[:, 0], pairs)
    penalty_kernels.penalize(rows(), trees(), seen, pairs[:, 0], doubles(REQUESTS, 2), pairs)


def draft():
    draft_kernels.draft_topk(rows(torch.bfloat16), 8)
    draft_kernels.draft_topk(rows(), 64, doubles(REQUESTS * NODES))
    counts = integers(REQUESTS * NODES)
    draft_kernels.draft_draw(rows(), counts.long(), counts, counts)


def growth():
    for width, depth, num_nodes in ((4, 5, 16), (10, 6, 60), (16, 10, 127)):
        growing = GrowingTrees.empty(REQUESTS, Growth(width, depth, num_nodes), torch.device("cpu"))
        growth_kernels.plant(growing, integers(REQUESTS, dtype=torch.int64))
        for level in (1, 2, 3):
            shape = REQUESTS, 1 if level == 1 else width, width
            growth_kernels.grow(
                growing, integers(*shape, dtype=torch.int64), torch.zeros(shape), integers(REQUESTS), level
            )
        kept, _ = growth_kernels.prune(growing)
        for each in (growing.runs, kept):
            num_words = -(-each.max_nodes // 64)
            ancestor_kernels.write_ancestors(
                each, torch.zeros(len(each.tokens), num_words).long(), integers(len(each.tokens))
            )


# Kernels that read or write whole rows; the others look at a few numbers.
LOADS = ["_kv_write_kernel", "_move_rows_kernel", "_best_parts_kernel", "parts_kernel", "left_kernel"]
LOADS += ["walk_kernel", "_warp_kernel", "_penalize_kernel", "_topk_parts_kernel", "_sum_parts_kernel"]
STORES = ["_kv_write_kernel", "_move_rows_kernel", "_warp_kernel", "_penalize_kernel"]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("calls", [cache, cache_in_eight_bits, draw, verify, warp, penalties, draft, growth])
def test_kernels_do_not_spill_and_copy_sixteen_bytes_at_a_time(calls, capability, monkeypatch):
    with building(capability, monkeypatch) as builds:
        calls()
    for build in builds:
        assert not build.has(SPILL), build.name
        assert build.shared <= SHARED_BYTES[capability]
        assert build.has(WIDE_LOAD) or build.name not in LOADS, build.name
        assert build.has(WIDE_STORE) or build.name not in STORES, build.name


def test_the_named_kernels_are_those_that_are_built(monkeypatch):
    with building(90, monkeypatch) as builds:
        for calls in (cache, draw, verify, warp, penalties, draft, growth):
            calls()
    assert set(LOADS) | set(STORES) <= {build.name for build in builds}
