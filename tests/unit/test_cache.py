"""The paged cache at its edges, one by one; test_cache_model.py compares it with a plain model."""

import pickle

import pytest
import torch

from specdec.cache import CacheFull, PagedKVCache
from tests.toys.rows import chain, fill, rows_of


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
    fill(cache, table, 4)
    cache.stage(table, 6)
    cache.commit(table, [1, 3, 4], [0] * 4)  # rows 4 and 5 were never written
    assert table.length == 4 and table.filled["target"] == 2
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


def test_fork_leaves_staged_rows_to_their_request():
    cache = PagedKVCache(page_size=4)
    table = cache.open()
    fill(cache, table, 2)
    cache.commit(table, chain(2), [0] * 2)
    fill(cache, table, 9, value=2)
    fork = cache.fork(table)
    assert fork.length == fork.filled["target"] == 2 and fork.pages == table.pages[:1]
    fill(cache, fork, 2, value=70)
    cache.commit(fork, [1], [1, 1])
    cache.commit(table, chain(9), [0] * 9)
    assert rows_of(cache, fork, 4) == [0, 1, 70, 71] and rows_of(cache, table, 11) == list(range(11))
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


def test_shared_pages_are_as_full_as_their_holders_have_made_them():
    """A draft model, or a head, need not run what another request's has run."""
    cache, prompt = PagedKVCache(page_size=4), list(range(13))
    one, two = cache.open(prompt), cache.open([*prompt[:9], 99])
    for table, rows, drafted in ((one, 12, 10), (two, 9, 3)):
        fill(cache, table, rows)
        cache.commit(table, chain(rows), prompt[:rows])
        table.filled["draft"] = drafted
    assert dict(cache.open(prompt).filled) == {"target": 12, "draft": 10}
    assert dict(cache.open(prompt[:9]).filled) == {"target": 8, "draft": 8}
    assert dict(cache.open([*prompt[:5], 99]).filled) == {"target": 4, "draft": 4}
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
    cache.stage(table, 1)
    assert cache.num_pages == 300
    assert rows_of(cache, table, 300) == list(range(300))
    assert rows_of(cache, table, 100, "draft") == list(range(1000, 1100))
    cache.check()


def test_the_peak_counts_pages_in_use_at_once():
    cache = PagedKVCache(page_size=4)
    first, second = cache.open(), cache.open()
    cache.stage(first, 9)
    cache.stage(second, 3)
    for name in ("target", "draft"):
        cache.pool(name).write("layer", torch.ones(1, 1, 2), torch.ones(1, 1, 3), torch.tensor([0]))
    cache.close(second)
    row = (2 + 3) * 4  # float32
    assert cache.take_peak_bytes() == {"target": 4 * 4 * row, "draft": 4 * 4 * row}  # 4 pages
    assert cache.take_peak_bytes() == {"target": 3 * 4 * row, "draft": 3 * 4 * row}  # since then
    cache.close(first)
    assert cache.take_peak_bytes()["target"] == 3 * 4 * row and cache.take_peak_bytes()["target"] == 0
