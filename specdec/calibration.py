"""Scales for a cache that keeps its rows in eight bits, from the keys and values of a text."""

from collections.abc import Sequence

import torch

from .cache import PagedKVCache
from .chunk import Chunk
from .kernels.fp8 import LARGEST
from .target import PagedModel
from .tree import TokenTree


def calibrate(cache: PagedKVCache, model: PagedModel, tokens: Sequence[int]) -> None:
    """Sets the scales of every layer and head of a model in an fp8 cache: the largest number that a text has there
    becomes the largest of e4m3. Numbers of other texts that are larger are cut off, so take one like those to come.

    Raises:
        ValueError: the cache is not in fp8, or holds rows of the model already.

    Example:
        >>> import specdec
        >>> target, _, tokenizer = specdec.load_embedded()
        >>> model, cache = PagedModel(target), PagedKVCache(kv_cache_dtype="fp8")
        >>> calibrate(cache, model, tokenizer("Once upon a time, there was a little girl.")["input_ids"])
    """
    if not tokens:
        raise ValueError("expected a text to take scales from, got no tokens; give one like those to come")
    plain = PagedKVCache()
    table = plain.open()
    plain.stage(table, len(tokens))
    model.score(plain, [Chunk(table, 0, TokenTree.chain(tokens))])
    slots = plain.slots(table, 0, len(tokens))
    for key in model.layer_keys:
        largest = torch.stack(
            [rows.abs().amax((0, 2)).float() for rows in plain.pool(model.pool_name).read(key, slots)]
        )
        # A head that is all zeros needs none.
        cache.pool(model.pool_name).set_scales(key, torch.where(largest > 0, largest / LARGEST, 1.0))
