"""The gradient of a table: what arrives for each of its rows, in the order of the rows, is added up without atomics.

Places are sorted by row, and a program adds up a chunk of them. A row whose places lie in one chunk is its program's.
Of one whose places go on over chunks, such as an action that half of all events have, programs keep their parts, which
a second kernel adds up in their order.
"""

# ruff: noqa: N803, SIM102, SIM108 - what is not there is not loaded

import torch
import triton
import triton.language as tl
from torch import Tensor

from ....jagged.tensor import INT32_MAX
from ...launch import launched
from ...sizes import ceil_div, power_of_two

_CHUNK = 256  # places of a program
_PLACES = 32  # that it looks at together
_WIDEST = 64  # columns of a program


def launch_backward(grad: Tensor, rows: Tensor, bags: Tensor | None, group: int, out: Tensor) -> None:
    """Fill `out` `(V, E)`, which is 0, with the sums of what each row of it was given.

    Args:
        grad: `(R, E)`, contiguous.
        rows: `(N,)` int32 or int64, the row of the table that each place reads.
        bags: `(N,)`, the row of `grad` that each place is of; None: place `i` is of row `i // group`.
        group: places of a row of `grad`.
        out: contiguous.
    """
    places, width = rows.shape[0], out.shape[1]
    if not places or not width:
        return
    keys, order = (rows.int() if out.shape[0] <= INT32_MAX else rows).sort(stable=True)  # bytes are what sorting takes
    chunks = ceil_div(places, _CHUNK)
    parts = torch.empty(2, chunks, width, device=grad.device)
    block = min(max(16, power_of_two(width)), _WIDEST)
    blocks = ceil_div(width, block)
    _added[chunks * blocks,](grad, keys, order, bags, out, parts, places, chunks, group, width, block, blocks, _CHUNK,
                             _PLACES, num_warps=4)
    _across[chunks * blocks,](keys, out, parts, places, chunks, width, block, blocks, _CHUNK, _PLACES, num_warps=2)


@triton.jit
def _joined(first_begins, first, next_begins, following):
    return first_begins | next_begins, tl.where(next_begins != 0, following, first + following)


@launched
@triton.jit(do_not_specialize=["places", "chunks", "group"])
def _added(grad, keys, order, bags, out, parts, places, chunks, group, E: tl.constexpr, BE: tl.constexpr,
           BLOCKS: tl.constexpr, CHUNK: tl.constexpr, BN: tl.constexpr):
    """The sums of one chunk of places: of rows all of whose places it has to `out`, of others to `parts`."""
    chunk = tl.program_id(0) // BLOCKS
    column = tl.program_id(0) % BLOCKS * BE + tl.arange(0, BE)
    there = column < E
    line = tl.arange(0, BN)
    first = tl.cast(chunk, tl.int64) * CHUNK
    parts += tl.cast(chunk, tl.int64) * E + column
    since = tl.zeros([BE], tl.float32)  # of the row that is not at its end, in this chunk
    own = 0  # whether that row begins in this chunk
    for at in range(0, CHUNK, BN):
        place = first + at + line
        inside = place < places
        key = tl.load(keys + place, mask=inside, other=-1)
        begins = key != tl.load(keys + place - 1, mask=inside & (place > 0), other=-1)
        ends = inside & (key != tl.load(keys + place + 1, mask=place + 1 < places, other=-1))
        source = tl.load(order + place, mask=inside, other=0)
        if bags is None:
            source = source // group
        else:
            source = tl.load(bags + source, mask=inside, other=0).to(tl.int64)
        cell = inside[:, None] & there[None, :]
        value = tl.load(grad + source[:, None] * E + column[None, :], mask=cell, other=0.0).to(tl.float32)
        value += tl.where(((line == 0) & (begins == 0))[:, None], since[None, :], 0.0)
        flags = tl.broadcast_to(begins.to(tl.int32)[:, None], [BN, BE])
        flags, value = tl.associative_scan((flags, value), 0, _joined)
        whole = (flags + own) > 0
        finished = ends[:, None] & there[None, :]
        where = key.to(tl.int64)[:, None] * E + column[None, :]
        tl.store(out + where, value.to(out.dtype.element_ty), mask=finished & whole)
        tl.store(parts + tl.zeros([BN, BE], tl.int32), value, mask=finished & (whole == 0))  # one line at most
        since = tl.sum(tl.where((line == BN - 1)[:, None], value, 0.0), 0)
        own = tl.maximum(own, tl.max(begins.to(tl.int32), 0))
    last = first + CHUNK
    if last < places:
        if tl.load(keys + last - 1) == tl.load(keys + last):
            tl.store(parts + tl.cast(own * chunks, tl.int64) * E, since, mask=there)


@launched
@triton.jit(do_not_specialize=["places", "chunks"])
def _across(keys, out, parts, places, chunks, E: tl.constexpr, BE: tl.constexpr, BLOCKS: tl.constexpr,
            CHUNK: tl.constexpr, BN: tl.constexpr):
    """The sum of the row that begins in one chunk and goes on in the next."""
    chunk = tl.program_id(0) // BLOCKS
    column = tl.program_id(0) % BLOCKS * BE + tl.arange(0, BE)
    there = column < E
    first = tl.cast(chunk, tl.int64) * CHUNK
    last = first + CHUNK
    if last < places:
        key = tl.load(keys + last - 1)
        mine = key == tl.load(keys + last)
        if chunk > 0:
            mine = mine & (tl.load(keys + first - 1) != key)
        if mine:
            total = tl.load(parts + (tl.cast(chunks, tl.int64) + chunk) * E + column, mask=there, other=0.0)
            at = chunk + 1
            more = 1
            while more > 0:
                line = at + tl.arange(0, BN)
                known = line < chunks
                line = tl.cast(line, tl.int64)
                same = known & (tl.load(keys + line * CHUNK, mask=known, other=-1) == key)
                total += tl.sum(tl.load(parts + line[:, None] * E + column[None, :],
                                        mask=same[:, None] & there[None, :], other=0.0), 0)
                more = tl.min(same.to(tl.int32), 0)
                at += BN
            tl.store(out + tl.cast(key, tl.int64) * E + column, total.to(out.dtype.element_ty), mask=there)
