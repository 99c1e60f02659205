"""Parts of Triton kernels: the random words of `reference.philox`, and what noise and tests make of them."""
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def gumbel(seed, position, block, TILE: tl.constexpr):  # -> [TILE] float32
    """Noise of tokens block * TILE .. of a position: -log E with E = -log1p(-(word + 0.5) * 2**-32), role 0.

    Four tokens share a counter (position, role, 0, token // 4). The clamp keeps E finite, as in the reference.
    """
    counters = (block * (TILE // 4) + tl.arange(0, TILE // 4)).to(tl.uint32)
    zero = tl.zeros((TILE // 4,), tl.uint32)
    a, b, c, d = tl.philox(seed, zero + position.to(tl.uint32), zero, zero, counters)
    return noise_of(tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (TILE,)))


@triton.jit
def noise_of(words):  # uint32 -> float32
    """The Gumbel noise of each word."""
    uniform = tl.minimum((words.to(tl.float32) + 0.5) * 2.0**-32, 1 - 2.0**-24)
    return -tl.log(_exponential(uniform))


@triton.jit
def _exponential(uniform):
    """-log1p(-uniform) to the last bits at both ends: 1 - uniform has lost them where uniform is small."""
    half = uniform / (2 - uniform)  # log1p(-u) = -2 artanh(u / (2 - u)), below 1/7 here
    square = half * half
    series = 1 + square * (1.0 / 3 + square * (1.0 / 5 + square * (1.0 / 7 + square * (1.0 / 9))))
    return tl.where(uniform < 0.25, 2 * half * series, -tl.log(1 - uniform))


@triton.jit
def uniforms(seed, role: tl.constexpr, position, sub_index):  # [n] uint32 -> [n] float64
    """Multiples of 2**-53 in [0, 1) of the counters (position, role, sub_index, 0)."""
    zero = sub_index * 0
    first, second, _, _ = tl.philox(seed, zero + position.to(tl.uint32), zero + role, sub_index, zero)
    bits = (first.to(tl.int64) << 21) | (second >> 11).to(tl.int64)
    return bits.to(tl.float64) * 2.0**-53
