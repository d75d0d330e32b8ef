"""The kernels of the softmax of blocks, over keys or over queries, and of its gradient.

Numbers are read once where a tile holds all that a weight is divided by; else twice. `grad` is None in the forward
pass; in the backward pass the scores are the weights that it gave.
"""

# ruff: noqa: N803

from math import isqrt

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from .rows import (
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

_SPAN, _SMALL, _MANY = 16384, 4096, 2**28  # pairs of a program over keys; of small ones, up to so many pairs in all
_QUERIES, _KEYS, _TURNS = 64, 128, 8  # of a tile over queries, and how many a program has
_REGISTERS = 128  # of a thread over queries: fewer leave no room for a tile, more for other programs
_SHORT, _FEW = 256, 16  # queries that a tile holds whole, of so many keys
_AHEAD = 256  # tiles over queries that are read, more than have to be, before the first of them is read again


def launch(a: Tensor, grad: Tensor | None, offsets: Tensor, blocks: Tensor, over_queries: bool, out: Tensor) -> None:
    """Fill `out` `(P, H)`, contiguous, from scores, or from weights and their gradient, of any strides."""
    (pairs, heads), rows = a.shape, offsets.shape[0] - 1
    strides = a.stride(), (0, 0) if grad is None else grad.stride()
    if over_queries:
        _launch_over_queries(a, grad, offsets, blocks, out, strides)
        return
    narrow = heads == 1 and a.itemsize == 2  # numbers that are apart have an address each, in registers
    span = _SMALL if narrow and pairs <= _MANY else _SPAN
    warps = 2 if narrow else 4 if heads == 1 else 8
    _over_keys[((pairs // span + rows) * heads,)](a, grad, out, offsets, blocks, pairs, rows, heads, *strides, span,
                                                  num_warps=warps)


def _launch_over_queries(a: Tensor, grad: Tensor | None, offsets: Tensor, blocks: Tensor, out: Tensor,
                         strides: tuple) -> None:
    """Cut rows into units, and read them twice in one launch: so closely that the second read is one of a cache."""
    (pairs, heads), rows, device = a.shape, offsets.shape[0] - 1, a.device
    turns = _TURNS if grad is None else _TURNS // 2
    units, lag, strips = _bounds(pairs, rows, turns * _QUERIES)
    plan = torch.empty(rows + 2, dtype=torch.int32, device=device)
    done = torch.empty(heads, 3, strips, dtype=torch.int32, device=device)
    parts, divisors = ([torch.empty(heads, count * _KEYS, device=device) for _ in range(2 if grad is None else 1)]
                       for count in (units, strips))
    _plan[(1,)](offsets, blocks, plan, done, pairs, rows, done.numel(), turns * _QUERIES, _KEYS, _SHORT, _FEW, _AHEAD,
                1024, num_warps=4)
    whole = whole_words(a) and (grad is None or whole_words(grad))
    (totals, *tops), (scale, *top) = parts, divisors
    _over_queries[(2 * (units + lag) * heads,)](
        a, grad, out, *(tops or [None]), totals, *(top or [None]), scale, done, offsets, blocks, plan, pairs, rows,
        heads, units, strips, *strides, whole, turns, _QUERIES, _KEYS, _SHORT,
        _FEW, num_warps=4, maxnreg=_REGISTERS)


def _bounds(pairs: int, rows: int, unit: int) -> tuple[int, int, int]:
    """Return no less than the number of units, how many of them the second read comes later, and that of strips.

    A unit has up to `unit` queries. Rows of so many pairs have at most the root of pairs times rows events.
    """
    long = min(rows, pairs // _SHORT**2)
    events, of_long, longest = (isqrt(pairs * count) + 1 for count in (rows, long, 1))
    units = pairs // (unit * _KEYS) + of_long * 8 // _KEYS + of_long * 2 // unit + 9 * long
    units += min(events, rows * _SHORT) // _FEW + rows + 1
    return (units, 2 * (longest // unit + 8) + _AHEAD, events // _KEYS + 3 * rows + 1)


@triton.jit
def _tile(a, grad, base, at, a_stride, g_stride, inside):
    """Scores of a tile, -inf where there are none, and again; or weights and their gradient, 0 there. As float32."""
    s, g = _given(a, grad, base, at, a_stride, g_stride, inside)
    return s.to(tl.float32), g.to(tl.float32)


@triton.jit
def _given(a, grad, base, at, a_stride, g_stride, inside):
    """The same as they are."""
    if grad is None:
        s = tl.load(a + base * a_stride + at * a_stride, mask=inside, other=float("-inf"))
        g = s
    else:
        s = tl.load(a + base * a_stride + at * a_stride, mask=inside, other=0.0)
        g = tl.load(grad + base * g_stride + at * g_stride, mask=inside, other=0.0)
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
@triton.jit(do_not_specialize=["P", "B"])
def _over_keys(a, grad, out, offsets, blocks, P, B, H, a_strides, g_strides, SPAN: tl.constexpr):
    """The weights of some queries of one row and head, about SPAN pairs."""
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    slot = tl.cast(tl.program_id(0) // H, tl.int64)
    _, first, last, _, length, block = queries_of(offsets, blocks, slot, P, B, SPAN)
    clear_past(out, blocks, B, P, H, 1024)
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
@triton.jit(do_not_specialize=["P", "B", "counters"])
def _plan(offsets, blocks, plan, done, P, B, counters, UNIT: tl.constexpr, BN: tl.constexpr, SHORT: tl.constexpr,
          FEW: tl.constexpr, AHEAD: tl.constexpr, STEP: tl.constexpr):
    """Before which unit rows begin, how much later than the first the second read comes; counters to 0. One program."""
    step = tl.arange(0, STEP)
    before = tl.zeros([1], tl.int32)
    most = tl.zeros([1], tl.int32)
    tl.store(plan + tl.arange(0, 1), before)
    for n in range(0, B, STEP):
        inside = n + step < B
        start = tl.load(offsets + n + step, mask=inside, other=0).to(tl.int64)
        length = (tl.load(offsets + n + step + 1, mask=inside, other=0).to(tl.int64) - start).to(tl.int32)
        held = inside & (tl.load(blocks + n + step + 1, mask=inside, other=0) <= P)
        each = _units_of(length, UNIT)[2]
        count = tl.where(length <= SHORT, tl.cdiv(length, FEW), tl.cdiv(length + 7, BN) * each)
        count = tl.where(held, count, 0)
        most = tl.maximum(most, tl.max(tl.where(held & (length > SHORT), each, 0), 0))
        tl.store(plan + n + step + 1, before + tl.cumsum(count, 0), mask=inside)
        before += tl.sum(count, 0)
    tl.store(plan + B + 1 + tl.arange(0, 1), 2 * most + AHEAD)
    for n in range(0, counters, STEP):
        tl.store(done + n + step, tl.zeros([STEP], tl.int32), mask=n + step < counters)


@triton.jit
def _units_of(length, UNIT: tl.constexpr):
    """Every how many queries of a row one is taken, how many units such a group has, and all groups; of one strip."""
    period = period_of(length)
    parts = tl.cdiv(tl.cdiv(length, period), UNIT)
    return period, parts, period * parts


@launched
@triton.jit(do_not_specialize=["P", "B", "units", "strips"])
def _over_queries(a, grad, out, tops, totals, top, scale, done, offsets, blocks, plan, P, B, H, units, strips,
                  a_strides, g_strides, WHOLE: tl.constexpr, TURNS: tl.constexpr, BM: tl.constexpr,
                  BN: tl.constexpr, SHORT: tl.constexpr, FEW: tl.constexpr):
    """One read of a unit of one head: some keys of a short row, and their weights; or a tile of a long one."""
    clear_past(out, blocks, B, P, H, 1024)
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    turn = tl.program_id(0) // H
    again = turn % 2
    unit = turn // 2 - again * tl.load(plan + B + 1)
    if (unit >= 0) & (unit < tl.load(plan + B)):
        row, own = row_of(plan, unit, B, None)
        start = tl.load(offsets + row).to(tl.int64)
        length = (tl.load(offsets + row + 1).to(tl.int64) - start).to(tl.int32)
        block = tl.load(blocks + row)
        a += h * a_strides[1]
        out += h
        if grad is not None:
            grad += h * g_strides[1]
        if length <= SHORT:
            if again == 0:
                key = own * FEW
                if length <= 64:
                    _whole_keys(a, grad, out, key, length, block, H, a_strides[0], g_strides[0], 64, FEW)
                else:
                    _whole_keys(a, grad, out, key, length, block, H, a_strides[0], g_strides[0], SHORT, FEW)
        else:
            totals += (h * units + unit - own) * BN
            scale += h * strips * BN + start
            if grad is None:
                tops += (h * units + unit - own) * BN
                top += h * strips * BN + start
            done += h * 3 * strips + start // BN + 3 * row
            _tile_of_keys(a, grad, out, tops, totals, top, scale, done, own, again, length, block, H, strips,
                          a_strides[0], g_strides[0], WHOLE, TURNS, BM, BN)


@triton.jit
def _whole_keys(a, grad, out, key, length, block, H, a_stride, g_stride, BM: tl.constexpr, BN: tl.constexpr):
    """The weights of BN keys of a row whose queries one tile holds."""
    columns = tl.arange(0, BN)
    base, at, inside = pairs_of(0, tl.arange(0, BM), key, columns, columns < length - key, length, length, block, False)
    s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
    top = _largest(s, g, 0, grad is None)
    scale = _scale(_total(s, g, top, 0, grad is None), grad is None)
    tl.store(out + base * H + at * H, _result(s, g, top, scale, grad is None).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _tile_of_keys(a, grad, out, tops, totals, top, scale, done, unit, again, length, block, H, strips, a_stride,
                  g_stride, WHOLE: tl.constexpr, TURNS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """What some queries of a row add to what BN keys are divided by; or, once that is known, the weights of both.

    They are tiles of BM queries that begin alike, and of keys from where a word of these begins, as many words after
    the first for all units of a strip: so its keys differ by less than 8 from one such group of queries to another.
    """
    period, parts, each = _units_of(length, TURNS * BM)
    last = tl.cdiv(length + 7, BN) - 1
    strip = unit // each
    group = unit % each // parts
    shift = ((block + tl.cast(group, tl.int64) * length) % 8).to(tl.int32)
    column = tl.arange(0, BN)
    words = strip * BN + column  # as counted from where the word begins that has the first pair of a query
    first = group + unit % parts * TURNS * BM * period
    end = tl.minimum(first + TURNS * BM * period, length)
    step = tl.arange(0, BM) * period
    key = strip * BN - shift
    if again == 0:
        there = words_at(words, shift, length, WHOLE)
        largest = tl.full([1, BM // 8, BN], float("-inf"), tl.float32)
        total = tl.zeros([1, BM // 8, BN], tl.float32)
        for i in tl.range(first, end, BM * period, num_stages=3 if grad is None else 1):
            base, at, inside = pairs_of(i, step, key, column, there, length, length, block, True)
            s, g = _given(a, grad, base, at, a_stride, g_stride, inside)
            largest, total = _added(s, g, largest, total, grad is None, BM, BN)
        total = total.reshape([BM // 8, BN])
        if grad is None:
            of_each = largest.reshape([BM // 8, BN])
            of_all = tl.max(of_each, 0)
            total *= _weight(of_each, of_all[None, :])
            tl.store(tops + unit * BN + column, of_all)
        tl.store(totals + unit * BN + column, tl.sum(total, 0))
        tl.debug_barrier()  # all have stored before others are told
        if tl.atomic_add(done + strip, 1) == each - 1:
            if tl.atomic_add(done + strips + strip, 1) == tl.minimum(strip, 1):
                _divisors(tops, totals, top, scale, done + 2 * strips, strip, length, block, grad is None, TURNS * BM,
                          BN)
            if tl.atomic_add(done + strips + strip + 1, 1) == 1:
                _divisors(tops, totals, top, scale, done + 2 * strips, strip + 1, length, block, grad is None,
                          TURNS * BM, BN)
    else:
        whole = (words >= (shift + 7) // 8 * 8) & (words < (shift + length) // 8 * 8)
        both = tl.where(strip < last, 2, 1)
        while tl.atomic_add(done + 2 * strips + strip, 0, sem="acquire") < both:  # by programs that began before
            pass
        its_top, its_scale = _divisor_of(top, scale, words - shift, whole)
        outer = (strip == 0) | (strip >= last - 1)
        for i in range(first, end, BM * period):
            base, at, inside = pairs_of(i, step, key, column, whole, length, length, block, True)
            more, with_more = _tile(a, grad, base, at, a_stride, g_stride, inside)
            value = _result(more, with_more, its_top, its_scale, grad is None)
            tl.store(out + base * H + at * H, value.to(out.dtype.element_ty), mask=inside)
        if outer:  # pairs that share a word with those of other queries
            for i in range(first, end, BM * period):
                _store_ends(a, grad, out, top, scale, i, step, strip, shift, length, block, H, a_stride, g_stride, BN)


@triton.jit
def _divisor_of(top, scale, keys, there):
    """The largest scores at keys, and what weights are multiplied by; or the sums of gradients twice."""
    its_scale = tl.load(scale + keys, mask=there, other=0.0)[None, :]
    its_top = its_scale
    if top is not None:
        its_top = tl.load(top + keys, mask=there, other=0.0)[None, :]
    return its_top, its_scale


@triton.jit
def _store_ends(a, grad, out, top, scale, first, step, strip, shift, length, block, H, a_stride, g_stride,
                BN: tl.constexpr):
    """The weights of what keys a strip has on either side of the words of some queries."""
    head, count = words_of(shift, length)
    ends, there = ends_of(head, count, length)
    there &= (shift + ends) // BN == strip
    its_top, its_scale = _divisor_of(top, scale, ends, there)
    base, at, inside = pairs_of(first, step, 0, ends, there, length, length, block, False)
    s, g = _tile(a, grad, base, at, a_stride, g_stride, inside)
    value = _result(s, g, its_top, its_scale, grad is None)
    tl.store(out + base * H + at * H, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _added(s, g, largest, total, FORWARD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The largest scores of what a thread has of each key, and the sums of their weights, with one more tile."""
    s = s.to(tl.float32).reshape([8, BM // 8, BN])  # queries that a thread has: no one else need be asked
    g = g.to(tl.float32).reshape([8, BM // 8, BN])
    if FORWARD:
        most = tl.maximum(largest, tl.max(s, 0, keep_dims=True))
        total = total * _weight(largest, most) + _total(s, g, most, 0, True)
        largest = most
    else:
        total += _total(s, g, largest, 0, False)
    return largest, total


@triton.jit
def _divisors(tops, totals, top, scale, known, strip, length, block, FORWARD: tl.constexpr, UNIT: tl.constexpr,
              BN: tl.constexpr):
    """What BN keys are divided by, those that no tile past a strip has and any of the strip: from both it and the last.

    Tiles are added in their order, whoever adds them.
    """
    _, parts, each = _units_of(length, UNIT)
    keys = strip * BN - 7 + tl.arange(0, BN)
    own = (keys >= 0) & (keys < length)
    of_all = tl.full([BN], float("-inf"), tl.float32)
    total = tl.zeros([BN], tl.float32)
    for n in range(0, each, 1024 // BN):
        unit = n + tl.arange(0, 1024 // BN)
        shift = ((block + (unit // parts).to(tl.int64) * length) % 8).to(tl.int32)
        word = shift[:, None] + keys[None, :]
        at = (word // BN * each + unit[:, None]) * BN + word % BN
        inside = (unit < each)[:, None] & own[None, :]
        these = tl.load(totals + at, mask=inside, other=0.0)
        if FORWARD:
            largest = tl.load(tops + at, mask=inside, other=float("-inf"))
            of_these = tl.max(largest, 0)
            these = tl.sum(these * _weight(largest, of_these[None, :]), 0)
            of_all, total = _joined(of_all, total, of_these, these, True)
        else:
            total += tl.sum(these, 0)
    tl.store(scale + keys, _scale(total, FORWARD), mask=own)
    if FORWARD:
        tl.store(top + keys, of_all, mask=own)
    tl.debug_barrier()  # all have stored before others are told
    tl.atomic_add(known + strip, 1, sem="release")
    if strip > 0:
        tl.atomic_add(known + strip - 1, 1, sem="release")
