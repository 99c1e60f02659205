"""The token tree: what it refuses, and its structure by definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specdec.tree import TokenTree


@st.composite
def trees(draw):
    parents = [-1]
    for node in range(1, draw(st.integers(1, 12))):
        parents.append(draw(st.integers(0, node - 1)))
    return TokenTree(draw(st.lists(st.integers(0, 9), min_size=len(parents), max_size=len(parents))), parents)


@given(trees())
def test_structure_follows_from_the_parents(tree):
    for node, depth in enumerate(tree.depths):
        path = tree.path_to(node)
        assert len(path) == depth and [tree.parents[step] for step in path] == [0, *path][:depth]
        assert tree.tokens_at(path) == [tree.tokens[step] for step in path]
        assert tree.children()[node] == [child for child, parent in enumerate(tree.parents) if parent == node]
    assert tree.is_chain == (max(map(len, tree.children())) <= 1)


@pytest.mark.parametrize("parents", [[], [-1], [-1, 0, 2], [-1, 1, 0], [0, 0, 1], [-1, 0, -1], [-1, 0, 1, 2]], ids=str)
def test_lists_that_are_no_tree_are_refused(parents):
    with pytest.raises(ValueError, match="expected"):
        TokenTree([5, 7, 9], parents)


@pytest.mark.parametrize("make", [torch.tensor, tuple])
def test_anything_but_lists_is_refused(make):
    """A tensor's elements are tensors: an end-of-text token among them would not be known as one."""
    with pytest.raises(ValueError, match="expected tokens and parents as lists of ints"):
        TokenTree(make([5, 7]), make([-1, 0]))


def test_a_chain_takes_a_tensor_by_its_values():
    assert TokenTree.chain(torch.tensor([5, 7])) == TokenTree.chain([5, 7])


def test_a_chain_keeps_its_own_list():
    tokens = [5, 7]
    tree = TokenTree.chain(tokens)
    tokens.append(9)
    assert tree == TokenTree([5, 7], [-1, 0]) and tree.is_chain
