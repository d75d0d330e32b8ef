"""The kernels of broadcast: events with what belongs to them, and gradients back to cells and positions."""

# ruff: noqa: N803, RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...pool.triton.chunks import Tiles, ends, find_chunk, place
from ...pool.triton.elements import widened
from ...sizes import ceil_div, power_of_two

Scaled = tuple[Tensor, Tensor] | None  # what gradients are multiplied with, and where that goes

_TILE = 256  # elements of a tile a warp, 16 bytes a thread in half precision
_AHEAD = 8  # tiles that are under way at a time
_ENOUGH = 1024  # programs; where there are more they are small ones
# warps of a program; registers of a thread, and more a byte of an element, without which fewer tiles would be under way
_LARGE, _SMALL = (4, 32, 24), (2, 64, 16)
_LEAST = 64  # columns that lie side by side at least, of some positions if need be
_PROGRAMS = 768  # enough to fill a device,
_MOST = 2048  # and so many that a program has several positions before there are more
_LENGTHS = 128  # rows whose lengths are looked at together, whether one is long enough


def launch(x: Tensor, y: Tensor, offsets: Tensor, along: str, product: bool, out: Tensor) -> None:
    """Fill `out` `(T, W)` from `x` with last stride 1 and `y` `(B, W)`, `(N, W)` or `(B, N, W)`, or one column of it.

    `out` and `y` are contiguous.
    """
    events, width = x.shape
    if out.numel():
        tiles, rows = Tiles.of(width), offsets.shape[0] - 1
        grid = tiles.slots(rows, events) * tiles.blocks,
        _broadcast[grid](x, y, offsets, out, x.stride(0), rows, events, y.shape[-2], along, product, y.shape[-1],
                         width, tiles.columns, tiles.blocks, tiles.chunk, tiles.events)


def launch_to_cells(grad: Tensor, x: Tensor | None, offsets: Tensor, out: Tensor, scaled: Scaled = None) -> None:
    """Fill `out` `(B, N, W)` with the gradients of events, times `x`, and 0 past their rows.

    On the way the second of `scaled`, `(T, W)`, is filled with the gradients times the first, `(B, N, W or 1)`.
    """
    rows, positions, width = out.shape
    if out.numel():
        tiles = Tiles.of(width)
        grid = rows * ceil_div(positions, tiles.events) * tiles.blocks,
        _to_cells[grid](grad, x, scaled, offsets, out, grad.stride(0), 0 if x is None else x.stride(0), grad.shape[0],
                        positions, scaled[0].shape[2] if scaled else 0, width, tiles.columns, tiles.blocks,
                        tiles.events)


def launch_over_rows(grad: Tensor, x: Tensor | None, offsets: Tensor, out: Tensor, scaled: Scaled = None) -> None:
    """Fill `out` `(N, W)` with the sums over rows of the gradients of events, times `x`, at each position.

    A program has all rows of few positions, as short rows have no others, or of many past twice the mean length, which
    few rows reach. Where programs are too few for a device they have groups of rows, whose sums are summed by torch, in
    their order; each group costs as much memory as the result. On the way the second of `scaled`, `(T, W)`, is filled
    with the gradients times the first, `(N, W or 1)`.
    """
    (positions, width), rows = out.shape, offsets.shape[0] - 1
    if not out.numel():
        return
    columns, blocks = Tiles.of(width).columns, Tiles.of(width).blocks
    common = min(positions, 1 + 2 * grad.shape[0] // max(rows, 1))
    least = max(1, _LEAST // columns)
    warps, *registers = _SMALL if ceil_div(common, least) * blocks > _ENOUGH else _LARGE
    many = warps * _TILE // columns
    at_once = max(least, min(power_of_two(ceil_div(common * blocks, _MOST)), many))
    lines = many // at_once
    ahead = _AHEAD if x is None and scaled is None else _AHEAD // 2
    near = ceil_div(common, at_once)
    programs = (near + ceil_div(max(positions - near * at_once, 0), many)) * blocks
    groups = max(1, min(ceil_div(rows, lines * ahead), _PROGRAMS // programs))
    sums = out if groups == 1 else out.new_empty((groups, positions, width), dtype=torch.float32)
    _over_rows[(programs * groups,)](
        grad, x, scaled, offsets, sums, grad.stride(0), 0 if x is None else x.stride(0), rows, grad.shape[0], positions,
        ceil_div(rows, groups), groups, near, scaled[0].shape[1] if scaled else 0, width, columns, blocks, at_once,
        lines, many, ahead, _LENGTHS, num_warps=warps, maxnreg=registers[0] + registers[1] * grad.element_size())
    if groups > 1:
        out.copy_(sums.sum(0))


@launched
@triton.jit(do_not_specialize=["rows", "events", "N"])
def _broadcast(x, y, offsets, out, stride: tl.constexpr, rows, events, N, ALONG: tl.constexpr, PRODUCT: tl.constexpr,
               Y: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr,
               BM: tl.constexpr):
    """The results of the events of one chunk; `y` is `Y` columns wide, 1 or all."""
    slot, _, block = place(1, BLOCKS)
    row, begin, _, first, count = find_chunk(offsets, rows, events, slot, CHUNK)
    column = block * BD + tl.arange(0, BD)
    inside = column < D
    x += (begin + first) * stride + column[None, :]
    out += (begin + first) * D + column[None, :]
    if ALONG != "positions":
        y += (tl.cast(row, tl.int64) if ALONG == "rows" else tl.cast(row, tl.int64) * N) * Y
    if Y > 1:
        y += column
    else:
        y += column * 0
    if ALONG == "rows":
        own = tl.load(y, mask=inside, other=0.0).to(tl.float32)[None, :]
    for step in range(0, count, BM):
        event = (step + tl.arange(0, BM)).to(tl.int64)[:, None]
        there = (event < count) & inside[None, :]
        tile = tl.load(x + event * stride, mask=there, other=0.0).to(tl.float32)
        if ALONG != "rows":
            own = tl.load(y[None, :] + (first + event) * Y, mask=there & (first + event < N), other=0.0).to(tl.float32)
        tile = tile * own if PRODUCT else tile + own
        tl.store(out + event * D, tile.to(out.dtype.element_ty), mask=there)


@triton.jit
def _load(grad, x, own, scaled, event, column, there, stride: tl.constexpr, x_stride: tl.constexpr, D: tl.constexpr):
    """Gradients of events (M, 1), times `x` where there is one, as float32; those times `own` go to `scaled`."""
    tile = tl.load(grad + event * stride + column, mask=there, other=0.0).to(tl.float32)
    if scaled is not None:
        tl.store(scaled[1] + event * D + column, (tile * own).to(scaled[1].dtype.element_ty), mask=there)
    if x is not None:
        tile *= tl.load(x + event * x_stride + column, mask=there, other=0.0).to(tl.float32)
    return tile


@triton.jit
def _clear(target, event, column, there, D: tl.constexpr):
    """Set events (M, 1) of `target` to 0."""
    tl.store(target + event * D + column, tl.zeros(there.shape, target.dtype.element_ty), mask=there)


@triton.jit
def _clear_rest(target, offsets, row, stop, events, N, column, D: tl.constexpr, M: tl.constexpr):
    """Set the events of some rows to 0 that lie past N positions: there `y` counts as 0."""
    for one in range(row, stop):
        begin, end = ends(offsets, one, events)
        for far in range(N, end - begin, M):
            event = begin + far + tl.arange(0, M)[:, None]
            _clear(target, event, column, (event < end) & (column < D), D)


@triton.jit
def _own(y, position, column, there, Y: tl.constexpr):
    """What belongs to positions (M, 1), of `Y` columns, 1 or all, as float32 (M, columns)."""
    if Y == 1:
        column *= 0
    return tl.load(y + position * Y + column, mask=there, other=0.0).to(tl.float32)


@launched
@triton.jit(do_not_specialize=["events", "N"])
def _to_cells(grad, x, scaled, offsets, out, stride: tl.constexpr, x_stride: tl.constexpr, events, N, Y: tl.constexpr,
              D: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr, BM: tl.constexpr):
    """BM cells of one row."""
    cells = tl.cdiv(N, BM)
    pid, _, block = place(1, BLOCKS)
    row = pid // cells
    begin, end = ends(offsets, row, events)
    position = (pid % cells * BM + tl.arange(0, BM)).to(tl.int64)[:, None]
    column = (block * BD + tl.arange(0, BD))[None, :]
    there = (begin + position < end) & (position < N) & (column < D)
    own = 0.0
    if scaled is not None:
        own = _own(scaled[0] + tl.cast(row, tl.int64) * N * Y, position, column, there, Y)
        if (pid + 1) % cells == 0:
            _clear_rest(scaled[1], offsets, row, row + 1, events, N, column, D, BM)
    tile = _load(grad, x, own, scaled, begin + position, column, there, stride, x_stride, D)
    tl.store(out + (tl.cast(row, tl.int64) * N + position) * D + column, tile.to(out.dtype.element_ty),
             mask=(position < N) & (column < D))


@triton.jit
def _rows(offsets, row, last, events):
    """Where rows (M,) begin and end, int64; those from the last on are empty."""
    begin = tl.load(offsets + row, mask=row < last, other=0).to(tl.int64)
    return begin, tl.minimum(tl.load(offsets + row + 1, mask=row < last, other=0).to(tl.int64), events)


@triton.jit
def _sum_rows(grad, x, scaled, offsets, sums, stride: tl.constexpr, x_stride: tl.constexpr, first_row, last, events, N,
              start, column, Y: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr, BR: tl.constexpr,
              AHEAD: tl.constexpr, LENGTHS: tl.constexpr, RARE: tl.constexpr):
    """The sums of BP positions from `start` on over some rows, AHEAD tiles of BR rows at a time.

    Where rows as long as that are RARE their lengths are looked at first, `LENGTHS` of them together.
    """
    lane = tl.arange(0, BR * BP)
    position = (start + lane % BP).to(tl.int64)
    known = (position < N)[:, None] & (column < D)
    found = tl.zeros([BR * BP, BD], tl.float32)
    own = 0.0
    if scaled is not None:
        own = _own(scaled[0], position[:, None], column, known, Y)
    for some in range(first_row, last, LENGTHS):
        stop = tl.minimum(some + LENGTHS, last)
        if not RARE or _longest(offsets, some, stop, events, LENGTHS) > start:
            for first in range(some, stop, AHEAD * BR):
                if not RARE or _longest(offsets, first, stop, events, AHEAD * BR) > start:
                    tiles = ()  # all of them are under way before one is looked at
                    others = ()
                    places = ()
                    for i in tl.static_range(AHEAD):
                        begin, end = _rows(offsets, first + i * BR + lane // BP, last, events)
                        there = (begin + position < end)[:, None] & known
                        event = (begin + position)[:, None]
                        places = places + ((event, there),)
                        tiles = tiles + (tl.load(grad + event * stride + column, mask=there, other=0.0),)
                        if x is not None:
                            others = others + (tl.load(x + event * x_stride + column, mask=there, other=0.0),)
                    for i in tl.static_range(AHEAD):
                        tile = widened(tiles[i])
                        if scaled is not None:
                            tl.store(scaled[1] + places[i][0] * D + column,
                                     (tile * own).to(scaled[1].dtype.element_ty), mask=places[i][1])
                        found += tile if x is None else tile * widened(others[i])
        if scaled is not None:  # noqa: SIM102, decided when the kernel is compiled
            if start + BP >= N:  # noqa: SIM102
                if _longest(offsets, some, stop, events, LENGTHS) > N:
                    _clear_rest(scaled[1], offsets, some, stop, events, N, column, D, BR * BP)
    total = tl.sum(found.reshape(BR, BP, BD), 0)
    position = (start + tl.arange(0, BP)).to(tl.int64)[:, None]
    tl.store(sums + position * D + column, total.to(sums.dtype.element_ty), mask=(position < N) & (column < D))


@triton.jit
def _longest(offsets, row, last, events, M: tl.constexpr):
    """How long the longest of M rows is, of which those from the last on are empty."""
    begin, end = _rows(offsets, row + tl.arange(0, M), last, events)
    return tl.max(end - begin, 0)


@launched
@triton.jit(do_not_specialize=["rows", "events", "N", "share", "groups", "near"])
def _over_rows(grad, x, scaled, offsets, sums, stride: tl.constexpr, x_stride: tl.constexpr, rows, events, N, share,
               groups, near, Y: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr, BP: tl.constexpr,
               BR: tl.constexpr, MANY: tl.constexpr, AHEAD: tl.constexpr, LENGTHS: tl.constexpr):
    """The sums of some positions over the `share` rows of one group: BP of them, or MANY where few rows reach."""
    pid, group, block = place(groups, BLOCKS)
    column = (block * BD + tl.arange(0, BD))[None, :]
    sums += tl.cast(group, tl.int64) * N * D
    first = group * share
    last = tl.minimum(first + share, rows)
    if pid < near:
        _sum_rows(grad, x, scaled, offsets, sums, stride, x_stride, first, last, events, N, pid * BP, column, Y, D, BD,
                  BP, BR, AHEAD, LENGTHS, False)
    else:
        _sum_rows(grad, x, scaled, offsets, sums, stride, x_stride, first, last, events, N,
                  near * BP + (pid - near) * MANY, column, Y, D, BD, MANY, 1, AHEAD, LENGTHS, True)
