"""Tree attention by different libraries on the same problem. What is done once per forward is done beforehand for all.

That is: plans, masks, and for those that know no pages the gathering of keys and values.
"""

import importlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from specdec.kernels import ops
from specdec.kernels.rows import Scoring

from .attention_case import DTYPE, PAGE, Problem

OURS = "specdec"
WORKSPACE_BYTES = 256 << 20  # FlashInfer's examples take 128 MB
ALIGNED = 16  # entries: SDPA copies a mask whose rows begin at other addresses, every time


class Prepared(NamedTuple):
    """Calls that only attend, one for each layer."""

    calls: Sequence[Callable[[], Tensor]]
    arranged: Callable[[Tensor], Tensor]  # what a call returns -> [batch, num_nodes, heads, dim]


class Attention(NamedTuple):
    """How one library is called."""

    name: str
    prepare: Callable[[Problem], Prepared]
    is_gathered: bool  # it needs keys and values in one piece
    absent: Callable[[torch.device], str | None] = lambda device: None  # why it cannot be run there


def specdec(problem: Problem) -> Prepared:
    """`ops.tree_attention`; its plan is made by the first call."""
    scoring = Scoring(None)
    calls = [
        partial(ops.tree_attention, query.flatten(0, 1)[None].transpose(1, 2), keys, values, problem.rows, scoring)
        for query, keys, values in zip(problem.queries, problem.keys, problem.values, strict=True)
    ]
    return Prepared(calls, lambda output: output.view(problem.queries[0].shape))


def sdpa(problem: Problem) -> Prepared:
    """torch's SDPA with an additive mask. Heads that share keys are rows: with a mask, no fast kernel groups heads."""
    batch, num_nodes, heads, dim = problem.queries[0].shape
    group = heads // problem.heads.kv_heads
    seen = problem.dense_visible().repeat(1, group, 1)[:, None]  # [batch, 1, group * num_nodes, num_keys]
    num_keys = seen.shape[3]
    mask = torch.zeros(*seen.shape[:3], -(-num_keys // ALIGNED) * ALIGNED, dtype=DTYPE, device=seen.device)
    mask = mask[..., :num_keys].masked_fill_(~seen, -torch.inf)

    def folded(query: Tensor) -> Tensor:  # -> [batch, kv_heads, group * num_nodes, dim]
        query = query.view(batch, num_nodes, -1, group, dim).permute(0, 2, 3, 1, 4)
        return query.reshape(batch, -1, group * num_nodes, dim)

    def arranged(output: Tensor) -> Tensor:
        return output.view(batch, -1, group, num_nodes, dim).permute(0, 3, 1, 2, 4).reshape(batch, num_nodes, -1, dim)

    calls = [
        partial(F.scaled_dot_product_attention, folded(query), *gathered, attn_mask=mask)
        for query, gathered in zip(problem.queries, _gathered(problem), strict=True)
    ]
    return Prepared(calls, arranged)


def flex(problem: Problem) -> Prepared:
    """FlexAttention with ancestors looked up in a table; compiled for this very shape, but on a CPU not at all."""
    prefix, visible = problem.case.prefix, problem.visible

    def sees(request: Tensor, _head: Tensor, row: Tensor, key: Tensor) -> Tensor:
        return (key < prefix) | visible[request, row, (key - prefix).clamp(min=0)]

    batch, num_nodes = problem.queries[0].shape[:2]
    block_mask = create_block_mask(sees, batch, None, num_nodes, problem.case.num_keys, device=problem.device)
    attend: Callable[..., Tensor] = flex_attention
    if problem.device.type == "cuda":
        torch.compiler.reset()  # what was compiled for other shapes counts against a limit
        attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)
    calls = [
        partial(attend, query.transpose(1, 2).contiguous(), *gathered, block_mask=block_mask, enable_gqa=True)
        for query, gathered in zip(problem.queries, _gathered(problem), strict=True)
    ]
    return Prepared(calls, lambda output: output.transpose(1, 2))


def flashinfer(problem: Problem) -> Prepared:
    """FlashInfer's paged prefill with a custom mask, which its plan packs into bits."""
    library = importlib.import_module("flashinfer")
    heads, (batch, num_pages), device = problem.heads, problem.pages.shape, problem.device
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = library.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend="fa2")  # fa3 takes no such mask
    steps = torch.arange(batch + 1, dtype=torch.int32, device=device)
    last_page = torch.full((batch,), (problem.case.num_keys - 1) % PAGE + 1, dtype=torch.int32, device=device)
    wrapper.plan(
        steps * problem.case.num_nodes,
        steps * num_pages,
        problem.pages.flatten(),
        last_page,
        heads.heads,
        heads.kv_heads,
        heads.dim,
        PAGE,
        custom_mask=problem.dense_visible().flatten(),
        q_data_type=DTYPE,
        kv_data_type=DTYPE,
    )
    paged = (-1, PAGE, heads.kv_heads, heads.dim)
    calls = [
        partial(wrapper.run, query.flatten(0, 1), (keys.view(paged), values.view(paged)))
        for query, keys, values in zip(problem.queries, problem.keys, problem.values, strict=True)
    ]
    return Prepared(calls, lambda output: output.view(problem.queries[0].shape))


def _gathered(problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer in one piece, [batch, kv_heads, num_keys, dim]."""
    slots = problem.slots(problem.case.batch)

    def piece(pool: Tensor) -> Tensor:
        return pool[slots].transpose(1, 2).contiguous()

    return [(piece(keys), piece(values)) for keys, values in zip(problem.keys, problem.values, strict=True)]


def _flashinfer_absent(device: torch.device) -> str | None:
    if device.type != "cuda":
        return "needs a GPU"
    try:
        importlib.import_module("flashinfer")
    except ImportError as error:
        return f"cannot be imported: {error}"
    return None


# In this order: the last ones compile for every shape, which takes most of the time.
ATTENTIONS = (
    Attention(OURS, specdec, is_gathered=False),
    Attention("sdpa", sdpa, is_gathered=True),
    Attention("flashinfer", flashinfer, is_gathered=False, absent=_flashinfer_absent),
    Attention("flex_attention", flex, is_gathered=True),
)
