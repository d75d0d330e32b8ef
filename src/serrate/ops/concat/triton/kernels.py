"""The kernel that moves events between joined rows and their parts: a program owns a block of joined events.

Events are bytes here, whatever their dtype: they are moved in the widest words that fit.
"""

# ruff: noqa: N803

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...sizes import ceil_div, power_of_two

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TILE = 1024  # words of a program, 8 a thread: more programs are under way at a time than with more
_EVENTS = 512  # of a program at most, as each has to find its row
_WIDEST = 1024  # words of an event that a program moves at once
_ENDS = 128  # joined offsets that a program writes
_PROBES = 128  # rows that a step of a search looks at


class Rows(NamedTuple):
    """Where rows begin and end: at `(B + 1,)` offsets of `size` events, or without them after each `size` events.

    Events past the last offset, as a captured graph has whose rows become shorter, are a row more.
    """

    offsets: Tensor | None
    size: int


def move(joined: Tensor, rows: Sequence[Rows], parts: Sequence[Tensor], of_parts: Sequence[Rows], *,
         ends: Tensor | None = None, fill: float = 0, apart: bool = False, left: bool = False) -> None:
    """Fill `joined` from its parts, or under `apart` the parts from `joined`.

    Joined rows have the events of the first part's row, then those of the second, …; what is missing at their end (of
    one part, under `left`, at their beginning) is `fill`, what is too much is left out.

    Args:
        joined: `(T, *)`, contiguous where it is filled.
        rows: the joined rows are as long as these together.
        parts: `(T, *)` or `(B, K, *)` each, contiguous where they are filled.
        of_parts: the rows of each part.
        ends: `(B + 1,)` int32 or int64 to fill with the offsets of the joined rows.
        fill: of the dtype of the events.
        apart: the direction.
        left: see above.
    """
    count = next(len(each.offsets) - 1 for each in (*rows, *of_parts) if each.offsets is not None)
    flat = _dense(joined[:, None] if joined.dim() == 1 else joined.flatten(1))
    sources = [_dense(_by_row(part, each)) for part, each in zip(parts, of_parts, strict=True)]
    size = _word_size([flat, *sources])
    flat, *sources = (each.view(_WORDS[size]) for each in (flat, *sources))
    width = max(flat.shape[1], 1)
    events = flat.shape[0] if flat.shape[1] else 0
    block = min(power_of_two(width), _WIDEST)
    tile = min(_TILE // block, _EVENTS)
    programs = ceil_div(events, tile) * ceil_div(width, block)
    if ends is not None:
        programs = max(programs, ceil_div(count + 1, _ENDS))
    if programs:
        of_rows = tuple(each.stride(0) if one.offsets is None else 0
                        for each, one in zip(sources, of_parts, strict=True))
        of_events = tuple(each.stride(1) for each in sources)
        _move[(programs,)](
            flat, flat.stride(0), *_described(rows), tuple(sources), of_rows, of_events, *_described(of_parts),
            ends, count, events, _pattern(fill, joined.dtype, size), len(rows), len(sources), apart, left, _ENDS, width,
            block, tile, _PROBES, num_warps=4)


def _described(rows: Sequence[Rows]) -> tuple[tuple, tuple]:
    """Return offsets and sizes of rows, as the kernel takes them.

    For 1 and multiples of 16 in a tuple Triton would compile a kernel of its own: sizes go as odd numbers from 3 on.
    """
    return (tuple(None if each.offsets is None else each.offsets.contiguous() for each in rows),
            tuple(2 * each.size + 3 for each in rows))


@triton.jit
def _size(told):
    """A size from what the kernel is told, int64."""
    return tl.cast(told, tl.int64) // 2 - 1


def _by_row(part: Tensor, rows: Rows) -> Tensor:
    """Return a part as `(B, K, width)`, or `(1, T, width)` where it is jagged."""
    part = part if rows.offsets is None else part[None]
    return part[:, :, None] if part.dim() == 2 else part.flatten(2)


def _dense(x: Tensor) -> Tensor:
    """Return events whose words lie side by side, copied where they do not."""
    return x if x.stride(-1) == 1 else x.clone(memory_format=torch.contiguous_format)


def _word_size(tensors: Sequence[Tensor]) -> int:
    """Return the most bytes, at most 8, that divide where events begin, how long and how far apart they are."""
    found = 8
    for x in tensors:
        apart = [stride for stride, size in zip(x.stride()[:-1], x.shape, strict=False) if size > 1]
        found = math.gcd(found, x.data_ptr(), *(each * x.element_size() for each in (x.shape[-1], *apart)))
    return found


def _pattern(fill: float, dtype: torch.dtype, size: int) -> int:
    """Return a word that is full of a number of a dtype."""
    return int(torch.full((8,), fill, dtype=dtype).view(_WORDS[size])[0])


@triton.jit
def _begin(offsets, size, b):
    """Where row `b` begins, int64."""
    return b * _size(size) if offsets is None else tl.load(offsets + b).to(tl.int64)


@triton.jit
def _length(offsets, size, b, count):
    """How long row `b` is; row `count` is what lies past the others."""
    if offsets is None:
        length = tl.where(b < count, _size(size), 0)
    else:
        end = tl.load(offsets + tl.minimum(b + 1, count)).to(tl.int64)
        length = tl.where(b < count, end, _size(size)) - tl.load(offsets + b)
    return length


@triton.jit
def _begin_joined(offsets, sizes, b, P: tl.constexpr):
    """Where row `b` begins, of rows as long as those of `P` descriptions together."""
    begin = _begin(offsets[0], sizes[0], b)
    for i in tl.static_range(1, P):
        begin += _begin(offsets[i], sizes[i], b)
    return begin


@triton.jit
def _find_rows(event, count, offsets, sizes, P: tl.constexpr, PROBES: tl.constexpr):
    """The last rows among 0 … count that begin at events (E,) or before them: empty rows have none. (E,) int32.

    Each step looks at PROBES rows at once, so that 16,384 rows take two.
    """
    low = tl.zeros_like(event).to(tl.int32)
    left = count + 1
    while left > 1:
        step = tl.cdiv(left, PROBES)
        row = low[:, None] + tl.arange(0, PROBES)[None, :] * step
        begun = _begin_joined(offsets, sizes, tl.minimum(row, count), P) <= event[:, None]
        low += (tl.sum((begun & (row <= count)).to(tl.int32), 1) - 1) * step
        left = step
    return low


@triton.jit
def _row_of(event, low, high, offsets, sizes, P: tl.constexpr):
    """The last row from `low` to `high` that begins at an event or before it, of which there are few."""
    width = high - low + 1
    low = tl.zeros_like(event).to(tl.int32) + low
    high = tl.zeros_like(event).to(tl.int32) + high + 1
    while width > 1:
        middle = low + (high - low) // 2
        begun = _begin_joined(offsets, sizes, middle, P) <= event
        low = tl.where(begun, middle, low)
        high = tl.where(begun, high, middle)
        width = (width + 1) // 2
    return low


@launched
@triton.jit(do_not_specialize=["count", "events", "fill"])
def _move(joined, stride, offsets, sizes, parts, row_strides, strides, part_offsets, part_sizes, ends, count, events,
          fill, J: tl.constexpr, P: tl.constexpr, APART: tl.constexpr, LEFT: tl.constexpr, ENDS: tl.constexpr,
          W: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr, PROBES: tl.constexpr):
    """Move BM joined events of rows that J descriptions tell, BW words of each, from or to P parts; see `move`."""
    pid = tl.program_id(0)
    if ends is not None:
        b = pid * ENDS + tl.arange(0, ENDS)
        end = _begin_joined(offsets, sizes, tl.minimum(b, count), J)
        tl.store(ends + b, end.to(ends.dtype.element_ty), mask=b <= count)

    chunks: tl.constexpr = (W + BW - 1) // BW
    first = tl.cast(pid // chunks, tl.int64) * BM
    event = first + tl.arange(0, BM)
    column = pid % chunks * BW + tl.arange(0, BW)
    inside = (event < events)[:, None] & (column < W)[None, :]
    # the rows of the first and last event bound those of the others, which are few
    both = tl.maximum(tl.minimum(first + tl.arange(0, 2) * (BM - 1), events - 1), 0)
    both = _find_rows(both, count, offsets, sizes, J, PROBES)
    b = _row_of(event, tl.min(both, 0), tl.max(both, 0), offsets, sizes, J)
    n = event - _begin_joined(offsets, sizes, b, J)
    if LEFT:  # one description, one part
        n -= _length(offsets[0], sizes[0], b, count) - _length(part_offsets[0], part_sizes[0], b, count)

    at = joined + event[:, None] * stride + column[None, :]
    if APART:
        values = tl.load(at, mask=inside)
    else:
        values = tl.zeros([BM, BW], joined.dtype.element_ty)
        missing = event >= 0
    for i in tl.static_range(P):
        length = _length(part_offsets[i], part_sizes[i], b, count)
        mine = (n >= 0) & (n < length)
        if part_offsets[i] is None:
            place = tl.cast(b, tl.int64) * row_strides[i] + n * strides[i]
        else:
            place = (_begin(part_offsets[i], 0, b) + n) * strides[i]
        place = parts[i] + place[:, None] + column[None, :]
        if APART:
            tl.store(place, values, mask=mine[:, None] & inside)
        else:
            values |= tl.load(place, mask=mine[:, None] & inside, other=0)
            missing &= ~mine
        n -= length
    if not APART:
        values = tl.where(missing[:, None], tl.cast(fill, joined.dtype.element_ty), values)
        tl.store(at, values, mask=inside)
