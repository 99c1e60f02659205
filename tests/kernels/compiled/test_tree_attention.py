"""Tree attention as compiled for real GPUs: what the shipped launch shapes promise, read from the assembly."""

import random

import pytest
import torch

from specdec.kernels import tree_attention, tree_plan
from specdec.kernels.rows import Scoring
from tests.toys.compiled import ASYNCHRONOUS, SHARED_BYTES, TENSOR_CORES, building
from tests.toys.ragged import Shape, batch_of, chain, random_tree

PROCESSORS = {80: 108, 90: 132}  # A100, H100 and H200
SPILLS = r"LDL|STL"
WIDE_COPY = r"LDGSTS\.E\.BYPASS\.128"  # 16 bytes, around the first-level cache


def build(
    monkeypatch, capability, num_nodes, shape, scoring=None, has_sinks=False, num_requests=2, start=300, in_fp8=False
):
    """Plan, attention and merge kernels for trees of so many nodes, and the launch shape."""
    rng = random.Random(0)
    parents = chain(1) if num_nodes == 1 else random_tree(num_nodes, rng)
    case = batch_of([(start, parents, 16, 0)] * num_requests, shape, scoring or Scoring(None), rng, has_sinks)
    case = case.in_eight_bits() if in_fp8 else case
    for module in (tree_plan, tree_attention):
        monkeypatch.setattr(module, "facts_of", lambda device: (PROCESSORS[capability], capability))
    with building(capability, monkeypatch) as builds:
        tree_attention.tree_attention(*case)
    (plan,) = [plan for plan in case.rows.plans.values() if hasattr(plan, "shape")]
    return builds, plan.shape


def shape_of(dim, heads=32, kv_heads=8, dtype=torch.bfloat16, v_dim=None):
    return Shape(heads, kv_heads, dim, v_dim or dim, dtype)


@pytest.mark.parametrize("capability", PROCESSORS)
@pytest.mark.parametrize(
    ("num_nodes", "shape", "scoring", "has_sinks"),
    [
        (1, shape_of(128), None, False),
        (8, shape_of(128), None, False),
        (16, shape_of(128, dtype=torch.float16), None, False),
        (32, shape_of(128), Scoring(None, window=4096), False),
        (64, shape_of(128), None, False),
        (1, shape_of(64), None, False),
        (32, shape_of(64), None, False),
        (8, shape_of(64, 64, 8), Scoring(None, window=128), True),
        (8, shape_of(80, 32, 32), None, False),
        (16, shape_of(192, 16, 16, v_dim=128), None, False),
        (8, shape_of(256, 8, 4), Scoring(None, window=4096, softcap=50.0), False),
        (32, shape_of(256, 16, 8), None, False),
    ],
)
def test_tiles_are_on_their_way_while_tensor_cores_work(monkeypatch, capability, num_nodes, shape, scoring, has_sinks):
    (plan, attention, merge), launch = build(monkeypatch, capability, num_nodes, shape, scoring, has_sinks)
    loop = attention.tile_loop()
    assert loop is not None and loop.count(TENSOR_CORES) and loop.count(ASYNCHRONOUS)
    assert loop.count(SPILLS) == 0 and not plan.has(SPILLS) and not merge.has(SPILLS)
    assert attention.has(WIDE_COPY) and attention.num_buffers >= 2
    if capability == 90 and launch.block_m >= 64:
        assert loop.count("HGMMA")
    assert attention.shared <= SHARED_BYTES[capability]
    # The planner makes shares for one wave: all programs are there at once.
    assert attention.num_resident >= launch.num_resident


@pytest.mark.parametrize("capability", PROCESSORS)
@pytest.mark.parametrize(
    ("num_nodes", "shape"),
    [
        (1, shape_of(128)),
        (8, shape_of(128)),
        (16, shape_of(128, dtype=torch.float16)),
        (64, shape_of(128)),
        (32, shape_of(64)),
        (8, shape_of(256, 8, 4)),
    ],
)
def test_keys_and_values_of_eight_bits_are_on_their_way_too(monkeypatch, capability, num_nodes, shape):
    """As they lie in the pool: half the bytes, turned into numbers of the queries' dtype on the way to the dots."""
    (_, wide, _), _ = build(monkeypatch, capability, num_nodes, shape)
    (_, attention, _), launch = build(monkeypatch, capability, num_nodes, shape, in_fp8=True)
    loop = attention.tile_loop()
    assert loop is not None and loop.count(TENSOR_CORES) and loop.count(SPILLS) == 0
    assert loop.count(ASYNCHRONOUS) < wide.tile_loop().count(ASYNCHRONOUS)
    assert attention.has(WIDE_COPY) and attention.num_buffers >= 2
    if capability == 90 and launch.block_m >= 64:
        assert loop.count("HGMMA")
    assert attention.shared <= wide.shared and attention.num_resident >= launch.num_resident


@pytest.mark.parametrize("capability", PROCESSORS)
@pytest.mark.parametrize("dim", [128, 256])
def test_float32_takes_no_tensor_cores_and_spills_nothing(monkeypatch, capability, dim):
    """They would round to 11 bits, and the texts of one seed would part."""
    builds, launch = build(monkeypatch, capability, 8, shape_of(dim, dtype=torch.float32))
    attention = builds[1]
    assert not attention.has(TENSOR_CORES) and not attention.has(SPILLS)
    assert attention.shared <= SHARED_BYTES[capability] and attention.num_resident >= launch.num_resident


def test_other_numbers_of_requests_and_keys_compile_nothing_anew(monkeypatch):
    builds = []
    for num_requests, start in ((1, 0), (2, 1), (3, 15), (16, 240), (17, 1000)):
        for num_nodes in (5, 8):
            more, _ = build(monkeypatch, 90, num_nodes, shape_of(128), None, False, num_requests, start)
            builds += more[1:]  # the planner holds all requests at once, so it is compiled for powers of two
    assert {len({id(each.kernel) for each in builds if each.name == name}) for name in {b.name for b in builds}} == {1}
