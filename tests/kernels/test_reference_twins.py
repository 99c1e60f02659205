"""The twins of the kernels against what they stand for: noise, rules, pool, verifiers, transformers' processors."""

import random

import pytest
import torch
from transformers.generation import logits_process as hf

from specdec.kernels import (
    bodies,
    cache_ops,
    ops,
    reference_draws,
    reference_sampling,
    reference_verify,
    sampling_ops,
)
from specdec.kernels.bodies import body_of
from specdec.kernels.layers import Layers
from specdec.noise import PhiloxNoise, Role
from specdec.pool import KVPool
from specdec.rules import walk
from specdec.tree import TokenTree
from specdec.types import Draft, TargetRows
from specdec.verifiers.block import Block
from specdec.verifiers.rejection import Rejection
from tests.toys.packed import drawn_chains, far_apart, forest

LONG = (1 << 64) - 1


def as_signed(seed):
    return seed - (1 << 64) if seed >> 63 else seed


def test_the_roles_are_those_of_the_noise():
    assert Role.TARGET == 0  # `gumbel_argmax` has no name for it
    roles = reference_draws.DRAFT, reference_draws.ACCEPT, reference_draws.RESIDUAL
    assert roles == (Role.DRAFT, Role.ACCEPT, Role.RESIDUAL)


def test_gumbel_argmax_is_the_draw_of_the_noise():
    scores = torch.randn(40, 301) * 3
    scores[:, 5:9] = -torch.inf
    seeds = [0, LONG, 1 << 63, 0x0123456789ABCDEF]
    positions = torch.randint(0, 1 << 20, (40,))
    found = sampling_ops.gumbel_argmax(
        scores, torch.tensor([as_signed(seeds[row % 4]) for row in range(40)]), positions
    )
    for row in range(40):
        assert PhiloxNoise(seeds[row % 4]).target_tokens(scores[row : row + 1], [int(positions[row])]) == [found[row]]


@pytest.mark.parametrize("seed", range(20))
def test_walk_is_the_walk_of_the_rules(seed):
    generator = random.Random(seed)
    trees = forest(generator, 3, 20, [generator.randrange(20) for _ in range(4)])
    targets = torch.tensor([generator.randrange(3) for _ in trees.tokens])
    emitted, path = sampling_ops.walk(trees, targets)
    for request, (first, stop) in enumerate(trees.cu_nodes.unfold(0, 2, 1).tolist()):
        said, kept = ([value for value in row[request].tolist() if value >= 0] for row in (emitted[:, 1:], path))
        assert emitted[request, 0] == len(said)
        if first == stop:
            assert not said and not kept
            continue
        tree = TokenTree(trees.tokens[first:stop].tolist(), trees.parents[first:stop].tolist())
        verdict = walk(tree, targets[first:stop].tolist())
        assert kept == verdict.path and said == [*tree.tokens_at(verdict.path), verdict.next_token]


@pytest.mark.parametrize("slots", [[4, -1, 0, -1], [-1, -1], [0, -1], [-1, 7], []])
@pytest.mark.parametrize("in_fp8", [False, True], ids=["wide", "fp8"])
def test_rows_of_padding_go_nowhere(slots, in_fp8):
    """Also where no row of the pool is written."""
    scales = torch.tensor([[0.5], [2.0]]) if in_fp8 else None
    rows = torch.arange(1.0, len(slots) + 1)[:, None, None]
    found = [torch.full((8, 1, 1), 9.0).to(torch.float8_e4m3fn if in_fp8 else torch.float32) for _ in range(2)]
    cache_ops.kv_write(*found, rows, 2 * rows, torch.tensor(slots, dtype=torch.int64), scales)
    for pool, times, scale in zip(found, (1, 2), (0.5, 2.0) if in_fp8 else (1, 1), strict=True):
        wanted = [9.0] * 8
        for row, slot in enumerate(slots):
            if slot >= 0:
                wanted[slot] = (row + 1) * times / scale
        assert pool.float().flatten().tolist() == wanted


def test_rows_are_written_and_moved_as_by_the_pool():
    pool, slots = KVPool("target", 20), torch.tensor([4, 9, 5])
    layers = {"a": (torch.zeros(20, 2, 4), torch.zeros(20, 2, 3)), "b": (torch.zeros(20, 1, 4), torch.zeros(20, 1, 4))}
    for key, stored in layers.items():
        keys, values = (torch.randn(3, *tensor.shape[1:]) for tensor in stored)
        pool.write(key, keys, values, slots)
        padded = [torch.cat((rows, torch.full_like(rows[:1], float("nan")))) for rows in (keys, values)]
        cache_ops.kv_write(*stored, *padded, torch.tensor([*slots, -1]))
    sources, targets = [9, 4, 5, 0], [4, 9, 11, 5]
    pool.move(sources, targets)
    tensors = Layers([tensor for stored in layers.values() for tensor in stored])
    cache_ops.move_rows(tensors, torch.tensor([[*sources, -1]]), torch.tensor([[*targets, 3]]))
    for key, stored in layers.items():
        assert all(torch.equal(*pair) for pair in zip(pool.read(key, torch.arange(20)), stored, strict=True))


KINDS = pytest.mark.parametrize("kinds", [[True], [False], [True, True, False]], ids=["sampled", "chosen", "mixed"])


def assert_verified_as_by_the_rule(rule, scores, probs, trees, sampled, seeds, starts):
    op = {"rejection": sampling_ops.verify_rejection, "block": sampling_ops.verify_block}[rule.name]
    emitted, path = op(scores, probs, trees, sampled, seeds, starts)
    for request, (first, stop) in enumerate(trees.cu_nodes.unfold(0, 2, 1).tolist()):
        said, kept = [], []
        if first < stop:
            tree = TokenTree(trees.tokens[first:stop].tolist(), trees.parents[first:stop].tolist())
            draft = Draft(tree, [False, *sampled[first + 1 : stop].tolist()], probs[first:stop])
            rows = TargetRows(scores[first:stop], int(starts[request]), tree.depths, is_greedy=False)
            verdict = rule.verify(draft, rows, PhiloxNoise(int(seeds[request]) & LONG))
            said, kept = [*tree.tokens_at(verdict.path), verdict.next_token], verdict.path
        assert emitted[request].tolist() == [len(said), *said] + [-1] * (trees.max_depth + 1 - len(said))
        assert path[request].tolist() == kept + [-1] * (trees.max_depth - len(kept))


@KINDS
@pytest.mark.parametrize("rule", [Rejection(), Block()], ids=["rejection", "block"])
@pytest.mark.parametrize("seed", range(8))
def test_chains_are_verified_as_by_the_rules(rule, kinds, seed):
    generator = random.Random(seed)
    sizes = [generator.randrange(8) for _ in range(12)]
    assert_verified_as_by_the_rule(rule, *drawn_chains(generator, sizes, generator.choice([4, 30, 400]), kinds))


@KINDS
@pytest.mark.parametrize("seed", range(30))
def test_trees_are_verified_as_by_the_rule(kinds, seed):
    generator = random.Random(seed)
    drawn = far_apart(generator, 20, 16, generator.choice([4, 8, 30, 400]), kinds)
    assert_verified_as_by_the_rule(Rejection(), *drawn)


def warped(rows, temperature, top_k, top_p, min_p):
    """What transformers makes of the rows, in the order of `generate`."""
    rows = hf.TemperatureLogitsWarper(temperature)(None, rows) if temperature != 1 else rows
    rows = hf.TopKLogitsWarper(top_k)(None, rows) if top_k else rows
    rows = hf.TopPLogitsWarper(top_p)(None, rows) if top_p < 1 else rows
    return hf.MinPLogitsWarper(min_p)(None, rows) if min_p else rows


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("top_k", [0, 1, 20, 2000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 0.0])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_warp_is_what_transformers_does(temperature, top_k, top_p, min_p):
    rows = torch.stack([torch.randperm(500) / 50, torch.randn(500) * 3, torch.randn(500).bfloat16().float()])
    rows[1, ::5] = -torch.inf
    wanted = warped(rows, temperature, top_k, top_p, min_p)
    options = [torch.tensor([value] * 3, dtype=torch.float64) for value in (temperature, top_p, min_p)]
    found = sampling_ops.warp(rows, options[0], torch.tensor([top_k] * 3), *options[1:])
    assert torch.equal(found[:2], wanted[:2])
    # Of tokens with equal values at the border of top-p it may keep others, but as many.
    assert torch.equal(found[2].sort()[0], wanted[2].sort()[0])


def test_every_row_is_warped_by_its_own_parameters():
    rows = torch.randn(4, 90)
    table = [(1.0, 0, 1.0, 0.0), (0.5, 9, 0.8, 0.05), (2.0, 0, 0.4, 0.0), (1.0, 3, 1.0, 0.5)]
    wanted = torch.cat([warped(row[None], *options) for row, options in zip(rows, table, strict=True)])
    temperatures, top_k, top_p, min_p = torch.tensor(table, dtype=torch.float64).T
    assert torch.equal(sampling_ops.warp(rows, temperatures, top_k.int(), top_p, min_p), wanted)


@pytest.mark.parametrize("seed", range(6))
def test_penalties_are_those_of_every_nodes_own_prefix(seed):
    generator = random.Random(seed)
    vocab, sizes = 40, [generator.randrange(1, 9) for _ in range(3)]
    trees = forest(generator, vocab, 9, sizes)
    scores, lengths = torch.randn(len(trees.tokens), vocab), torch.tensor([5, 12, 1])
    tokens = torch.randint(0, vocab, (3, 12))
    tokens[torch.arange(3), lengths - 1] = trees.tokens[trees.cu_nodes[:-1].long()]  # the pending ones
    repetition, presence = [1.0, 1.7, 0.5], [0.5, 0.0, 1.25]
    ignored = torch.tensor([[0, 5], [7, 3], [0, 2]])
    seen = torch.zeros(3, 2, 2, dtype=torch.int32)
    sampling_ops.mark_seen(seen, tokens, torch.zeros(3, dtype=torch.int64), lengths, ignored)
    penalties = torch.tensor([repetition, presence], dtype=torch.float64).T
    found = sampling_ops.penalize(scores, trees, seen, lengths, penalties, ignored)
    for request, (first, stop) in enumerate(trees.cu_nodes.unfold(0, 2, 1).tolist()):
        tree = TokenTree(trees.tokens[first:stop].tolist(), trees.parents[first:stop].tolist())
        processor = hf.RepetitionPenaltyLogitsProcessor(repetition[request], int(ignored[request, 0]))
        for node in range(stop - first):
            prefix = [*tokens[request, : lengths[request]].tolist(), *tree.tokens_at(tree.path_to(node))]
            wanted = processor(torch.tensor([prefix]), scores[first + node : first + node + 1])
            wanted[:, sorted(set(prefix[ignored[request, 1] :]))] -= presence[request]
            assert torch.equal(found[first + node], wanted[0])


def test_draft_topk_is_topk_with_the_lower_token_of_equals():
    logits = torch.randn(6, 200)
    tokens, log_probs = sampling_ops.draft_topk(logits, 8, torch.full((6,), 0.7, dtype=torch.float64))
    best = (logits / 0.7).log_softmax(-1).topk(8)
    assert torch.equal(tokens, best.indices) and torch.equal(log_probs, best.values)
    assert sampling_ops.draft_topk(torch.tensor([[1.0, 2.0, 2.0, 2.0, 1.0]]), 4)[0].tolist() == [[1, 2, 3, 0]]


def test_draft_draw_is_the_draw_of_the_noise():
    probs = torch.rand(40, 301) * (torch.rand(40, 301) < 0.5)
    probs[3] = torch.eye(301)[300]
    seeds, starts, nodes = [0, LONG, 1 << 63, 0x0123456789ABCDEF] * 10, torch.arange(40) * 99, torch.arange(40) % 70
    found = sampling_ops.draft_draw(probs, torch.tensor([as_signed(seed) for seed in seeds]), starts, nodes)
    for row, seed in enumerate(seeds):
        assert found[row] == PhiloxNoise(seed).draft_token(probs[row], int(starts[row]), int(nodes[row]), 0)


def test_a_body_is_run_or_refused(monkeypatch):
    rows = torch.zeros(1, 4)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for setting in ("reference", ""):
        monkeypatch.setattr(bodies, "ASKED_FOR", setting)
        assert body_of(rows) == "reference"
    monkeypatch.setattr(bodies, "ASKED_FOR", "triton")
    with pytest.raises(ValueError, match="expected tensors on a GPU for SPECDEC_KERNELS=triton, got cpu; set TRITON"):
        ops.argmax(rows)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(bodies, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="expected triton for tensors on a GPU, got none"):
        ops.argmax(rows)
    monkeypatch.setattr(bodies, "HAS_TRITON", True)
    assert body_of(rows) == "triton"
    with pytest.raises(ValueError, match="expected rows of float32 or half of it, got torch.float64"):
        ops.argmax(rows.double())
    monkeypatch.setattr(bodies, "ASKED_FOR", "fast")
    with pytest.raises(ValueError, match="expected SPECDEC_KERNELS=reference or triton, got 'fast'"):
        ops.argmax(rows)


def test_wrong_arguments_are_refused():
    pool, rows = torch.zeros(4, 1, 2), torch.zeros(3, 1, 2)
    with pytest.raises(ValueError, match=r"expected torch.float16 rows \[1, 2\] for a contiguous pool"):
        cache_ops.kv_write(pool, pool, rows, rows.half(), torch.arange(3))
    with pytest.raises(ValueError, match="expected a target for each source"):
        cache_ops.move_rows(Layers([pool]), torch.arange(3), torch.arange(2))
    with pytest.raises(ValueError, match="expected contiguous tensors, got 1"):
        Layers([pool.transpose(0, 2)])
    with pytest.raises(ValueError, match="expected a count from 1 to the vocabulary of 4, got 5"):
        sampling_ops.draft_topk(torch.zeros(1, 4), 5)


def test_the_reference_names_are_the_ops():
    for module in (reference_sampling, reference_verify):
        names = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        assert {name for name in names if name[0].islower()} <= set(vars(sampling_ops))
