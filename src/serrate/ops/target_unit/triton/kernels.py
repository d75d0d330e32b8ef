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
from ...bmm.triton.kernels import Sizes, Source, chunk_shift, launch_jagged, tile_events
from ...bmm.triton.rows import chunk_of, find_row, slots, turns
from ...bmm.triton.tile import load_matrix, load_tile, store_tile
from ...launch import launched
from ...sizes import ceil_div, power_of_two
from ..api import Reading


def sizes(dtype: torch.dtype, events: int, depth: int, columns: int) -> Sizes:
    """Return the sizes for tiles of so many events, sums over `depth` and results `columns` wide.

    Products of float32 have no matrix unit and hold their operands in registers.
    """
    depth, columns = (max(16, power_of_two(each)) for each in (depth, columns))
    if dtype == torch.float32:
        return Sizes(min(events, 32), min(depth, 64), min(columns, 32), 8, 2)
    depth, columns = min(depth, 128), min(columns, 64)
    return Sizes(events, depth, columns, 8 if depth * columns > 4096 else 4, 3)


def launch(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None, reading: Reading, out: Tensor) -> None:
    """Fill `out` `(T', F)`. The last stride of `q` and `k` is 1."""
    (events, columns), (targets, width) = out.shape, q.shape
    size = sizes(q.dtype, tile_events(events, targets), width, columns)
    blocks = ceil_div(columns, size.columns)
    shift = chunk_shift(size.events, events * blocks)
    count, several = slots(events, targets, shift), turns(events, targets, size.events)
    _forward[ceil_div(count, several) * blocks,](
        q, k, weight, None if bias is None else bias.contiguous(), out, reading.offsets, reading.rows, reading.ends,
        events, targets, count, several, shift, q.stride(0), k.stride(0), *weight.stride(), width, columns, *size[:3],
        precision(), num_warps=size.warps, num_stages=size.stages)


def launch_of_events(grad: Tensor, q: Tensor, weight: Tensor, reading: Reading, out: Tensor) -> None:
    """Fill `out` `(T, D)`, the gradient of the events. `grad` `(T', F)` is contiguous, the last stride of `q` 1."""
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
        q.stride(0), *weight.stride(), width, columns, *size[:3], precision(), num_warps=size.warps,
        num_stages=size.stages)


def matrices(grad: Tensor, q: Tensor, k: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """Return the gradients of the targets' matrices and constants, `(M, D, F)` and `(M, F)` float32."""
    (targets, width), columns = q.shape, grad.shape[1]
    found = torch.empty(targets, 1, width, columns, device=q.device), torch.empty(targets, 1, columns, device=q.device)
    if targets:
        source = None if reading.rows is None else Source(reading.rows, reading.offsets)
        launch_jagged(k[:, None], grad[:, None], reading.ends, *found, source)
    return found[0][:, 0], found[1][:, 0]


@triton.jit
def _of_both(weight, part, along, across, line, columns, depth, width, N: tl.constexpr):
    """What all targets multiply events by, and what each part of a target adds to that: (N, columns) float32 each.

    From `line` on of so many lines and columns, `along` and `across` apart; a `part` of the weight apart.
    """
    mixed = load_matrix(weight + part, along, across, line, columns, depth, width, N).to(tl.float32)
    mixed -= load_matrix(weight + 2 * part, along, across, line, columns, depth, width, N).to(tl.float32)
    return mixed, load_matrix(weight + 3 * part, along, across, line, columns, depth, width, N).to(tl.float32)


@triton.jit
def _of_target(query, weight, part, along, across, line, columns, depth, width, N: tl.constexpr):
    """What a target adds to all its events, as far as its parts `query` (N,) from `line` on go: (columns,) float32."""
    own = load_matrix(weight, along, across, line, columns, depth, width, N).to(tl.float32)
    own += load_matrix(weight + 2 * part, along, across, line, columns, depth, width, N).to(tl.float32)
    return tl.sum(query[:, None] * own, 0)


@triton.jit
def _load_query(q, parts, D):
    """Some parts of a target, float32."""
    return tl.load(q + parts, mask=parts < D, other=0.0).to(tl.float32)


@launched
@triton.jit(do_not_specialize=["events", "targets", "slots", "turns", "shift"])
def _forward(q, k, weight, bias, out, offsets, rows, ends, events, targets, slots, turns, shift, q_stride, k_stride,
             along, across, D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr,
             PRECISION: tl.constexpr):
    """BF columns of the results of some chunks of what targets read."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (F + BF - 1) // BF
    column = pid % blocks * BF + tl.arange(0, BF)
    begin = pid // blocks * turns
    if D <= BD:
        mixed, product = _of_both(weight, D * along, along, across, 0, column, D, F, BD)
    target = find_row(ends, begin, targets, shift)
    for slot in range(begin, tl.minimum(begin + turns, slots)):
        own, end, first, following = chunk_of(ends, slot, target, events, shift)
        count = tl.minimum(end - first, 1 << shift).to(tl.int32)
        if count > 0:
            query_at = q + tl.cast(target, tl.int64) * q_stride
            events_at = k + first * k_stride
            if rows is not None:
                events_at += (tl.load(offsets + tl.load(rows + target)) - own) * k_stride
            added = tl.zeros([BF], tl.float32)
            if bias is not None:
                added += tl.load(bias + column, mask=column < F, other=0.0)
            for d in range(0, D, BD):
                query = _load_query(query_at, d + tl.arange(0, BD), D)
                added += _of_target(query, weight, D * along, along, across, d, column, D, F, BD)
            if D <= BD:  # the matrix is made once for the chunk
                query = _load_query(query_at, tl.arange(0, BD), D)
                matrix = (mixed + query[:, None] * product).to(k.dtype.element_ty)
                for at in range(0, count, BT):
                    tile = load_tile(events_at, k_stride, count - at, D, tl.arange(0, BD), BT)
                    acc = tl.dot(tile, matrix, input_precision=PRECISION) + added[None, :]
                    store_tile(out + (first + at) * F, acc, F, count - at, column, F, BT)
                    events_at += BT * k_stride
            else:
                for at in range(0, count, BT):
                    acc = tl.zeros([BT, BF], tl.float32)
                    for d in range(0, D, BD):
                        query = _load_query(query_at, d + tl.arange(0, BD), D)
                        mixed, product = _of_both(weight, D * along, along, across, d, column, D, F, BD)
                        matrix = (mixed + query[:, None] * product).to(k.dtype.element_ty)
                        tile = load_tile(events_at, k_stride, count - at, D, d + tl.arange(0, BD), BT)
                        acc = tl.dot(tile, matrix, acc, input_precision=PRECISION)
                    acc += added[None, :]
                    store_tile(out + (first + at) * F, acc, F, count - at, column, F, BT)
                    events_at += BT * k_stride
        target = following


@launched
@triton.jit(do_not_specialize=["events", "rows", "slots", "turns", "shift"])
def _of_events(grad, q, weight, out, offsets, order, begins, ends, events, rows, slots, turns, shift, q_stride,
               along, across, D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BF: tl.constexpr, BD: tl.constexpr,
               PRECISION: tl.constexpr):
    """BD columns of the gradient of some chunks of events: the sum over the targets that read them, in their order."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (D + BD - 1) // BD
    column = pid % blocks * BD + tl.arange(0, BD)
    begin = pid // blocks * turns
    if F <= BF:
        mixed, product = _of_both(weight, D * along, across, along, 0, column, F, D, BF)
    row = find_row(offsets, begin, rows, shift)
    for slot in range(begin, tl.minimum(begin + turns, slots)):
        own, end, first, following = chunk_of(offsets, slot, row, events, shift)
        count = tl.minimum(end - first, 1 << shift).to(tl.int32)
        if count > 0:
            if order is None and F <= BF:  # one target, whose matrix is made once
                query = _load_query(q + tl.cast(row, tl.int64) * q_stride, column, D)
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
                        query = _load_query(q + tl.cast(target, tl.int64) * q_stride, column, D)
                        grad_at = grad + (tl.load(ends + target).to(tl.int64) + (first - own) + at) * F
                        for f in range(0, F, BF):
                            if F > BF:
                                mixed, product = _of_both(weight, D * along, across, along, f, column, F, D, BF)
                            matrix = (mixed + query[None, :] * product).to(grad.dtype.element_ty)
                            tile = load_tile(grad_at, F, count - at, F, f + tl.arange(0, BF), BT)
                            acc = tl.dot(tile, matrix, acc, input_precision=PRECISION)
                    store_tile(out + (first + at) * D, acc, D, count - at, column, D, BT)
        row = following
