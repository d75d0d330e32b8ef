"""The kernels of the softmax of blocks, over keys or over queries, and of its gradient.

Numbers are read once where a tile holds all that a weight is divided by; for longer rows twice. `grad` is None in the
forward pass; in the backward pass the scores are the weights that it gave.
"""

# ruff: noqa: N803

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from .rows import bisections, block_of, clear_past, pairs_of, queries_of, row_of

_SPAN = 16384  # pairs of a program over keys
_STRIP = 32  # keys of a program over queries
_PROGRAMS = 2048  # over queries, at most: how many strips there are is known on the device alone


def launch(a: Tensor, grad: Tensor | None, offsets: Tensor, blocks: Tensor, over_queries: bool, out: Tensor) -> None:
    """Fill `out` `(P, H)`, contiguous, from scores, or from weights and their gradient, of any strides."""
    (pairs, heads), rows = a.shape, offsets.shape[0] - 1
    strides = a.stride(), (0, 0) if grad is None else grad.stride()
    given = a, grad, out, offsets, blocks, pairs, rows, bisections(offsets), heads, *strides
    if over_queries:
        programs = min(pairs // _STRIP + rows, _PROGRAMS)
        _over_queries[(programs * heads,)](*given, _STRIP, num_warps=8)
    else:
        warps = 4 if heads == 1 else 8  # numbers that are apart have an address each, in registers
        _over_keys[((pairs // _SPAN + rows) * heads,)](*given, _SPAN, num_warps=warps)


@triton.jit
def _tile(a, grad, base, at, a_stride, g_stride, inside):
    """Scores of a tile, -inf where there are none, and again; or weights and their gradient, 0 there. As float32."""
    if grad is None:
        s = tl.load(a + base * a_stride + at * a_stride, mask=inside, other=float("-inf")).to(tl.float32)
        g = s
    else:
        s = tl.load(a + base * a_stride + at * a_stride, mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + base * g_stride + at * g_stride, mask=inside, other=0.0).to(tl.float32)
    return s, g


@triton.jit
def _result(s, g, top, total, FORWARD: tl.constexpr):
    """The weights of a tile by the largest scores, 0 where all are -inf, and their sums; or the gradient of scores."""
    if FORWARD:
        found = tl.exp(s - tl.where(top == float("-inf"), 0.0, top)) / tl.where(total == 0.0, 1.0, total)
    else:
        found = s * (g - total)
    return found


@triton.jit
def _whole(s, g, AXIS: tl.constexpr, FORWARD: tl.constexpr):
    """The result of a tile that has all scores along an axis."""
    if FORWARD:
        top = tl.max(s, AXIS, keep_dims=True)
        total = tl.sum(tl.exp(s - tl.where(top == float("-inf"), 0.0, top)), AXIS, keep_dims=True)
    else:
        total = tl.sum(s * g, AXIS, keep_dims=True)
        top = total
    return _result(s, g, top, total, FORWARD)


@triton.jit
def _gathered(s, g, top, total, FORWARD: tl.constexpr):
    """Each entry's largest score and sum of weights so far, or its sum of the gradient, with those of one more tile."""
    if FORWARD:
        weight = tl.exp(tl.where(s == top, 0.0, -tl.abs(s - top)))
        total = tl.where(s > top, total * weight + 1.0, total + weight)
        top = tl.maximum(top, s)
    else:
        total += s * g
    return top, total


@triton.jit
def _merged(top, total, AXIS: tl.constexpr, FORWARD: tl.constexpr):
    """The same along an axis."""
    if FORWARD:
        largest = tl.max(top, AXIS, keep_dims=True)
        total = tl.sum(total * tl.exp(top - tl.where(largest == float("-inf"), 0.0, largest)), AXIS, keep_dims=True)
        top = largest
    else:
        total = tl.sum(total, AXIS, keep_dims=True)
        top = total
    return top, total


@launched
@triton.jit(do_not_specialize=["P", "B", "steps"])
def _over_keys(a, grad, out, offsets, blocks, P, B, steps, H, a_strides, g_strides, SPAN: tl.constexpr):
    """The weights of some queries of one row and head, about SPAN pairs."""
    clear_past(out, blocks, B, P, H, 1024)
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    slot = tl.cast(tl.program_id(0) // H, tl.int64)
    _, first, last, _, length, block = queries_of(offsets, blocks, slot, P, B, steps, SPAN)
    a += h * a_strides[1]
    out += h
    if grad is not None:
        grad += h * g_strides[1]
    if (length % 8 == 0) & (block % 8 == 0):
        _keys_of_queries(a, grad, out, first, last, length // 8 * 8, block // 8 * 8, H, a_strides[0], g_strides[0])
    else:
        _keys_of_queries(a, grad, out, first, last, length, block, H, a_strides[0], g_strides[0])


@triton.jit
def _keys_of_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride):
    if length <= 64:
        _whole_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, 32, 64)
    elif length <= 256:
        _whole_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, 8, 256)
    elif length <= 1024:
        _whole_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, 2, 1024)
    elif length <= 4096:
        _whole_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, 1, 4096)
    else:
        _long_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, 2048)


@triton.jit
def _whole_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, BM: tl.constexpr,
                   BN: tl.constexpr):
    """Queries whose keys one tile holds, BM at a time."""
    keys = tl.arange(0, BN)
    for i in range(first, last, BM):
        base, at, inside = pairs_of(i, tl.arange(0, BM), keys, last, length, block)
        s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
        tl.store(out + base * H + at * H, _whole(s, g, 1, grad is None).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _long_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, BN: tl.constexpr):
    """Queries with more keys than a tile holds, one at a time: read for what they are divided by, and once more."""
    for i in range(first, last):
        top = tl.full([1, BN], float("-inf"), tl.float32)
        total = tl.zeros([1, BN], tl.float32)
        for n in range(0, length, BN):
            base, at, inside = pairs_of(i, tl.arange(0, 1), n + tl.arange(0, BN), last, length, block)
            s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
            top, total = _gathered(s, g, top, total, grad is None)
        largest, sums = _merged(top, total, 1, grad is None)
        for n in range(0, length, BN):
            base, at, inside = pairs_of(i, tl.arange(0, 1), n + tl.arange(0, BN), last, length, block)
            s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
            tl.store(out + base * H + at * H,
                     _result(s, g, largest, sums, grad is None).to(out.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["P", "B", "steps"])
def _over_queries(a, grad, out, offsets, blocks, P, B, steps, H, a_strides, g_strides, STRIP: tl.constexpr):
    """The weights of strips of keys of one head, one strip after the other."""
    clear_past(out, blocks, B, P, H, 1024)
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    a += h * a_strides[1]
    out += h
    if grad is not None:
        grad += h * g_strides[1]
    strips = (tl.load(offsets + B) // STRIP + B).to(tl.int64)
    for slot in range(tl.cast(tl.program_id(0) // H, tl.int64), strips, tl.num_programs(0) // H):
        row, part = row_of(offsets, slot, B, steps, STRIP)
        length = (tl.load(offsets + row + 1) - tl.load(offsets + row)).to(tl.int32)
        block, held = block_of(blocks, row, length, P)
        first = (part * STRIP).to(tl.int32)
        if first < length:
            if length <= 64:
                _whole_keys(a, grad, out, first, held, length, block, H, a_strides[0], g_strides[0], 64, STRIP)
            elif length <= 128:
                _whole_keys(a, grad, out, first, held, length, block, H, a_strides[0], g_strides[0], 128, STRIP)
            else:
                _long_keys(a, grad, out, first, held, length, block, H, a_strides[0], g_strides[0], 64, STRIP)


@triton.jit
def _whole_keys(a, grad, out, first, held, length, block, H, a_stride, g_stride, BM: tl.constexpr, BN: tl.constexpr):
    """BN keys whose queries one tile holds."""
    keys = first + tl.arange(0, BN)
    base, at, inside = pairs_of(0, tl.arange(0, BM), keys, held, length, block)
    s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
    tl.store(out + base * H + at * H, _whole(s, g, 0, grad is None).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _long_keys(a, grad, out, first, held, length, block, H, a_stride, g_stride, BM: tl.constexpr, BN: tl.constexpr):
    """BN keys with more queries than a tile holds; read a second time from the last, which a cache still holds."""
    keys = first + tl.arange(0, BN)
    top = tl.full([BM, BN], float("-inf"), tl.float32)
    total = tl.zeros([BM, BN], tl.float32)
    for i in range(0, length, BM):
        base, at, inside = pairs_of(i, tl.arange(0, BM), keys, held, length, block)
        s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
        top, total = _gathered(s, g, top, total, grad is None)
    largest, sums = _merged(top, total, 0, grad is None)
    tiles = tl.cdiv(length, BM)
    for i in range(0, tiles):
        base, at, inside = pairs_of((tiles - 1 - i) * BM, tl.arange(0, BM), keys, held, length, block)
        s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
        tl.store(out + base * H + at * H, _result(s, g, largest, sums, grad is None).to(out.dtype.element_ty),
                 mask=inside)
