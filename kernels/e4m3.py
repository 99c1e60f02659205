"""Parts of Triton kernels: numbers of eight bits by integer arithmetic, for GPUs that have no instruction for them."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl

HALF_SCALE = tl.constexpr(256.0)  # of numbers as `numbers` makes them of bytes: e4m3 has a bias of 7, float16 of 15


@triton.jit
def e4m3_of(rows, scale):  # any float -> uint8
    """The bytes of rows divided by their scale, as `fp8.quantized` says."""
    bits = tl.div_rn(rows.to(tl.float32), scale).to(tl.uint32, bitcast=True)
    size = bits & 0x7FFFFFFF
    large = tl.minimum(size, 0x43E00000)  # 448
    normal = (large + 0x7FFFF + ((large >> 20) & 1) - (120 << 23)) >> 20  # nearest of 3 bits, in another bias
    # Below 2**-6 numbers are multiples of 2**-9, and so are those of 2**14 and more: adding rounds.
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.uint32, bitcast=True) - 0x46800000
    code = tl.where(size < 0x3C800000, small, normal)
    code = tl.where(size > 0x7F800000, 0x7F, code)  # NaN
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def numbers(stored, dtype: tl.constexpr):
    """Stored keys or values as numbers of `dtype`: those of bytes divided by HALF_SCALE."""
    if stored.dtype == tl.uint8:
        bits = stored.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        half = tl.where((bits & 0x7F) == 0x7F, 0x7E00, half)  # NaN
        stored = half.to(tl.uint16).to(tl.float16, bitcast=True)
    return stored.to(dtype)


@triton.jit
def scaled(value, pool, scales, index):
    """`value` times what `numbers` of the pool are to be multiplied by; as it is if there are no scales."""
    if scales is not None:
        value = value * tl.load(scales + index)
        if pool.dtype.element_ty == tl.uint8:
            value = value * HALF_SCALE
    return value
