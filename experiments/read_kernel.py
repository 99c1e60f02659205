"""A Triton kernel that reads memory and does next to nothing else: how fast that goes at best."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl
from torch import Tensor

SHAPES = ((4096, 4), (8192, 8), (16384, 8))  # entries and warps of a program: 32 to 64 entries of a thread on the way


def block_sums(data: Tensor, sums: Tensor, block: int, num_warps: int) -> None:
    """Sums [data.numel() / block] int32 of blocks of `data` int32; they wrap. The blocks must fill `data`."""
    grid = (data.numel() // block,)
    _block_sums_kernel[grid](data, sums, BLOCK=block, num_warps=num_warps, enable_fp_fusion=False)


@triton.jit
def _block_sums_kernel(data, sums, BLOCK: tl.constexpr):
    block = tl.program_id(0)
    entries = tl.load(data + block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK))
    tl.store(sums + block, tl.sum(entries, 0))
