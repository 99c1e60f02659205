"""Draft trees as they grow, against what they are defined to be: enumerated, or by the pseudocode of the paper."""

import math
import random
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.growth import BestFirst, Drawn, Ranked, best_choices, parents_of, static_shape
from specdec.noise import PhiloxNoise
from specdec.rules import without

VOCAB = 5
NOISE = PhiloxNoise(3)


def log_probs_after(path, seed=0, vocab=VOCAB):
    """Log-probabilities [vocab] that are a function of the path."""
    generator = torch.Generator().manual_seed(random.Random(f"{seed} {path}").getrandbits(40))
    return (2 * torch.randn(vocab, generator=generator, dtype=torch.float64)).log_softmax(-1)


def path_of(tree, node):
    path = []
    while node > 0:
        path.append(tree.tokens[node])
        node = tree.parents[node]
    return tuple(path[::-1])


def grown(num_nodes, width, depth, threshold=0.0, seed=0):
    """The draft, and how many rows of the model it took."""
    tree, num_rows = BestFirst(9, num_nodes, width, depth, threshold), 0
    while tree.frontier:
        rows = [log_probs_after(path_of(tree, node), seed).topk(min(width, VOCAB)) for node in tree.frontier]
        num_rows += len(rows)
        tree.expand([row.indices.tolist() for row in rows], [row.values.tolist() for row in rows])
    return tree.draft("test"), num_rows


def paths_of(draft):
    tokens = draft.tree.tokens
    return [tuple(tokens[node] for node in draft.tree.path_to(node)) for node in range(len(draft))]


def score_of(path, seed=0):
    return sum(float(log_probs_after(path[:i], seed)[token]) for i, token in enumerate(path))


def eagle_2(num_nodes, width, depth, seed):
    """The pseudocode of algorithms.md 4.10, as it stands there."""
    frontier, found = [()], []
    for _ in range(depth):
        new = []
        for path in frontier:
            new += [(*path, token) for token in log_probs_after(path, seed).topk(width).indices.tolist()]
        frontier = sorted(new, key=lambda path: -score_of(path, seed))[:width]
        found += new
    return set(sorted(found, key=lambda path: (-score_of(path, seed), len(path)))[:num_nodes])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("num_nodes", "width", "depth"), [(1, 2, 3), (6, 2, 4), (12, 3, 3), (7, 4, 5), (50, 3, 3)])
def test_best_first_is_the_tree_of_eagle_2(num_nodes, width, depth, seed):
    draft, _ = grown(num_nodes, width, depth, seed=seed)
    assert set(paths_of(draft)[1:]) == eagle_2(num_nodes, width, depth, seed)


@pytest.mark.parametrize("seed", range(3))
def test_with_all_children_it_holds_the_best_of_all_paths(seed):
    """A frontier of 25 covers all nodes of depth 2, so nothing is lost to the width."""
    tree = BestFirst(9, num_nodes=20, width=25, depth=3)
    while tree.frontier:
        rows = [log_probs_after(path_of(tree, node), seed).sort(descending=True) for node in tree.frontier]
        tree.expand([row.indices.tolist() for row in rows], [row.values.tolist() for row in rows])
    paths = [path for depth in (1, 2, 3) for path in product(range(VOCAB), repeat=depth)]
    best = sorted(paths, key=lambda path: -score_of(path, seed))[:20]
    assert set(paths_of(tree.draft("test"))[1:]) == set(best)


@given(st.integers(1, 15), st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_best_first_is_closed_bounded_and_honest_about_its_scores(num_nodes, width, depth, seed):
    draft, num_rows = grown(num_nodes, width, depth, seed=seed)
    paths = paths_of(draft)
    assert len(set(paths)) == len(paths) <= num_nodes + 1
    assert all(path[:-1] in paths for path in paths[1:])
    assert max(map(len, paths)) <= depth
    assert num_rows <= 1 + width * (depth - 1)
    assert draft.scores.tolist() == pytest.approx([score_of(path, seed) for path in paths], abs=1e-5)
    assert not any(draft.sampled) and draft.probs is None


def test_rows_that_cannot_matter_are_not_asked_for():
    assert grown(num_nodes=1, width=3, depth=6)[1] == 1
    assert grown(num_nodes=4, width=1, depth=4)[1] == 4


def test_ties_go_to_the_shallower_node():
    tree = BestFirst(9, num_nodes=2, width=2, depth=2)
    tree.expand([[1, 2]], [[0.0, -1.0]])
    assert tree.frontier == [1]  # a child of node 2 could at best tie with it
    tree.expand([[3, 4]], [[-1.0, -2.0]])
    assert tree.draft("test").tree.tokens == [9, 1, 2]


def test_a_token_below_the_threshold_stays_and_ends_its_branch():
    tree = BestFirst(9, num_nodes=5, width=1, depth=5, threshold=0.5)
    tree.expand([[1]], [[math.log(0.6)]])
    assert tree.frontier == [1]
    tree.expand([[2]], [[math.log(0.4)]])
    assert tree.frontier == []
    assert tree.draft("test").tree.tokens == [9, 1, 2]


def test_impossible_tokens_are_no_children():
    tree = BestFirst(9, num_nodes=5, width=3, depth=1)
    tree.expand([[1, 2, 3]], [[0.0, -math.inf, -math.inf]])
    assert tree.draft("test").tree.tokens == [9, 1]


def value_of(parents, acceptance):
    """Expected number of accepted nodes: the sum of path products."""
    values, ranks = [1.0], [0] * len(parents)
    for parent in parents[1:]:
        values.append(values[parent] * acceptance[ranks[parent]])
        ranks[parent] += 1
    return sum(values[1:])


def best_value(num_nodes, depth, acceptance, rank=0):
    """G of algorithms.md 5.3: the best value of `num_nodes` nodes among the children from `rank` on."""
    if num_nodes == 0 or depth == 0 or rank == len(acceptance):
        return 0.0
    return max(
        acceptance[rank] * (1 + best_value(t - 1, depth - 1, acceptance))
        + best_value(num_nodes - t, depth, acceptance, rank + 1)
        for t in range(1, num_nodes + 1)
    )


@given(
    st.lists(st.floats(0.01, 0.99), min_size=1, max_size=3).map(lambda values: sorted(values, reverse=True)),
    st.integers(1, 7),
    st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_static_shape_has_the_best_value(acceptance, num_nodes, depth):
    parents = static_shape(acceptance, num_nodes, depth)
    depths = [0]
    for parent in parents[1:]:
        depths.append(depths[parent] + 1)
    assert depths == sorted(depths) and max(depths) <= depth and parents == sorted(parents)
    assert len(parents) - 1 <= num_nodes
    assert value_of(parents, acceptance) == pytest.approx(best_value(num_nodes, depth, acceptance))


def test_static_shape_of_width_one_is_a_chain():
    assert static_shape([0.7], 5, 3) == [-1, 0, 1, 2]
    assert static_shape([0.7], 2, 3) == [-1, 0, 1]
    assert static_shape([0.7, 0.2], 4, 0) == [-1]


@given(
    st.lists(
        st.lists(st.floats(0.01, 0.99), min_size=1, max_size=3).map(lambda row: sorted(row, reverse=True)),
        min_size=1,
        max_size=3,
    ),
    st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_best_choices_have_the_largest_products(acceptance, num_nodes):
    """Of all rank paths, when ranks are worth something else at every depth."""
    paths = [p for d in range(len(acceptance)) for p in product(*(range(len(row)) for row in acceptance[: d + 1]))]
    values = {path: math.prod(acceptance[level][rank] for level, rank in enumerate(path)) for path in paths}
    choices = best_choices(acceptance, num_nodes)
    assert len(choices) == min(num_nodes, len(paths)) == len(set(choices))
    best = sorted(values.values(), reverse=True)[:num_nodes]
    assert sorted((values[path] for path in choices), reverse=True) == pytest.approx(best)
    assert all(path[:-1] in {(), *choices} for path in choices) and choices == sorted(
        choices, key=lambda p: (len(p), p)
    )
    assert all(parent < node for node, parent in enumerate(parents_of(choices)))


def test_nothing_is_chosen_where_nothing_can_be_accepted():
    assert best_choices([], 5) == best_choices([[0.0]], 5) == []
    assert best_choices([[0.5], [0.0, 0.0]], 5) == [(0,)]


CHOICES = [(0,), (1,), (3,), (0, 0), (0, 2), (1, 0), (3, 4), (0, 2, 1)]


def ranked(choices=CHOICES, depth=3, threshold=0.0, excluded=()):
    tree = Ranked(9, choices, depth, threshold)
    while tree.frontier:
        rows = [log_probs_after(path_of(tree, node)) for node in tree.frontier]
        for row in rows:
            row[list(excluded)] = -math.inf
        rows = [row.topk(VOCAB) for row in rows]
        tree.expand([row.indices.tolist() for row in rows], [row.values.tolist() for row in rows])
    return tree.draft("test")


def test_a_tree_of_fixed_shape_holds_what_has_these_ranks():
    draft, kept = ranked(), [path for path in CHOICES if len(path) <= 2]
    assert [len(path) for path in paths_of(draft)[1:]] == sorted(map(len, CHOICES))
    assert draft.tree.parents == parents_of(CHOICES)
    for path, ranks, score in zip(paths_of(draft)[1:], CHOICES, draft.scores.tolist()[1:], strict=True):
        rows = [log_probs_after(path[:level]) for level in range(len(path))]
        assert [row.argsort(descending=True).tolist()[rank] for row, rank in zip(rows, ranks, strict=True)] == [*path]
        assert score == pytest.approx(sum(float(row[token]) for row, token in zip(rows, path, strict=True)), abs=1e-5)
    assert ranked(depth=2).tree.parents == parents_of(kept)
    assert not any(draft.sampled) and draft.probs is None


def test_ranks_that_are_excluded_or_unlikely_have_nothing_below():
    assert len(ranked(excluded=range(VOCAB))) == 1
    assert len(ranked(choices=[(0,), (4,), (4, 0)], excluded=[2])) == 2  # four are left, so there is no fifth
    likely = ranked(threshold=0.3)
    for node, children in enumerate(likely.tree.children()):
        path = paths_of(likely)[node]
        assert not (node and children) or float(log_probs_after(path[:-1])[path[-1]].exp()) >= 0.3
    assert {path for path in paths_of(likely) if len(path) < 2} == {
        path for path in paths_of(ranked()) if len(path) < 2
    }


def drawn(shape, is_coupled, threshold=0.0, vocab=VOCAB):
    tree = Drawn(9, shape, start=11, noise=NOISE, is_coupled=is_coupled, threshold=threshold)
    while tree.frontier:
        rows = [log_probs_after(path_of(tree, node), vocab=vocab) for node in tree.frontier]
        tree.expand(torch.stack(rows).float())
    return tree.draft("test")


SHAPE = [-1, 0, 0, 0, 1, 1, 2, 4]


def test_drawn_tree_can_be_drawn_again_from_its_rows_bit_for_bit():
    draft = drawn(SHAPE, is_coupled=False)
    assert draft.tree.parents == SHAPE
    assert draft.sampled == [False] + [True] * 7
    tokens, paths = draft.tree.tokens, paths_of(draft)
    for node, children in enumerate(draft.tree.children()):
        if not children:
            assert not draft.probs[node].any()
            continue
        rest = log_probs_after(paths[node]).float().softmax(-1)
        assert torch.equal(draft.probs[node], rest)
        for draw, child in enumerate(children):
            assert tokens[child] == NOISE.draft_token(rest, 11, node, draw)
            rest = without(rest, tokens[child])
        assert len({tokens[child] for child in children}) == len(children)


def test_coupled_tree_holds_the_best_of_the_targets_noise():
    draft = drawn(SHAPE, is_coupled=True)
    assert draft.tree.parents == SHAPE
    assert not any(draft.sampled) and draft.probs is None
    tokens, paths = draft.tree.tokens, paths_of(draft)
    for node, children in enumerate(draft.tree.children()):
        if children:
            scores = log_probs_after(paths[node]).float()
            wanted = NOISE.coupled_tokens(scores, 11 + len(paths[node]), len(children))
            assert [tokens[child] for child in children] == wanted


@pytest.mark.parametrize("is_coupled", [False, True])
def test_drawing_ends_when_nothing_is_left_to_draw(is_coupled):
    tree = Drawn(9, [-1, 0, 0, 0, 1, 2, 3], 11, NOISE, is_coupled)
    tree.expand(torch.tensor([[0.0, -torch.inf, 1.0, -torch.inf]]))
    assert len(tree.frontier) == 2
    tree.expand(torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]] * 2))
    draft = tree.draft("test")
    assert sorted(draft.tree.tokens[1:3]) == [0, 2]
    assert draft.tree.parents == [-1, 0, 0, 1, 2]


@pytest.mark.parametrize("is_coupled", [False, True])
def test_nothing_is_drawn_below_an_unlikely_token_but_the_token_stays(is_coupled):
    threshold = 0.3
    whole, cut = drawn([-1, 0, 1, 2, 3, 4], is_coupled), drawn([-1, 0, 1, 2, 3, 4], is_coupled, threshold)
    tokens = whole.tree.tokens
    own = [float(log_probs_after(tuple(tokens[1:node])).exp()[tokens[node]]) for node in range(1, 6)]
    length = next(i for i, value in enumerate(own, start=1) if value < threshold or i == 5)
    assert cut.tree.tokens == tokens[: length + 1]
