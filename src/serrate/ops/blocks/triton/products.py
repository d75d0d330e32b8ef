"""The kernels of products with square blocks: `X Yᵀ` into a block, and a block or its transpose times events.

A program owns a tile of events of one row and head, goes through the other side of the row tile by tile, and adds in
float32. The three are each other's gradients; see `autograd.py`.

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
from ...launch import launched
from ...sizes import ceil_div, power_of_two
from .rows import (
    bisections,
    block_of,
    clear_past,
    ends_of,
    events_of,
    pairs_of,
    period_of,
    whole_words,
    words_at,
    words_of,
)

_BESIDE = 8  # keys at the end of a tile that some queries have not: the tile of another has them too


class Sizes(NamedTuple):
    """Events of a tile, of the blocks it goes through, columns at once, warps, stages."""

    tile: int
    block: int
    columns: int
    warps: int
    stages: int


def _sizes(x: Tensor, rows: int, sums: bool) -> Sizes:
    """Return the sizes for events like `x` `(T, H, D)`: as large as leaves room for several programs at once."""
    columns = max(16, power_of_two(x.shape[2]))
    if x.dtype == torch.float32:  # three products each, whose operands want registers
        return Sizes(64, 32 if sums else 64, min(columns, 64), 4, 2)
    columns = columns if columns <= 128 else 64
    if x.shape[0] <= 64 * rows:
        return Sizes(64, 64, columns, 4, 2)
    if columns == 128:
        return Sizes(128, 64 if sums else 128, columns, 8, 4 if sums else 3)
    return Sizes(128, 64, columns, 4, 3) if sums else Sizes(64, 128, columns, 4, 3)


def launch(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Fill `out` `(P, H)`, contiguous, from x and y `(T, H, D)`. The last stride of these is 1."""
    (events, heads, width), rows = x.shape, offsets.shape[0] - 1
    sizes = _sizes(x, rows, sums=False)
    _products[((events // sizes.tile + rows) * heads,)](
        x, y, out, offsets, blocks, events, out.shape[0], rows, bisections(offsets), heads, x.stride()[:2],
        y.stride()[:2], width, sizes.columns, sizes.tile, sizes.block, precision(x.dtype), num_warps=sizes.warps,
        num_stages=sizes.stages)


def launch_sums(a: Tensor, events: tuple[Tensor | None, Tensor | None], offsets: Tensor, blocks: Tensor,
                outs: tuple[Tensor | None, Tensor | None]) -> None:
    """Fill `outs` `(T, H, D)`, contiguous: a times events, and its transpose times events, or one of the two.

    a `(P, H)` of any strides; events `(T, H, D)`, whose last stride is 1, for each result that is asked for.
    """
    given = next(each for each in events if each is not None)
    (count, heads, width), rows = given.shape, offsets.shape[0] - 1
    sizes = _sizes(given, rows, sums=True)
    slots = count // (sizes.tile if outs[1] is None else sizes.tile - _BESIDE) + rows
    sides = sum(out is not None for out in outs)
    _sums[(slots * heads * ceil_div(width, sizes.columns) * sides,)](
        a, *events, *outs, offsets, blocks, count, a.shape[0], rows, bisections(offsets), heads, a.stride(),
        *((0, 0) if each is None else each.stride()[:2] for each in events), whole_words(a), width, sizes.columns,
        sizes.tile, sizes.block, _BESIDE, precision(given.dtype), num_warps=sizes.warps, num_stages=sizes.stages)


@triton.jit
def _events(source, first, steps, there, d, strides, D: tl.constexpr):
    """The events `first + steps` (N,) at columns d (BD,), (N, BD); 0 where there are none and past the width."""
    at = source + first * strides[0] + steps[:, None] * strides[0] + d[None, :]
    return tl.load(at, mask=there[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _groups_of(length, TILE: tl.constexpr):
    """Every how many queries one is taken of a row, how many are then in a group, and whether these begin alike."""
    period = period_of(length)
    alike = (period == 1) | (length >= TILE // 2 * period)
    period = tl.where(alike, period, 1)
    return period, tl.cdiv(length, period), alike


@launched
@triton.jit(do_not_specialize=["T", "P", "B", "steps"])
def _products(x_source, y_source, out, offsets, blocks, T, P, B, steps, H, x_strides, y_strides, D: tl.constexpr,
              BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):
    """The pairs of BM queries of one row and head with all keys."""
    clear_past(out, blocks, B, P, H, 1024)
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    row, first, start, length = events_of(offsets, tl.cast(tl.program_id(0) // H, tl.int64), T, B, steps, BM)
    block, held = block_of(blocks, row, length, P)
    x_source += h * x_strides[1]
    y_source += h * y_strides[1]
    out += h
    if first < length:
        period, each, alike = _groups_of(length, BM)
        place = first + tl.arange(0, BM)
        queries = tl.where(place < each * period, place % each * period + place // each, length)
        columns = tl.arange(0, BN)
        x = _events(x_source, start, queries.to(tl.int64), queries < length, tl.arange(0, BD), x_strides, D)
        if alike:
            for group in range(first // each, tl.minimum((first + BM - 1) // each + 1, period)):
                begin = tl.maximum(first - group * each, 0) * period + group
                own = tl.where(place // each == group, queries, length)
                head, count = words_of(block + tl.cast(begin, tl.int64) * length, length)
                for n in range(0, count, BN):
                    _multiply(x, x_source, y_source, out, begin, own, head + n, columns, columns < count - n, start,
                              length, block, held, H, x_strides, y_strides, D, BD, PRECISION, True)
                if count < length:
                    ends, are_there = ends_of(head, count, length)
                    _multiply(x, x_source, y_source, out, begin, own, 0, ends, are_there, start, length, block, held,
                              H, x_strides, y_strides, D, BD, PRECISION, False)
        else:
            for n in range(0, length, BN):
                _multiply(x, x_source, y_source, out, first, queries, n, columns, columns < length - n, start, length,
                          block, held, H, x_strides, y_strides, D, BD, PRECISION, False)


@triton.jit
def _multiply(x, x_source, y_source, out, first, queries, key, columns, there, start, length, block, held, H,
              x_strides, y_strides, D: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr, WORDS: tl.constexpr):
    """The pairs of queries with the keys `key + columns`."""
    d = tl.arange(0, BD)
    y = _events(y_source, start + key, columns, there, d, y_strides, D)
    s = tl.dot(x, y.T, input_precision=PRECISION)
    for more in range(BD, D, BD):  # of wide events
        x = _events(x_source, start, queries.to(tl.int64), queries < length, more + d, x_strides, D)
        y = _events(y_source, start + key, columns, there, more + d, y_strides, D)
        s = tl.dot(x, y.T, s, input_precision=PRECISION)
    base, at, inside = pairs_of(first, queries - first, key, columns, there, held, length, block, WORDS)
    tl.store(out + base * H + at * H, s.to(out.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["T", "P", "B", "steps"])
def _sums(a, keys, queries, of_queries, of_keys, offsets, blocks, T, P, B, steps, H, a_strides, k_strides, q_strides,
          WHOLE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
          BESIDE: tl.constexpr, PRECISION: tl.constexpr):
    """BD columns of the sums of some events of one row and head: of queries over keys, or of keys over queries.

    Where both are asked for, the programs of either kind take turns.
    """
    pid = tl.program_id(0)
    if of_keys is None:
        _sums_of_queries(pid, a, keys, of_queries, offsets, blocks, T, P, B, steps, H, a_strides, k_strides, D, BD, BM,
                         BN, PRECISION)
    elif of_queries is None:
        _sums_of_keys(pid, a, queries, of_keys, offsets, blocks, T, P, B, steps, H, a_strides, q_strides, WHOLE, D, BD,
                      BM, BN, BM - BESIDE, PRECISION)
    elif pid % 2 == 0:
        _sums_of_queries(pid // 2, a, keys, of_queries, offsets, blocks, T, P, B, steps, H, a_strides, k_strides, D,
                         BD, BM, BN, PRECISION)
    else:
        _sums_of_keys(pid // 2, a, queries, of_keys, offsets, blocks, T, P, B, steps, H, a_strides, q_strides, WHOLE,
                      D, BD, BM, BN, BM - BESIDE, PRECISION)


@triton.jit
def _sums_of_queries(pid, a_source, y_source, out, offsets, blocks, T, P, B, steps, H, a_strides, y_strides,
                     D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):
    """The sums of BM queries over all keys, from the one at the place of the first query on."""
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    part = pid % (H * CHUNKS)
    h = tl.cast(part % H, tl.int64)
    d = part // H * BD + tl.arange(0, BD)
    row, first, start, length = events_of(offsets, tl.cast(pid // (H * CHUNKS), tl.int64), T, B, steps, BM)
    block, held = block_of(blocks, row, length, P)
    a_source += h * a_strides[1]
    y_source += h * y_strides[1]
    if first < length:
        period, each, alike = _groups_of(length, BM)
        place = first + tl.arange(0, BM)
        queries = tl.where(place < each * period, place % each * period + place // each, length)
        columns = tl.arange(0, BN)
        total = tl.zeros([BM, BD], tl.float32)
        if alike:
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
            for n in range(0, length, BN):
                a = _pairs(a_source, first, queries - first, n, columns, columns < length - n, held, length, block,
                           a_strides[0], False)
                y = _events(y_source, start + n, columns, columns < length - n, d, y_strides, D)
                total = tl.dot(a, y, total, input_precision=PRECISION)
        at = out + ((start + queries) * H + h)[:, None] * D + d[None, :]
        tl.store(at, total.to(out.dtype.element_ty), mask=(queries < length)[:, None] & (d < D)[None, :])


@triton.jit
def _sums_of_keys(pid, a_source, y_source, out, offsets, blocks, T, P, B, steps, H, a_strides, y_strides,
                  WHOLE: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                  TILE: tl.constexpr, PRECISION: tl.constexpr):
    """The sums of TILE keys over all queries, backwards from the one at the place of the first key.

    So programs of both kinds that run side by side come to the same pairs at the same time, one of them from a cache.
    Queries that begin alike are summed together, in words; then which key a word begins with differs from one such
    group of queries to another, by less than 8, and so does where the sum of a key is found.
    """
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    part = pid % (H * CHUNKS)
    h = tl.cast(part % H, tl.int64)
    d = part // H * BD + tl.arange(0, BD)
    row, first, start, length = events_of(offsets, tl.cast(pid // (H * CHUNKS), tl.int64), T, B, steps, TILE)
    block, held = block_of(blocks, row, length, P)
    a_source += h * a_strides[1]
    y_source += h * y_strides[1]
    if first < length:
        period, each, alike = _groups_of(length, BM)
        columns = tl.arange(0, BM)
        steps_of = tl.arange(0, BN) * period
        total = tl.zeros([BM, BD], tl.float32)
        if alike:
            tiles = tl.cdiv(each, BN)
            middle = first % each // BN + 1
            for turn in range(0, period + 1):  # the group that is begun with also comes last, with what is left of it
                group = (first // each + period - turn) % period
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
                shifted = tl.minimum(columns + shift, BM - 1)[:, None] + tl.zeros([BM, BD], tl.int32)
                total += tl.gather(found, shifted, 0)
        else:
            for i in range(0, length, BN):
                a = _pairs(a_source, i, steps_of, first, columns, first + columns < length, held, length, block,
                           a_strides[0], False)
                y = _events(y_source, start + i, steps_of, i + steps_of < length, d, y_strides, D)
                total = tl.dot(a.T, y, total, input_precision=PRECISION)
        at = out + ((start + first + columns) * H + h)[:, None] * D + d[None, :]
        own = (columns < TILE) & (first + columns < length)
        tl.store(at, total.to(out.dtype.element_ty), mask=own[:, None] & (d < D)[None, :])


@triton.jit
def _pairs(source, first, steps, key, columns, there, held, length, block, stride, WORDS: tl.constexpr):
    """The pairs of the queries `first + steps` with the keys `key + columns`, (M, N); 0 where there are none."""
    base, at, inside = pairs_of(first, steps, key, columns, there, held, length, block, WORDS)
    return tl.load(source + base * stride + at * stride, mask=inside, other=0.0)
