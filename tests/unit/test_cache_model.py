"""The paged cache against a plain model of it: lists of tokens (hypothesis)."""

import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from specdec.cache import CacheFull, PagedKVCache
from specdec.tree import TokenTree
from tests.toys.rows import chain

PAGE = 3
MAX_PAGES = 90  # beyond the first 64, so that the pools grow

tokens = st.integers(0, 1)  # two tokens, so that prefixes meet
runs = st.lists(tokens, min_size=1, max_size=3 * PAGE)


@st.composite
def trees(draw):
    """A tree and a path in it from the root's child down."""
    size = draw(st.integers(1, 2 * PAGE))
    parents = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, size))]
    tree = TokenTree([draw(tokens) for _ in range(size)], parents)
    return tree, tree.path_to(draw(st.integers(0, size - 1)))


@dataclass(eq=False)
class Held:
    """A request as the plain model sees it: the table, and the tokens it must hold."""

    table: object
    tokens: list


class CacheMachine(RuleBasedStateMachine):
    """Rows carry a number that stands for all tokens up to them, as K and V of a model do; two pools, three layers."""

    requests = Bundle("requests")

    def __init__(self):
        super().__init__()
        self.cache = PagedKVCache(page_size=PAGE, max_pages=MAX_PAGES)
        self.live = []
        self.numbers = {}

    def number(self, prefix):
        return float(self.numbers.setdefault(tuple(prefix), len(self.numbers) + 1))

    def write(self, held, pool, prefixes, start):
        """Row start + i of the pool is what follows from prefixes[i]."""
        rows = torch.tensor([self.number(prefix) for prefix in prefixes], dtype=torch.float64)[:, None, None]
        slots = self.cache.slots(held.table, start, start + len(prefixes))
        for layer, width in (("a", 2), ("b", 1)) if pool == "target" else (("c", 4),):
            store = self.cache.pool(pool)
            store.write(layer, rows.expand(-1, width, 2), -rows.expand(-1, width, 1), slots)
        held.table.filled[pool] = max(held.table.filled[pool], start + len(prefixes))

    def catch_up(self, held):
        start = held.table.filled["draft"]
        missing = [held.tokens[: row + 1] for row in range(start, held.table.length)]
        if missing:
            self.write(held, "draft", missing, start)

    def run(self, held, tree, drafted):
        """Stages and scores a tree, in the target's pool and perhaps in the drafter's."""
        self.cache.stage(held.table, len(tree))
        values = tree.tokens
        prefixes = [[*held.tokens, *(values[step] for step in (0, *tree.path_to(node)))] for node in range(len(tree))]
        self.write(held, "target", prefixes, held.table.length)
        if drafted:
            self.cache.stage(held.table, 1)  # staging again, even less, leaves the rows as they are
            self.catch_up(held)
            self.write(held, "draft", prefixes, held.table.length)

    def state(self):
        tables = [(list(h.table.pages), h.table.length, dict(h.table.filled)) for h in self.live]
        return tables, self.cache.num_pages, self.cache.num_free_pages

    @rule(target=requests, prompt=runs, extra=runs)
    def open(self, prompt, extra):
        prompt = [*prompt, *extra]
        table = self.cache.open(prompt)
        common = max((len(os.path.commonprefix([held.tokens, prompt])) for held in self.live), default=0)
        longest = min(common, len(prompt) - 1) // PAGE * PAGE
        assert table.length >= longest, "an open table holds more of this prefix"
        assert table.filled["draft"] <= table.filled["target"] == table.length <= len(prompt) - 1
        held = Held(table, prompt[: table.length])
        self.live.append(held)
        rest = prompt[table.length :]
        try:
            self.run(held, TokenTree.chain(rest), drafted=False)
        except CacheFull:
            return held
        self.cache.commit(table, chain(len(rest)), rest)
        held.tokens = prompt
        return held

    @rule(held=requests, grown=trees(), drafted=st.booleans(), is_chain=st.booleans())
    def round(self, held, grown, drafted, is_chain):
        tree, path = grown
        if is_chain:
            tree, path = TokenTree.chain(tree.tokens), chain(len(path) + 1)
        before = self.state()
        try:
            self.run(held, tree, drafted)
        except CacheFull as error:
            assert self.state() == before and error.pages_wanted > error.pages_free
            return
        kept = [tree.tokens[node] for node in (0, *path)]
        self.cache.commit(held.table, path, kept)
        held.tokens = [*held.tokens, *kept]
        if drafted and path == chain(len(path) + 1):
            assert held.table.filled["draft"] == held.table.length

    @rule(held=requests, grown=trees())
    def abandon(self, held, grown):
        """A cancelled round leaves staged rows behind, until they are cut off."""
        try:
            self.run(held, grown[0], drafted=True)
        except CacheFull:
            pass
        self.cache.truncate(held.table, held.table.length)

    @rule(held=requests, share=st.floats(0, 1))
    def truncate(self, held, share):
        held.tokens = held.tokens[: int(share * len(held.tokens))]
        self.cache.truncate(held.table, len(held.tokens))

    @rule(target=requests, held=requests)
    def fork(self, held):
        self.live.append(Held(self.cache.fork(held.table), held.tokens))
        return self.live[-1]

    @rule(held=consumes(requests))
    def close(self, held):
        self.cache.close(held.table)
        self.live.remove(held)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def exhaust(self, data):
        held = data.draw(st.sampled_from(self.live))
        before = self.state()
        with pytest.raises(CacheFull):
            self.cache.stage(held.table, (MAX_PAGES + 1) * PAGE)
        assert self.state() == before

    @rule(held=requests)
    def lengthen(self, held):
        """A long prompt, which makes the pools grow."""
        try:
            self.run(held, TokenTree.chain([1] * (20 * PAGE)), drafted=False)
        except CacheFull:
            return
        self.cache.commit(held.table, chain(20 * PAGE), [1] * (20 * PAGE))
        held.tokens = [*held.tokens, *[1] * (20 * PAGE)]

    @invariant()
    def balances(self):
        self.cache.check()

    @invariant()
    def holds_what_it_says(self):
        for held in self.live:
            table = held.table
            assert table.length == len(held.tokens) == table.filled["target"]
            for pool, layers in (("target", "ab"), ("draft", "c")):
                stop = min(table.filled[pool], table.length)
                expected = [self.number(held.tokens[: row + 1]) for row in range(stop)]
                slots = self.cache.slots(table, 0, stop)
                for layer in layers if stop else "":
                    keys, values = self.cache.pool(pool).read(layer, slots)
                    assert keys[:, -1, 1].tolist() == expected == (-values[:, -1, 0]).tolist()
                first = self.cache.contiguous_start(table, stop)
                assert first is None or slots.tolist() == list(range(first, first + stop))

    def teardown(self):
        for held in self.live:
            self.cache.close(held.table)
        self.cache.check()
        assert self.cache.num_free_pages == self.cache.num_pages


CacheMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
test_cache_is_like_its_model = CacheMachine.TestCase
