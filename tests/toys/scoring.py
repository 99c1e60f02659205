"""A batch of requests scored over the cache, step by step, against plain forward passes."""

import torch

from specdec.cache import PagedKVCache
from specdec.target import Chunk
from specdec.tree import TokenTree

# Largest difference over the largest logit. Most families compute in their dtype, or round the same numbers to float32
# on both ways: 1e-10 is far above float64 (2e-16, dozens of sums) and far below float32.
EXACT = {torch.float64: 1e-10, torch.float32: 1e-5}
# These round sums that were made in another order to float32: softmax of eager attention, router or chunk masks.
ROUNDED = {torch.float64: 2e-6, torch.float32: 1e-5}
FLOAT32_INSIDE = {"deepseek_v2", "deepseek_v3", "gemma2", "glm4_moe", "gpt_oss", "llama4_text"}
# Two guesses at each of two places, then a chain; a tree of the root alone; a comb.
SHAPES = [[-1, 0, 0, 1, 2, 4, 5], [-1], [-1, 0, 0, 1, 1, 3]]
# Nodes that are kept, of each shape: not those that come first.
PATHS = [[2, 4, 5], [], [1, 4]]


def plain_rows(paged, tokens, num_rows):
    """Logits of the last `num_rows` of these tokens by an ordinary forward pass."""
    return paged.plain(torch.tensor([tokens]))[0, -num_rows:]


def expected_nodes(paged, before, tree):
    """Logits after each node: one forward pass per leaf."""
    rows = [None] * len(tree)
    tokens = tree.tokens
    for node in reversed(range(len(tree))):
        if rows[node] is None:
            path = [0, *tree.path_to(node)]
            logits = plain_rows(paged, [*before, *(tokens[i] for i in path)], len(path))
            for row, i in zip(logits, path, strict=True):
                rows[i] = row
    return torch.stack(rows)


def random_tokens(count, generator):
    return torch.randint(5, 150, (count,), generator=generator).tolist()


class Batch:
    """Requests that go through prefill, trees, commits and decoding, each step compared with plain passes."""

    def __init__(self, paged, lengths, page_size=4):
        self.generator = torch.Generator().manual_seed(1)
        self.paged, self.cache = paged, PagedKVCache(page_size=page_size)
        self.tables = [self.cache.open() for _ in lengths]
        self.texts = [[] for _ in lengths]
        self.lengths, self.worst = lengths, 0.0

    def score(self, shapes):
        """Trees of these shapes with random tokens, scored in one packed pass and compared."""
        trees = [TokenTree(random_tokens(len(shape), self.generator), shape) for shape in shapes]
        chunks = []
        for table, text, tree in zip(self.tables, self.texts, trees, strict=True):
            self.cache.stage(table, len(tree))
            chunks.append(Chunk(table, len(text), tree, num_logits=len(tree)))
        logits = self.paged.score(self.cache, chunks).logits
        want = [expected_nodes(self.paged, text, tree) for text, tree in zip(self.texts, trees, strict=True)]
        want = torch.cat(want)
        self.worst = max(self.worst, float((logits - want).abs().max() / want.abs().max()))
        return trees

    def commit(self, trees, paths):
        for table, text, tree, path in zip(self.tables, self.texts, trees, paths, strict=True):
            tokens = tree.tokens_at([0, *path])
            self.cache.commit(table, path, tokens)
            text.extend(tokens)
        self.cache.check()

    def run(self):
        chains = [list(range(-1, length - 1)) for length in self.lengths]
        self.commit(self.score(chains), [list(range(1, length)) for length in self.lengths])
        for turn in range(2):
            order = range(turn, turn + len(self.lengths))
            trees = self.score([SHAPES[i % len(SHAPES)] for i in order])
            self.commit(trees, [PATHS[i % len(PATHS)] for i in order])
        self.commit(self.score([[-1]] * len(self.lengths)), [[]] * len(self.lengths))
        return self.worst
