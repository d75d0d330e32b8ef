"""The kernels of the softmax of blocks, over keys or over queries, and of its gradient.

Numbers are read once where a tile holds all that a weight is divided by; else twice. `grad` is None in the forward
pass; in the backward pass the scores are the weights that it gave.
"""

# ruff: noqa: N803

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from .rows import (
    bisections,
    block_of,
    clear_past,
    ends_of,
    pairs_of,
    period_of,
    queries_of,
    row_of,
    whole_words,
    words_at,
    words_of,
)

_SPAN = 16384  # pairs of a program over keys
_QUERIES, _KEYS = 32, 128  # that a program over queries reads at once
_BESIDE = 24  # of these keys those that others own, or that some queries have not
_PROGRAMS = 2048  # over queries, at most: how many strips there are is known on the device alone


def launch(a: Tensor, grad: Tensor | None, offsets: Tensor, blocks: Tensor, over_queries: bool, out: Tensor) -> None:
    """Fill `out` `(P, H)`, contiguous, from scores, or from weights and their gradient, of any strides."""
    (pairs, heads), rows = a.shape, offsets.shape[0] - 1
    strides = a.stride(), (0, 0) if grad is None else grad.stride()
    given = a, grad, out, offsets, blocks, pairs, rows, bisections(offsets), heads, *strides
    if over_queries:
        programs, whole = min(pairs // (_KEYS - _BESIDE) + rows, _PROGRAMS), whole_words(a)
        _over_queries[(programs * heads,)](*given, whole if grad is None else whole and whole_words(grad), _QUERIES,
                                           _KEYS, _KEYS - _BESIDE, num_warps=4)
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
def _weight(s, top):
    """The exponential of scores less the largest one, or less 0 where all are -inf."""
    return tl.exp2((s - tl.where(top == float("-inf"), 0.0, top)) * 1.4426950408889634)


@triton.jit
def _largest(s, g, AXIS: tl.constexpr, FORWARD: tl.constexpr):
    """The largest score along an axis; gradients need none."""
    return tl.max(s, AXIS, keep_dims=True) if FORWARD else tl.zeros([1, 1], tl.float32)


@triton.jit
def _total(s, g, top, AXIS: tl.constexpr, FORWARD: tl.constexpr):
    """The sum of weights along an axis; or of weights times their gradients."""
    return tl.sum(_weight(s, top) if FORWARD else s * g, AXIS, keep_dims=True)


@triton.jit
def _joined(top, total, other, with_other, FORWARD: tl.constexpr):
    """The largest score of two parts and the sum of their weights; or the sum of the two."""
    if FORWARD:
        largest = tl.maximum(top, other)
        total = total * _weight(top, largest) + with_other * _weight(other, largest)
        top = largest
    else:
        total += with_other
    return top, total


@triton.jit
def _scale(total, FORWARD: tl.constexpr):
    """What weights are multiplied by for their sum, which is 0 where all scores are -inf; of gradients the sum."""
    if FORWARD:
        total = 1.0 / tl.where(total == 0.0, 1.0, total)
    return total


@triton.jit
def _result(s, g, top, scale, FORWARD: tl.constexpr):
    """The weights of a tile by the largest scores and the inverse of the sums; or the gradient of its scores."""
    return _weight(s, top) * scale if FORWARD else s * (g - scale)


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
    if length <= 64:
        _queries(a, grad, out, first, last, length, block, H, a_strides[0], g_strides[0], 16, 64)
    elif length <= 256:
        _queries(a, grad, out, first, last, length, block, H, a_strides[0], g_strides[0], 4, 256)
    elif length <= 1024:
        _queries(a, grad, out, first, last, length, block, H, a_strides[0], g_strides[0], 1, 1024)
    elif length <= 2048:
        _queries(a, grad, out, first, last, length, block, H, a_strides[0], g_strides[0], 1, 2048)
    elif length <= 4096:
        _queries(a, grad, out, first, last, length, block, H, a_strides[0], g_strides[0], 1, 4096)
    else:
        _long_queries(a, grad, out, first, last, length, block, H, a_strides[0], g_strides[0], 2048)


@triton.jit
def _queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, BM: tl.constexpr, BN: tl.constexpr):
    """Queries whose keys one tile holds, BM at a time: the words of their pairs, and both ends of them."""
    step = tl.arange(0, BM)
    columns = tl.arange(0, BN)
    for i in range(first, last, BM):
        base, begin, head, count = _lines(i, step, length, block)
        at = ((begin + head) // 8 * 8)[:, None] + columns[None, :]
        inside = (i + step < last)[:, None] & (columns[None, :] < count[:, None])
        s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
        ends, there = ends_of(head[:, None], count[:, None], length)
        past = begin[:, None] + ends
        outer = (i + step < last)[:, None] & there
        more, with_more = _tile(a, grad, base, past, a_stride, g_stride, outer)
        top = tl.maximum(_largest(s, g, 1, grad is None), _largest(more, with_more, 1, grad is None))
        total = _total(s, g, top, 1, grad is None) + _total(more, with_more, top, 1, grad is None)
        scale = _scale(total, grad is None)
        tl.store(out + base * H + at * H, _result(s, g, top, scale, grad is None).to(out.dtype.element_ty), mask=inside)
        tl.store(out + base * H + past * H, _result(more, with_more, top, scale, grad is None).to(out.dtype.element_ty),
                 mask=outer)


@triton.jit
def _long_queries(a, grad, out, first, last, length, block, H, a_stride, g_stride, BN: tl.constexpr):
    """Queries with more keys than a tile holds, one at a time: read for what they are divided by, and once more."""
    step = tl.arange(0, 1)
    columns = tl.arange(0, BN)[None, :]
    for i in range(first, last):
        base, begin, head, count = _lines(i, step, length, block)
        words = ((begin + head) // 8 * 8)[:, None]
        ends, outer = ends_of(head[:, None], count[:, None], length)
        past = begin[:, None] + ends
        more, with_more = _tile(a, grad, base, past, a_stride, g_stride, outer)
        top = _largest(more, with_more, 1, grad is None)
        total = _total(more, with_more, top, 1, grad is None)
        for n in range(0, length, BN):
            inside = columns < count[:, None] - n
            s, g = _tile(a, grad, base, words + n + columns, a_stride, g_stride, inside)
            other = _largest(s, g, 1, grad is None)
            top, total = _joined(top, total, other, _total(s, g, other, 1, grad is None), grad is None)
        scale = _scale(total, grad is None)
        for n in range(0, length, BN):
            inside = columns < count[:, None] - n
            at = words + n + columns
            s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
            tl.store(out + base * H + at * H, _result(s, g, top, scale, grad is None).to(out.dtype.element_ty),
                     mask=inside)
        tl.store(out + base * H + past * H, _result(more, with_more, top, scale, grad is None).to(out.dtype.element_ty),
                 mask=outer)


@triton.jit
def _lines(first, step, length, block):
    """Where the pairs of the queries `first + step` begin, (M,), from the word on that has the first pair, int64.

    Also the first of their keys whose pair begins a word, and how many from there fill words.
    """
    place = block + tl.cast(first, tl.int64) * length
    begin = (place % 8).to(tl.int32) + step * length
    head, count = words_of(begin, length)
    return place // 8 * 8, begin, head, count


@launched
@triton.jit(do_not_specialize=["P", "B", "steps"])
def _over_queries(a, grad, out, offsets, blocks, P, B, steps, H, a_strides, g_strides, WHOLE: tl.constexpr,
                  BM: tl.constexpr, BN: tl.constexpr, STRIP: tl.constexpr):
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
                _whole_keys(a, grad, out, held, length, block, H, a_strides[0], g_strides[0], 64, 32)
            else:
                _strip(a, grad, out, first, held, length, block, H, a_strides[0], g_strides[0], WHOLE, BM, BN, STRIP)


@triton.jit
def _whole_keys(a, grad, out, held, length, block, H, a_stride, g_stride, BM: tl.constexpr, BN: tl.constexpr):
    """BN keys at a time of a row whose queries one tile holds."""
    columns = tl.arange(0, BN)
    for n in range(0, length, BN):
        base, at, inside = pairs_of(0, tl.arange(0, BM), n, columns, columns < length - n, held, length, block, False)
        s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
        top = _largest(s, g, 0, grad is None)
        scale = _scale(_total(s, g, top, 0, grad is None), grad is None)
        tl.store(out + base * H + at * H, _result(s, g, top, scale, grad is None).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _strip(a, grad, out, first, held, length, block, H, a_stride, g_stride, WHOLE: tl.constexpr, BM: tl.constexpr,
           BN: tl.constexpr, STRIP: tl.constexpr):
    """The weights of STRIP keys from `first` on, give or take where words of 8 begin. Pairs are read twice.

    Queries that begin alike are read together, words of 8 from the one before that of key `first` on. So the key in a
    column differs from one such group of queries to another, by less than 8: each key's sum comes from other columns.
    """
    column = tl.arange(0, BN)
    words = first - 8 + column  # as counted from where the word begins that has the first pair of a query
    period = period_of(length)
    steps = tl.arange(0, BM) * period
    top = tl.full([BN], float("-inf"), tl.float32)
    total = tl.zeros([BN], tl.float32)
    for own in range(0, tl.minimum(period, held)):
        shift = ((block + tl.cast(own, tl.int64) * length) % 8).to(tl.int32)
        there = words_at(words, shift, length, WHOLE)
        tops = tl.full([1, BM // 4, BN], float("-inf"), tl.float32)
        totals = tl.zeros([1, BM // 4, BN], tl.float32)
        for i in tl.range(own, held, BM * period, num_stages=3):
            base, at, inside = pairs_of(i, steps, first - 8 - shift, column, there, held, length, block, True)
            s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
            s = s.reshape([4, BM // 4, BN])  # four queries that a thread has: no one else need be asked
            g = g.reshape([4, BM // 4, BN])
            if grad is None:
                largest = tl.maximum(tops, tl.max(s, 0, keep_dims=True))
                totals = totals * _weight(tops, largest) + _total(s, g, largest, 0, True)
                tops = largest
            else:
                totals += _total(s, g, tops, 0, False)
        s = tops.reshape([BM // 4, BN])
        g = totals.reshape([BM // 4, BN])
        if grad is None:
            largest = tl.max(s, 0)
            sums = tl.sum(g * _weight(s, largest[None, :]), 0)
        else:
            sums = tl.sum(g, 0)
            largest = sums
        from_column = tl.minimum(column + shift, BN - 1)
        top, total = _joined(top, total, tl.gather(largest, from_column, 0), tl.gather(sums, from_column, 0),
                             grad is None)
    scale = _scale(total, grad is None)
    end = first + STRIP + tl.where(first + STRIP < length, 0, 8)
    mine = (words >= first) & (words < end)
    groups = tl.minimum(period, held)
    for group in range(0, groups):  # backwards: a cache still has the last pairs
        own = groups - 1 - group
        shift = ((block + tl.cast(own, tl.int64) * length) % 8).to(tl.int32)
        from_column = tl.maximum(column - shift, 0)
        tops = tl.gather(top, from_column, 0)[None, :]
        scales = tl.gather(scale, from_column, 0)[None, :]
        whole = mine & (words >= (shift + 7) // 8 * 8) & (words < (shift + length) // 8 * 8)
        tiles = tl.cdiv(held - own, BM * period)
        for tile in tl.range(0, tiles, num_stages=3):
            i = own + (tiles - 1 - tile) * BM * period
            base, at, inside = pairs_of(i, steps, first - 8 - shift, column, whole, held, length, block, True)
            s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
            tl.store(out + base * H + at * H, _result(s, g, tops, scales, grad is None).to(out.dtype.element_ty),
                     mask=inside)
        head, count = words_of(shift, length)
        if ((first == 0) | (end > length)) & (count < length):  # pairs that share a word with those of other queries
            ends, are_there = ends_of(head, count, length)
            are_there = are_there & (shift + ends >= first) & (shift + ends < end)
            from_key = tl.minimum(tl.maximum(ends - first + 8, 0), BN - 1)
            its_tops = tl.gather(top, from_key, 0)[None, :]
            its_scales = tl.gather(scale, from_key, 0)[None, :]
            for i in range(own, held, BM * period):
                base, at, inside = pairs_of(i, steps, 0, ends, are_there, held, length, block, False)
                s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
                found = _result(s, g, its_tops, its_scales, grad is None)
                tl.store(out + base * H + at * H, found.to(out.dtype.element_ty), mask=inside)
