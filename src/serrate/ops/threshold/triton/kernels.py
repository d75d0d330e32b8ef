"""The kernels of selection: bits of what reaches a threshold, and ids from bits.

A word has the bits of 32 items that follow one another, the first item in the lowest bit. A program has a tile of
words and of queries, and goes through the bits: in each step it reads an item of every word, so that the words of a
thread are filled in its registers, and nothing passes between threads.
"""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...sizes import ceil_div, power_of_two
from ..api import Problem

BITS = 32
_QUERIES = 128  # of a tile at most: more, and the items are read again
_GROUP = 128  # parts of a program that turns bits into ids


def launch(problem: Problem, ids: Tensor) -> Tensor:
    """Fill `ids` `(R, capacity)`, -1 before; return how many items are selected, `(R,)` int64. All contiguous."""
    queries, items = problem.queries, problem.items
    rows, width = queries.shape
    tile, words, settings = _tiles(rows, width)
    blocks = ceil_div(len(items), words * BITS)
    parts = blocks * words // BITS
    groups = ceil_div(parts, _GROUP)
    bits = torch.empty(rows, parts * BITS, dtype=torch.int32, device=items.device)
    used, counts = torch.zeros(2, rows, groups * _GROUP, dtype=torch.int32, device=items.device)
    least = torch.empty_like(problem.threshold)
    _least[(ceil_div(rows, _QUERIES),)](problem.threshold, problem.query_scales, least, rows, _QUERIES)
    _scan[(blocks * ceil_div(rows, tile),)](
        queries, least, items, problem.item_scales, problem.allowed, bits, used, counts, rows, len(items), parts,
        used.stride(0), width, power_of_two(max(width, 32)), tile, words, **settings)
    ends = counts.view(rows, groups, _GROUP).sum(2).cumsum(1)
    _place[(groups * rows,)](bits, used, counts, ends, ids, parts, ids.shape[1], groups, _GROUP, num_warps=4)
    return ends[:, -1]


def _tiles(rows: int, width: int) -> tuple[int, int, dict[str, int]]:
    """Return the queries of a tile, its words, and warps and stages of a program."""
    tile = min(max(power_of_two(rows), 16), _QUERIES if width <= 256 else _QUERIES // 2)
    words = 128 if tile <= 32 and width <= 64 else 64
    stages = 3 if width <= 128 else 2 if width <= 256 else 1  # of four rows a word each, in shared memory
    # a product and a difference must not become one instruction, which rounds once where all others round twice
    return tile, words, {"num_warps": 4, "num_stages": stages, "enable_fp_fusion": False}


@launched
@triton.jit(do_not_specialize=["rows"])
def _least(threshold_source, scale_source, least, rows, BR: tl.constexpr):
    """The least float32 `x` for which `x · scale`, rounded, reaches the threshold; infinite where there is none.

    By halves of the numbers in their order, as integers: the product is a rising function of `x`, so one comparison a
    score is left for the scan. NaN is reached by nothing, and nothing of a scale of NaN reaches anything.
    """
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    threshold = tl.load(threshold_source + row, mask=row < rows, other=0.0)
    scale = tl.load(scale_source + row, mask=row < rows, other=0.0)
    reached = tl.full((BR,), 0x7F800000, tl.int64)  # places of infinities, which no product of integers is
    missed = tl.full((BR,), -0x7F800000, tl.int64)
    for _ in range(32):
        middle = (reached + missed) >> 1
        does = _at(middle) * scale >= threshold
        reached = tl.where(does, middle, reached)
        missed = tl.where(does, missed, middle)
    tl.store(least + row, _at(reached), mask=row < rows)


@triton.jit
def _at(place):
    """The float32 at a place in the order of all: the least positive number at 1, as much below.

    At 0 it is -0, since no zero less -0 has a sign.
    """
    magnitude = tl.abs(place).to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where(place <= 0, -magnitude, magnitude)


@launched
@triton.jit(do_not_specialize=["rows", "num_items", "parts", "stride"])
def _scan(queries, least_source, items, scale_source, allowed, bits, used, counts, rows, num_items, parts, stride,
          D: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr):
    """The words of one block of items for BR queries; of 32 words each, which are not 0 and how many bits are set.

    Bits of what is missed are collected: the sign of a difference is shifted in by one instruction. Four neighbours of
    each word are read at a time: less than 256 bytes in one place, and memory is slow.
    """
    tiles = tl.cdiv(rows, BR)
    block = tl.cast(tl.program_id(0) // tiles, tl.int64)
    row = (tl.program_id(0) % tiles) * BR + tl.arange(0, BR)
    column = tl.arange(0, BD)
    query = tl.load(queries + row[None, :] * D + column[:, None], other=0,
                    mask=(row < rows)[None, :] & (column < D)[:, None])
    least = tl.load(least_source + row, mask=row < rows, other=float("inf"))
    # within a block all is told in int32
    here = tl.minimum(num_items - block * (BW * 32), BW * 32).to(tl.int32)
    items += block * (BW * 32 * D)
    scale_source += block * (BW * 32)
    first = tl.arange(0, BW)[:, None] * 32
    four = tl.arange(0, 4)[None, :]
    missed = tl.zeros((BW, BR), tl.uint32)
    valid = tl.zeros((BW,), tl.uint32)
    scale = tl.load(scale_source + first + 28 + four, mask=first + 28 + four < here, other=float("nan"))
    for step in range(8):
        at = first + (28 - 4 * step)
        after = first + ((24 - 4 * step) & 31) + four  # scales come a step ahead
        coming = tl.load(scale_source + after, mask=after < here, other=float("nan"))
        valid = (valid << 4) | tl.sum((scale == scale).to(tl.uint32) << four.to(tl.uint32), 1)
        even, odd = tl.split(tl.reshape(scale, (BW, 2, 2)))
        scale_0, scale_2 = tl.split(even)
        scale_1, scale_3 = tl.split(odd)
        missed = _shifted(missed, items, at + 3, here, scale_3, query, least, D, BD)
        missed = _shifted(missed, items, at + 2, here, scale_2, query, least, D, BD)
        missed = _shifted(missed, items, at + 1, here, scale_1, query, least, D, BD)
        missed = _shifted(missed, items, at, here, scale_0, query, least, D, BD)
        scale = coming
    if allowed is not None:
        at = first + tl.arange(0, 32)[None, :]
        may = tl.load(allowed + block * (BW * 32) + at, mask=at < here, other=0)
        valid &= tl.sum(may.to(tl.uint32) << tl.arange(0, 32)[None, :].to(tl.uint32), 1)
    found = ~missed & valid[:, None]
    target = tl.cast(row[None, :], tl.int64)
    word = block * BW + tl.arange(0, BW)[:, None]
    tl.store(bits + target * (parts * 32) + word, found.to(tl.int32, bitcast=True), mask=row[None, :] < rows)
    part = block * (BW // 32) + tl.arange(0, BW // 32)[:, None]
    found = tl.reshape(found, (BW // 32, 32, BR))
    place = tl.arange(0, 32)[None, :, None].to(tl.uint32)
    some = tl.sum((found != 0).to(tl.uint32) << place, 1)
    tl.store(used + target * stride + part, some.to(tl.int32, bitcast=True), mask=row[None, :] < rows)
    tl.store(counts + target * stride + part, tl.sum(_ones(found), 1), mask=row[None, :] < rows)


@triton.jit
def _shifted(missed, items, at, here, scale, query, least, D: tl.constexpr, BD: tl.constexpr):
    """The bits `(BW, BR)` one place up, and in the lowest whether items `at` `(BW, 1)` miss what is the least."""
    column = tl.arange(0, BD)[None, :]
    if D == BD:
        item = tl.load(items + (at * D + column), mask=at < here, other=0)
    else:
        item = tl.load(items + (at * D + column), mask=(at < here) & (column < D), other=0)
    score = tl.dot(item, query, out_dtype=tl.int32).to(tl.float32) * scale[:, None]
    return (missed << 1) | ((score - least[None, :]).to(tl.uint32, bitcast=True) >> 31)


@triton.jit
def _ones(x):
    """How many bits of uint32 are set, int32: sums of neighbours, then of these."""
    x -= (x >> 1) & 0x55555555
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@launched
@triton.jit(do_not_specialize=["parts", "capacity", "groups"])
def _place(bits, used, counts, ends, ids, parts, capacity, groups, BG: tl.constexpr):
    """The ids of BG parts, 32 words each, of one query: where they begin follows from the running sum of counts."""
    row = tl.cast(tl.program_id(0) // groups, tl.int64)
    group = tl.program_id(0) % groups
    begin = tl.load(ends + row * groups + group - 1, mask=group > 0, other=0)
    if (tl.load(ends + row * groups + group) > begin) & (begin < capacity):
        part = group * BG + tl.arange(0, BG)
        source = row * groups * BG + part
        count = tl.load(counts + source)
        place = begin + tl.cumsum(count, 0) - count
        words = tl.load(used + source).to(tl.uint32, bitcast=True)
        while tl.max(words, 0) > 0:
            lowest = words & (0 - words)
            word = tl.cast(part, tl.int64) * 32 + _ones(lowest - 1)
            left = tl.load(bits + row * (parts * 32) + word, mask=words > 0, other=0).to(tl.uint32, bitcast=True)
            while tl.max(left, 0) > 0:
                low = left & (0 - left)
                tl.store(ids + row * capacity + place, word * 32 + _ones(low - 1),
                         mask=(left > 0) & (place < capacity))
                place += (left > 0).to(tl.int32)
                left ^= low
            words ^= lowest
