"""What kernels do with elements in few instructions: two of bfloat16 lie in a register, and are worked on together."""

import triton
import triton.language as tl

from ...direct import INTERPRETED

LOG2E = tl.constexpr(1.4426950408889634)
MISSING = tl.constexpr(2**31 - 1)  # a place that comes after all others
LOWEST = tl.constexpr((-2139095041 << 32) + 2**31)  # the rank of -inf there
_PACKED = tl.constexpr(not INTERPRETED)  # an interpreter knows no instructions


@triton.jit
def finite(x):
    """`x`, 0 in place of infinities: what exponents are relative to, which nothing is subtracted from in vain."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def widened(x):
    """`x` as float32, in one instruction an element."""
    if _PACKED and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise("shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;", "=f,=f,r", [x],
                                         dtype=tl.float32, is_pure=True, pack=2)
    else:
        return x.to(tl.float32)


@triton.jit
def exponential(x, base):
    """The exponential of `x - base`, float32; 0 where that is below the normal numbers, which takes half as long."""
    return tl.exp2((widened(x) - base) * LOG2E)


@triton.jit
def larger(x, y):
    """The larger ones of two tensors of a dtype."""
    if _PACKED and x.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise("max.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=tl.bfloat16, is_pure=True,
                                         pack=2)
    else:
        return tl.maximum(x, y)


@triton.jit
def larger_at(x, at, y, here):
    """The larger ones of two tensors of a dtype, NaN of any; `here` where that of `y` is larger, else `at`, int16."""
    if _PACKED and x.dtype == tl.bfloat16:
        twice = tl.full(x.shape, tl.cast(here, tl.int32) * 0x10001, tl.int32)
        return tl.inline_asm_elementwise("""{
            .reg .b32 above;
            set.gt.u32.bf16x2 above, $4, $2;
            lop3.b32 $1, above, $5, $3, 0xCA;
            max.NaN.bf16x2 $0, $2, $4;
        }""", "=r,=r,r,r,r,r,r", [x, at, y, twice], dtype=(tl.bfloat16, tl.int16), is_pure=True, pack=2)
    else:
        found = tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL).to(x.dtype)
        return found, tl.where(y > x, tl.cast(here, tl.int16), at)


@triton.jit
def ranked(x, place):
    """Numbers, int64, of which the largest has the largest of float32 `x`, NaN if there is any, at the first place."""
    bits = tl.where(x != x, float("nan"), x + 0.0).to(tl.int32, bitcast=True)  # and zeros are alike
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return (bits.to(tl.int64) << 32) | (~place).to(tl.uint32).to(tl.int64)


@triton.jit
def unranked(rank):
    """The number and the place that have a rank: float32 and int32."""
    bits = (rank >> 32).to(tl.int32)
    bits ^= (bits >> 31) & 0x7FFFFFFF
    return bits.to(tl.float32, bitcast=True), ~rank.to(tl.int32)
