"""How rows are cut into chunks of so many events, found on the device from offsets alone.

Row b has the slots from `offsets[b] // chunk + b` on: as many as its chunks or one more, and one where it is empty. So
there are `T // chunk + B` slots whatever the lengths, and chunks begin where rows do: what is summed over a chunk does
not depend on other rows. A chunk is a power of two, of which kernels get the exponent, `shift`.
"""

import triton
import triton.language as tl

_TILES = 4  # of events, or nearly so, that a program has at least: where rows are shorter it takes several
_MOST_TURNS = 16


def slots(events: int, rows: int, shift: int) -> int:
    """Return how many slots there are."""
    return (events >> shift) + rows


def turns(events: int, rows: int, tile: int) -> int:
    """Return how many slots a program takes, one after the other: several where rows are short beside a tile."""
    return max(1, min(_MOST_TURNS, _TILES * tile * rows // max(events, 1)))


@triton.jit
def find_row(offsets, slot, rows, shift):
    """Which row has a slot. Each step looks at 1,024 rows at once, so that a million rows take two."""
    probe = tl.arange(0, 1024) + 1
    row = slot * 0
    last = row + rows - 1
    while row < last:
        step = tl.cdiv(last - row, 1024)
        at = row + probe * step
        there = at <= last
        before = (tl.load(offsets + at, mask=there, other=0) >> shift) + at <= slot
        row += tl.sum((before & there).to(tl.int32), 0) * step
        last = tl.minimum(row + step - 1, last)
    return row


@triton.jit
def chunk_of(offsets, slot, row, events, shift):
    """The chunk of a slot: where its row begins and ends, where it does, int64; and which row has the next slot.

    It has no events where it begins at the end or past it. No row reaches past the events that there are.
    """
    own = tl.minimum(tl.load(offsets + row).to(tl.int64), events)
    end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), events)
    first = own + ((slot - ((own >> shift) + row)) << shift)
    return own, end, first, row + (slot >= (end >> shift) + row).to(tl.int32)
