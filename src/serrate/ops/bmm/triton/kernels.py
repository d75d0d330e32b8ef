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

from ...attention.triton.tile import precision
from .rows import chunk_of, find_row, load_tile, slots, turns

CHUNK = 2048  # events that are summed at once
_PROGRAMS = 1024  # enough to fill any device
_ADDED = 1024  # elements of a matrix that one program adds


class Sizes(NamedTuple):
    """Sizes of a kernel: events, columns of x and columns of the result of a tile; warps, stages."""

    events: int
    depth: int
    columns: int
    warps: int
    stages: int


def sizes(x: Tensor, width: int, rows: int, jagged: bool) -> Sizes:
    """Return the sizes for events x `(T, H, D)` in so many rows, and results `width` wide.

    Products of float32 have no matrix unit and hold their operands in registers: they are summed over few at a time.
    """
    mean = x.shape[0] // max(rows, 1)
    events = 16 if mean < 24 else 32 if mean < 48 else 64
    depth, columns = (max(16, triton.next_power_of_2(each)) for each in (x.shape[2], width))
    if x.dtype == torch.float32 and precision() == "ieee":
        columns = min(columns, 64)
        return Sizes(16, min(depth, 64), columns, 8, 2) if jagged else Sizes(events, 16, columns, 8, 2)
    most = 128 if x.dtype != torch.float32 else 64
    depth, columns = min(depth, most), min(columns, most)
    return Sizes(events, depth, columns, 8 if depth * columns > 8192 else 4, 3)


def launch_dense(x: Tensor, y: Tensor, bias: Tensor | None, offsets: Tensor, out: Tensor) -> None:
    """Fill `out` `(T, H, F)`. The last stride of `x` and `bias` is 1, and one of the last two of `y`."""
    (events, heads, width), (rows, *_, columns) = x.shape, y.shape
    size = sizes(x, columns, rows, False)
    blocks = triton.cdiv(columns, size.columns)
    chunk = min(max(size.events, triton.next_power_of_2(events * heads * blocks // _PROGRAMS)), CHUNK)
    count, several = slots(events, rows, chunk), turns(events, rows, size.events)
    _dense[triton.cdiv(count, several) * heads * blocks,](
        x, y, bias, out, offsets, events, rows, heads, count, several, x.stride()[:2], y.stride(),
        (0, 0) if bias is None else bias.stride()[:2], width, columns, *size[:3], chunk, precision(),
        num_warps=size.warps, num_stages=size.stages)


def launch_jagged(x: Tensor, y: Tensor, offsets: Tensor, out: Tensor, sums: Tensor | None) -> None:
    """Fill `out` `(B, H, D, F)` and, where asked for, `sums` `(B, H, F)`. The last stride of `x` and `y` is 1."""
    (events, heads, width), rows, columns = x.shape, out.shape[0], y.shape[2]
    size = sizes(x, columns, rows, True)
    blocks = triton.cdiv(columns, size.columns) * triton.cdiv(width, size.depth)
    count, several = slots(events, rows, CHUNK), turns(events, rows, 16)
    # of rows longer than a chunk no two first chunks begin among the same CHUNK events, and no two later ones
    parts = 2 * triton.cdiv(events, CHUNK) if events > CHUNK else 0
    height = width + (sums is not None)
    partial = out.new_empty(parts, heads, height, columns, dtype=torch.float32)
    _jagged[triton.cdiv(count, several) * heads * blocks,](
        x, y, out, sums, partial, offsets, events, rows, heads, count, several, x.stride()[:2], y.stride()[:2],
        width, columns, *size[:3], CHUNK, precision(), num_warps=size.warps, num_stages=size.stages)
    if parts:
        blocks = triton.cdiv(height * columns, _ADDED)
        _added[rows * heads * blocks,](partial, out, sums, offsets, events, heads, width, columns, CHUNK, _ADDED,
                                       num_warps=4)


@triton.jit(do_not_specialize=["events", "rows", "heads", "slots", "turns"])
def _dense(x, y, bias, out, offsets, events, rows, heads, slots, turns, x_strides, y_strides, bias_strides,
           D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr,
           CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """BF columns of the products of some chunks of one head and the matrices of their rows."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (F + BF - 1) // BF
    column = pid % blocks * BF + tl.arange(0, BF)
    h = tl.cast(pid // blocks % heads, tl.int64)
    begin = pid // (blocks * heads) * turns
    x += h * x_strides[1]
    y += h * y_strides[1]
    out += h * F
    row = find_row(offsets, begin, rows, CHUNK)
    for slot in range(begin, tl.minimum(begin + turns, slots)):
        _, end, first, following = chunk_of(offsets, slot, row, events, CHUNK)
        count = tl.minimum(end - first, CHUNK).to(tl.int32)
        if count > 0:
            matrix_at = y + tl.cast(row, tl.int64) * y_strides[0]
            added = tl.zeros([BF], tl.float32)
            if bias is not None:
                added += tl.load(bias + tl.cast(row, tl.int64) * bias_strides[0] + h * bias_strides[1] + column,
                                 mask=column < F, other=0.0)
            if D <= BD:  # the matrix stays where it is while the events pass by
                matrix = _matrix(matrix_at, y_strides[2], y_strides[3], 0, column, D, F, BD)
                for at in range(0, count, BT):
                    events_at = x + (first + at) * x_strides[0]
                    tile = load_tile(events_at, x_strides[0], count - at, D, tl.arange(0, BD), BT)
                    acc = tl.dot(tile, matrix, input_precision=PRECISION) + added[None, :]
                    _store(out + (first + at) * heads * F, acc, heads * F, count - at, column, F, BT)
            else:
                for at in range(0, count, BT):
                    events_at = x + (first + at) * x_strides[0]
                    acc = tl.zeros([BT, BF], tl.float32)
                    for d in range(0, D, BD):
                        tile = load_tile(events_at, x_strides[0], count - at, D, d + tl.arange(0, BD), BT)
                        matrix = _matrix(matrix_at, y_strides[2], y_strides[3], d, column, D, F, BD)
                        acc = tl.dot(tile, matrix, acc, input_precision=PRECISION)
                    _store(out + (first + at) * heads * F, acc + added[None, :], heads * F, count - at, column, F, BT)
        row = following


@triton.jit
def _matrix(source, stride_d, stride_f, first, columns, D, F, BD: tl.constexpr):
    """The lines from `first` on of a matrix (D, F), (BD, columns); zeros past its sides."""
    line = first + tl.arange(0, BD)
    inside = (line < D)[:, None] & (columns < F)[None, :]
    return tl.load(source + line[:, None] * stride_d + columns[None, :] * stride_f, mask=inside, other=0.0)


@triton.jit
def _store(target, rows, stride, count, columns, width, N: tl.constexpr):
    """Store `rows` (N, columns), of which there are `count` and `width`."""
    step = tl.arange(0, N)
    inside = (step < count)[:, None] & (columns < width)[None, :]
    tl.store(target + step[:, None] * stride + columns[None, :], rows.to(target.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["events", "rows", "heads", "slots", "turns"])
def _jagged(x, y, out, sums, partial, offsets, events, rows, heads, slots, turns, x_strides, y_strides,
            D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr,
            CHUNK: tl.constexpr, PRECISION: tl.constexpr):
    """A block (BD, BF) of the products over some chunks of one head; of a row of several chunks a partial sum each."""
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
    x += tl.cast(h, tl.int64) * x_strides[1]
    y += tl.cast(h, tl.int64) * y_strides[1]
    row = find_row(offsets, begin, rows, CHUNK)
    for slot in range(begin, tl.minimum(begin + turns, slots)):
        own, end, first, following = chunk_of(offsets, slot, row, events, CHUNK)
        if (first < end) | (first == own):  # an empty row has zeros
            count = tl.minimum(end - first, CHUNK).to(tl.int32)
            acc = tl.zeros([BD, BF], tl.float32)
            total = tl.zeros([BF], tl.float32)
            for at in range(0, count, BT):
                left = load_tile(x + (first + at) * x_strides[0], x_strides[0], count - at, D, lines, BT)
                right = load_tile(y + (first + at) * y_strides[0], y_strides[0], count - at, F, column, BT)
                acc = tl.dot(left.T, right, acc, input_precision=PRECISION)
                if sums is not None:
                    total += tl.sum(right.to(tl.float32), 0)
            if end - own <= CHUNK:
                place = tl.cast(row, tl.int64) * heads + h
                _store(out + (place * D + line) * F, acc, F, D - line, column, F, BD)
                if sums is not None:
                    tl.store(sums + place * F + column, total.to(sums.dtype.element_ty), mask=own_sums)
            else:
                place = (2 * (first // CHUNK) + (first > own).to(tl.int64)) * heads + h
                _store(partial + (place * height + line) * F, acc, F, D - line, column, F, BD)
                if sums is not None:
                    tl.store(partial + (place * height + D) * F + column, total, mask=own_sums)
        row = following


@triton.jit(do_not_specialize=["events", "heads"])
def _added(partial, out, sums, offsets, events, heads, D: tl.constexpr, F: tl.constexpr, CHUNK: tl.constexpr,
           BLOCK: tl.constexpr):
    """Some elements of the matrix of a row, and of its sums, from the chunks in their order; nothing of a short row."""
    height: tl.constexpr = D + (sums is not None)
    blocks: tl.constexpr = (height * F + BLOCK - 1) // BLOCK
    pid = tl.program_id(0)
    element = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    place = tl.cast(pid // blocks, tl.int64)
    row = place // heads
    h = place % heads
    own = tl.minimum(tl.load(offsets + row).to(tl.int64), events)
    end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), events)
    if end - own > CHUNK:
        inside = element < height * F
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(own, end, CHUNK):
            part = (2 * (first // CHUNK) + (first > own).to(tl.int64)) * heads + h
            total += tl.load(partial + part * (height * F) + element, mask=inside, other=0.0)
        tl.store(out + place * (D * F) + element, total.to(out.dtype.element_ty), mask=element < D * F)
        if sums is not None:
            tl.store(sums + place * F + (element - D * F), total.to(sums.dtype.element_ty),
                     mask=inside & (element >= D * F))
