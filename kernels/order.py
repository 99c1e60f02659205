"""Parts of Triton kernels: integers in the order of floats, so that the greatest, and where it is, is one number."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

OPTIONS = {"enable_fp_fusion": False}  # of launches: a product is rounded before it is added to, as in torch


@triton.jit
def image(value):  # float32 -> int32
    """An integer that orders floats: -0 and 0 are the same, and a NaN is greater than all, as in torch."""
    bits = tl.where(value == 0, 0.0, value).to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(value != value, 0x7FFFFFFF, bits)


@triton.jit
def value_of(image):  # int32 -> float32
    """The float of an image."""
    bits = tl.where(image < 0, image ^ 0x7FFFFFFF, image)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def ranked(value, index):  # float32, int32 -> int64
    """A number by which greater values come first and of equal ones the lower index."""
    return (image(value).to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(rank):  # int64 -> int64
    """The index within a `ranked` number."""
    return 0x7FFFFFFF - (rank & 0x7FFFFFFF)


@triton.jit
def image_of(rank):  # int64 -> int32
    """The image of the value within a `ranked` number."""
    return (rank >> 32).to(tl.int32)
