"""Softmax over the events of a row, and its gradient: a program reads a row for its sums, then again for its results.

The second time it goes backwards, as the nearest cache has what was read last. Rows of many programs take a second
kernel.
"""

# ruff: noqa: N803, RUF005

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...overlap import let_next_begin, overlaps, wait_for_previous
from .chunks import Tiles, ends, find_chunk, place, slot_of
from .elements import exponential, finite, larger, widened
from .spread import reciprocal

_TILES = 32  # of a chunk, 256 KiB in half precision
_WARPS = 8
_AHEAD = 4, 6  # tiles that are under way at a time, and pairs of them for the gradient
_REGISTERS = (32, 16), (32, 24)  # of a thread, and more a byte of an element: the compiler would have fewer under way
_COMBINED = 16  # chunks that are combined at a time


def normalise(x: Tensor, offsets: Tensor, out: Tensor, grad: Tensor | None = None) -> None:
    """Fill `out` `(T, W)`, contiguous, with the softmax of `x`, or with its gradient.

    Args:
        x: `(T, W)`, last stride 1; for the gradient what the softmax gave.
        offsets: `(B + 1,)`, contiguous.
        out: to be filled.
        grad: `(T, W)`, last stride 1: that of the softmax.
    """
    (events, width), rows = out.shape, offsets.shape[0] - 1
    if not out.numel():
        return
    tiles = Tiles.of(width, _TILES)
    slots = tiles.slots(rows, events)
    parts = torch.empty(slots, 2, width, device=out.device)
    owners = offsets.new_empty(slots - rows)  # of the later chunks, so that they need not be searched again
    ahead, registers = (each[grad is not None] for each in (_AHEAD, _REGISTERS))
    lines = max(1, min(tiles.events, 256 * _WARPS // tiles.columns))
    strides = x.stride(0), 0 if grad is None else grad.stride(0)
    overlap = overlaps(x)
    sizes = width, tiles.columns, tiles.blocks, tiles.chunk, lines, ahead, overlap
    options = {"num_warps": max(1, lines * tiles.columns // 256),
               "maxnreg": registers[0] + registers[1] * out.element_size()}
    tensors = x, grad, offsets, out, parts, owners
    _softmax[(slots * tiles.blocks,)](*tensors, strides, rows, events, *sizes, **options)
    if slots > rows:
        _rest[((slots - rows) * tiles.blocks,)](*tensors, strides, rows, events, *sizes, _COMBINED, launch_pdl=overlap,
                                                     **options)


@triton.jit
def _load(x, grad, strides: tl.constexpr, begin, step, count, column, W: tl.constexpr, BM: tl.constexpr,
          AHEAD: tl.constexpr, HINT: tl.constexpr):
    """AHEAD tiles of `count` events from `begin` on, and of their gradients, if any: all of them are under way."""
    tiles = ()
    others = ()
    nothing: tl.constexpr = float("-inf") if grad is None else 0.0
    line = tl.arange(0, BM)
    for i in tl.static_range(AHEAD):
        first = begin + step + i * BM  # the same for all threads, unlike what is added to it
        there = (line < count - step - i * BM)[:, None] & (column < W)[None, :]
        at = x + first * strides[0] + (line.to(tl.int64) * strides[0])[:, None] + column[None, :]
        tiles = tiles + (tl.load(at, mask=there, other=nothing, eviction_policy=HINT),)
        if grad is not None:
            at = grad + first * strides[1] + (line.to(tl.int64) * strides[1])[:, None] + column[None, :]
            others = others + (tl.load(at, mask=there, other=0.0, eviction_policy=HINT),)
    return tiles, others


@triton.jit
def _sums(x, grad, strides: tl.constexpr, begin, count, column, W: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr,
          AHEAD: tl.constexpr):
    """Of some events the largest of each column and the sum of exponents relative to it, or 0 and that along `grad`."""
    peak = tl.full([BM, BD], float("-inf"), tl.float32)
    total = tl.zeros([BM, BD], tl.float32)
    for step in range(0, count, AHEAD * BM):
        tiles, others = _load(x, grad, strides, begin, step, count, column, W, BM, AHEAD, "evict_last")
        if grad is None:
            before = peak
            higher = tiles[0]
            for i in tl.static_range(1, AHEAD):
                higher = larger(higher, tiles[i])
            peak = tl.maximum(peak, higher.to(tl.float32))
            total *= exponential(before, finite(peak))
            for i in tl.static_range(AHEAD):
                total += exponential(tiles[i], finite(peak))
        else:
            for i in tl.static_range(AHEAD):
                total += widened(tiles[i]) * widened(others[i])
    if grad is None:
        largest = tl.max(peak, 0)
        sums = tl.sum(total * exponential(peak, finite(largest)[None, :]), 0)
    else:
        largest = tl.zeros([BD], tl.float32)
        sums = tl.sum(total, 0)
    return largest, sums


@triton.jit
def _results(x, grad, out, strides: tl.constexpr, begin, count, column, largest, sums, W: tl.constexpr,
             BM: tl.constexpr, AHEAD: tl.constexpr):
    """Store what some events get, of a row whose sums are known."""
    base = finite(largest)[None, :]
    scale = reciprocal(sums)[None, :]
    line = tl.arange(0, BM)
    turns = tl.cdiv(count, AHEAD * BM)
    for turn in range(1, turns + 1):
        step = (turns - turn) * (AHEAD * BM)
        tiles, others = _load(x, grad, strides, begin, step, count, column, W, BM, AHEAD, "evict_first")
        for i in tl.static_range(AHEAD):
            there = (line < count - step - i * BM)[:, None] & (column < W)[None, :]
            if grad is None:
                found = exponential(tiles[i], base) * scale
            else:
                found = widened(tiles[i]) * (widened(others[i]) - sums[None, :])
            at = out + (begin + step + i * BM) * W + (line * W)[:, None] + column[None, :]
            tl.store(at, found.to(out.dtype.element_ty), mask=there, eviction_policy="evict_first")


@launched
@triton.jit(do_not_specialize=["rows", "events"])
def _softmax(x, grad, offsets, out, parts, owners, strides: tl.constexpr, rows, events, W: tl.constexpr,
             BD: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, AHEAD: tl.constexpr,
             OVERLAP: tl.constexpr):
    """The results of a row of one chunk, or the sums of a chunk."""
    let_next_begin(OVERLAP)
    slot, _, block = place(1, BLOCKS)
    row, begin, length, first, count = find_chunk(offsets, rows, events, slot, CHUNK)
    column = block * BD + tl.arange(0, BD)
    if slot >= rows:
        tl.store(owners + slot - rows, tl.where(count > 0, row, -1))  # every block of columns stores the same
    largest, sums = _sums(x, grad, strides, begin + first, count, column, W, BD, BM, AHEAD)
    if length <= CHUNK:
        _results(x, grad, out, strides, begin, count, column, largest, sums, W, BM, AHEAD)
    else:
        at = parts + tl.cast(slot, tl.int64) * (2 * W) + column
        tl.store(at, largest, mask=column < W)
        tl.store(at + W, sums, mask=column < W)


@launched
@triton.jit(do_not_specialize=["rows", "events"])
def _rest(x, grad, offsets, out, parts, owners, strides: tl.constexpr, rows, events, W: tl.constexpr, BD: tl.constexpr,
          BLOCKS: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, AHEAD: tl.constexpr, OVERLAP: tl.constexpr,
          BN: tl.constexpr):
    """The results of a later chunk of a row, and with the second of the first, once all of them have their sums."""
    slot, _, block = place(1, BLOCKS)
    wait_for_previous(OVERLAP)
    row = tl.load(owners + slot).to(tl.int32)
    if row >= 0:
        column = block * BD + tl.arange(0, BD)
        begin, end = ends(offsets, row, events)
        length = end - begin
        first = (slot + 1 - begin // CHUNK) * CHUNK
        peak = tl.full([BN, BD], float("-inf"), tl.float32)
        total = tl.zeros([BN, BD], tl.float32)
        for step in range(0, tl.cdiv(length, CHUNK), BN):
            chunk = step + tl.arange(0, BN)
            there = (chunk * CHUNK < length)[:, None] & (column < W)[None, :]
            at = parts + (slot_of(row, begin, chunk, rows, CHUNK) * (2 * W))[:, None] + column[None, :]
            own = tl.load(at, mask=there, other=float("-inf"))
            higher = tl.maximum(peak, own)
            adds = tl.load(at + W, mask=there, other=0.0)
            total = total * exponential(peak, finite(higher)) + adds * exponential(own, finite(higher))
            peak = higher
        largest = tl.max(peak, 0)
        sums = tl.sum(total * exponential(peak, finite(largest)[None, :]), 0)
        if first == CHUNK:
            _results(x, grad, out, strides, begin, CHUNK, column, largest, sums, W, BM, AHEAD)
        count = tl.minimum(length - first, CHUNK).to(tl.int32)
        _results(x, grad, out, strides, begin + first, count, column, largest, sums, W, BM, AHEAD)
