"""How rows are cut into chunks, a program each: long rows get many programs, and every row one at least.

A chunk is some events of one row, so a program reads once what belongs to the row, and its sums need no atomics. The
first chunk of row b has slot b. Its chunk c has slot `B - 1 + begin // CHUNK + c`, shared with no other row: a program
finds its row by searching the offsets, behind those that need no search, and no plan has to be made.
"""

# ruff: noqa: N803

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ...sizes import ceil_div, power_of_two

_ELEMENTS = 4096  # of a tile, 32 a thread
_MOST_EVENTS = 512  # of a tile
_MOST_COLUMNS = 128


@dataclass(frozen=True)
class Tiles:
    """Sizes of a call: events and columns of a tile, events of a chunk, blocks of columns.

    Memory bounds these kernels, so that one size serves all dtypes: each thread has some loads of 16 bytes under way.
    """

    events: int
    columns: int
    chunk: int
    blocks: int

    @classmethod
    def of(cls, width: int, tiles: int = 4) -> "Tiles":
        """Return the sizes for events `width` columns wide, and so many tiles a chunk."""
        columns = min(power_of_two(width), _MOST_COLUMNS)
        events = min(_ELEMENTS // columns, _MOST_EVENTS)
        return cls(events, columns, tiles * events, ceil_div(width, columns))

    def slots(self, rows: int, events: int) -> int:
        """Return how many programs the chunks of so many rows and events take."""
        return rows + max(events - 1, 0) // self.chunk


def outer_strides(x: Tensor | None) -> tuple[int, int]:
    """Return the strides of events and heads of `(T, H, *)`, 0 where there is nothing.

    Kernels get them as constants, which follow from widths: so they know where addresses are multiples of 16 bytes.
    """
    return (0, 0) if x is None else (x.stride(0), x.stride(1))


@triton.jit
def ends(offsets, row, events):
    """Where a row begins and ends, int64; no row reaches past the events that there are."""
    begin = tl.minimum(tl.load(offsets + row).to(tl.int64), events)
    return begin, tl.minimum(tl.load(offsets + row + 1).to(tl.int64), events)


@triton.jit
def slot_of(row, begin, chunk, rows, CHUNK: tl.constexpr):
    """The slot of a chunk of a row that begins there, int64."""
    return tl.where(chunk > 0, rows - 1 + begin // CHUNK + chunk, row)


@triton.jit
def find_chunk(offsets, rows, events, slot, CHUNK: tl.constexpr):
    """Row of a slot, where the row begins, its length, where the chunk begins within it, and its events.

    A slot that its row does not need has no events; of an empty row the first slot has none either.
    """
    row = slot
    later = slot - rows + 1  # a later chunk begins in the part of this number of all events, in parts of CHUNK
    if later > 0:
        row = slot * 0
        high = row + rows
        while high - row > 1:  # the row is among row … high - 1; some of them are looked at together
            step = tl.cdiv(high - row, 128)
            probe = row + tl.arange(0, 128) * step
            inside = probe < high
            begin = tl.minimum(tl.load(offsets + probe, mask=inside, other=0).to(tl.int64), events)
            passed = tl.sum((inside & (begin // CHUNK < later)).to(tl.int32), 0)
            row += (passed - 1) * step
            high = tl.minimum(row + step, high)
    begin, end = ends(offsets, row, events)
    first = tl.where(later > 0, later - begin // CHUNK, 0) * CHUNK
    return row, begin, end - begin, first, tl.maximum(tl.minimum(end - begin - first, CHUNK), 0).to(tl.int32)


@triton.jit
def place(H, BLOCKS: tl.constexpr):
    """Slot, head and block of columns of this program; what shares events runs side by side."""
    pid = tl.program_id(0)
    return pid // (H * BLOCKS), pid // BLOCKS % H, pid % BLOCKS
