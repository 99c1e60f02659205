"""The paged cache: against a plain model of it (hypothesis), and its edges one by one."""

import os
import pickle
from dataclasses import dataclass

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from specdec.cache import CacheFull, PagedKVCache
from specdec.pool import pages_that_fit
from specdec.tree import TokenTree

PAGE = 3
MAX_PAGES = 90  # beyond the first 64, so that the pools grow


def chain(n):
    return list(range(1, n))


def fill(cache, table, count, pool="target", value=0.0):
    """Stages `count` rows and writes value, value + 1, ... into one layer of the pool."""
    cache.stage(table, count)
    rows = torch.arange(count, dtype=torch.float64)[:, None, None] + value
    slots = cache.slots(table, table.length, table.length + count)
    cache.pool(pool).write("layer", rows.expand(count, 2, 4), -rows.expand(count, 2, 3), slots)
    table.filled[pool] = table.length + count


def rows_of(cache, table, stop, pool="target"):
    keys, values = cache.pool(pool).read("layer", cache.slots(table, 0, stop))
    assert torch.equal(keys[:, 0, :3], -values[:, 0]), "keys and values parted"
    return keys[:, 0, 0].tolist()


# ---------------------------------------------------------------------------------------- against a plain model

tokens = st.integers(0, 1)  # two tokens, so that prefixes meet
runs = st.lists(tokens, min_size=1, max_size=3 * PAGE)


@st.composite
def trees(draw):
    """A tree and a path in it from the root's child down."""
    size = draw(st.integers(1, 2 * PAGE))
    parents = [-1, *(draw(st.integers(0, node - 1)) for node in range(1, size))]
    tree = TokenTree.of([draw(tokens) for _ in range(size)], parents)
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
        values = tree.tokens.tolist()
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
        assert table.length <= len(prompt) - 1 and table.filled["target"] == table.length and not table.filled["draft"]
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
            tree, path = TokenTree.chain(tree.tokens.tolist()), chain(len(path) + 1)
        before = self.state()
        try:
            self.run(held, tree, drafted)
        except CacheFull as error:
            assert self.state() == before and error.pages_wanted > error.pages_free
            return
        kept = [tree.tokens[node].item() for node in (0, *path)]
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


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_cache_is_like_its_model = CacheMachine.TestCase


# ---------------------------------------------------------------------------------------- one by one


def test_cache_full_says_what_to_do():
    cache = PagedKVCache(page_size=4, max_pages=3)
    table = cache.open()
    cache.stage(table, 5)
    with pytest.raises(CacheFull) as caught:
        cache.stage(table, 17)
    error = caught.value
    assert (error.pages_wanted, error.pages_free) == (3, 1)
    assert str(error).startswith("expected 3 free cache pages, got 1; raise max_pages") and "\n" not in str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    cache.stage(table, 12)  # it still fits to the last page
    assert cache.num_free_pages == 0


@pytest.mark.parametrize(
    "options", [{"page_size": 0}, {"max_pages": 0}, {"memory_fraction": 0}, {"memory_fraction": 2}]
)
def test_wrong_sizes_are_refused(options):
    with pytest.raises(ValueError, match="expected page_size and max_pages of at least 1"):
        PagedKVCache(**options)


def test_single_request_lies_contiguously():
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    for count in (5, 1, 3, 9):
        fill(cache, table, count)
        cache.commit(table, chain(count), [0] * count)
        assert cache.contiguous_start(table, table.length) == 0
    keys, _ = cache.pool("target").view("layer", 0, table.length)
    assert keys[:, 0, 0].tolist() == rows_of(cache, table, table.length)


def test_contiguous_start_needs_consecutive_pages():
    cache = PagedKVCache(page_size=4)
    first, second = cache.open(), cache.open()
    cache.stage(first, 4)
    cache.stage(second, 4)
    cache.stage(first, 12)
    assert first.pages == [0, 2, 3]
    assert cache.contiguous_start(first, 4) == 0 and cache.contiguous_start(first, 5) is None
    assert cache.contiguous_start(second, 4) == 4 and cache.contiguous_start(second, 0) == 4
    assert cache.contiguous_start(cache.open(), 0) == 0
    assert cache.slots(first, 3, 9).tolist() == [3, 8, 9, 10, 11, 12]
    assert cache.slots(first, 5, 9).tolist() == [9, 10, 11, 12]
    assert cache.slots(first, 0, 0).tolist() == []


def test_freed_pages_are_used_again_next_page_first():
    cache = PagedKVCache(page_size=2, max_pages=4)
    tables = [cache.open() for _ in range(3)]
    for table in tables:
        cache.stage(table, 2)
    cache.close(tables[0])
    cache.stage(tables[2], 8 - 2)
    assert tables[2].pages == [2, 3, 0]  # its neighbour, then the lowest
    cache.check()


def test_tree_path_is_moved_over_itself():
    """Sources and targets overlap: rows 2, 3, 5 go to 1, 2, 3."""
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    fill(cache, table, 7, value=10)
    cache.commit(table, [2, 3, 5], [1, 1, 1, 1])
    assert rows_of(cache, table, 4) == [10, 12, 13, 15]
    assert table.filled["target"] == table.length == 4 and table.pages == [0]


def test_other_pools_keep_the_rows_in_front_of_the_first_that_moved():
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    fill(cache, table, 6, "draft")
    fill(cache, table, 6)
    cache.commit(table, [1, 2, 4], [0] * 4)
    assert dict(table.filled) == {"target": 4, "draft": 3}
    assert rows_of(cache, table, 4) == [0, 1, 2, 4] and rows_of(cache, table, 3, "draft") == [0, 1, 2]


def test_filled_never_claims_rows_that_are_not_there():
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    fill(cache, table, 2)
    cache.stage(table, 6)
    cache.commit(table, [1, 4], [0] * 3)  # rows 2 to 5 were never written
    assert table.length == 3 and table.filled["target"] == 2
    assert cache.open([0] * 9).length == 0  # and nobody is offered them


def test_commit_of_a_chain_touches_no_tensor(monkeypatch):
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    fill(cache, table, 6)
    monkeypatch.setattr("specdec.pool.KVPool.move", None)
    cache.commit(table, [1, 2], [5, 6, 7])
    assert table.length == 3 and table.filled["target"] == 3


def test_commit_refuses_what_was_not_staged():
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    with pytest.raises(ValueError, match="stage the rows before"):
        cache.commit(table, [], [0])
    cache.stage(table, 3)
    with pytest.raises(ValueError, match="got 1 tokens"):
        cache.commit(table, [1], [0])
    with pytest.raises(ValueError, match="expected ascending nodes from 1"):
        cache.commit(table, [2, 1], [0, 0, 0])
    assert table.length == 0


def test_truncate_refuses_to_lengthen():
    cache = PagedKVCache()
    with pytest.raises(ValueError, match="expected a length of 0 to 0 rows, got 1"):
        cache.truncate(cache.open(), 1)


def test_closed_tables_are_refused():
    cache = PagedKVCache()
    table = cache.open()
    cache.close(table)
    calls = [
        lambda: cache.close(table),
        lambda: cache.stage(table, 1),
        lambda: cache.fork(table),
        lambda: cache.commit(table, [], [0]),
        lambda: cache.stage(PagedKVCache().open(), 1),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="got a closed or foreign one"):
            call()
    cache.check()
    assert cache.num_free_pages == cache.num_pages


def test_fork_copies_only_the_page_it_writes():
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    fill(cache, table, 6, "draft", value=100)
    fill(cache, table, 6)
    cache.commit(table, chain(6), [0] * 6)
    fork = cache.fork(table)
    assert fork.pages == table.pages and cache.num_free_pages == cache.num_pages - 2
    fill(cache, fork, 1, value=50)
    assert fork.pages[0] == table.pages[0] and fork.pages[1] != table.pages[1]
    cache.commit(fork, [], [1])
    assert rows_of(cache, fork, 7) == [0, 1, 2, 3, 4, 5, 50]
    assert rows_of(cache, fork, 6, "draft") == rows_of(cache, table, 6, "draft") == [100, 101, 102, 103, 104, 105]
    fill(cache, table, 1, value=60)  # alone with its page now: no copy
    assert rows_of(cache, table, 7)[6] == 60 and rows_of(cache, fork, 7)[6] == 50
    cache.check()


def test_copy_on_write_that_does_not_fit_changes_nothing():
    cache = PagedKVCache(page_size=4, max_pages=2)
    table = cache.open()
    fill(cache, table, 6)
    cache.commit(table, chain(6), [0] * 6)
    fork = cache.fork(table)
    with pytest.raises(CacheFull, match="expected 1 free cache pages, got 0"):
        cache.stage(fork, 1)
    assert fork.pages == table.pages
    cache.check()


def test_equal_prompts_share_whole_pages_but_not_the_last_token():
    cache = PagedKVCache(page_size=4)
    prompt = list(range(12))
    table = cache.open(prompt)
    assert table.length == 0
    fill(cache, table, 12)
    cache.commit(table, chain(12), prompt)
    assert cache.open(prompt).pages == table.pages[:2]  # the 12th token has to be run
    assert cache.open([*prompt, 1]).length == 12
    assert cache.open([*prompt[:5], 99, *prompt[6:]]).length == 4
    assert cache.open([99, *prompt[1:]]).length == 0
    cache.check()


def test_prefix_is_found_as_long_as_anybody_holds_it():
    cache = PagedKVCache(page_size=2)
    prompt = [1, 2, 3, 4, 5]
    tables = [cache.open(prompt) for _ in range(2)]  # before either is filled: each has pages of its own
    for table in tables:
        fill(cache, table, 4)
        cache.commit(table, chain(4), prompt[:4])
    cache.close(tables[0])
    again = cache.open(prompt)
    assert again.pages == tables[1].pages and again.length == 4
    cache.close(again)
    cache.close(tables[1])
    assert cache.open(prompt).length == 0
    cache.check()


def test_rewritten_page_is_not_offered_as_it_was():
    cache = PagedKVCache(page_size=2)
    table = cache.open()
    fill(cache, table, 4)
    cache.commit(table, chain(4), [1, 2, 3, 4])
    cache.truncate(table, 1)
    fill(cache, table, 3, value=7)
    cache.commit(table, chain(3), [9, 3, 4])
    assert cache.open([1, 2, 3]).length == 0
    assert cache.open([1, 9, 3]).length == 2
    cache.check()


def test_growth_keeps_what_was_written():
    cache = PagedKVCache(page_size=2)
    table = cache.open()
    fill(cache, table, 100, "draft", value=1000)
    fill(cache, table, 100)
    cache.commit(table, chain(100), [0] * 100)
    assert cache.num_pages == 64
    fill(cache, table, 200, value=100)
    cache.commit(table, chain(200), [0] * 200)
    assert cache.num_pages == 150 and cache.contiguous_start(table, 300) == 0
    assert rows_of(cache, table, 300) == list(range(300))
    assert rows_of(cache, table, 100, "draft") == list(range(1000, 1100))
    cache.check()


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
