"""Which nodes of a tree see which others, for the tables of `tree_attention`, in Triton."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor

from .order import OPTIONS
from .trees import PackedTrees


def write_ancestors(trees: PackedTrees, words: Tensor, depths: Tensor) -> None:
    """See `reference_growth.write_ancestors`."""
    _ancestors_kernel[len(trees.cu_nodes) - 1, words.shape[1]](
        trees.parents,
        trees.depths,
        trees.cu_nodes,
        words,
        depths,
        trees.max_depth,
        words.stride(0),
        NODES=triton.next_power_of_2(trees.max_nodes),
        num_warps=max(1, min(8, triton.next_power_of_2(trees.max_nodes) // 32)),
        **OPTIONS,
    )


@triton.jit
def _ancestors_kernel(
    parents_ptr, depths_ptr, cu_nodes_ptr, words_ptr, table_ptr, max_depth, row_stride, NODES: tl.constexpr
):
    """One program per request and word: from every node up to the root."""
    request, word = tl.program_id(0), tl.program_id(1)
    first = tl.load(cu_nodes_ptr + request).to(tl.int64)
    node = tl.arange(0, NODES)
    rows = first + node
    is_node = rows < tl.load(cu_nodes_ptr + request + 1)
    seen, at = tl.zeros((NODES,), tl.int64), tl.where(is_node, node, -1)
    for _ in range(max_depth + 1):
        is_seen = (at >= 0) & (at // 64 == word)
        seen |= tl.where(is_seen, tl.full((NODES,), 1, tl.int64) << (at % 64).to(tl.int64), 0)
        at = tl.load(parents_ptr + first + at, mask=at >= 0, other=-1)
    tl.store(words_ptr + rows * row_stride + word, seen, mask=is_node)
    if word == 0:
        tl.store(table_ptr + rows, tl.load(depths_ptr + rows, mask=is_node, other=0), mask=is_node)
