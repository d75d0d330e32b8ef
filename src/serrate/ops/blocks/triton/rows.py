"""Where the rows of a batch lie: which of them a program has, found on the device from offsets alone.

Work is cut into tiles of `TILE` events, or of `TILE` pairs. Row `b`, which begins at `offsets[b]`, has the slots from
`offsets[b] // TILE + b` on: as many as it needs or one more, shared with no other row. So there are
`offsets[B] // TILE + B` of them, whatever the lengths, and the row of a slot is found by bisection.
"""

# ruff: noqa: N803

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched


def launch(offsets: Tensor, blocks: Tensor) -> None:
    """Fill `blocks` `(B + 1,)` with the running sums of squared lengths."""
    _sums_of_squares[(1,)](offsets, blocks, offsets.shape[0] - 1, STEP=2048, num_warps=4)


def bisections(offsets: Tensor) -> int:
    """Return how often the rows have to be halved until one is left."""
    return (offsets.shape[0] - 1).bit_length()


@launched
@triton.jit(do_not_specialize=["B"])
def _sums_of_squares(offsets, blocks, B, STEP: tl.constexpr):
    """One program goes through all rows, many at a time."""
    step = tl.arange(0, STEP)
    before = tl.zeros([1], tl.int64)
    tl.store(blocks + tl.arange(0, 1), before)
    for n in range(0, B, STEP):
        inside = n + step < B
        start = tl.load(offsets + n + step, mask=inside, other=0).to(tl.int64)
        length = tl.load(offsets + n + step + 1, mask=inside, other=0).to(tl.int64) - start
        squares = length * length
        tl.store(blocks + n + step + 1, before + tl.cumsum(squares, 0), mask=inside)
        before += tl.sum(squares, 0)


@triton.jit
def row_of(offsets, slot, B, bisections, TILE: tl.constexpr):
    """The row of a slot, int64, and how many slots of that row come before."""
    low = slot * 0
    high = low + B
    for _ in range(bisections):
        middle = (low + high) // 2
        before = tl.load(offsets + middle) // TILE + middle <= slot
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low, slot - (tl.load(offsets + low) // TILE + low)


@triton.jit
def block_of(blocks, row, length, P):
    """Where the block of a row begins, and how many of its queries are whole in blocks of `P`: all that there are."""
    block = tl.load(blocks + row)
    held = tl.maximum(P - block, 0) // tl.maximum(length, 1)
    return block, tl.minimum(held, length).to(tl.int32)


@triton.jit
def events_of(offsets, slot, T, B, bisections, TILE: tl.constexpr):
    """The tile of events that a slot has: row, first event within it; where the row begins, and its length.

    No row reaches past the events that there are.
    """
    row, part = row_of(offsets, slot, B, bisections, TILE)
    start = tl.minimum(tl.load(offsets + row).to(tl.int64), T)
    end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), T)
    return row, (part * TILE).to(tl.int32), start, (end - start).to(tl.int32)


@triton.jit
def queries_of(offsets, blocks, slot, P, B, bisections, SPAN: tl.constexpr):
    """The queries whose first pair is in the span of pairs that a slot has: row, first and last; start, length, block.

    So programs have about as many pairs each, however long the rows.
    """
    row, part = row_of(blocks, slot, B, bisections, SPAN)
    start = tl.load(offsets + row).to(tl.int64)
    length = tl.load(offsets + row + 1).to(tl.int64) - start
    block, held = block_of(blocks, row, length, P)
    each = tl.maximum(length, 1)
    first = tl.minimum(tl.cdiv(part * SPAN, each), held)
    last = tl.minimum(tl.cdiv((part + 1) * SPAN, each), held)
    return row, first.to(tl.int32), last.to(tl.int32), start, length.to(tl.int32), block


@triton.jit
def pairs_of(first, step, keys, last, length, block):
    """Where the pairs of the queries `first + step` with keys lie: the place of the first, int64, and of all from it.

    Also which of them there are, (M, N) as the places: none from query `last` on.
    """
    inside = (first + step < last)[:, None] & (keys < length)[None, :]
    return block + tl.cast(first, tl.int64) * length, (step * length)[:, None] + keys[None, :], inside


@triton.jit
def clear_past(out, blocks, B, P, H, STEP: tl.constexpr):
    """Let all programs together set what lies past the last block to 0."""
    step = tl.arange(0, STEP)
    end = P * tl.cast(H, tl.int64)
    begin = tl.load(blocks + B) * H + tl.cast(tl.program_id(0), tl.int64) * STEP
    for n in range(begin, end, tl.cast(tl.num_programs(0), tl.int64) * STEP):
        at = n + step
        tl.store(out + at, tl.zeros([STEP], out.dtype.element_ty), mask=at < end)
