"""Row argmax, the keyed Gumbel draw, and the walk along drafted tokens that agree with either, in Triton."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .order import OPTIONS, index_of, ranked
from .philox import gumbel
from .trees import PackedTrees

TILE = 4096  # entries of a row that one program looks at; its best goes into a table, the best of which is the row's


def argmax(rows: Tensor) -> Tensor:  # [..., vocab] -> [...] int64
    """See `reference.argmax`."""
    return _best(rows.reshape(-1, rows.shape[-1]), None, None).view(rows.shape[:-1])


def gumbel_argmax(scores: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:  # [n, vocab], [n], [n] -> [n] int64
    """See `reference_sampling.gumbel_argmax`."""
    return _best(scores, seeds, positions)


def walk(trees: PackedTrees, targets: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference_sampling.walk`."""
    num_requests = trees.cu_nodes.shape[0] - 1
    emitted = torch.empty(num_requests, trees.max_depth + 2, dtype=torch.int64, device=targets.device)
    path = torch.empty(num_requests, trees.max_depth, dtype=torch.int64, device=targets.device)
    _walk_kernel[(num_requests,)](
        trees.tokens,
        trees.parents,
        trees.cu_nodes,
        targets,
        emitted,
        path,
        trees.max_depth,
        NODES=triton.next_power_of_2(trees.max_nodes),
        COLUMNS=triton.next_power_of_2(trees.max_depth + 1),
        num_warps=1,
        **OPTIONS,
    )
    return emitted, path


def _best(rows: Tensor, seeds: Tensor | None, positions: Tensor | None) -> Tensor:  # [n, vocab] -> [n] int64
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    num_rows, vocab = rows.shape
    num_parts = triton.cdiv(vocab, TILE)
    parts = torch.empty(num_rows, num_parts, dtype=torch.int64, device=rows.device)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=rows.device)
    if num_rows == 0:
        return tokens
    _best_parts_kernel[num_rows, num_parts](
        rows,
        seeds,
        positions,
        parts,
        vocab,
        rows.stride(0),
        TILE=TILE,
        HAS_NOISE=seeds is not None,
        num_warps=8,
        **OPTIONS,
    )
    _best_kernel[(num_rows,)](parts, tokens, num_parts, PARTS=triton.next_power_of_2(num_parts), num_warps=1, **OPTIONS)
    return tokens


@triton.jit
def _best_parts_kernel(
    rows_ptr, seeds_ptr, positions_ptr, parts_ptr, vocab, row_stride, TILE: tl.constexpr, HAS_NOISE: tl.constexpr
):
    """One program per row and tile: the rank of the best entry."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = part * TILE + tl.arange(0, TILE)
    values = tl.load(rows_ptr + row * row_stride + index, mask=index < vocab, other=float("-inf")).to(tl.float32)
    if HAS_NOISE:
        values += gumbel(tl.load(seeds_ptr + row), tl.load(positions_ptr + row), part, TILE)
    best = tl.max(ranked(values, index), 0)  # the padding loses ties by its index
    tl.store(parts_ptr + row * tl.num_programs(1) + part, best)


@triton.jit
def _best_kernel(parts_ptr, tokens_ptr, num_parts, PARTS: tl.constexpr):
    """One program per row: the best of its parts."""
    row = tl.program_id(0).to(tl.int64)
    part = tl.arange(0, PARTS)
    ranks = tl.load(parts_ptr + row * num_parts + part, mask=part < num_parts, other=-0x7FFFFFFFFFFFFFFF)
    tl.store(tokens_ptr + row, index_of(tl.max(ranks, 0)))


@triton.jit
def _walk_kernel(
    tokens_ptr,
    parents_ptr,
    cu_nodes_ptr,
    targets_ptr,
    emitted_ptr,
    path_ptr,
    max_depth,
    NODES: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program per request; its tree lies in registers."""
    request = tl.program_id(0).to(tl.int64)
    first = tl.load(cu_nodes_ptr + request)
    num_nodes = tl.load(cu_nodes_ptr + request + 1) - first
    node = tl.arange(0, NODES)
    mask = node < num_nodes
    tokens = tl.load(tokens_ptr + first + node, mask=mask, other=-1).to(tl.int64)
    parents = tl.load(parents_ptr + first + node, mask=mask, other=-2)
    targets = tl.load(targets_ptr + first + node, mask=mask, other=-1).to(tl.int64)
    column = tl.arange(0, COLUMNS)
    emitted = tl.full((COLUMNS,), -1, tl.int64)
    path = tl.full((COLUMNS,), -1, tl.int64)
    last = tl.min(node, 0)  # zero, as a tensor
    token = tl.sum(tl.where(node == 0, targets, 0), 0)  # -1 without nodes
    num_accepted = last
    for step in range(max_depth):  # once nothing matches, nothing ever does
        match = tl.min(tl.where((parents == last) & (tokens == token), node, NODES), 0)
        if match < NODES:
            emitted = tl.where(column == step, token, emitted)
            path = tl.where(column == step, match.to(tl.int64), path)
            last = match
            token = tl.sum(tl.where(node == match, targets, 0), 0)
            num_accepted += 1
    emitted = tl.where(column == num_accepted, token, emitted)
    row = emitted_ptr + request * (max_depth + 2)
    tl.store(row, tl.minimum(num_accepted + 1, num_nodes).to(tl.int64))
    tl.store(row + 1 + column, emitted, mask=column <= max_depth)
    tl.store(path_ptr + request * max_depth + column, path, mask=column < max_depth)
