"""The kernels of the target unit's first layer: the matrix of a target is made on chip, from the target and the weight.

With the parts `w1 … w4` of the weight, target `q` multiplies its events by `w2 - w3 + diag(q) w4` and adds
`q (w1 + w3) + bias`. A program owns chunks of what targets read, or of events, as in `bmm`.
"""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...attention.triton.tile import precision
from ...bmm.triton.kernels import Sizes, chunk_shift, tile_events
from ...bmm.triton.rows import chunk_of, find_row, slots, turns
from ...bmm.triton.tile import load_matrix, load_tile, store_tile
from ...launch import launched
from ...sizes import ceil_div, power_of_two
from ..api import Reading

_PROGRAMS = 396  # three on each processor of the device it was measured on
_TARGETS = 16  # whose constants a program makes
ROW = tl.constexpr(128)  # events that take as long as what else a row takes


def units_of(events: int, rows: int) -> int:
    """Return how much work so many events in so many rows are, in events: programs get as much of it each."""
    return events + rows * ROW.value


def sizes(dtype: torch.dtype, events: int, depth: int, columns: int) -> Sizes:
    """Return the sizes for tiles of so many events, sums over `depth` and results `columns` wide.

    Products of float32 have no matrix unit and hold their operands in registers.
    """
    depth, columns = (max(16, power_of_two(each)) for each in (depth, columns))
    if dtype == torch.float32:
        return Sizes(min(events, 32), min(depth, 64), min(columns, 32), 8, 2)
    depth, columns = min(depth, 128), min(columns, 64)
    return Sizes(events, depth, columns, 4, 3)


def launch(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None, reading: Reading, out: Tensor) -> None:
    """Fill `out` `(T', F)`. The last stride of `q` and `k` is 1, and `weight` is contiguous."""
    (events, columns), (targets, width) = out.shape, q.shape
    size = sizes(q.dtype, tile_events(events, targets), width, columns)
    blocks = ceil_div(columns, size.columns)
    units = units_of(events, targets)
    span = max(ceil_div(units, _PROGRAMS), size.events)
    constants = torch.empty(targets, columns, device=q.device)
    _constants[ceil_div(targets, _TARGETS) * blocks,](
        q, weight, None if bias is None else bias.contiguous(), constants, targets, q.stride(0), width, columns,
        _TARGETS, min(size.depth, 64), size.columns, precision(), num_warps=4)
    _forward[ceil_div(units, span) * blocks,](
        q, k, weight, constants, out, reading.offsets, reading.rows, reading.ends, events, targets, span, q.stride(0),
        k.stride(0), width, columns, *size[:3], precision(), num_warps=size.warps, num_stages=size.stages)


def launch_of_events(grad: Tensor, q: Tensor, weight: Tensor, reading: Reading, out: Tensor) -> None:
    """Fill `out` `(T, D)`, the gradient of the events. `grad` `(T', F)` and `weight` are contiguous, `q` as above."""
    (events, width), columns, rows = out.shape, grad.shape[1], reading.offsets.shape[0] - 1
    size = sizes(q.dtype, tile_events(events, rows), columns, width)
    blocks = ceil_div(width, size.columns)
    shift = chunk_shift(size.events, events * blocks)
    order = begins = None
    if reading.rows is not None:  # the targets of each row, side by side
        together, order = reading.rows.sort(stable=True)
        every = torch.arange(rows + 1, device=together.device, dtype=together.dtype)
        begins = torch.searchsorted(together, every)
        shift = size.events.bit_length() - 1  # each event has many targets: there is work for more programs
    count, several = slots(events, rows, shift), turns(events, rows, size.events)
    _of_events[ceil_div(count, several) * blocks,](
        grad, q, weight, out, reading.offsets, order, begins, reading.ends, events, rows, count, several, shift,
        q.stride(0), width, columns, *size[:3], precision(),
        num_warps=8 if size.depth * size.columns > 4096 else size.warps, num_stages=size.stages)


@triton.jit
def of_both(weight, line, column, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr):
    """What all targets multiply events by, and what each part of a target adds to that: (N, columns) float32 each.

    N lines of the parts of the weight `(D, F)`, from `line` on.
    """
    mixed = load_matrix(weight + D * F, F, 1, line, column, D, F, N).to(tl.float32)
    mixed -= load_matrix(weight + 2 * D * F, F, 1, line, column, D, F, N).to(tl.float32)
    return mixed, load_matrix(weight + 3 * D * F, F, 1, line, column, D, F, N).to(tl.float32)


@triton.jit
def load_query(q, parts, D):
    """Some parts of a target, float32."""
    return tl.load(q + parts, mask=parts < D, other=0.0).to(tl.float32)


@triton.jit
def row_with(offsets, unit, rows):
    """The row whose work a unit is of, or the last: rows begin where those before have their events and `ROW` each.

    Each step looks at 128 of them.
    """
    probe = tl.arange(0, 128) + 1
    row = rows * 0
    last = rows - 1
    while row < last:
        step = tl.cdiv(last - row, 128)
        at = row + probe * step
        there = at <= last
        begun = tl.load(offsets + at, mask=there, other=0).to(tl.int64) + at.to(tl.int64) * ROW <= unit
        row += tl.sum((begun & there).to(tl.int32), 0) * step
        last = tl.minimum(row + step - 1, last)
    return row


@triton.jit
def piece_of(offsets, unit, stop, row, events):
    """The events of a row that units from one on, and before another, are of: where they begin, how many they are.

    And the unit that the next row begins with. No row reaches past the events that there are.
    """
    before = tl.cast(row + 1, tl.int64) * ROW
    begin = tl.load(offsets + row).to(tl.int64)
    end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), events)
    first = tl.maximum(unit - before, begin)
    return first, tl.maximum(tl.minimum(end, stop - before) - first, 0).to(tl.int32), end + before


@launched
@triton.jit(do_not_specialize=["targets"])
def _constants(q, weight, bias, out, targets, q_stride, D: tl.constexpr, F: tl.constexpr, BM: tl.constexpr,
               BD: tl.constexpr, BF: tl.constexpr, PRECISION: tl.constexpr):
    """What BM targets add to all their events, BF columns."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (F + BF - 1) // BF
    column = pid % blocks * BF + tl.arange(0, BF)
    first = pid // blocks * BM
    q += tl.cast(first, tl.int64) * q_stride
    acc = tl.zeros([BM, BF], tl.float32)
    if bias is not None:
        acc += tl.load(bias + column, mask=column < F, other=0.0).to(tl.float32)[None, :]
    for d in range(0, D, BD):
        query = load_tile(q, q_stride, targets - first, D, d + tl.arange(0, BD), BM)
        for part in tl.static_range(0, 4, 2):  # of the target, and of the difference
            own = load_matrix(weight + part * D * F, F, 1, d, column, D, F, BD)
            acc = tl.dot(query, own, acc, input_precision=PRECISION)
    store_tile(out + tl.cast(first, tl.int64) * F, acc, F, targets - first, column, F, BM)


@launched
@triton.jit(do_not_specialize=["events", "targets", "span"])
def _forward(q, k, weight, constants, out, offsets, rows, ends, events, targets, span, q_stride, k_stride,
             D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr,
             PRECISION: tl.constexpr):
    """BF columns of the results of the events that `span` units are of, one target after the other."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (F + BF - 1) // BF
    column = pid % blocks * BF + tl.arange(0, BF)
    unit = tl.cast(pid // blocks, tl.int64) * span
    stop = unit + span
    target = row_with(ends, unit, targets)
    while (unit < stop) & (target < targets):
        first, count, unit = piece_of(ends, unit, stop, target, events)
        query_at = q + tl.cast(target, tl.int64) * q_stride
        events_at = k + first * k_stride
        if rows is not None:
            events_at += (tl.load(offsets + tl.load(rows + target)) - tl.load(ends + target)) * k_stride
        added = tl.load(constants + tl.cast(target, tl.int64) * F + column, mask=column < F, other=0.0)
        if D <= BD:  # the matrix is made once
            query = load_query(query_at, tl.arange(0, BD), D)
            mixed, product = of_both(weight, 0, column, D, F, BD)
            matrix = (mixed + query[:, None] * product).to(k.dtype.element_ty)
            for at in range(0, count, BT):
                tile = load_tile(events_at + at * k_stride, k_stride, count - at, D, tl.arange(0, BD), BT)
                acc = tl.dot(tile, matrix, input_precision=PRECISION) + added[None, :]
                store_tile(out + (first + at) * F, acc, F, count - at, column, F, BT)
        else:
            for at in range(0, count, BT):
                acc = tl.zeros([BT, BF], tl.float32)
                for d in range(0, D, BD):
                    query = load_query(query_at, d + tl.arange(0, BD), D)
                    mixed, product = of_both(weight, d, column, D, F, BD)
                    matrix = (mixed + query[:, None] * product).to(k.dtype.element_ty)
                    tile = load_tile(events_at + at * k_stride, k_stride, count - at, D, d + tl.arange(0, BD), BT)
                    acc = tl.dot(tile, matrix, acc, input_precision=PRECISION)
                store_tile(out + (first + at) * F, acc + added[None, :], F, count - at, column, F, BT)
        target += 1


@triton.jit
def _of_columns(weight, first, line, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr):
    """The same with columns and lines exchanged, of N columns from `first` on: (N, lines) float32 each."""
    mixed = load_matrix(weight + D * F, 1, F, first, line, F, D, N).to(tl.float32)
    mixed -= load_matrix(weight + 2 * D * F, 1, F, first, line, F, D, N).to(tl.float32)
    return mixed, load_matrix(weight + 3 * D * F, 1, F, first, line, F, D, N).to(tl.float32)


@launched
@triton.jit(do_not_specialize=["events", "rows", "slots", "turns", "shift"])
def _of_events(grad, q, weight, out, offsets, order, begins, ends, events, rows, slots, turns, shift, q_stride,
               D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
               PRECISION: tl.constexpr):
    """BD columns of the gradient of some chunks of events: the sum over the targets that read them, in their order."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (D + BD - 1) // BD
    column = pid % blocks * BD + tl.arange(0, BD)
    begin = pid // blocks * turns
    if F <= BF:
        mixed, product = _of_columns(weight, 0, column, D, F, BF)
    row = find_row(offsets, begin, rows, shift)
    for slot in range(begin, tl.minimum(begin + turns, slots)):
        own, end, first, following = chunk_of(offsets, slot, row, events, shift)
        count = tl.minimum(end - first, 1 << shift).to(tl.int32)
        if count > 0:
            if order is None and F <= BF:  # one target, whose matrix is made once
                query = load_query(q + tl.cast(row, tl.int64) * q_stride, column, D)
                matrix = (mixed + query[None, :] * product).to(grad.dtype.element_ty)
                for at in range(0, count, BT):
                    tile = load_tile(grad + (first + at) * F, F, count - at, F, tl.arange(0, BF), BT)
                    acc = tl.dot(tile, matrix, input_precision=PRECISION)
                    store_tile(out + (first + at) * D, acc, D, count - at, column, D, BT)
            else:
                one = row
                stop = row + 1
                if order is not None:
                    one = tl.load(begins + row).to(tl.int32)
                    stop = tl.load(begins + row + 1).to(tl.int32)
                for at in range(0, count, BT):
                    acc = tl.zeros([BT, BD], tl.float32)
                    for n in range(one, stop):
                        target = n
                        if order is not None:
                            target = tl.load(order + n).to(tl.int32)
                        query = load_query(q + tl.cast(target, tl.int64) * q_stride, column, D)
                        grad_at = grad + (tl.load(ends + target).to(tl.int64) + (first - own) + at) * F
                        for f in range(0, F, BF):
                            if F > BF:
                                mixed, product = _of_columns(weight, f, column, D, F, BF)
                            matrix = (mixed + query[None, :] * product).to(grad.dtype.element_ty)
                            tile = load_tile(grad_at, F, count - at, F, f + tl.arange(0, BF), BT)
                            acc = tl.dot(tile, matrix, acc, input_precision=PRECISION)
                    store_tile(out + (first + at) * D, acc, D, count - at, column, D, BT)
        row = following
