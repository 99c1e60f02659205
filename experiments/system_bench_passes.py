"""Forward passes of the target by themselves: what a wider one costs, and what keeping its rows costs."""

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from specdec.cache import PagedKVCache, PageTable
from specdec.target import Chunk, PagedModel
from specdec.tree import TokenTree

from .bench_results import Row
from .device_timing import REPLAYS, seconds_of, time_unaided
from .system_bench_subject import Subject

CALLS = 5  # in a row: the host has to be ahead of the device by then
COMMITTED_NODES, COMMITTED_PATH = 16, [2, 6, 14]  # of `tree_of`: each row of the path has to be moved
NUM_WARM = 3  # an eager pass, one that is captured, one that is replayed


class Prefixes:
    """Requests whose prompts are in the cache of a target."""

    def __init__(self, target: PagedModel, prompts: Sequence[Sequence[int]]) -> None:
        self.target = target
        self.cache = PagedKVCache() if target.cache is None else target.cache
        self.tables: list[PageTable] = []
        for prompt in prompts:
            table, chain = self.cache.open(), TokenTree.chain(list(prompt))
            self.tables.append(table)
            self.cache.stage(table, len(chain))
            target.score(self.cache, [Chunk(table, 0, chain)])
            self.cache.commit(table, list(range(1, len(chain))), chain.tokens)

    def scoring(self, tree: TokenTree) -> Callable[[], Any]:
        """Stages the tree behind each prefix; the call scores it, and may be made again and again."""
        for table in self.tables:
            self.cache.truncate(table, table.length)
            self.cache.stage(table, len(tree))
        chunks = [Chunk(table, table.length, tree, num_logits=len(tree)) for table in self.tables]
        return partial(self.target.score, self.cache, chunks)

    def committing(self, tree: TokenTree, path: list[int]) -> Callable[[], Any]:
        """A call that keeps the path of what was scored."""
        tokens = tree.tokens_at([0, *path])

        def commit() -> None:
            for table in self.tables:
                self.cache.commit(table, path, tokens)

        return commit

    def cut(self, length: int) -> None:
        """Forgets the rows behind `length`."""
        for table in self.tables:
            self.cache.truncate(table, length)


@contextmanager
def prefixes(subject: Subject, batch: int) -> Iterator[Prefixes]:
    """Requests behind the subject's prompts; their pages are given back at the end."""
    target = subject.target(subject.best)
    with torch.inference_mode():
        requests = Prefixes(target, subject.prompts(batch).tolist())
        try:
            yield requests
        finally:
            for table in requests.tables:
                requests.cache.close(table)


def score_rows(subject: Subject, batch: int) -> list[Row]:
    """The time of a forward pass over n nodes of each request, T(n), chains and trees, and T(n) / T(1)."""
    rows: list[Row] = []
    with prefixes(subject, batch) as requests:
        for count in subject.sizes.nodes:
            shapes = {"chain": chain_of(count), **({"tree": tree_of(count)} if count > 2 else {})}
            for kind, tree in shapes.items():
                score = requests.scoring(tree)
                timing = time_unaided(score, CALLS, subject.device)
                waited = time_unaided(score, 1, subject.device)
                ms = timing.median / 1e3
                rows.append(
                    {
                        "name": f"score {kind}",
                        "mode": subject.best,
                        "batch": batch,
                        "num_nodes": count,
                        "ms": ms,
                        "ms_low": timing.low / 1e3,
                        "ms_high": timing.high / 1e3,
                        "waited_ms": waited.median / 1e3,
                        "share": subject.floor_ms / ms,
                        "ratio": ms / (rows[0]["ms"] if rows else ms),
                    }
                )
    return rows


def chain_ms(subject: Subject, num_nodes: Sequence[int]) -> list[float]:
    """T(n) of chains, one request."""
    with prefixes(subject, 1) as requests:
        timings = [time_unaided(requests.scoring(chain_of(n)), CALLS, subject.device) for n in num_nodes]
    return [timing.median / 1e3 for timing in timings]


def commit_rows(subject: Subject, batch: int) -> list[Row]:
    """The time of keeping a path of a tree whose rows have to be moved, as a share of scoring and keeping it."""
    tree, prefix = tree_of(COMMITTED_NODES), subject.sizes.prefix
    with prefixes(subject, batch) as requests:
        commit = requests.committing(tree, COMMITTED_PATH)
        seconds = []
        for _ in range(NUM_WARM + REPLAYS):
            score = requests.scoring(tree)
            seconds.append((seconds_of(score, subject.device), seconds_of(commit, subject.device)))
            requests.cut(prefix)
        score_ms, commit_ms = (1e3 * statistics.median(column) for column in zip(*seconds[NUM_WARM:], strict=True))
        requests.scoring(tree)()
        waits = waits_for_device(commit, subject.device)
    return [
        {
            "name": "commit",
            "mode": subject.best,
            "batch": batch,
            "num_nodes": COMMITTED_NODES,
            "num_kept": len(COMMITTED_PATH),
            "ms": commit_ms,
            "score_ms": score_ms,
            "share": commit_ms / (score_ms + commit_ms),
            "waits": waits,
        }
    ]


def waits_for_device(call: Callable[[], Any], device: torch.device) -> bool | None:
    """Whether a call makes the host wait for a GPU; None where there is none.

    Example:
        >>> waits_for_device(lambda: None, torch.device("cpu")) is None
        True
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it does not know every op that waits, and says so
        torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def chain_of(count: int) -> TokenTree:
    """A chain of so many nodes."""
    return TokenTree.chain(list(range(1, 1 + count)))


def tree_of(count: int) -> TokenTree:
    """A tree of so many nodes, two children each.

    Example:
        >>> tree_of(6).parents
        [-1, 0, 0, 1, 1, 2]
    """
    return TokenTree(list(range(1, 1 + count)), [-1, *((node - 1) // 2 for node in range(1, count))])
