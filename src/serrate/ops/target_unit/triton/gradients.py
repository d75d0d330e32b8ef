"""The gradients of the target unit's first layer: those of target, weight and bias follow from those of the matrix that
multiplies the target's events, and of its constant.

Where each history has one target, one kernel finds the gradients of the events and what follows from matrices: both
read the same, and no matrix leaves the chip. Else matrices are found by `bmm`, one for each target.
"""

# ruff: noqa: N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...bmm.triton.kernels import Source, launch_jagged
from ...bmm.triton.tile import load_matrix, load_tile, precision, store_tile
from ...launch import launched
from ...overlap import let_next_begin, overlaps, wait_for_previous
from ...sizes import ceil_div, power_of_two
from ..api import Reading
from .kernels import ROW, load_query, of_both, piece_of, row_with, units_of

_PROGRAMS = 264  # two on each processor of the device it was measured on
_LEAST = 256  # units of a program, which writes two matrices
_EVENTS = 64  # of a tile
_REGISTERS = 255  # of a thread, for which programs are two on a processor: three matrices are kept
_WIDEST = 64  # columns of a tile
_TILE = 2048  # elements of the matrices that a program looks at together
_TARGETS = 8  # that a program adds up at least, where there are so few programs that all run at a time:
_AT_A_TIME = 384
_TOGETHER = 16  # targets of a tile, and
_PARTS = 64  # programs at most that go through them
_ADDED = 32  # elements that a program adds up, of
_AT_ONCE = 256  # sums at a time


class Parts(NamedTuple):
    """What gradients of targets, weight and bias are made of, float32.

    of_queries: `(M, D)` what matrices add to the gradients of targets; sums: `(M, F)` gradients of constants;
    of_weight: `(parts, 2, D, F)`, of which the sums over parts are the gradients of the parts of the weight that are of
    events and of products. With `offsets` the first two are of pieces, `(M + programs, …)`: a piece is what a program
    has of the events of a row. Number `b` is the first of row `b`, number `M + i` what program `i` has of a row whose
    events begin before; a program has `span` units.
    """

    of_queries: Tensor
    sums: Tensor
    of_weight: Tensor
    offsets: Tensor | None = None
    span: int = 1


def launch_of_both(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, offsets: Tensor, d_k: Tensor) -> Parts:
    """Fill `d_k` `(T, D)`; return what the other gradients are made of.

    `grad` `(T, F)` and `weight` are contiguous, the last stride of `q` and `k` is 1; T is at least 1 and less than 2³¹,
    F at most 64.
    """
    (events, columns), (targets, width) = grad.shape, q.shape
    block = min(max(16, power_of_two(width)), _WIDEST)
    blocks = ceil_div(width, block)
    units = units_of(events, targets)
    span = max(ceil_div(units, ceil_div(_PROGRAMS, blocks)), _LEAST)
    programs = ceil_div(units, span)
    parts = Parts(torch.empty(targets + programs, width, device=q.device),
                  torch.empty(targets + programs, columns, device=q.device),
                  torch.empty(programs, 2, width, columns, device=q.device), offsets, span)
    _of_both[programs * blocks,](
        grad, q, k, weight, d_k, *parts[:4], events, targets, span, q.stride(0), k.stride(0), width, columns,
        _EVENTS, block, max(16, power_of_two(columns)), num_warps=4, num_stages=3, maxnreg=_REGISTERS)
    return parts


def launch_of_matrices(grad: Tensor, q: Tensor, k: Tensor, weight: Tensor, reading: Reading) -> Parts:
    """Return what the gradients of targets, weight and bias are made of, by way of each target's matrix.

    `grad` `(T', F)` and `weight` are contiguous, the last stride of `q` and `k` is 1.
    """
    (targets, width), columns = q.shape, grad.shape[1]
    matrices = torch.empty(targets, 1, width, columns, device=q.device)
    sums = torch.empty(targets, 1, columns, device=q.device)
    if targets:
        source = None if reading.rows is None else Source(reading.rows, reading.offsets)
        launch_jagged(k[:, None], grad[:, None], reading.ends, matrices, sums, source)
    wide = max(2, power_of_two(columns))
    lines = max(1, min(power_of_two(width), 16, _TILE // wide))
    blocks = ceil_div(width, lines)
    programs = max(1, min(ceil_div(targets, _TARGETS), _AT_A_TIME // blocks))
    parts = Parts(torch.empty(targets, width, device=q.device), sums[:, 0],
                  torch.empty(programs, 2, width, columns, device=q.device))
    _of_matrices[programs * blocks,](
        matrices, q, weight, parts.of_queries, parts.of_weight, targets, ceil_div(targets, programs), q.stride(0),
        width, columns, lines, wide, max(1, _TILE // (wide * lines)), num_warps=4)
    return parts


def launch_of_others(parts: Parts, events: int, q: Tensor, weight: Tensor,
                     found: tuple[Tensor, Tensor, Tensor]) -> None:
    """Fill the gradients of `q` `(M, D)`, `weight` `(4 D, F)` and bias `(F,)`, contiguous, from their parts.

    `weight` is contiguous, and the last stride of `q` is 1.
    """
    (targets, width), columns = q.shape, weight.shape[1]
    block, wide = (min(max(16, power_of_two(each)), _WIDEST) for each in (width, columns))
    programs = max(1, min(ceil_div(targets, _TOGETHER), _PARTS))
    each = ceil_div(ceil_div(targets, programs), _TOGETHER) * _TOGETHER
    partial = torch.empty(programs, width + 1, columns, device=q.device)
    overlap = overlaps(q)
    _of_targets[programs * ceil_div(width, block) * ceil_div(columns, wide),](
        parts.of_queries, parts.sums, q, weight, parts.offsets, found[0], partial, events, targets, parts.span, each,
        q.stride(0), width, columns, _TOGETHER, block, wide, precision(torch.float32), overlap, num_warps=4,
        launch_pdl=overlap)
    _added[ceil_div((width + 1) * columns, _ADDED),](
        partial, parts.of_weight, *found[1:], programs, parts.of_weight.shape[0], width, columns, _ADDED, _AT_ONCE,
        _PARTS, overlap, num_warps=8, launch_pdl=overlap)


@launched
@triton.jit(do_not_specialize=["events", "targets", "span"])
def _of_both(grad, q, k, weight, d_k, of_queries, sums, of_weight, offsets, events, targets, span, q_stride, k_stride,
             D: tl.constexpr, F: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr):
    """BD columns of the gradients of events that `span` units are of, and what follows from them for the others.

    With `w4` the last part of the weight, an event's gradient is `(w2 - w3) g + q · (w4 g)`: no matrix is made of a
    target, and those parts stay on the chip.
    """
    pid = tl.program_id(0)
    blocks: tl.constexpr = (D + BD - 1) // BD
    line = pid % blocks * BD
    lines = line + tl.arange(0, BD)
    column = tl.arange(0, BF)
    mixed, product = of_both(weight, line, column, D, F, BD)
    mixed = mixed.to(grad.dtype.element_ty)
    by_event = tl.zeros([BD, BF], tl.float32)  # sums over targets of A and diag(q) A
    by_product = tl.zeros([BD, BF], tl.float32)
    unit = tl.cast(pid // blocks, tl.int64) * span
    stop = unit + span
    target = row_with(offsets, unit, targets)
    while (unit < stop) & (target < targets):
        first, count, unit = piece_of(offsets, unit, stop, target, events)
        query = load_query(q + tl.cast(target, tl.int64) * q_stride, lines, D)
        matrix = tl.zeros([BD, BF], tl.float32)
        total = tl.zeros([BF, 16], tl.float32)
        for at in range(0, count, BT):
            right = load_tile(grad + (first + at) * F, F, count - at, F, column, BT)
            left = load_tile(k + (first + at) * k_stride, k_stride, count - at, D, lines, BT)
            found = tl.dot(right, product.to(grad.dtype.element_ty).T) * query[None, :]
            found = tl.dot(right, mixed.T, found)
            store_tile(d_k + (first + at) * D, found, D, count - at, lines, D, BT)
            matrix = tl.dot(left.T, right, matrix)
            total = tl.dot(right.T, tl.full([BT, 16], 1.0, grad.dtype.element_ty), total)
        if count > 0:
            begun = tl.load(offsets + target) == first
            piece = tl.cast(tl.where(begun, target, targets + pid // blocks), tl.int64)
            again = load_matrix(weight + 3 * D * F, F, 1, line, column, D, F, BD)  # cheaper than to keep it
            tl.store(of_queries + piece * D + lines, tl.sum(matrix * again.to(tl.float32), 1), mask=lines < D)
            tl.store(sums + piece * F + column, tl.max(total, 1), mask=column < tl.where(line == 0, F, 0))  # all alike
            by_event += matrix
            by_product += query[:, None] * matrix
        target += 1
    of_weight += (tl.cast(pid // blocks, tl.int64) * 2 * D + line) * F
    store_tile(of_weight, by_event, F, D - line, column, F, BD)
    store_tile(of_weight + D * F, by_product, F, D - line, column, F, BD)


@launched
@triton.jit(do_not_specialize=["targets", "each"])
def _of_matrices(matrices, q, weight, of_queries, of_weight, targets, each, q_stride, D: tl.constexpr, F: tl.constexpr,
                 BD: tl.constexpr, BF: tl.constexpr, BM: tl.constexpr):
    """BD lines of what the matrices of `each` targets add to their gradients, and to that of the weight."""
    pid = tl.program_id(0)
    blocks: tl.constexpr = (D + BD - 1) // BD
    line = pid % blocks * BD + tl.arange(0, BD)
    column = tl.arange(0, BF)
    inside = (line < D)[:, None] & (column < F)[None, :]
    element = line[:, None] * F + column[None, :]
    product = tl.load(weight + 3 * D * F + element, mask=inside, other=0.0).to(tl.float32)
    by_event = tl.zeros([BM, BD, BF], tl.float32)  # sums over targets of A and diag(q) A
    by_product = tl.zeros([BM, BD, BF], tl.float32)
    last = tl.minimum((pid // blocks + 1) * each, targets)
    for first in range(pid // blocks * each, last, BM):
        target = first + tl.arange(0, BM)
        there = target < last
        far = target.to(tl.int64)
        matrix = tl.load(matrices + (far * (D * F))[:, None, None] + element[None, :, :],
                         mask=there[:, None, None] & inside[None, :, :], other=0.0)
        known = there[:, None] & (line < D)[None, :]
        query = tl.load(q + (far * q_stride)[:, None] + line[None, :], mask=known, other=0.0).to(tl.float32)
        tl.store(of_queries + (far * D)[:, None] + line[None, :], tl.sum(matrix * product[None, :, :], 2), mask=known)
        by_event += matrix
        by_product += query[:, :, None] * matrix
    of_weight += tl.cast(pid // blocks, tl.int64) * (2 * D * F)
    tl.store(of_weight + element, tl.sum(by_event, 0), mask=inside)
    tl.store(of_weight + D * F + element, tl.sum(by_product, 0), mask=inside)


@triton.jit
def _pieces(source, number, there, column, width):
    """Pieces (BM, columns) float32, 0 where there is none."""
    return tl.load(source + number[:, None] * width + column[None, :], mask=there[:, None] & (column < width)[None, :],
                   other=0.0)


@triton.jit
def _of_query(weight, line, column, D: tl.constexpr, F: tl.constexpr, N: tl.constexpr):
    """What multiplies a target alone, N lines of it: (N, columns) float32."""
    own = load_matrix(weight, F, 1, line, column, D, F, N).to(tl.float32)
    return own + load_matrix(weight + 2 * D * F, F, 1, line, column, D, F, N).to(tl.float32)


@launched
@triton.jit(do_not_specialize=["events", "targets", "span", "each"])
def _of_targets(of_queries, sums, q, weight, offsets, d_q, partial, events, targets, span, each, q_stride,
                D: tl.constexpr, F: tl.constexpr, BM: tl.constexpr, BD: tl.constexpr, BF: tl.constexpr,
                PRECISION: tl.constexpr, OVERLAP: tl.constexpr):
    """The gradients of `each` targets, and as far as it comes from them those of the weight's first part and bias."""
    wide: tl.constexpr = (F + BF - 1) // BF
    blocks: tl.constexpr = (D + BD - 1) // BD
    pid, block = tl.program_id(0) // (wide * blocks), tl.program_id(0) % (wide * blocks)
    line, begin_column = block // wide * BD, block % wide * BF
    lines = line + tl.arange(0, BD)
    column = begin_column + tl.arange(0, BF)
    own = _of_query(weight, line, column, D, F, BD)
    wait_for_previous(OVERLAP)
    let_next_begin(OVERLAP)  # which now may read all but what this one stores
    by_query = tl.zeros([BD, BF], tl.float32)  # sums over targets of q ⊗ s
    of_bias = tl.zeros([BF], tl.float32)
    for first in range(pid * each, tl.minimum((pid + 1) * each, targets), BM):
        here = tl.cast(first, tl.int64)
        target = here + tl.arange(0, BM)
        there = target < targets
        its = target * 0
        more = its
        if offsets is not None:  # of an empty row nothing was stored, and of a few rows there are more pieces
            begin = tl.load(offsets + target, mask=there, other=0).to(tl.int64)
            end = tl.minimum(tl.load(offsets + target + 1, mask=there, other=0).to(tl.int64), events)
            before = (target + 1) * ROW
            its = (begin + before) // span
            more = tl.where(begin < end, (end - 1 + before) // span - its, -1)
        query = load_tile(q + here * q_stride, q_stride, targets - first, D, lines, BM).to(tl.float32)
        added = _pieces(sums, target, there & (more >= 0), column, F)
        found = _pieces(of_queries, target, there & (more >= 0), lines, D)
        for n in range(1, tl.max(more, 0) + 1):
            added += _pieces(sums, targets + its + n, n <= more, column, F)
            found += _pieces(of_queries, targets + its + n, n <= more, lines, D)
        by_query = tl.dot(query.T, added, by_query, input_precision=PRECISION)
        of_bias += tl.sum(added, 0)
        if begin_column == 0:
            found = tl.dot(added, own.T, found, input_precision=PRECISION)
            for f in tl.static_range(BF, F, BF):  # so wide are only those without pieces
                others = f + tl.arange(0, BF)
                added = _pieces(sums, target, there, others, F)
                found = tl.dot(added, _of_query(weight, line, others, D, F, BD).T, found, input_precision=PRECISION)
            store_tile(d_q + here * D, found, D, targets - first, lines, D, BM)
    partial += tl.cast(pid, tl.int64) * ((D + 1) * F)
    store_tile(partial + line * F, by_query, F, D - line, column, F, BD)
    tl.store(partial + D * F + column, of_bias, mask=column < tl.where(line == 0, F, 0))


@launched
@triton.jit(do_not_specialize=["programs", "parts"])
def _added(partial, of_weight, d_weight, d_bias, programs, parts, D: tl.constexpr, F: tl.constexpr,
           BLOCK: tl.constexpr, BN: tl.constexpr, PARTS: tl.constexpr, OVERLAP: tl.constexpr):
    """Some elements of the gradients of weight and bias: the sums of parts, in their order."""
    element = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = element < D * F
    bias = (element >= D * F) & (element < (D + 1) * F)
    event = tl.zeros([BN, BLOCK], tl.float32)
    product = tl.zeros([BN, BLOCK], tl.float32)
    for first in range(0, parts, BN):
        part = first + tl.arange(0, BN)
        at = of_weight + part.to(tl.int64)[:, None] * (2 * D * F) + element[None, :]
        there = (part < parts)[:, None] & inside[None, :]
        event += tl.load(at, mask=there, other=0.0)
        product += tl.load(at + D * F, mask=there, other=0.0)
    of_event = tl.sum(event, 0)
    of_product = tl.sum(product, 0)
    wait_for_previous(OVERLAP)  # for what comes from targets; the other parts are from before it
    query = tl.zeros([PARTS, BLOCK], tl.float32)  # behind its own elements are those of the bias
    for first in range(0, programs, PARTS):
        part = first + tl.arange(0, PARTS)
        query += tl.load(partial + part.to(tl.int64)[:, None] * ((D + 1) * F) + element[None, :],
                         mask=(part < programs)[:, None] & (inside | bias)[None, :], other=0.0)
    of_query = tl.sum(query, 0)
    kind = d_weight.dtype.element_ty
    tl.store(d_weight + element, of_query.to(kind), mask=inside)
    tl.store(d_weight + D * F + element, of_event.to(kind), mask=inside)
    tl.store(d_weight + 2 * D * F + element, (of_query - of_event).to(kind), mask=inside)
    tl.store(d_weight + 3 * D * F + element, of_product.to(kind), mask=inside)
    tl.store(d_bias + element - D * F, of_query.to(kind), mask=bias)
