"""Where the rows of a batch lie: which of them a program has, found on the device from offsets alone.

Work is cut into tiles of `TILE` events, or of `TILE` pairs. Row `b`, which begins at `offsets[b]`, has the slots from
`offsets[b] // TILE + b` on: as many as it needs or one more, shared with no other row. So there are
`offsets[B] // TILE + B` of them, whatever the lengths; the row of a slot is found by looking at 128 rows at a time.
"""

# ruff: noqa: N803

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched


def launch(offsets: Tensor, blocks: Tensor) -> None:
    """Fill `blocks` `(B + 1,)` with the running sums of squared lengths."""
    _sums_of_squares[(1,)](offsets, blocks, offsets.shape[0] - 1, STEP=2048, num_warps=4)


def whole_words(a: Tensor) -> bool:
    """Return whether a word of 8 numbers of `a` may be read where only some of them are there."""
    return a.stride(0) == 1 and a.data_ptr() % (8 * a.itemsize) == 0


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
def row_of(offsets, slot, B, TILE: tl.constexpr):
    """The row of a slot, int64, and how many slots of that row come before.

    Without a TILE a row's slots are those from its offset on.
    """
    probe = tl.arange(0, 128) + 1
    row = slot * 0
    last = row + B - 1
    while row < last:  # one of 128 parts is left each time
        step = tl.cdiv(last - row, 128)
        at = row + probe * step
        before = _first_slot(tl.load(offsets + at, mask=at <= last, other=0), at, TILE) <= slot
        row += tl.sum(((at <= last) & before).to(tl.int32), 0) * step
        last = tl.minimum(row + step - 1, last)
    return row, slot - _first_slot(tl.load(offsets + row), row, TILE)


@triton.jit
def _first_slot(offset, row, TILE: tl.constexpr):
    return offset if TILE is None else offset // TILE + row


@triton.jit
def block_of(blocks, row, length, P):
    """Where the block of a row begins, and how many of its queries are whole in blocks of `P`: all that there are."""
    block = tl.load(blocks + row)
    held = tl.maximum(P - block, 0) // tl.maximum(length, 1)
    return block, tl.minimum(held, length).to(tl.int32)


@triton.jit
def events_of(offsets, slot, T, B, TILE: tl.constexpr):
    """The tile of events that a slot has: row, first event within it; where the row begins, and its length.

    No row reaches past the events that there are.
    """
    row, part = row_of(offsets, slot, B, TILE)
    start = tl.minimum(tl.load(offsets + row).to(tl.int64), T)
    end = tl.minimum(tl.load(offsets + row + 1).to(tl.int64), T)
    return row, (part * TILE).to(tl.int32), start, (end - start).to(tl.int32)


@triton.jit
def share_of(length, block, group, part, period, BM: tl.constexpr):
    """The queries of a part of a group, of eight parts in all: first and last, with a period between; and how far the
    pair of each lies behind the word that it begins in.
    """
    share = tl.cdiv(tl.cdiv(tl.cdiv(length, period), 8 // period), BM) * BM
    begin = group + part * share * period
    shift = ((block + tl.cast(group, tl.int64) * length) % 8).to(tl.int32)
    return begin, tl.minimum(begin + share * period, length), shift


@triton.jit
def groups_of(length, TILE: tl.constexpr):
    """Every how many queries one is taken of a row, and whether these then begin alike, as so few are not taken."""
    period = period_of(length)
    alike = (period == 1) | (length >= TILE // 2 * period)
    return tl.where(alike, period, 1), alike


@triton.jit
def queries_of(offsets, blocks, slot, P, B, SPAN: tl.constexpr):
    """The queries whose first pair is in the span of pairs that a slot has: row, first and last; start, length, block.

    So programs have about as many pairs each, however long the rows.
    """
    row, part = row_of(blocks, slot, B, SPAN)
    return _queries_of_part(offsets, blocks, row, part, P, SPAN)


@triton.jit
def _queries_of_part(offsets, blocks, row, part, P, SPAN: tl.constexpr):
    """The queries of a row whose first pair is in a part of its pairs: as `queries_of`."""
    start = tl.load(offsets + row).to(tl.int64)
    length = tl.load(offsets + row + 1).to(tl.int64) - start
    block, held = block_of(blocks, row, length, P)
    each = tl.maximum(length, 1)
    first = tl.minimum(tl.cdiv(part * SPAN, each), held)
    last = tl.minimum(tl.cdiv((part + 1) * SPAN, each), held)
    return row, first.to(tl.int32), last.to(tl.int32), start, length.to(tl.int32), block


@triton.jit
def queries_abreast(offsets, blocks, slot, P, B, SPAN: tl.constexpr, ROWS: tl.constexpr):
    """The same as `queries_of`, slots being in the order of first queries for ROWS rows at a time: so programs that run
    side by side have the same queries of different rows. Last is first where a slot has none.
    """
    row, _ = row_of(blocks, slot, B, SPAN)
    row = row // ROWS * ROWS
    slot -= tl.load(blocks + row) // SPAN + row
    every = row + tl.arange(0, ROWS)
    start = tl.load(offsets + every, mask=every < B, other=0).to(tl.int64)
    length = tl.load(offsets + every + 1, mask=every < B, other=0).to(tl.int64) - start
    low = slot * 0
    high = tl.max(length, 0)
    there = tl.sum(_slots_before(high, length, SPAN), 0) > slot
    while there & (high - low > 1):
        middle = (low + high) // 2
        before = tl.sum(_slots_before(middle, length, SPAN), 0) <= slot
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    before = _slots_before(low, length, SPAN)
    those = _slots_before(low + 1, length, SPAN) - before
    rank = slot - tl.sum(before, 0)  # among slots that begin with this query
    earlier = tl.cumsum(those, 0) - those
    own = (earlier <= rank) & (rank < earlier + those) & there
    part = tl.sum(tl.where(own, before + rank - earlier, 0), 0)
    row = tl.minimum(tl.sum(tl.where(own, every, 0), 0), B - 1)
    row, first, last, start, length, block = _queries_of_part(offsets, blocks, row, part, P, SPAN)
    return row, first, tl.where(there, last, first), start, length, block


@triton.jit
def _slots_before(query, length, SPAN: tl.constexpr):
    """How many slots of rows begin with a query before this one."""
    found = tl.minimum(query - 1, length - 1) * length // SPAN + 1
    return tl.where((query > 0) & (length > 0), found, 0)


@triton.jit
def pairs_of(first, step, key, columns, there, last, length, block, WORDS: tl.constexpr):
    """Where the pairs of the queries `first + step` with the keys `key + columns` lie: the first, int64; all from it.

    Also which of them there are, (M, N) as the places: `there` (N,) of keys, and none from query `last` on. Where
    columns begin words and steps are periods, places are visibly so: then loads and stores are of 16 bytes.
    """
    base = block + tl.cast(first, tl.int64) * length + key
    at = step * length
    if WORDS:
        base = base // 8 * 8
        at = at // 8 * 8
    return base, at[:, None] + columns[None, :], (first + step < last)[:, None] & there[None, :]


@triton.jit
def period_of(length):
    """After how many queries pairs begin at the same place of a word of 8 again: 1, 2, 4 or 8."""
    return tl.where(length % 8 == 0, 1, tl.where(length % 4 == 0, 2, tl.where(length % 2 == 0, 4, 8)))


@triton.jit
def words_of(begin, length):
    """Which pairs of a query, which begin at `begin`, fill words of 8: the key of the first, and visibly a multiple of
    8, how many.
    """
    head = tl.minimum((8 - begin % 8) % 8, length).to(tl.int32)
    return head, (length - head) // 8 * 8


@triton.jit
def ends_of(head, count, length):
    """The keys of a query on either side of its words, (16,), and which of these there are."""
    end = tl.arange(0, 16)
    keys = tl.where(end < 8, end, head + count + end - 8)
    return keys, keys < tl.where(end < 8, head, length)


@triton.jit
def words_at(places, shift, length, WHOLE: tl.constexpr):
    """Which places have keys, counted from where the word begins that has the first pair of a query, `shift` before it.

    Where words may be read whole, all places of words that have some: what is beside the keys is not to be used.
    """
    begin = shift
    end = shift + length
    if WHOLE:
        begin = begin // 8 * 8
        end = (end + 7) // 8 * 8
    return (places >= begin) & (places < end)


@triton.jit
def clear_past(out, blocks, B, P, H, STEP: tl.constexpr):
    """Let all programs together set what lies past the last block to 0."""
    step = tl.arange(0, STEP)
    end = P * tl.cast(H, tl.int64)
    begin = tl.load(blocks + B) * H + tl.cast(tl.program_id(0), tl.int64) * STEP
    for n in range(begin, end, tl.cast(tl.num_programs(0), tl.int64) * STEP):
        at = n + step
        tl.store(out + at, tl.zeros([STEP], out.dtype.element_ty), mask=at < end)
