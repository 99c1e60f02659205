"""The n-gram drafter against the definition in algorithms.md 4.4, on random strings."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specdec.draft_models.ngram import MAX_MATCHES, NGram

TEXTS = st.lists(st.integers(0, 3), min_size=1, max_size=40)
SIZES = st.tuples(st.integers(1, 4), st.integers(1, 4)).map(sorted)


def view(tokens, request_id=0):
    return SimpleNamespace(request_id=request_id, tokens=tokens)


def drafted(drafter, tokens, budget=99, request_id=0):
    (draft,) = drafter.propose([view(tokens, request_id)], [budget], [])
    assert draft.tree.tokens[0] == tokens[-1]
    assert not any(draft.sampled) and draft.probs is None
    return draft.tree


def followed(tokens, start, length):
    """c[i] for i >= len(c) is draft[i - len(c)], token by token."""
    draft = []
    for place in range(start, start + length):
        draft.append(tokens[place] if place < len(tokens) else draft[place - len(tokens)])
    return draft


def starts_by_definition(tokens, largest, smallest, ties):
    """Every match, best first, by comparing every place with the end of the text."""
    for size in range(largest, smallest - 1, -1):
        tip = len(tokens) - size
        found = [j + size for j in range(tip - 1, -1, -1) if tokens[j : j + size] == tokens[tip:]]
        if ties == "frequent":
            counts = Counter(tokens[start] for start in found)
            found.sort(key=lambda start: -counts[tokens[start]])
        yield from found


def chain_by_definition(tokens, length, largest, smallest, ties):
    start = next(starts_by_definition(tokens, largest, smallest, ties), None)
    return [] if start is None else followed(tokens, start, length)


@given(TEXTS, SIZES, st.integers(1, 9), st.sampled_from(["recent", "frequent"]))
@settings(max_examples=300, deadline=None)
def test_equals_the_definition(tokens, sizes, length, ties):
    smallest, largest = sizes
    tree = drafted(NGram(length, largest, smallest, ties), tokens)
    assert tree.is_chain
    assert tree.tokens[1:] == chain_by_definition(tokens, length, largest, smallest, ties)


@given(TEXTS, st.lists(st.tuples(st.integers(0, 40), st.lists(st.integers(0, 3), max_size=8)), max_size=6))
@settings(max_examples=300, deadline=None)
def test_an_index_kept_through_growth_and_truncation_equals_a_new_one(tokens, edits):
    kept = NGram(4, 3, 1)
    drafted(kept, tokens)
    for length, more in edits:
        tokens = tokens[: max(1, length)] + more
        new = NGram(4, 3, 1)
        assert drafted(kept, tokens).tokens == drafted(new, tokens).tokens
        old, fresh = kept._indices[0], new._indices[0]
        assert (old.tokens, old._last, old._earlier) == (fresh.tokens, fresh._last, fresh._earlier)


@given(TEXTS, st.integers(2, 5), st.integers(1, 6), st.sampled_from(["recent", "frequent"]))
@settings(max_examples=200, deadline=None)
def test_tree_holds_the_best_different_continuations(tokens, num_branches, length, ties):
    tree = drafted(NGram(length, 3, 1, ties, num_branches), tokens)
    paths = {tuple(tree.tokens_at(tree.path_to(node))) for node in range(len(tree))}
    assert len(paths) == len(tree), "siblings of equal token must be merged"
    wanted, branches = {()}, 0
    for start in starts_by_definition(tokens, 3, 1, ties):
        run = followed(tokens, start, length)
        prefixes = {tuple(run[:depth]) for depth in range(1, length + 1)}
        branches += bool(prefixes - wanted)
        wanted |= prefixes
        if branches == num_branches:
            break
    assert paths == wanted


def test_the_latest_match_wins_unless_frequency_is_asked_for():
    tokens = [1, 2, 5, 1, 2, 5, 1, 2, 6, 1, 2]
    assert drafted(NGram(1), tokens).tokens == [2, 6]
    assert drafted(NGram(1, ties="frequent"), tokens).tokens == [2, 5]
    tied = [1, 2, 5, 1, 2, 6, 1, 2]
    assert drafted(NGram(1, ties="frequent"), tied).tokens == [2, 6]


def test_the_longest_match_wins_over_a_later_shorter_one():
    assert drafted(NGram(1), [9, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2]).tokens == [2, 5]


def test_continuation_that_reaches_the_end_is_periodic():
    assert drafted(NGram(7), [0, 1, 2, 3, 1, 2]).tokens == [2, 3, 1, 2, 3, 1, 2, 3]
    assert drafted(NGram(4), [5, 5, 5]).tokens == [5, 5, 5, 5, 5]


def test_frequency_is_counted_over_the_latest_matches_only():
    tokens = [1, 2, 5] * MAX_MATCHES + [1, 2, 6] * MAX_MATCHES + [7, 1, 2]
    assert drafted(NGram(1, prompt_lookup_max=2, ties="frequent"), tokens).tokens == [2, 6]


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 2, 3, 4]])
def test_no_match_is_the_empty_draft(tokens):
    assert drafted(NGram(), tokens).tokens == tokens[-1:]
    assert drafted(NGram(num_branches=3), tokens).tokens == tokens[-1:]


@pytest.mark.parametrize("budget", [0, 1, 3, 99])
def test_depth_stays_within_the_budget(budget):
    for num_branches in (1, 3):
        tree = drafted(NGram(5, num_branches=num_branches), [1, 2, 3, 1, 2, 4, 1, 2], budget)
        assert max(tree.depths) == min(budget, 5)


def test_requests_do_not_mix_and_are_forgotten():
    drafter = NGram(2)
    texts = [[1, 2, 3, 1, 2], (4, 5, 6, 4, 5)]
    first, second = drafter.propose([view(texts[0], 7), view(texts[1], 8)], [9, 9], [])
    assert first.tree.tokens == [2, 3, 1] and second.tree.tokens == [5, 6, 4]
    drafter.close([7, 8, 9])
    assert not drafter._indices


@pytest.mark.parametrize(
    "options",
    [
        {"num_speculative_tokens": 0},
        {"num_branches": 0},
        {"prompt_lookup_min": 5},
        {"prompt_lookup_min": 0},
        {"ties": "first"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(ValueError, match=r"expected .* got .*;"):
        NGram(**options)
