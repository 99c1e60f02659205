"""Repetition and presence penalties at every node of every tree, each with its own prefix, in Triton."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .order import OPTIONS
from .trees import PackedTrees

TILE = 1024  # tokens or entries of a row that one program looks at


def mark_seen(seen: Tensor, tokens: Tensor, starts: Tensor, counts: Tensor, ignored: Tensor) -> None:
    """See `reference_sampling.mark_seen`."""
    num_requests, max_tokens = tokens.shape
    if tokens.numel() == 0:
        return
    tile = min(TILE, triton.next_power_of_2(max_tokens))
    _mark_seen_kernel[num_requests, triton.cdiv(max_tokens, tile)](
        seen,
        tokens,
        starts,
        counts,
        ignored,
        seen.shape[2],
        tokens.stride(0),
        TILE=tile,
        num_warps=4,
        **OPTIONS,
    )


def penalize(
    scores: Tensor, trees: PackedTrees, seen: Tensor, lengths: Tensor, penalties: Tensor, ignored: Tensor
) -> Tensor:
    """See `reference_sampling.penalize`."""
    scores = scores if scores.stride(-1) == 1 else scores.contiguous()
    num_rows, vocab = scores.shape
    penalized = torch.empty(num_rows, vocab, dtype=torch.float32, device=scores.device)
    num_requests = trees.cu_nodes.shape[0] - 1
    _penalize_kernel[triton.cdiv(vocab, TILE), trees.max_nodes, num_requests](
        scores,
        penalized,
        trees.tokens,
        trees.parents,
        trees.depths,
        trees.cu_nodes,
        seen,
        lengths,
        penalties,
        ignored,
        vocab,
        scores.stride(0),
        seen.shape[2],
        TILE=TILE,
        num_warps=4,
        **OPTIONS,
    )
    return penalized


@triton.jit
def _mark_seen_kernel(
    seen_ptr, tokens_ptr, starts_ptr, counts_ptr, ignored_ptr, num_words, tokens_stride, TILE: tl.constexpr
):
    """One program per request and tile of its new tokens."""
    request = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_new = index < tl.load(counts_ptr + request)
    tokens = tl.load(tokens_ptr + request * tokens_stride + index, mask=is_new, other=-1)
    is_new = is_new & (tokens >= 0) & (tokens < num_words * 32)
    position = tl.load(starts_ptr + request) + index
    word = seen_ptr + request * 2 * num_words + tokens // 32
    bit = tl.full((TILE,), 1, tl.int32) << (tokens % 32).to(tl.int32)
    tl.atomic_or(word, bit, mask=is_new & (position >= tl.load(ignored_ptr + request * 2)))
    tl.atomic_or(word + num_words, bit, mask=is_new & (position >= tl.load(ignored_ptr + request * 2 + 1)))


@triton.jit
def _penalize_kernel(
    scores_ptr,
    penalized_ptr,
    tokens_ptr,
    parents_ptr,
    depths_ptr,
    cu_nodes_ptr,
    seen_ptr,
    lengths_ptr,
    penalties_ptr,
    ignored_ptr,
    vocab,
    row_stride,
    num_words,
    TILE: tl.constexpr,
):
    """One program per node and tile of its row."""
    request = tl.program_id(2).to(tl.int64)
    first = tl.load(cu_nodes_ptr + request)
    node = tl.program_id(1)
    if first + node < tl.load(cu_nodes_ptr + request + 1):
        index = tl.program_id(0) * TILE + tl.arange(0, TILE)
        word = seen_ptr + request * 2 * num_words + index // 32
        is_repeated = (tl.load(word, mask=index < vocab, other=0) >> (index % 32)) & 1
        is_present = (tl.load(word + num_words, mask=index < vocab, other=0) >> (index % 32)) & 1
        position = tl.load(lengths_ptr + request) + tl.load(depths_ptr + first + node) - 1
        row = (first + node).to(tl.int64)
        while node > 0:  # up to the pending token, which is seen already
            token = tl.load(tokens_ptr + first + node)
            hit = (index == token).to(tl.int32)
            is_repeated |= hit & (position >= tl.load(ignored_ptr + request * 2)).to(tl.int32)
            is_present |= hit & (position >= tl.load(ignored_ptr + request * 2 + 1)).to(tl.int32)
            node = tl.load(parents_ptr + first + node)
            position -= 1
        repetition = tl.load(penalties_ptr + request * 2).to(tl.float32)
        presence = tl.load(penalties_ptr + request * 2 + 1).to(tl.float32)
        scores = tl.load(scores_ptr + row * row_stride + index, mask=index < vocab, other=0).to(tl.float32)
        repeated = tl.where(scores < 0, scores * repetition, tl.div_rn(scores, repetition))
        scores = tl.where(is_repeated != 0, repeated, scores)
        scores = tl.where(is_present != 0, scores - presence, scores)
        tl.store(penalized_ptr + row * vocab + index, scores, mask=index < vocab)
