"""The kernels of jagged products: a program owns some chunks of rows, of one head, and a block of the result's columns.

One multiplies chunks by the matrix of their row. The other multiplies two jagged tensors over the events of a chunk; a
row of several chunks has a partial sum of each, which a third kernel adds in their order. No atomics.
"""

# ruff: noqa: N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...sizes import ceil_div, power_of_two
from .rows import chunk_of, find_row, slots, turns
from .tile import load_matrix, load_tile, precision, store_tile

SHIFT = 11  # 2,048 events are multiplied by a program at most
_LONGEST = 14  # and 16,384 are summed by one
_PROGRAMS = 1024  # enough to fill any device
_ADDED = 4096  # elements of a matrix that one program adds: most rows have no sums in parts, so programs are few


class Sizes(NamedTuple):
    """Sizes of a kernel: events, columns of x and columns of the result of a tile; warps, stages."""

    events: int
    depth: int
    columns: int
    warps: int
    stages: int


class Source(NamedTuple):
    """Where each row finds its events of x, if not where it lies itself: in row `rows[b]` of `offsets`."""

    rows: Tensor
    offsets: Tensor


def tile_events(events: int, rows: int) -> int:
    """Return how many events a tile has, of so many in so many rows."""
    mean = events // max(rows, 1)
    return 16 if mean < 24 else 32 if mean < 48 else 64


def sizes(shape: tuple[int, int, int], rows: int, dtype: torch.dtype) -> Sizes:
    """Return the sizes for T events in so many rows, D wide, and results that are F wide."""
    most = 128 if dtype != torch.float32 else 64
    depth, columns = (min(max(16, power_of_two(each)), most) for each in shape[1:])
    return Sizes(tile_events(shape[0], rows), depth, columns, 4, 3)


def chunk_shift(tile: int, work: int) -> int:
    """Return how many events a program has, as a power of two: a tile of them at least, of `work` events in all."""
    return min(max(tile, work // _PROGRAMS).bit_length() - 1, SHIFT)


def sum_shift(work: int) -> int:
    """Return how many events a program sums, as a power of two, of `work` events in all: so many that few sums in parts
    are written and read again, so few that the device stays full.
    """
    return min(max((work // _PROGRAMS).bit_length() - 1, SHIFT), _LONGEST)


def launch_dense(x: Tensor, y: Tensor, bias: Tensor | None, offsets: Tensor, out: Tensor) -> None:
    """Fill `out` `(T, H, F)`. The last stride of `x` and `bias` is 1, and one of the last two of `y`."""
    (events, heads, width), (rows, *_, columns) = x.shape, y.shape
    size = sizes((events, width, columns), rows, x.dtype)
    blocks = ceil_div(columns, size.columns)
    shift = chunk_shift(size.events, events * heads * blocks)
    count, several = slots(events, rows, shift), turns(events, rows, size.events)
    _dense[ceil_div(count, several) * heads * blocks,](
        x, y, bias, out, offsets, events, rows, heads, count, several, shift, x.stride()[:2], y.stride(),
        (0, 0) if bias is None else bias.stride()[:2], width, columns, *size[:3], precision(x.dtype),
        num_warps=size.warps, num_stages=size.stages)


def back_too(width: int, columns: int, dtype: torch.dtype) -> bool:
    """Whether the product of two jagged tensors of these widths may give products with matrices too, see
    `launch_jagged`: where a program has whole events of both. In float32 there are too few registers for that.
    """
    return dtype != torch.float32 and max(width, columns) <= 128


def launch_jagged(x: Tensor, y: Tensor, offsets: Tensor, out: Tensor, sums: Tensor | None,
                  source: Source | None = None, back: tuple[Tensor, Tensor] | None = None) -> None:
    """Fill `out` `(B, H, D, F)` and, where asked for, `sums` `(B, H, F)`, of any dtype.

    The last stride of `x` and `y` is 1. `offsets` are those of `y`, and of `x` without a `source`. Where `back_too`,
    `back` may be matrices `(B, H, D, F)`, and what is filled with the products of y and their transposes `(T, H, D)`.
    """
    (events, heads, columns), rows, width = y.shape, out.shape[0], x.shape[2]
    size = sizes((events, width, columns), rows, x.dtype)
    matrix, d_x = (None, None) if back is None else back
    blocks = ceil_div(columns, size.columns) * ceil_div(width, size.depth)
    shift = sum_shift(events * heads * blocks)
    count, several = slots(events, rows, shift), turns(events, rows, 16)
    # of rows longer than a chunk no two first chunks begin in the same stretch of as many events, and no two later ones
    parts = 2 * slots(events, 1, shift) if events > 1 << shift else 0
    height = width + (sums is not None)
    partial = out.new_empty(parts, heads, height, columns, dtype=torch.float32)
    _jagged[ceil_div(count, several) * heads * blocks,](
        x, y, matrix, d_x, out, sums, partial, offsets, None if source is None else tuple(source), events, rows, heads,
        count, several, shift, x.stride()[:2], y.stride()[:2], (0,) * 4 if matrix is None else matrix.stride(), width,
        columns, *size[:3], precision(x.dtype), num_warps=size.warps if back is None else 8, num_stages=size.stages)
    if parts:
        blocks = ceil_div(height * columns, _ADDED)
        _added[rows * heads * blocks,](partial, out, sums, offsets, events, heads, shift, width, columns, _ADDED,
                                       num_warps=4)


@launched
@triton.jit(do_not_specialize=["events", "rows", "heads", "slots", "turns", "shift"])
def _dense(x, y, bias, out, offsets, events, rows, heads, slots, turns, shift, x_strides, y_strides, bias_strides,
           D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr,
           PRECISION: tl.constexpr):
    """BF columns of the products of some chunks of one head and the matrices of their rows."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (F + BF - 1) // BF
    column = pid % blocks * BF + tl.arange(0, BF)
    h = tl.cast(pid // blocks % heads, tl.int64)
    begin = pid // (blocks * heads) * turns
    x += h * x_strides[1]
    y += h * y_strides[1]
    out += h * F
    row = find_row(offsets, begin, rows, shift)
    for slot in range(begin, tl.minimum(begin + turns, slots)):
        _, end, first, following = chunk_of(offsets, slot, row, events, shift)
        count = tl.minimum(end - first, 1 << shift).to(tl.int32)
        if count > 0:
            matrix_at = y + tl.cast(row, tl.int64) * y_strides[0]
            added = tl.zeros([BF], tl.float32)
            if bias is not None:
                added += tl.load(bias + tl.cast(row, tl.int64) * bias_strides[0] + h * bias_strides[1] + column,
                                 mask=column < F, other=0.0)
            if D <= BD:  # the matrix stays where it is while the events pass by
                matrix = load_matrix(matrix_at, y_strides[2], y_strides[3], 0, column, D, F, BD)
                for at in range(0, count, BT):
                    events_at = x + (first + at) * x_strides[0]
                    tile = load_tile(events_at, x_strides[0], count - at, D, tl.arange(0, BD), BT)
                    acc = tl.dot(tile, matrix, input_precision=PRECISION) + added[None, :]
                    store_tile(out + (first + at) * heads * F, acc, heads * F, count - at, column, F, BT)
            else:
                for at in range(0, count, BT):
                    events_at = x + (first + at) * x_strides[0]
                    acc = tl.zeros([BT, BF], tl.float32)
                    for d in range(0, D, BD):
                        tile = load_tile(events_at, x_strides[0], count - at, D, d + tl.arange(0, BD), BT)
                        matrix = load_matrix(matrix_at, y_strides[2], y_strides[3], d, column, D, F, BD)
                        acc = tl.dot(tile, matrix, acc, input_precision=PRECISION)
                    acc += added[None, :]
                    store_tile(out + (first + at) * heads * F, acc, heads * F, count - at, column, F, BT)
        row = following


@launched
@triton.jit(do_not_specialize=["events", "rows", "heads", "slots", "turns", "shift"])
def _jagged(x, y, matrix, d_x, out, sums, partial, offsets, source, events, rows, heads, slots, turns, shift,
            x_strides, y_strides, m_strides, D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
            BF: tl.constexpr, PRECISION: tl.constexpr):
    """A block (BD, BF) of the products over some chunks of one head; of a row of several chunks a partial sum each.

    With matrices also the products of y and their transposes.
    """
    pid = tl.program_id(0)
    across: tl.constexpr = (F + BF - 1) // BF
    down: tl.constexpr = (D + BD - 1) // BD
    column = pid % across * BF + tl.arange(0, BF)
    line = pid // across % down * BD
    lines = line + tl.arange(0, BD)
    own_sums = column < tl.where(line == 0, F, 0)  # the first block of lines stores the sums of its columns
    h = pid // (across * down) % heads
    begin = pid // (across * down * heads) * turns
    height: tl.constexpr = D + (sums is not None)
    chunk = 1 << shift
    x += tl.cast(h, tl.int64) * x_strides[1]
    y += tl.cast(h, tl.int64) * y_strides[1]
    row = find_row(offsets, begin, rows, shift)
    for slot in range(begin, tl.minimum(begin + turns, slots)):
        own, end, first, following = chunk_of(offsets, slot, row, events, shift)
        if (first < end) | (first == own):  # an empty row has zeros
            count = tl.minimum(end - first, chunk).to(tl.int32)
            acc = tl.zeros([BD, BF], tl.float32)
            if sums is not None:  # one for each event of a tile, added up at the end
                total = tl.zeros([BT, BF], tl.float32)
            events_at = x + first * x_strides[0]
            if source is not None:
                events_at += (tl.load(source[1] + tl.load(source[0] + row)) - own) * x_strides[0]
            if matrix is not None:
                matrix_at = matrix + tl.cast(row, tl.int64) * m_strides[0] + tl.cast(h, tl.int64) * m_strides[1]
                back = load_matrix(matrix_at, m_strides[3], m_strides[2], 0, lines, F, D, BF)
            for at in range(0, count, BT):
                left = load_tile(events_at, x_strides[0], count - at, D, lines, BT)
                right = load_tile(y + (first + at) * y_strides[0], y_strides[0], count - at, F, column, BT)
                acc = tl.dot(left.T, right, acc, input_precision=PRECISION)
                if matrix is not None:
                    store_tile(d_x + ((first + at) * heads + h) * D, tl.dot(right, back, input_precision=PRECISION),
                               heads * D, count - at, lines, D, BT)
                if sums is not None:
                    total += right.to(tl.float32)
                events_at += BT * x_strides[0]
            if end - own <= chunk:
                place = tl.cast(row, tl.int64) * heads + h
                store_tile(out + (place * D + line) * F, acc, F, D - line, column, F, BD)
                if sums is not None:
                    found = tl.sum(total, 0)
                    tl.store(sums + place * F + column, found.to(sums.dtype.element_ty), mask=own_sums)
            else:
                place = (2 * (first >> shift) + (first > own).to(tl.int64)) * heads + h
                store_tile(partial + (place * height + line) * F, acc, F, D - line, column, F, BD)
                if sums is not None:
                    tl.store(partial + (place * height + D) * F + column, tl.sum(total, 0), mask=own_sums)
        row = following


@launched
@triton.jit(do_not_specialize=["events", "heads", "shift"])
def _added(partial, out, sums, offsets, events, heads, shift, D: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr):
    """Some elements of the matrix of a row, and of its sums, from the chunks in their order; nothing of a short row."""
    height: tl.constexpr = D + (sums is not None)
    chunk = 1 << shift
    blocks: tl.constexpr = (height * F + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    element = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    place = tl.cast(pid // blocks, tl.int64)
    row = place // heads
    h = place % heads
    own = tl.minimum(tl.load(offsets + row).to(tl.int64), events)
    end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), events)
    if end - own > chunk:
        inside = element < height * F
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(own, end, chunk):
            part = (2 * (first >> shift) + (first > own).to(tl.int64)) * heads + h
            total += tl.load(partial + part * (height * F) + element, mask=inside, other=0.0)
        tl.store(out + place * (D * F) + element, total.to(out.dtype.element_ty), mask=element < D * F)
        if sums is not None:
            tl.store(sums + place * F + (element - D * F), total.to(sums.dtype.element_ty),
                     mask=inside & (element >= D * F))
