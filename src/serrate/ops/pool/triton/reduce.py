"""Rows to one event: chunks are reduced on their own, and the chunks of a long row then combined, in their order."""

# ruff: noqa: N803, RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...overlap import let_next_begin, overlaps, wait_for_previous
from .chunks import Tiles, ends, find_chunk, outer_strides, place, slot_of
from .elements import LOG2E, LOWEST, MISSING, exponential, finite, larger, larger_at, ranked, unranked, widened

_COMBINED = 8  # chunks that are combined at a time
_WARPS = 2  # of a program: the more programs, the more of them read while others begin or end
_TILE = 256 * _WARPS  # elements of a tile, 16 bytes a thread in half precision
_AHEAD = 8  # tiles that are under way at a time
_REGISTERS = 64, 16  # of a thread, and more a byte of an element: the compiler would have fewer tiles under way


def reduce(x: Tensor, offsets: Tensor, out: Tensor, how: str, kept: Tensor | None = None,
           weights: Tensor | None = None, other: Tensor | None = None,
           scaled: tuple[Tensor, Tensor] | None = None) -> None:
    """Fill `out` `(B, H, D)` and `kept` with what `how` makes of the rows of `x` `(T, H, D)`, last stride 1.

    Args:
        x: events.
        offsets: `(B + 1,)`, contiguous.
        out: contiguous.
        how: as in `api.pool`, or "softmax": a sum under the softmax of `weights`.
        kept: as `autograd.like_kept` describes it, where it does.
        weights: `(T, H)`, for "sum" and "softmax".
        other: `(T, H, D)`, last stride 1, that `x` is multiplied by, for "sum".
        scaled: `(B, H, D)`, and `(T, H, D)` to fill on the way with `x` times what its row has there; contiguous.
    """
    (rows, heads, width), events = out.shape, x.shape[0]
    if not out.numel():
        return
    tiles = Tiles.of(width, 16 if width > 64 else 8)
    slots = tiles.slots(rows, events)
    parts = x.new_empty((slots, heads, width), dtype=torch.int64 if how == "max" else torch.float32)  # maxima as ranks
    others = None  # what exponents are relative to, and of a softmax their sums
    if how == "logsumexp":
        others = torch.empty_like(parts)
    elif how == "softmax":
        others = parts.new_empty((2, slots, heads))
    sizes, lines = (width, tiles.columns, tiles.blocks, tiles.chunk), max(1, _TILE // tiles.columns)
    strides = *x.stride()[:2], *outer_strides(other), *outer_strides(weights)
    overlap = overlaps(x)
    _reduce[(slots * heads * tiles.blocks,)](x, other, weights, scaled, strides, offsets, parts, others, out, kept,
                                             rows, events, slots, heads, how, *sizes, lines,
                                             _AHEAD if other is None else _AHEAD // 2, overlap, num_warps=_WARPS,
                                             maxnreg=_REGISTERS[0] + _REGISTERS[1] * x.element_size())
    _combine[(rows * heads * tiles.blocks,)](offsets, parts, others, out, kept, rows, events, slots, heads, how,
                                             *sizes, _COMBINED, overlap, launch_pdl=overlap)


@triton.jit
def _finish(result, other, total, out, kept, row, rows, head, H, block, length, column, inside, HOW: tl.constexpr,
            D: tl.constexpr):
    """Store the result of a row: sums, maxima with their places, or sums of exponents relative to `other`."""
    at = (tl.cast(row, tl.int64) * H + head) * D + column
    all_of = tl.cast(rows, tl.int64) * H
    if HOW == "mean":
        result = result / tl.maximum(length, 1).to(tl.float32)
    elif HOW == "max":
        tl.store(kept + at, other, mask=inside)
        result = tl.where(length > 0, result, 0.0)
    elif HOW == "logsumexp":
        other = finite(other)
        tl.store(kept + at, other, mask=inside)
        tl.store(kept + all_of * D + at, result, mask=inside)
        result = other + tl.log(result)
    elif HOW == "softmax":
        result = tl.where(total == 0, 0.0, result / total)
        kept += (tl.cast(row, tl.int64) * H + head) * (D + 2)
        tl.store(kept + column, result, mask=inside)
        tl.store(kept + D, finite(other), mask=block == 0)
        tl.store(kept + D + 1, total, mask=block == 0)
    tl.store(out + at, result.to(out.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["rows", "events", "slots"])
def _reduce(x, other, weights, scaled, strides: tl.constexpr, offsets, parts, others, out, kept, rows, events, slots, H,
            HOW: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr,
            BM: tl.constexpr, AHEAD: tl.constexpr, OVERLAP: tl.constexpr):
    """Reduce one chunk: to the result where it is the whole row, else to a part of it, (BD,)."""
    let_next_begin(OVERLAP)
    slot, head, block = place(H, BLOCKS)
    row, begin, length, first, count = find_chunk(offsets, rows, events, slot, CHUNK)
    column = block * BD + tl.arange(0, BD)
    inside = column < D
    x += (begin + first) * strides[0] + tl.cast(head, tl.int64) * strides[1] + column[None, :]
    if other is not None:
        other += (begin + first) * strides[2] + tl.cast(head, tl.int64) * strides[3] + column[None, :]
    if weights is not None:
        weights += (begin + first) * strides[4] + tl.cast(head, tl.int64) * strides[5]
    if scaled is not None:
        own = tl.load(scaled[0] + (tl.cast(row, tl.int64) * H + head) * D + column, mask=inside, other=0.0)
        own = own.to(tl.float32)[None, :]
        target = scaled[1] + ((begin + first) * H + head) * D + column[None, :]
    extreme: tl.constexpr = HOW == "max" or HOW == "logsumexp"
    nothing: tl.constexpr = float("-inf") if extreme else 0.0
    without: tl.constexpr = float("-inf") if HOW == "softmax" else 0.0
    line = tl.arange(0, BM)
    found = tl.zeros([BM, BD], tl.float32)
    peak = tl.full([BM, BD] if HOW == "logsumexp" else [BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    at = tl.zeros([BM, BD], tl.int16)  # the tile of each maximum
    if HOW == "max":
        found = tl.full([BM, BD], float("-inf"), x.dtype.element_ty)
    for step in range(0, count, AHEAD * BM):
        tiles = ()  # all of them are under way before one is looked at
        besides = ()
        for i in tl.static_range(AHEAD):
            event = step + i * BM + line
            there = (event < count)[:, None] & inside[None, :]
            far = event.to(tl.int64)
            tiles = tiles + (tl.load(x + far[:, None] * strides[0], mask=there, other=nothing),)
            if other is not None:
                besides = besides + (tl.load(other + far[:, None] * strides[2], mask=there, other=0.0),)
            elif weights is not None:
                besides = besides + (tl.load(weights + far * strides[4], mask=event < count, other=without),)
        if HOW == "logsumexp" or HOW == "softmax":  # each line of a tile has a largest exponent of its own
            before = peak
            largest = tiles[0] if HOW == "logsumexp" else besides[0]
            for i in tl.static_range(1, AHEAD):
                largest = larger(largest, tiles[i] if HOW == "logsumexp" else besides[i])
            peak = tl.maximum(peak, largest.to(tl.float32))
            scale = exponential(before, finite(peak))
            base = finite(peak) * LOG2E
            found *= scale if HOW == "logsumexp" else scale[:, None]
            total *= scale if HOW == "softmax" else 1.0
        for i in tl.static_range(AHEAD):
            tile = tiles[i] if HOW == "max" else widened(tiles[i])
            if scaled is not None:
                event = step + i * BM + line
                tl.store(target + event.to(tl.int64)[:, None] * H * D, (tile * own).to(target.dtype.element_ty),
                         mask=(event < count)[:, None] & inside[None, :])
            if HOW == "max":
                found, at = larger_at(found, at, tile, step // BM + i)
            elif HOW == "logsumexp":
                found += tl.exp2(tile * LOG2E - base)  # one operation less an element than a difference first
            elif HOW == "softmax":
                share = exponential(besides[i], finite(peak))
                total += share
                found += share[:, None] * tile
            elif other is not None:
                found += tile * widened(besides[i])
            elif weights is not None:
                found += tile * besides[i].to(tl.float32)[:, None]
            else:
                found += tile
    aside = tl.zeros([BD], tl.int32)
    sums = 0.0
    if HOW == "max":
        its = tl.cast(first, tl.int32) + at.to(tl.int32) * BM + line[:, None]
        its = tl.where((line < count)[:, None] & inside[None, :], its, MISSING)
        result, aside = unranked(tl.max(ranked(found.to(tl.float32), its), 0))
        if tl.max((result != result).to(tl.int32), 0) > 0:  # the place of a NaN was not kept: it is looked for again
            missing = tl.full([BD], MISSING, tl.int32)
            for step in range(0, count, BM):
                event = step + line
                there = (event < count)[:, None] & inside[None, :]
                tile = tl.load(x + event.to(tl.int64)[:, None] * strides[0], mask=there, other=0.0).to(tl.float32)
                missing = tl.minimum(missing, tl.min(tl.where(tile != tile, event[:, None], MISSING), 0))
            aside = tl.where(result != result, tl.cast(first, tl.int32) + missing, aside)
    elif HOW == "logsumexp":
        aside = tl.max(peak, 0)
        result = tl.sum(found * exponential(peak, finite(aside)[None, :]), 0)
    elif HOW == "softmax":
        aside = tl.max(peak, 0)
        scale = exponential(peak, finite(aside))
        sums = tl.sum(total * scale, 0)
        result = tl.sum(found * scale[:, None], 0)
    else:
        result = tl.sum(found, 0)
    if length <= CHUNK:
        if first == 0:
            _finish(result, aside, sums, out, kept, row, rows, head, H, block, length, column, inside, HOW, D)
    elif count > 0:
        place_of = (tl.cast(slot, tl.int64) * H + head) * D + column
        tl.store(parts + place_of, ranked(result, aside) if HOW == "max" else result, mask=inside)
        if HOW == "logsumexp":
            tl.store(others + place_of, aside, mask=inside)
        elif HOW == "softmax":
            others += tl.cast(slot, tl.int64) * H + head
            tl.store(others, aside, mask=block == 0)
            tl.store(others + tl.cast(slots, tl.int64) * H, sums, mask=block == 0)


@launched
@triton.jit(do_not_specialize=["rows", "events", "slots"])
def _combine(offsets, parts, others, out, kept, rows, events, slots, H, HOW: tl.constexpr, D: tl.constexpr,
             BD: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr, OVERLAP: tl.constexpr):
    """Combine the parts of one row that has several."""
    row, head, block = place(H, BLOCKS)
    begin, end = ends(offsets, row, events)
    length = end - begin
    wait_for_previous(OVERLAP)
    if length > CHUNK:
        chunks = tl.cdiv(length, CHUNK)
        column = block * BD + tl.arange(0, BD)
        inside = column < D
        nothing: tl.constexpr = LOWEST if HOW == "max" else 0.0
        found = tl.full([BN, BD], nothing, parts.dtype.element_ty)
        largest = tl.full([BN, BD], float("-inf"), tl.float32)
        peak = tl.full([BN], float("-inf"), tl.float32)
        total = tl.zeros([BN], tl.float32)
        for step in range(0, chunks, BN):
            chunk = step + tl.arange(0, BN)
            there = (chunk < chunks)[:, None] & inside[None, :]
            slot = slot_of(row, begin, chunk, rows, CHUNK) * H + head
            place_of = slot[:, None] * D + column[None, :]
            part = tl.load(parts + place_of, mask=there, other=nothing)
            if HOW == "max":
                found = tl.maximum(found, part)
            elif HOW == "logsumexp":
                aside = tl.load(others + place_of, mask=there, other=float("-inf"))
                higher = tl.maximum(largest, aside)
                found = found * exponential(largest, finite(higher)) + part * exponential(aside, finite(higher))
                largest = higher
            elif HOW == "softmax":
                own = others + slot
                aside = tl.load(own, mask=chunk < chunks, other=float("-inf"))
                adds = tl.load(own + tl.cast(slots, tl.int64) * H, mask=chunk < chunks, other=0.0)
                rise = tl.maximum(peak, aside)
                total = total * exponential(peak, finite(rise)) + adds * exponential(aside, finite(rise))
                found = (found * exponential(peak, finite(rise))[:, None]
                         + part * exponential(aside, finite(rise))[:, None])
                peak = rise
            else:
                found += part
        over = tl.max(peak, 0)
        whole = tl.sum(total * exponential(peak, finite(over)), 0)
        if HOW == "max":
            result, aside = unranked(tl.max(found, 0))
        elif HOW == "logsumexp":
            aside = tl.max(largest, 0)
            result = tl.sum(found * exponential(largest, finite(aside)[None, :]), 0)
        elif HOW == "softmax":
            result, aside = tl.sum(found * exponential(peak, finite(over))[:, None], 0), over
        else:
            result, aside = tl.sum(found, 0), over
        _finish(result, aside, whole, out, kept, row, rows, head, H, block, length, column, inside, HOW, D)
