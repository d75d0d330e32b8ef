"""How rows are cut into chunks of so many events, found on the device from offsets alone.

Row b has the slots from `offsets[b] // CHUNK + b` on: as many as its chunks or one more, and one where it is empty. So
there are `T // CHUNK + B` slots whatever the lengths, and chunks begin where rows do: what is summed over a chunk does
not depend on other rows.
"""

# ruff: noqa: N803

import triton
import triton.language as tl

_TILES = 4  # of events, or nearly so, that a program has at least: where rows are shorter it takes several
_MOST_TURNS = 16


def slots(events: int, rows: int, chunk: int) -> int:
    """Return how many slots there are."""
    return events // chunk + rows


def turns(events: int, rows: int, tile: int) -> int:
    """Return how many slots a program takes, one after the other: several where rows are short beside a tile."""
    return max(1, min(_MOST_TURNS, _TILES * tile * rows // max(events, 1)))


@triton.jit
def find_row(offsets, slot, rows, CHUNK: tl.constexpr):
    """Which row has a slot. Each step looks at 128 rows at once, so that 16,384 rows take two."""
    probe = tl.arange(0, 128) + 1
    row = slot * 0
    last = row + rows - 1
    while row < last:
        step = tl.cdiv(last - row, 128)
        at = row + probe * step
        there = at <= last
        before = tl.load(offsets + at, mask=there, other=0) // CHUNK + at <= slot
        row += tl.sum((before & there).to(tl.int32), 0) * step
        last = tl.minimum(row + step - 1, last)
    return row


@triton.jit
def chunk_of(offsets, slot, row, events, CHUNK: tl.constexpr):
    """The chunk of a slot: where its row begins and ends, where it does, int64; and which row has the next slot.

    It has no events where it begins at the end or past it. No row reaches past the events that there are.
    """
    own = tl.minimum(tl.load(offsets + row).to(tl.int64), events)
    end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), events)
    first = own + (slot - (own // CHUNK + row)) * CHUNK
    return own, end, first, row + (slot >= end // CHUNK + row).to(tl.int32)


@triton.jit
def load_tile(source, stride, count, width, columns, N: tl.constexpr):
    """`N` events from `source` on, `(N, columns)`; zeros from event `count` and from column `width` on."""
    step = tl.arange(0, N)
    inside = (step < count)[:, None] & (columns < width)[None, :]
    return tl.load(source + step[:, None] * stride + columns[None, :], mask=inside, other=0.0)
