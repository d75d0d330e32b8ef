"""The kernels of products with square blocks: `X Yᵀ` into a block, and a block or its transpose times events.

A program owns a tile of events of one row and head and goes through the other side of the row, or an eighth of it,
tile by tile; sums are float32. The three are each other's gradients; see `autograd.py`.

Queries of a tile have pairs that begin at the same place of a word of 8, so that all are read and written by words: in
a row of odd length these are every eighth query, then every eighth from the next one on. The order of these groups, one
after the other, is what places of queries are counted in. Where rows are too short for that, queries stay in order and
pairs are read one by one.
"""

# ruff: noqa: N803, N806

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...bmm.triton.tile import precision
from ...launch import has_gluon, launched
from ...sizes import ceil_div, power_of_two
from .rows import (
    block_of,
    clear_past,
    ends_of,
    events_of,
    groups_of,
    pairs_of,
    share_of,
    whole_words,
    words_at,
    words_of,
)


class Sizes(NamedTuple):
    """Events of a tile, of the blocks it goes through, columns at once, warps, stages, registers at most."""

    tile: int
    block: int
    columns: int
    warps: int
    stages: int
    registers: int | None = None


def _short(x: Tensor, offsets: Tensor) -> bool:
    """Return whether rows of x `(T, H, D)` have 64 events or fewer on average."""
    return x.shape[0] <= 64 * (offsets.shape[0] - 1)


def _sizes(x: Tensor, short: bool, sums: bool) -> Sizes:
    """Return the sizes for events like `x` `(T, H, D)`: as large as leaves room for several programs at once."""
    columns = max(16, power_of_two(x.shape[2]))
    if x.dtype == torch.float32:  # three products each, or none of the matrix unit: operands want registers
        return Sizes(64, 32, min(columns, 64), 4, 2) if sums else \
            Sizes(64, 64, min(columns, 32 if short else 64), 4, 2)
    columns = columns if columns <= 128 else 64
    if short:
        return Sizes(64, 64, columns, 4, 2)
    if sums:
        return Sizes(128, 64, columns, 8 if columns == 128 else 4, 4)
    return Sizes(64, 128, columns, 4, 2) if columns == 128 else Sizes(64, 256, columns, 8, 3, 128)


def _on_hopper(x: Tensor, y: Tensor, offsets: Tensor) -> bool:
    """Whether `hopper` takes events x and y `(T, H, D)`: of half precision, one head, 72 to 128 wide, made of words; in
    rows of more than 384 on average: a program has 256 keys.
    """
    wide = x.itemsize == 2 and x.shape[1] == 1 and 64 < x.shape[2] <= 128
    return wide and x.is_cuda and x.shape[0] > 384 * (offsets.shape[0] - 1) and has_gluon(x.device) \
        and all(each.data_ptr() % 16 == 0 and each.shape[2] % 8 == each.stride(0) % 8 == 0 for each in (x, y))


def launch(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Fill `out` `(P, H)`, contiguous, from x and y `(T, H, D)`. The last stride of these is 1."""
    if _on_hopper(x, y, offsets):
        from . import hopper

        hopper.launch(x, y, offsets, blocks, out)
        return
    (events, heads, width), rows, short = x.shape, offsets.shape[0] - 1, _short(x, offsets)
    sizes = _sizes(x, short, sums=False)
    each = 1 if short else 8
    _products[((events // (sizes.block - 8) + rows) * each * heads,)](
        x, y, out, offsets, blocks, events, out.shape[0], rows, heads, x.stride()[:2],
        y.stride()[:2], width, sizes.columns, sizes.tile, sizes.block, each, precision(x.dtype, short),
        num_warps=sizes.warps, num_stages=sizes.stages, maxnreg=sizes.registers)


def launch_sums(a: Tensor, events: tuple[Tensor | None, Tensor | None], offsets: Tensor, blocks: Tensor,
                outs: tuple[Tensor | None, Tensor | None]) -> None:
    """Fill `outs` `(T, H, D)`, contiguous: a times events, and its transpose times events, or one of the two.

    a `(P, H)` of any strides; events `(T, H, D)`, whose last stride is 1, for each result that is asked for.
    """
    given = next(each for each in events if each is not None)
    (count, heads, width), rows, short = given.shape, offsets.shape[0] - 1, _short(given, offsets)
    sizes = _sizes(given, short, sums=True)
    sides = sum(out is not None for out in outs)
    _sums[((count // (sizes.tile // 2) + rows) * heads * ceil_div(width, sizes.columns) * sides,)](
        a, *events, *outs, offsets, blocks, count, a.shape[0], rows, heads, a.stride(),
        *((0, 0) if each is None else each.stride()[:2] for each in events), whole_words(a), width, sizes.columns,
        sizes.tile, sizes.block, precision(given.dtype, short), num_warps=sizes.warps, num_stages=sizes.stages)


@triton.jit
def _events(source, first, steps, there, d, strides, D: tl.constexpr):
    """The events `first + steps` (N,) at columns d (BD,), (N, BD); 0 where there are none and past the width."""
    at = source + first * strides[0] + steps[:, None] * strides[0] + d[None, :]
    return tl.load(at, mask=there[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _places_of(length, BM: tl.constexpr):
    """Every how many queries of a row one is taken, how many places these have, and whether they begin alike.

    A row has a program for each BM // 2 events: groups fill their tiles where these are enough.
    """
    period, alike = groups_of(length, BM)
    each = tl.cdiv(length, period)
    tiles = tl.cdiv(each, BM)
    return period, tl.where(period * tiles <= length // (BM // 2) + 1, tiles * BM, each), alike


@launched
@triton.jit(do_not_specialize=["T", "P", "B"])
def _products(x_source, y_source, out, offsets, blocks, T, P, B, H, x_strides, y_strides, D: tl.constexpr,
              BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, EACH: tl.constexpr, PRECISION: tl.constexpr):
    """The pairs of BN keys of one row and head with each EACH-th of the eighths of its queries."""
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    part = tl.cast(tl.program_id(0) // H, tl.int64)
    row, first, start, length = events_of(offsets, part // EACH, T, B, BN - 8)
    block, held = block_of(blocks, row, length, P)
    clear_past(out, blocks, B, P, H, 1024)
    x_source += start * x_strides[0] + h * x_strides[1]
    y_source += start * y_strides[0] + h * y_strides[1]
    out += h
    first = first // (BN - 8) * BN
    period, alike = groups_of(length, BM)
    for turn in range(0, 8 // EACH):
        turn += (part % EACH).to(tl.int32)
        if alike & (first < length + 7):
            _words(x_source, y_source, out, first, turn % period, turn // period, period, length, block, held, H,
                   x_strides, y_strides, D, BD, BM, BN, PRECISION)
        elif turn * BM < length:
            queries = turn * BM + tl.arange(0, BM)
            few = tl.arange(0, 32)
            for n in range(first, tl.minimum(first + BN, length), 32):
                s = _multiplied(x_source, y_source, queries, queries < length, n, few, few < length - n, x_strides,
                                y_strides, D, BD, PRECISION)
                base, at, inside = pairs_of(turn * BM, tl.arange(0, BM), n, few, few < length - n, held, length, block,
                                            False)
                tl.store(out + base * H + at * H, s.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _words(x_source, y_source, out, first, group, part, period, length, block, held, H, x_strides, y_strides,
           D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):
    """The pairs of a part of a group of queries with the keys of BN places, the first one's words, and what is beside.

    Places are counted from where the word begins that has the first pair of a query.
    """
    begin, end, shift = share_of(length, block, group, part, period, BM)
    column = tl.arange(0, BN)
    there = (first + column >= (shift + 7) // 8 * 8) & (first + column < (shift + length) // 8 * 8)
    d = tl.arange(0, BD)
    y = _events(y_source, first - shift, column, there, d, y_strides, D)
    step = tl.arange(0, BM) * period
    for i in range(begin, end, BM * period):
        if D <= BD:  # keys stay where they are while queries pass by
            x = _events(x_source, i, step, i + step < length, d, x_strides, D)
            s = tl.dot(x, y.T, input_precision=PRECISION)
        else:
            s = _multiplied(x_source, y_source, i + step, i + step < length, first - shift, column, there, x_strides,
                            y_strides, D, BD, PRECISION)
        base, at, inside = pairs_of(i, step, first - shift, column, there, tl.minimum(end, held), length, block, True)
        tl.store(out + base * H + at * H, s.to(out.dtype.element_ty), mask=inside)
    head, count = words_of(shift, length)
    if (first == 0) & (count < length):
        ends, are_there = ends_of(head, count, length)
        for i in range(begin, end, BM * period):
            s = _multiplied(x_source, y_source, i + step, i + step < length, 0, ends, are_there, x_strides, y_strides,
                            D, BD, PRECISION)
            base, at, inside = pairs_of(i, step, 0, ends, are_there, tl.minimum(end, held), length, block, False)
            tl.store(out + base * H + at * H, s.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _multiplied(x_source, y_source, queries, are_there, key, columns, there, x_strides, y_strides, D: tl.constexpr,
                BD: tl.constexpr, PRECISION: tl.constexpr):
    """The products of queries and the keys `key + columns`."""
    d = tl.arange(0, BD)
    x = _events(x_source, 0, queries, are_there, d, x_strides, D)
    y = _events(y_source, key, columns, there, d, y_strides, D)
    s = tl.dot(x, y.T, input_precision=PRECISION)
    for more in range(BD, D, BD):  # of wide events
        x = _events(x_source, 0, queries, are_there, more + d, x_strides, D)
        y = _events(y_source, key, columns, there, more + d, y_strides, D)
        s = tl.dot(x, y.T, s, input_precision=PRECISION)
    return s


@launched
@triton.jit(do_not_specialize=["T", "P", "B"])
def _sums(a, keys, queries, of_queries, of_keys, offsets, blocks, T, P, B, H, a_strides, k_strides, q_strides,
          WHOLE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
          PRECISION: tl.constexpr):
    """BD columns of the sums of some events of one row and head: of queries over keys, or of keys over queries.

    Where both are asked for, the programs of either kind take turns.
    """
    pid = tl.program_id(0)
    if of_keys is None:
        _sums_of_queries(pid, a, keys, of_queries, offsets, blocks, T, P, B, H, a_strides, k_strides, D, BD, BM,
                         BN, PRECISION)
    elif of_queries is None:
        _sums_of_keys(pid, a, queries, of_keys, offsets, blocks, T, P, B, H, a_strides, q_strides, WHOLE, D, BD,
                      BM, BN, PRECISION)
    elif pid % 2 == 0:
        _sums_of_queries(pid // 2, a, keys, of_queries, offsets, blocks, T, P, B, H, a_strides, k_strides, D,
                         BD, BM, BN, PRECISION)
    else:
        _sums_of_keys(pid // 2, a, queries, of_keys, offsets, blocks, T, P, B, H, a_strides, q_strides, WHOLE,
                      D, BD, BM, BN, PRECISION)


@triton.jit
def _sums_of_queries(pid, a_source, y_source, out, offsets, blocks, T, P, B, H, a_strides, y_strides,
                     D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):
    """The sums of BM queries over all keys, from the one at the place of the first query on."""
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    part = pid % (H * CHUNKS)
    h = tl.cast(part % H, tl.int64)
    d = part // H * BD + tl.arange(0, BD)
    row, first, start, length = events_of(offsets, tl.cast(pid // (H * CHUNKS), tl.int64), T, B, BM // 2)
    block, held = block_of(blocks, row, length, P)
    a_source += h * a_strides[1]
    y_source += h * y_strides[1]
    period, each, alike = _places_of(length, BM)
    first *= 2
    if first < each * period:
        place = first + tl.arange(0, BM)
        queries = tl.where(place < each * period, place % each * period + place // each, length)
        total = tl.zeros([BM, BD], tl.float32)
        if alike:
            columns = tl.arange(0, BN)
            for group in range(first // each, tl.minimum((first + BM - 1) // each + 1, period)):
                begin = tl.maximum(first - group * each, 0) * period + group
                own = tl.where(place // each == group, queries, length)
                head, count = words_of(block + tl.cast(begin, tl.int64) * length, length)
                tiles = tl.cdiv(count, BN)
                for i in range(0, tiles):
                    n = (first // BN + i) % tiles * BN
                    a = _pairs(a_source, begin, own - begin, head + n, columns, columns < count - n, held, length,
                               block, a_strides[0], True)
                    y = _events(y_source, start + head + n, columns, columns < count - n, d, y_strides, D)
                    total = tl.dot(a, y, total, input_precision=PRECISION)
                if count < length:
                    ends, there = ends_of(head, count, length)
                    a = _pairs(a_source, begin, own - begin, 0, ends, there, held, length, block, a_strides[0], False)
                    y = _events(y_source, start, ends, there, d, y_strides, D)
                    total = tl.dot(a, y, total, input_precision=PRECISION)
        else:
            few = tl.arange(0, 16)
            for n in range(0, length, 16):
                a = _pairs(a_source, first, queries - first, n, few, few < length - n, held, length, block,
                           a_strides[0], False)
                y = _events(y_source, start + n, few, few < length - n, d, y_strides, D)
                total = tl.dot(a, y, total, input_precision=PRECISION)
        at = out + ((start + queries) * H + h)[:, None] * D + d[None, :]
        tl.store(at, total.to(out.dtype.element_ty), mask=(queries < length)[:, None] & (d < D)[None, :])


@triton.jit
def _sums_of_keys(pid, a_source, y_source, out, offsets, blocks, T, P, B, H, a_strides, y_strides,
                  WHOLE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                  PRECISION: tl.constexpr):
    """The sums of BM keys, or of BM - 8, over all queries, backwards from the one at the place of the first key.

    So programs of both kinds that run side by side come to the same pairs at the same time, one of them from a cache.
    Queries that begin alike are summed together, in words; then which key a word begins with differs from one such
    group of queries to another, by less than 8, and so does where the sum of a key is found. Where all pairs of a row
    begin with a word it does not, and BM keys are summed.
    """
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    part = pid % (H * CHUNKS)
    h = tl.cast(part % H, tl.int64)
    d = part // H * BD + tl.arange(0, BD)
    row, first, start, length = events_of(offsets, tl.cast(pid // (H * CHUNKS), tl.int64), T, B, BM // 2)
    block, held = block_of(blocks, row, length, P)
    a_source += h * a_strides[1]
    y_source += h * y_strides[1]
    period, each, alike = _places_of(length, BM)
    place = tl.minimum(first * 2, (period - 1) * each)
    keys = BM - 8 * ((length % 8 > 0) | (block % 8 > 0)).to(tl.int32)
    first = first // (BM // 2) * keys
    if first < length:
        columns = tl.arange(0, BM)
        total = tl.zeros([BM, BD], tl.float32)
        if alike:
            steps_of = tl.arange(0, BN) * period
            tiles = tl.cdiv(tl.cdiv(length, period), BN)
            middle = tl.minimum(place % each // BN + 1, tiles)
            for turn in range(0, period + 1):  # the group that is begun with also comes last, with what is left of it
                group = (place // each + period - turn) % period
                end = tl.where(turn == 0, middle, tiles)
                shift = ((block + tl.cast(group, tl.int64) * length) % 8).to(tl.int32)
                there = words_at(first + columns, shift, length, WHOLE)
                found = tl.zeros([BM, BD], tl.float32)
                for i in range(tl.where(turn == period, middle, 0), end):
                    begin = (end - 1 - i + tl.where(turn == period, middle, 0)) * BN * period + group
                    a = _pairs(a_source, begin, steps_of, first - shift, columns, there, held, length, block,
                               a_strides[0], True)
                    y = _events(y_source, start + begin, steps_of, begin + steps_of < length, d, y_strides, D)
                    found = tl.dot(a.T, y, found, input_precision=PRECISION)
                if (turn < period) | (middle < tiles):
                    shifted = tl.minimum(columns + shift, BM - 1)[:, None] + tl.zeros([BM, BD], tl.int32)
                    total += tl.gather(found, shifted, 0)
        else:
            few = tl.arange(0, 16)
            for i in range(0, length, 16):
                a = _pairs(a_source, i, few, first, columns, first + columns < length, held, length, block,
                           a_strides[0], False)
                y = _events(y_source, start + i, few, i + few < length, d, y_strides, D)
                total = tl.dot(a.T, y, total, input_precision=PRECISION)
        at = out + ((start + first + columns) * H + h)[:, None] * D + d[None, :]
        own = (columns < keys) & (first + columns < length)
        tl.store(at, total.to(out.dtype.element_ty), mask=own[:, None] & (d < D)[None, :])


@triton.jit
def _pairs(source, first, steps, key, columns, there, held, length, block, stride, WORDS: tl.constexpr):
    """The pairs of the queries `first + steps` with the keys `key + columns`, (M, N); 0 where there are none."""
    base, at, inside = pairs_of(first, steps, key, columns, there, held, length, block, WORDS)
    return tl.load(source + base * stride + at * stride, mask=inside, other=0.0)
