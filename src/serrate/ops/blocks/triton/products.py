"""The kernels of products with square blocks: `X Yᵀ` into a block, and a block or its transpose times events.

A program owns a tile of events of one row and head, goes through the other side of the row tile by tile, and adds in
float32; of float32 it keeps beside a sum what rounding took of it. The three are each other's gradients; see
`autograd.py`.
"""

# ruff: noqa: N803, N806

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...attention.triton.tile import precision, product
from ...bmm.triton.tile import add_product
from ...launch import launched
from ...sizes import ceil_div, power_of_two
from .rows import bisections, block_of, clear_past, events_of, pairs_of


class Sizes(NamedTuple):
    """Events of a tile, of the blocks it goes through, columns at once, warps, stages."""

    tile: int
    block: int
    columns: int
    warps: int
    stages: int


def _sizes(x: Tensor, wide: bool) -> Sizes:
    """Return the sizes for events like `x` `(T, H, D)`: as large as leaves room for several programs at once.

    Blocks are `wide` where their longer lines of pairs pay: in products, and in sums over queries alone.
    """
    columns = max(16, power_of_two(x.shape[2]))
    if x.dtype == torch.float32:  # products without matrix unit hold their operands in registers
        return Sizes(64, 32, min(columns, 64), 8, 2)
    return Sizes(64, 128 if wide else 64, columns if columns <= 128 else 64, 4, 3 if columns < 128 else 2)


def launch(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Fill `out` `(P, H)`, contiguous, from x and y `(T, H, D)`. The last stride of these is 1."""
    sizes, (events, heads, width) = _sizes(x, wide=True), x.shape
    slots = events // sizes.tile + offsets.shape[0] - 1
    _products[(slots * heads,)](
        x, y, out, offsets, blocks, events, out.shape[0], offsets.shape[0] - 1, bisections(offsets), heads,
        x.stride()[:2], y.stride()[:2], width, sizes.columns, sizes.tile, sizes.block, precision(),
        num_warps=sizes.warps, num_stages=sizes.stages)


def launch_sums(a: Tensor, events: tuple[Tensor | None, Tensor | None], offsets: Tensor, blocks: Tensor,
                outs: tuple[Tensor | None, Tensor | None]) -> None:
    """Fill `outs` `(T, H, D)`, contiguous: a times events, and its transpose times events, or one of the two.

    a `(P, H)` of any strides; events `(T, H, D)`, whose last stride is 1, for each result that is asked for.
    """
    given = next(each for each in events if each is not None)
    sizes, (count, heads, width) = _sizes(given, wide=outs[0] is None), given.shape
    slots = count // sizes.tile + offsets.shape[0] - 1
    sides = sum(out is not None for out in outs)
    _sums[(slots * heads * ceil_div(width, sizes.columns) * sides,)](
        a, *events, *outs, offsets, blocks, count, a.shape[0], offsets.shape[0] - 1, bisections(offsets), heads,
        a.stride(), *((0, 0) if each is None else each.stride()[:2] for each in events), width, sizes.columns,
        sizes.tile, sizes.block, precision(), num_warps=sizes.warps, num_stages=sizes.stages)


@triton.jit
def _events(source, first, limit, d, strides, D: tl.constexpr, N: tl.constexpr):
    """`N` events from `first` on at columns d (BD,), (N, BD); 0 from event `limit` on and past the width."""
    step = tl.arange(0, N)
    at = source + first * strides[0] + step[:, None] * strides[0] + d[None, :]
    return tl.load(at, mask=(step < limit)[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _eighths(x, ALIGNED: tl.constexpr):
    """`x`, and where it is known to be one, visibly a multiple of 8: then loads and stores are of 16 bytes."""
    if ALIGNED:
        x = x // 8 * 8
    return x


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
        if (length % 8 == 0) & (block % 8 == 0):
            _products_of_tile(x_source, y_source, out, first, start, length, block, held, H, x_strides, y_strides, D,
                              BD, BM, BN, PRECISION, True)
        else:
            _products_of_tile(x_source, y_source, out, first, start, length, block, held, H, x_strides, y_strides, D,
                              BD, BM, BN, PRECISION, False)


@triton.jit
def _products_of_tile(x_source, y_source, out, first, start, length, block, held, H, x_strides, y_strides,
                      D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                      PRECISION: tl.constexpr, ALIGNED: tl.constexpr):
    d = tl.arange(0, BD)
    x = _events(x_source, start + first, length - first, d, x_strides, D, BM)
    for n in range(0, length, BN):
        s = product(x, _events(y_source, start + n, length - n, d, y_strides, D, BN), PRECISION)
        for more in range(BD, D, BD):  # of wide events
            s += product(_events(x_source, start + first, length - first, more + d, x_strides, D, BM),
                         _events(y_source, start + n, length - n, more + d, y_strides, D, BN), PRECISION)
        base, at, inside = pairs_of(first, tl.arange(0, BM), n + tl.arange(0, BN), held, _eighths(length, ALIGNED),
                                    _eighths(block, ALIGNED))
        tl.store(out + base * H + at * H, s.to(out.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["T", "P", "B", "steps"])
def _sums(a, keys, queries, of_queries, of_keys, offsets, blocks, T, P, B, steps, H, a_strides, k_strides, q_strides,
          D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr):
    """BD columns of the sums of BM events of one row and head: of queries over keys, or of keys over queries.

    Where both are asked for, the programs of either kind take turns.
    """
    pid = tl.program_id(0)
    if of_keys is None:
        _sums_of_program(pid, a, keys, of_queries, offsets, blocks, T, P, B, steps, H, a_strides, k_strides, D, BD, BM,
                         BN, False, PRECISION)
    elif of_queries is None:
        _sums_of_program(pid, a, queries, of_keys, offsets, blocks, T, P, B, steps, H, a_strides, q_strides, D, BD, BM,
                         BN, True, PRECISION)
    elif pid % 2 == 0:
        _sums_of_program(pid // 2, a, keys, of_queries, offsets, blocks, T, P, B, steps, H, a_strides, k_strides, D,
                         BD, BM, BN, False, PRECISION)
    else:
        _sums_of_program(pid // 2, a, queries, of_keys, offsets, blocks, T, P, B, steps, H, a_strides, q_strides, D,
                         BD, BM, BN, True, PRECISION)


@triton.jit
def _sums_of_program(pid, a_source, y_source, out, offsets, blocks, T, P, B, steps, H, a_strides, y_strides,
                     D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TRANSPOSED: tl.constexpr,
                     PRECISION: tl.constexpr):
    CHUNKS: tl.constexpr = (D + BD - 1) // BD
    part = pid % (H * CHUNKS)
    h = tl.cast(part % H, tl.int64)
    d = part // H * BD + tl.arange(0, BD)
    row, first, start, length = events_of(offsets, tl.cast(pid // (H * CHUNKS), tl.int64), T, B, steps, BM)
    block, held = block_of(blocks, row, length, P)
    a_source += h * a_strides[1]
    y_source += h * y_strides[1]
    if first < length:
        if (length % 8 == 0) & (block % 8 == 0):
            found = _sums_of_tile(a_source, y_source, first, start, length, block, held, d, a_strides, y_strides, D,
                                  BD, BM, BN, TRANSPOSED, PRECISION, True)
        else:
            found = _sums_of_tile(a_source, y_source, first, start, length, block, held, d, a_strides, y_strides, D,
                                  BD, BM, BN, TRANSPOSED, PRECISION, False)
        events = first + tl.arange(0, BM)
        at = out + ((start + events) * H + h)[:, None] * D + d[None, :]
        tl.store(at, found.to(out.dtype.element_ty), mask=(events < length)[:, None] & (d < D)[None, :])


@triton.jit
def _sums_of_tile(a_source, y_source, first, start, length, block, held, d, a_strides, y_strides, D: tl.constexpr,
                  BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, TRANSPOSED: tl.constexpr,
                  PRECISION: tl.constexpr, ALIGNED: tl.constexpr):
    """The sums of one tile, from the diagonal on: forwards over keys, backwards over queries.

    So programs of both kinds that run side by side come to the same pairs at the same time, one of them from a cache.
    """
    own = tl.arange(0, BM)
    other = tl.arange(0, BN)
    total = tl.zeros([BM, BD], tl.float32)
    lost = total
    tiles = tl.cdiv(length, BN)
    for i in range(0, tiles):
        if TRANSPOSED:  # queries along the first axis of the tile, as they lie
            n = (first // BN + tiles - i) % tiles * BN
            a = _pairs(a_source, n, other, first + own, held, length, block, a_strides[0], ALIGNED).T
        else:
            n = (first // BN + i) % tiles * BN
            a = _pairs(a_source, first, own, n + other, held, length, block, a_strides[0], ALIGNED)
        y = _events(y_source, start + n, length - n, d, y_strides, D, BN)
        total, lost = add_product(total, lost, a, y, PRECISION)
    return total


@triton.jit
def _pairs(source, first, step, keys, held, length, block, stride, ALIGNED: tl.constexpr):
    """The pairs of the queries `first + step` with keys, (M, N); 0 where there are none."""
    base, at, inside = pairs_of(first, step, keys, held, _eighths(length, ALIGNED), _eighths(block, ALIGNED))
    return tl.load(source + base * stride + at * stride, mask=inside, other=0.0)
