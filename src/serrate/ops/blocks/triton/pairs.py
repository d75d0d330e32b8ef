"""The kernels that make or change every pair by itself: differences, squares that rows share, paddings."""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...sizes import ceil_div, power_of_two
from .rows import (
    block_of,
    clear_past,
    ends_of,
    events_of,
    groups_of,
    pairs_of,
    period_of,
    queries_abreast,
    queries_of,
    share_of,
    words_of,
)

_SPAN = 16384  # pairs of a program
_CELLS = 4096  # of a tile of a padded block
_ENOUGH = 1024  # programs to fill a device
_QUERIES, _KEYS = 32, 256  # of a tile that is summed both ways
_LINES, _COLUMNS = 16, 256  # of a tile of a square that rows share


def launch_differences(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Fill `out` `(P, H)`, contiguous, from x and y `(T, H)` of any strides."""
    _launch((x, y, None, None), ((*x.stride(), *y.stride()), (0,) * 4, (0, 0)), offsets, blocks, 0, out)


def launch_squares(a: Tensor | None, square: Tensor, offsets: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Fill `out` `(P, H)`, contiguous, from `(B or 1, N, N, H or 1)`, times a `(P, H)` where that is given."""
    strides = [0 if size == 1 else stride for size, stride in zip(square.shape, square.stride(), strict=True)]
    _launch((None, None, square, a), ((0,) * 4, tuple(strides), (0, 0) if a is None else a.stride()), offsets, blocks,
            square.shape[1], out)


def _launch(given: tuple, strides: tuple, offsets: Tensor, blocks: Tensor, side: int, out: Tensor) -> None:
    (pairs, heads), rows = out.shape, offsets.shape[0] - 1
    _fill[((pairs // _SPAN + rows) * heads,)](*given, out, offsets, blocks, pairs, rows, heads, side, *strides,
                                              given[3] is not None, _SPAN, num_warps=4)


def launch_to_padded(a: Tensor, offsets: Tensor, blocks: Tensor, fill: float, out: Tensor) -> None:
    """Fill `out` `(B, N, N, H)`, contiguous, from a `(P, H)` of any strides."""
    rows, length, _, heads = out.shape
    columns = min(power_of_two(length), 1024)
    queries = _CELLS // columns
    tiles = ceil_div(length, queries)
    _pad[(rows * tiles * heads,)](a, out, offsets, blocks, a.shape[0], heads, length, tiles,
                                  fill if out.is_floating_point() else int(fill), a.stride(), queries, columns,
                                  num_warps=4)


def totals(a: Tensor, b: Tensor, square: Tensor | None, offsets: Tensor, blocks: Tensor, side: int) -> list[Tensor]:
    """Return a square `(side, side)` times a `(P, H)`, where it is given, and the sums over rows and heads of the
    products of a and b, `(side, side)`. Any strides.

    A program has a tile of the square, and meets it in one row after the other. Where there are too few tiles for the
    device, rows are summed in parts, and these in their order.
    """
    (pairs, heads), rows, keys = a.shape, offsets.shape[0] - 1, min(power_of_two(side), _COLUMNS)
    tiles = ceil_div(side, _LINES) * ceil_div(side, keys)
    parts = max(1, min(rows, _ENOUGH // tiles))
    out = None if square is None else torch.empty((pairs, heads), dtype=a.dtype, device=a.device)
    total = torch.empty((parts, side, side), dtype=a.dtype if parts == 1 else torch.float32, device=a.device)
    _total[(tiles * parts,)](
        a, b, square, out, total, offsets, blocks, pairs, rows, heads, side, ceil_div(rows, parts), a.stride(),
        b.stride(), (0, 0) if square is None else square.stride(), _LINES, keys, num_warps=4)
    total = total[0] if parts == 1 else total.sum(0).to(a.dtype)
    return [total] if out is None else [out, total]


def sums(a: Tensor, offsets: Tensor, blocks: Tensor, events: int) -> list[Tensor]:
    """Return the sums over keys and those over queries of a `(P, H)` of any strides, both `(T, H)`, read once.

    Sums of tiles are float32, and added in their order by a second kernel.
    """
    (pairs, heads), rows = a.shape, offsets.shape[0] - 1
    of_queries = torch.empty((pairs // _KEYS + 3 * events) * heads, dtype=torch.float32, device=a.device)
    of_keys = torch.empty(8 * events * heads, dtype=torch.float32, device=a.device)
    outs = [a.new_empty((events, heads)) for _ in range(2)]
    each = 8 if events > 64 * rows else 1
    _sum_tiles[((events // (_KEYS - 8) + rows) * each * heads,)](
        a, of_queries, of_keys, offsets, blocks, events, pairs, rows, heads, a.stride(), each, _QUERIES, _KEYS,
        num_warps=4)
    _add_tiles[((events // _KEYS + rows) * heads,)](of_queries, of_keys, *outs, offsets, blocks, events, pairs, rows,
                                                    heads, _QUERIES, _KEYS, num_warps=4)
    return outs


@launched
@triton.jit(do_not_specialize=["P", "B", "side"])
def _fill(x, y, square, a, out, offsets, blocks, P, B, H, side, e_strides, s_strides, a_strides,
          SHARED: tl.constexpr, SPAN: tl.constexpr):
    """The pairs of some queries of one row and head, about SPAN of them; of a square that rows share, in its order."""
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    slot = tl.cast(tl.program_id(0) // H, tl.int64)
    if SHARED:
        row, first, last, start, length, block = queries_abreast(offsets, blocks, slot, P, B, SPAN, 16)
    else:
        row, first, last, start, length, block = queries_of(offsets, blocks, slot, P, B, SPAN)
    clear_past(out, blocks, B, P, H, 1024)
    if square is None:
        x += start * e_strides[0] + h * e_strides[1]
        y += start * e_strides[2] + h * e_strides[3]
    else:
        square += row * s_strides[0] + h * s_strides[3]
    if a is not None:
        a += h * a_strides[1]
    out += h
    if length <= 64:
        _fill_tiles(x, y, square, a, out, first, last, length, block, H, side, e_strides, s_strides, a_strides[0], 16,
                    64)
    elif length <= 256:
        _fill_tiles(x, y, square, a, out, first, last, length, block, H, side, e_strides, s_strides, a_strides[0], 4,
                    256)
    elif length <= 1024:
        _fill_tiles(x, y, square, a, out, first, last, length, block, H, side, e_strides, s_strides, a_strides[0], 1,
                    1024)
    else:
        _fill_tiles(x, y, square, a, out, first, last, length, block, H, side, e_strides, s_strides, a_strides[0], 1,
                    4096)


@triton.jit
def _fill_tiles(x, y, square, a, out, first, last, length, block, H, side, e_strides, s_strides, a_stride,
                BM: tl.constexpr, BN: tl.constexpr):
    """The same in tiles of BM queries that begin alike and BN keys: whole words, and what is at either end of them."""
    period = period_of(length)
    columns = tl.arange(0, BN)
    for own in range(first, tl.minimum(first + period, last)):
        head, count = words_of(block + tl.cast(own, tl.int64) * length, length)
        for n in range(0, count, BN):
            _fill_keys(x, y, square, a, out, own, last, period, head + n, columns, columns < count - n, length, block,
                       H, side, e_strides, s_strides, a_stride, BM, True)
        if count < length:
            ends, there = ends_of(head, count, length)
            _fill_keys(x, y, square, a, out, own, last, period, 0, ends, there, length, block, H, side,
                       e_strides, s_strides, a_stride, BM, False)


@triton.jit
def _fill_keys(x, y, square, a, out, first, last, period, key, columns, there, length, block, H, side, e_strides,
               s_strides, a_stride, BM: tl.constexpr, WORDS: tl.constexpr):
    """Some keys of the queries that are a period apart."""
    keys = key + columns
    steps = tl.arange(0, BM) * period
    if square is None:
        other = tl.load(y + keys.to(tl.int64) * e_strides[2], mask=there, other=0)
    for i in range(first, last, BM * period):
        queries = i + steps
        base, at, inside = pairs_of(i, steps, key, columns, there, last, length, block, WORDS)
        if square is None:
            own = tl.load(x + queries.to(tl.int64) * e_strides[0], mask=queries < last, other=0)
            if out.dtype.element_ty.is_floating():
                value = own.to(tl.float32)[:, None] - other.to(tl.float32)[None, :]
            else:
                value = own[:, None] - other[None, :]
        else:
            if WORDS & (key % 8 == 0) & (side % 8 == 0):
                value = _cells(square, queries, key // 8 * 8 + columns, inside, side // 8 * 8, s_strides)
            else:
                value = _cells(square, queries, keys, inside, side, s_strides)
        if a is not None:
            factor = tl.load(a + base * a_stride + at * a_stride, mask=inside, other=0.0)
            value = value.to(tl.float32) * factor.to(tl.float32)
        tl.store(out + base * H + at * H, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _cells(square, queries, keys, inside, side, strides):
    """The cells of a square that a tile of pairs meets; 0 past its side."""
    held = inside & (queries < side)[:, None] & (keys < side)[None, :]
    at = (queries.to(tl.int64) * strides[1])[:, None] + keys[None, :] * strides[2]
    return tl.load(square + at, mask=held, other=0)


@launched
@triton.jit(do_not_specialize=["P", "fill"])
def _pad(a, out, offsets, blocks, P, H, N, tiles, fill, strides, BM: tl.constexpr, BN: tl.constexpr):
    """BM rows of cells of one row's square and one head."""
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    tile = tl.program_id(0) // H
    row = tl.cast(tile // tiles, tl.int64)
    first = tile % tiles * BM
    step = tl.arange(0, BM)
    length = (tl.load(offsets + row + 1) - tl.load(offsets + row)).to(tl.int32)
    block, held = block_of(blocks, row, length, P)
    a += h * strides[1]
    out += (row * N + first) * N * H + h
    for n in range(0, N, BN):
        keys = n + tl.arange(0, BN)
        base, at, inside = pairs_of(first, step, 0, keys, keys < length, held, length, block, False)
        cells = (first + step < N)[:, None] & (keys < N)[None, :]
        value = tl.load(a + base * strides[0] + at * strides[0], mask=inside & cells, other=fill)
        tl.store(out + ((step * N)[:, None] + keys[None, :]) * H, value, mask=cells)


@launched
@triton.jit(do_not_specialize=["P", "B", "each"])
def _total(a, b, square, out, total, offsets, blocks, P, B, H, side, each, a_strides, b_strides, s_strides,
           BM: tl.constexpr, BN: tl.constexpr):
    """The sums of one tile of the square over one part of the rows; and where there is `out`, pairs times the tile."""
    across = tl.cdiv(side, BN)
    tiles = tl.cdiv(side, BM) * across
    tile = tl.program_id(0) % tiles
    part = tl.program_id(0) // tiles
    first = tile // across * BM
    key = tile % across * BN
    step = tl.arange(0, BM)
    keys = key + tl.arange(0, BN)
    cells = (first + step < side)[:, None] & (keys < side)[None, :]
    factor = tl.zeros([BM, BN], tl.float32)
    if square is not None:
        clear_past(out, blocks, B, P, H, 1024)
        at = (first + step).to(tl.int64)[:, None] * s_strides[0] + keys[None, :] * s_strides[1]
        factor += tl.load(square + at, mask=cells, other=0.0).to(tl.float32)
    found = tl.zeros([BM, BN], tl.float32)
    begin = part * each
    end = tl.minimum(begin + each, B)
    next_length, next_block = _row_at(offsets, blocks, begin, B)
    for row in range(begin, end):
        length = next_length
        block = next_block
        next_length, next_block = _row_at(offsets, blocks, row + 1, B)  # on its way while this row's pairs are
        if tl.maximum(first, key) < length:
            held = tl.minimum(tl.maximum(P - block, 0) // length, length).to(tl.int32)
            if (length % 8 == 0) & (block % 8 == 0):
                found = _add_products(found, factor, a, b, out, first, step, keys, keys < length // 8 * 8, held,
                                      length, block, H, a_strides, b_strides, True)
            else:
                found = _add_products(found, factor, a, b, out, first, step, keys, keys < length, held, length, block,
                                      H, a_strides, b_strides, False)
            if out is not None:
                _clear_beside(out, first, key, tl.where(first + BM < side, first + BM, length),
                              tl.where(key + BN < side, key + BN, length), held, length, block, H, BM, BN)
    at = total + (tl.cast(part, tl.int64) * side + first) * side + (step * side)[:, None] + keys[None, :]
    tl.store(at, found.to(total.dtype.element_ty), mask=cells)


@triton.jit
def _row_at(offsets, blocks, row, B):
    """The length of a row and where its block begins; of no row past the last."""
    there = row < B
    start = tl.load(offsets + row, mask=there, other=0)
    end = tl.load(offsets + row + 1, mask=there, other=0)
    return (end - start).to(tl.int32), tl.load(blocks + row, mask=there, other=0)


@triton.jit
def _add_products(found, factor, a, b, out, first, step, keys, there, held, length, block, H, a_strides, b_strides,
                  WORDS: tl.constexpr):
    """The sums with the products of the pairs of one more row, of all heads; and pairs times a tile into `out`."""
    base, at, inside = pairs_of(first, step, 0, keys, there, held, length, block, WORDS)
    for h in range(H):
        left = tl.load(a + base * a_strides[0] + h * a_strides[1] + at * a_strides[0], mask=inside, other=0.0)
        left = left.to(tl.float32)
        right = tl.load(b + base * b_strides[0] + h * b_strides[1] + at * b_strides[0], mask=inside, other=0.0)
        found += left * right.to(tl.float32)
        if out is not None:
            tl.store(out + base * H + h + at * H, (left * factor).to(out.dtype.element_ty), mask=inside)
    return found


@triton.jit
def _clear_beside(out, first, key, last, end, held, length, block, H, BM: tl.constexpr, BN: tl.constexpr):
    """Set to 0 what a row has past the square, next to a tile on its edge."""
    step = tl.arange(0, BM)
    columns = tl.arange(0, BN)
    for i in range(first, last, BM):
        for n in range(key, end, BN):
            if (i > first) | (n > key):
                base, at, inside = pairs_of(i, step, n, columns, columns < length - n, held, length, block, False)
                for h in range(H):
                    tl.store(out + base * H + h + at * H, tl.zeros([BM, BN], out.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["T", "P", "B"])
def _sum_tiles(a, of_queries, of_keys, offsets, blocks, T, P, B, H, strides, EACH: tl.constexpr,
               BM: tl.constexpr, BN: tl.constexpr):
    """Of BN keys of one row and head, and each EACH-th of the eighths of its queries: the sums of either."""
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    part = tl.cast(tl.program_id(0) // H, tl.int64)
    row, first, start, length = events_of(offsets, part // EACH, T, B, BN - 8)
    block, held = block_of(blocks, row, length, P)
    a += h * strides[1]
    of_queries += (block // BN + 3 * start) * H + h
    of_keys += start * H + h
    tile = first // (BN - 8)
    first = tile * BN
    period, alike = groups_of(length, 2 * BM)
    if held == length:
        for turn in range(0, 8 // EACH):
            turn += (part % EACH).to(tl.int32)
            own_keys = of_keys + turn * T * H
            if alike & (first < length + 7):
                begin, end, shift = share_of(length, block, turn % period, turn // period, period, BM)
                words = first + tl.arange(0, BN)
                whole = (words >= (shift + 7) // 8 * 8) & (words < (shift + length) // 8 * 8)
                _sum_words(a, of_queries + tl.cast(tile, tl.int64) * length * H, own_keys, begin, end, period,
                           first - shift, tl.arange(0, BN), whole, length, block, held, H, strides[0], BM, BN, True)
                head, count = words_of(shift, length)
                if (first == 0) & (count < length):
                    ends, there = ends_of(head, count, length)
                    tiles = tl.cast(tl.cdiv(length + 7, BN), tl.int64)
                    _sum_words(a, of_queries + tiles * length * H, own_keys, begin, end, period, 0, ends, there, length,
                               block, held, H, strides[0], BM, 16, False)
            elif (turn * 2 * BM < length) & (first == 0):
                _sum_short(a, of_queries, own_keys, turn * 2 * BM, length, block, held, H, strides[0], 2 * BM, 32)


@triton.jit
def _sum_words(a, of_queries, of_keys, begin, end, period, key, columns, there, length, block, held, H, stride,
               BM: tl.constexpr, BN: tl.constexpr, WORDS: tl.constexpr):
    """The sums of some queries, that begin alike, over BN keys, and of these keys over the queries."""
    step = tl.arange(0, BM) * period
    total = tl.zeros([BM // 8, BN], tl.float32)
    for i in tl.range(begin, end, BM * period, num_stages=3):
        base, at, inside = pairs_of(i, step, key, columns, there, tl.minimum(end, held), length, block, WORDS)
        s = tl.load(a + base * stride + at * stride, mask=inside, other=0.0).to(tl.float32)
        tl.store(of_queries + tl.cast(i, tl.int64) * H + step * H, tl.sum(s, 1), mask=i + step < end)
        total += tl.sum(s.reshape([8, BM // 8, BN]), 0)  # over queries that a thread has
    tl.store(of_keys + (key + columns).to(tl.int64) * H, tl.sum(total, 0), mask=there)


@triton.jit
def _sum_short(a, of_queries, of_keys, first, length, block, held, H, stride, BM: tl.constexpr, BN: tl.constexpr):
    """The sums of BM queries over all keys, and of all keys over these queries, pair by pair."""
    step = tl.arange(0, BM)
    columns = tl.arange(0, BN)
    total = tl.zeros([BM], tl.float32)
    for n in range(0, length, BN):
        base, at, inside = pairs_of(first, step, n, columns, columns < length - n, held, length, block, False)
        s = tl.load(a + base * stride + at * stride, mask=inside, other=0.0).to(tl.float32)
        total += tl.sum(s, 1)
        tl.store(of_keys + (n + columns) * H, tl.sum(s, 0), mask=columns < length - n)
    tl.store(of_queries + (first + step) * H, total, mask=first + step < length)


@launched
@triton.jit(do_not_specialize=["T", "P", "B"])
def _add_tiles(of_queries, of_keys, over_keys, over_queries, offsets, blocks, T, P, B, H, BM: tl.constexpr,
               BN: tl.constexpr):
    """The sums of BN events of one row and head, from those of tiles."""
    h = tl.cast(tl.program_id(0) % H, tl.int64)
    row, first, start, length = events_of(offsets, tl.cast(tl.program_id(0) // H, tl.int64), T, B, BN)
    if first < length:
        block, held = block_of(blocks, row, length, P)
        event = first + tl.arange(0, BN)
        inside = event < held
        _, alike = groups_of(length, 2 * BM)
        tiles = tl.where(alike, tl.cdiv(length + 7, BN) + ((length % 8 > 0) | (block % 8 > 0)).to(tl.int32), 1)
        of_queries += (block // BN + 3 * start) * H + h
        total = tl.zeros([BN], tl.float32)
        for n in range(0, tiles):
            total += tl.load(of_queries + (tl.cast(n, tl.int64) * length + event) * H, mask=inside, other=0.0)
        at = (start + event) * H + h
        tl.store(over_keys + at, total.to(over_keys.dtype.element_ty), mask=inside)
        total = tl.zeros([BN], tl.float32)
        for n in range(0, tl.where(alike, 8, tl.cdiv(length, 2 * BM))):
            total += tl.load(of_keys + tl.cast(n, tl.int64) * T * H + at, mask=inside, other=0.0)
        tl.store(over_queries + at, total.to(over_queries.dtype.element_ty), mask=inside)
