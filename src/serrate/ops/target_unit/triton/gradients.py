"""The gradients of the target unit's first layer: first those of the targets' matrices, of which the others are made.

A target is a matrix that multiplies its events, and a constant; the gradients of target, weight and bias follow from
those two alone. Where each history has one target, one kernel finds them and the gradient of the events together: both
read the same.
"""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...bmm.triton.kernels import Source, launch_jagged
from ...bmm.triton.tile import load_tile, store_tile
from ...launch import launched
from ...sizes import ceil_div, power_of_two
from ..api import Reading
from .kernels import load_query, of_both, row_from

_PROGRAMS = 264  # two on each processor of the device it was measured on
_LEAST = 256  # events of a program: a matrix is written for each piece of a row
_EVENTS = 64  # of a tile
_WIDEST = 64  # columns of a tile
_TILE = 2048  # elements of the matrices that a program looks at together
_TARGETS = 8  # that a program adds up at least, where there are so few programs that all run at a time:
_AT_A_TIME = 384
_ADDED = 32  # elements that a program adds up, of
_AT_ONCE = 64  # sums at a time


def matrices(grad: Tensor, q: Tensor, k: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """Return the gradients of the targets' matrices and constants, `(M, D, F)` and `(M, F)` float32."""
    (targets, width), columns = q.shape, grad.shape[1]
    found = torch.empty(targets, 1, width, columns, device=q.device), torch.empty(targets, 1, columns, device=q.device)
    if targets:
        source = None if reading.rows is None else Source(reading.rows, reading.offsets)
        launch_jagged(k[:, None], grad[:, None], reading.ends, *found, source)
    return found[0][:, 0], found[1][:, 0]


def launch_of_both(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, offsets: Tensor,
                   d_k: Tensor) -> tuple[Tensor, Tensor, int]:
    """Fill `d_k` `(T, D)`; return the gradients of matrices and constants in pieces, and how many events a program has.

    A piece is what a program has of a row: number `b` is the first of row `b`, number `M + i` what program `i` has of a
    row that begins before. `grad` `(T, F)` and `weight` are contiguous, the last stride of `q` and `k` is 1; T is at
    least 1 and less than 2³¹, F at most 64.
    """
    (events, columns), (targets, width) = grad.shape, q.shape
    block = min(max(16, power_of_two(width)), _WIDEST)
    blocks = ceil_div(width, block)
    span = max(ceil_div(events, ceil_div(_PROGRAMS, blocks)), _LEAST)
    ranges = ceil_div(events, span)
    pieces = (torch.empty(targets + ranges, width, columns, device=q.device),
              torch.empty(targets + ranges, columns, device=q.device))
    _of_both[ranges * blocks,](
        grad, q, k, weight, d_k, *pieces, offsets, events, targets, span, q.stride(0), k.stride(0), width, columns,
        _EVENTS, block, max(16, power_of_two(columns)), num_warps=4, num_stages=3)
    return *pieces, span


def launch_of_others(matrices: Tensor, sums: Tensor, offsets: Tensor | None, span: int, events: int, q: Tensor,
                     weight: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill the gradients of `q` `(M, D)`, `weight` `(4 D, F)` and bias `(F,)`, contiguous.

    `matrices` `(M, D, F)` and `sums` `(M, F)` are those of targets; or with `offsets` of the pieces of their rows, of
    so many `events` by programs of `span` each. `weight` is contiguous, and the last stride of `q` is 1.
    """
    (targets, width), columns = q.shape, weight.shape[1]
    wide = max(2, power_of_two(columns))
    lines = max(1, min(power_of_two(width), 16, _TILE // wide))
    at_once = max(1, _TILE // (wide * lines))
    blocks = ceil_div(width, lines)
    parts = max(1, min(ceil_div(targets, _TARGETS), _AT_A_TIME // blocks))
    partial = torch.empty(parts, 3 * width + 1, columns, device=q.device)
    _of_others[parts * blocks,](
        matrices, sums, q, weight, offsets, found[0], partial, events, targets, span, ceil_div(targets, parts),
        q.stride(0), width, columns, lines, wide, at_once, num_warps=4)
    _added[ceil_div((width + 1) * columns, _ADDED),](partial, *found[1:], parts, width, columns, _ADDED, _AT_ONCE,
                                                     num_warps=4)


@launched
@triton.jit(do_not_specialize=["events", "targets", "span"])
def _of_both(grad, q, k, weight, d_k, matrices, sums, offsets, events, targets, span, q_stride, k_stride,
                            D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr):
    """BD columns of the gradients of `span` events, and of the pieces of rows among them the lines that meet these."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (D + BD - 1) // BD
    line = pid % blocks * BD
    lines = line + tl.arange(0, BD)
    column = tl.arange(0, BF)
    first = tl.cast(pid // blocks, tl.int64) * span
    last = tl.minimum(first + span, events)
    target = 0
    while first < last:
        target, end = row_from(offsets, first, target, targets)
        count = tl.maximum(tl.minimum(end, last) - first, 0).to(tl.int32)
        query = load_query(q + tl.cast(target, tl.int64) * q_stride, lines, D)
        mixed, product = of_both(weight, line, column, D, F, BD)
        matrix = (mixed + query[:, None] * product).to(grad.dtype.element_ty)
        acc = tl.zeros([BD, BF], tl.float32)
        total = tl.zeros([BF, 16], tl.float32)
        for at in range(0, count, BT):
            right = load_tile(grad + (first + at) * F, F, count - at, F, column, BT)
            left = load_tile(k + (first + at) * k_stride, k_stride, count - at, D, lines, BT)
            store_tile(d_k + (first + at) * D, tl.dot(right, matrix.T), D, count - at, lines, D, BT)
            acc = tl.dot(left.T, right, acc)
            total = tl.dot(right.T, tl.full([BT, 16], 1.0, grad.dtype.element_ty), total)
        if count > 0:
            begun = tl.load(offsets + target) == first
            piece = tl.cast(tl.where(begun, target, targets + pid // blocks), tl.int64)
            store_tile(matrices + (piece * D + line) * F, acc, F, D - line, column, F, BD)
            tl.store(sums + piece * F + column, tl.max(total, 1), mask=column < tl.where(line == 0, F, 0))  # all alike
        first = tl.where(count > 0, first + count, last)
        target += 1


@launched
@triton.jit(do_not_specialize=["events", "targets", "span", "each"])
def _of_others(matrices, sums, q, weight, offsets, d_q, partial, events, targets, span, each, q_stride,
               D: tl.constexpr, F: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr, BM: tl.constexpr):
    """BD lines of the gradients of `each` targets, and of the weight's as far as it comes from these targets."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (D + BD - 1) // BD
    line = pid % blocks * BD + tl.arange(0, BD)
    column = tl.arange(0, BF)
    inside = (line < D)[:, None] & (column < F)[None, :]
    element = line[:, None] * F + column[None, :]
    own = tl.load(weight + element, mask=inside, other=0.0).to(tl.float32)
    own += tl.load(weight + 2 * D * F + element, mask=inside, other=0.0).to(tl.float32)
    product = tl.load(weight + 3 * D * F + element, mask=inside, other=0.0).to(tl.float32)
    by_query = tl.zeros([BM, BD, BF], tl.float32)  # sums over targets of q ⊗ s, A and diag(q) A
    by_event = tl.zeros([BM, BD, BF], tl.float32)
    by_product = tl.zeros([BM, BD, BF], tl.float32)
    of_bias = tl.zeros([BM, BF], tl.float32)
    last = tl.minimum((pid // blocks + 1) * each, targets)
    for first in range(pid // blocks * each, last, BM):
        target = first + tl.arange(0, BM)
        there = target < last
        far = target.to(tl.int64)
        matrix = tl.load(matrices + (far * (D * F))[:, None, None] + element[None, :, :],
                         mask=there[:, None, None] & inside[None, :, :], other=0.0)
        added = tl.load(sums + (far * F)[:, None] + column[None, :], mask=there[:, None] & (column < F)[None, :],
                        other=0.0)
        if offsets is not None:  # of an empty row nothing was stored, and of a few rows there are more pieces
            begin = tl.minimum(tl.load(offsets + target, mask=there, other=0), events).to(tl.int32)
            end = tl.minimum(tl.load(offsets + target + 1, mask=there, other=0), events).to(tl.int32)
            matrix = tl.where((begin < end)[:, None, None], matrix, 0.0)
            added = tl.where((begin < end)[:, None], added, 0.0)
            more = tl.where(begin < end, (end - 1) // span - begin // span, 0)
            for n in range(1, tl.max(more, 0) + 1):
                here = n <= more
                piece = (targets + begin // span + n).to(tl.int64)
                matrix += tl.load(matrices + (piece * (D * F))[:, None, None] + element[None, :, :],
                                  mask=here[:, None, None] & inside[None, :, :], other=0.0)
                added += tl.load(sums + (piece * F)[:, None] + column[None, :],
                                 mask=here[:, None] & (column < F)[None, :], other=0.0)
        known = there[:, None] & (line < D)[None, :]
        query = tl.load(q + (far * q_stride)[:, None] + line[None, :], mask=known, other=0.0)
        query = query.to(tl.float32)
        found = tl.sum(matrix * product[None, :, :] + added[:, None, :] * own[None, :, :], 2)
        tl.store(d_q + (far * D)[:, None] + line[None, :], found.to(d_q.dtype.element_ty), mask=known)
        by_query += query[:, :, None] * added[:, None, :]
        by_event += matrix
        by_product += query[:, :, None] * matrix
        of_bias += added
    partial += tl.cast(pid // blocks, tl.int64) * ((3 * D + 1) * F)
    tl.store(partial + element, tl.sum(by_query, 0), mask=inside)
    tl.store(partial + D * F + element, tl.sum(by_event, 0), mask=inside)
    tl.store(partial + 2 * D * F + element, tl.sum(by_product, 0), mask=inside)
    tl.store(partial + 3 * D * F + column, tl.sum(of_bias, 0), mask=column < tl.where(pid % blocks == 0, F, 0))


@launched
@triton.jit(do_not_specialize=["parts"])
def _added(partial, d_weight, d_bias, parts, D: tl.constexpr, F: tl.constexpr, BLOCK: tl.constexpr, BN: tl.constexpr):
    """Some elements of the gradients of weight and bias: the sums of parts, in their order."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < D * F
    bias = (element >= D * F) & (element < (D + 1) * F)
    query = tl.zeros([BN, BLOCK], tl.float32)
    event = tl.zeros([BN, BLOCK], tl.float32)
    product = tl.zeros([BN, BLOCK], tl.float32)  # behind its own elements are those of the bias
    for first in range(0, parts, BN):
        part = first + tl.arange(0, BN)
        at = partial + (part.to(tl.int64) * ((3 * D + 1) * F))[:, None] + element[None, :]
        there = (part < parts)[:, None]
        query += tl.load(at, mask=there & inside[None, :], other=0.0)
        event += tl.load(at + D * F, mask=there & inside[None, :], other=0.0)
        product += tl.load(at + 2 * D * F, mask=there & (inside | bias)[None, :], other=0.0)
    kind = d_weight.dtype.element_ty
    of_query = tl.sum(query, 0)
    of_event = tl.sum(event, 0)
    of_product = tl.sum(product, 0)
    tl.store(d_weight + element, of_query.to(kind), mask=inside)
    tl.store(d_weight + D * F + element, of_event.to(kind), mask=inside)
    tl.store(d_weight + 2 * D * F + element, (of_query - of_event).to(kind), mask=inside)
    tl.store(d_weight + 3 * D * F + element, of_product.to(kind), mask=inside)
    tl.store(d_bias + element - D * F, of_product.to(kind), mask=bias)
