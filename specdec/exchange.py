"""Caches of transformers in and out: `past_key_values` given to us become pages, and pages become a `DynamicCache`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from .cache import PagedKVCache, PageTable
from .engine import Engine
from .request import Request
from .target import PagedModel


@contextmanager
def import_cache(engine: Engine, requests: Sequence[Request], past: Any) -> Iterator[list[Request]]:
    """The requests, beginning with the rows that `past` holds of them; `past` itself is not changed.

    Raises:
        ValueError: `past` does not hold what this model keeps, or more than the prompts.
    """
    if past is None or past.get_seq_length() == 0:
        yield list(requests)
        return
    for layer in past.layers:
        if getattr(layer, "keys", None) is None or len(layer.keys) != len(requests):
            got = "a layer without keys" if getattr(layer, "keys", None) is None else len(layer.keys)
            raise ValueError(
                f"expected past_key_values of a batch of {len(requests)}, got {got}; leave past_key_values unset"
            )
    tables: list[PageTable] = []
    try:
        for index, request in enumerate(requests):
            tables.append(engine.cache.open())
            _fill(engine, tables[-1], request, past, index)
        yield [replace(request, table=table) for request, table in zip(requests, tables, strict=True)]
    finally:
        for table in tables:
            engine.cache.close(table)


def _fill(engine: Engine, table: PageTable, request: Request, past: Any, index: int) -> None:
    """Writes the rows of batch row `index`. A sliding-window layer holds its last rows only; no later row sees more."""
    cache, target = engine.cache, engine.target
    length = past.get_seq_length()
    num_rows = length - len(request.padding)
    keys = target.layer_keys
    if len(past.layers) != len(keys) or not 0 < num_rows < len(request.tokens):
        raise ValueError(
            f"expected past_key_values with {len(keys)} layers and fewer tokens than the prompt's "
            f"{len(request.tokens)}, got {len(past.layers)} layers and {num_rows} tokens; leave past_key_values unset"
        )
    cache.stage(table, num_rows)
    slots = cache.slots(table, 0, num_rows)
    pool = cache.pool(target.pool_name)
    for key, layer in zip(keys, past.layers, strict=True):
        _require_rows(layer, length, num_rows)
        rows = [_last_rows(tensor[index], length, num_rows).to(target.dtype) for tensor in (layer.keys, layer.values)]
        pool.write(key, rows[0], rows[1], slots.to(rows[0].device))
    table.filled[target.pool_name] = num_rows
    cache.commit(table, list(range(1, num_rows)), list(request.tokens[:num_rows]))


def _require_rows(layer: Any, length: int, num_rows: int) -> None:
    """Raises if the layer lacks a row that a later token sees: a window sees one less than its size, and itself."""
    held = min(length, layer.keys.shape[-2])
    needed = num_rows
    if getattr(layer, "is_sliding", False):  # a dynamic layer has the first name, a static one the second
        needed = min(num_rows, (getattr(layer, "sliding_window", None) or layer.max_cache_len) - 1)
    if held < needed:
        raise ValueError(
            f"expected past_key_values with the last {needed} rows in each layer, got a layer with {held}; "
            "leave past_key_values unset"
        )


def _last_rows(tensor: Tensor, length: int, num_rows: int) -> Tensor:  # [heads, s, dim] -> [num_rows, heads, dim]
    """The last `num_rows` of `length` rows; what a window dropped is zero."""
    held = tensor[:, :length].transpose(0, 1)[-num_rows:]
    missing = num_rows - held.shape[0]
    return torch.cat([held.new_zeros(missing, *held.shape[1:]), held]) if missing else held.contiguous()


def export_cache(engine: Engine, padding: Sequence[int], length: int) -> DynamicCache | None:
    """The pages of finished requests as a cache of `length` rows; zeros where a row has padding or ended early.

    None for models whose layers do not map onto such a cache one to one (layers that share K and V).
    """
    target: PagedModel = engine.target
    past = DynamicCache(config=target.model.config)
    keys = target.layer_keys
    if past.layers and len(past.layers) != len(keys):
        return None
    for index, key in enumerate(keys):
        rows = [_rows_of(engine.cache, target.pool_name, key, engine.tables[row]) for row in sorted(engine.tables)]
        pairs = [
            torch.stack(
                [
                    torch.nn.functional.pad(part[side], (0, 0, 0, 0, left, length - left - part[side].shape[0]))
                    for part, left in zip(rows, padding, strict=True)
                ]
            ).transpose(1, 2)
            for side in (0, 1)
        ]
        past.update(pairs[0], pairs[1], index)
    return past


def _rows_of(cache: PagedKVCache, pool: str, key: Any, table: PageTable) -> tuple[Tensor, Tensor]:
    return cache.pool(pool).read(key, cache.slots(table, 0, table.length))
