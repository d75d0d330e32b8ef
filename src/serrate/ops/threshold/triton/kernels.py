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

from ..api import Problem

BITS = 32
_QUERIES = 128  # of a tile at most: more, and the items are read again
_WORDS_TO_PLACE = 1024  # of a program that turns bits into ids


def launch(problem: Problem, ids: Tensor) -> Tensor:
    """Fill `ids` `(R, capacity)`, -1 before; return how many items are selected, `(R,)` int64. All contiguous."""
    queries, items = problem.queries, problem.items
    rows, width = queries.shape
    tile, words, settings = _tiles(rows, width)
    blocks = triton.cdiv(len(items), words * BITS)
    bits = torch.empty(rows, blocks * words, dtype=torch.int32, device=items.device)
    counts = torch.empty(rows, blocks, dtype=torch.int32, device=items.device)
    least = torch.empty_like(problem.threshold)
    _least[(triton.cdiv(rows, _QUERIES),)](problem.threshold, problem.query_scales, least, rows, _QUERIES)
    _scan[(blocks * triton.cdiv(rows, tile),)](
        queries, least, items, problem.item_scales, problem.allowed, bits, counts, rows, len(items), blocks, width,
        triton.next_power_of_2(max(width, 32)), tile, words, **settings)
    ends = counts.cumsum(1)
    to_place = min(_WORDS_TO_PLACE, triton.next_power_of_2(blocks * words))
    groups = triton.cdiv(blocks * words, to_place)
    _place[(groups * rows,)](bits, ends, ids, blocks, ids.shape[1], groups, words, to_place, num_warps=4)
    return ends[:, -1]


def _tiles(rows: int, width: int) -> tuple[int, int, dict[str, int]]:
    """Return the queries of a tile, its words, and warps and stages of a program."""
    tile = min(max(triton.next_power_of_2(rows), 16), _QUERIES)
    words = 128 if tile <= 32 and width <= 128 else 64
    stages = 5 if width <= 64 else 3 if width <= 256 else 2
    return tile, words, {"num_warps": 4, "num_stages": stages}


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
    """The float32 at a place in the order of all: 0 at 0, the least positive number at 1, as much below."""
    magnitude = tl.abs(place).to(tl.int32).to(tl.float32, bitcast=True)
    return tl.where(place < 0, -magnitude, magnitude)


@triton.jit(do_not_specialize=["rows", "num_items", "blocks"])
def _scan(queries, least_source, items, scale_source, allowed, bits, counts, rows, num_items, blocks, D: tl.constexpr,
          BD: tl.constexpr, BR: tl.constexpr, BW: tl.constexpr):
    """The words `(R, blocks · BW)` of one block of items, and how many bits of them are set, for BR queries."""
    tiles = tl.cdiv(rows, BR)
    block = tl.cast(tl.program_id(0) // tiles, tl.int64)
    row = (tl.program_id(0) % tiles) * BR + tl.arange(0, BR)
    column = tl.arange(0, BD)
    word = block * BW + tl.arange(0, BW)
    first = word * 32
    query = tl.load(queries + row[None, :] * D + column[:, None], other=0,
                    mask=(row < rows)[None, :] & (column < D)[:, None])
    least = tl.load(least_source + row, mask=row < rows, other=float("inf"))
    source = items + first[:, None] * D + column[None, :]
    found = tl.zeros((BW, BR), tl.int32)
    one = tl.full((), 1, tl.int32)
    scale = tl.load(scale_source + first, mask=first < num_items, other=float("nan"))
    for bit in range(32):
        there = first + bit < num_items
        after = first + bit + 1  # scales come a step ahead: a step is short beside the way to memory
        coming = tl.load(scale_source + after, mask=after < num_items, other=float("nan"))  # that reaches nothing
        if D == BD:
            item = tl.load(source + bit * D, mask=there[:, None], other=0)
        else:
            item = tl.load(source + bit * D, mask=there[:, None] & (column < D)[None, :], other=0)
        score = tl.dot(item, query, out_dtype=tl.int32).to(tl.float32) * scale[:, None]
        found = tl.where(score >= least[None, :], found | (one << bit), found)
        scale = coming
    if allowed is not None:
        may = first[:, None] + tl.arange(0, 32)[None, :]
        may = tl.load(allowed + may, mask=may < num_items, other=0).to(tl.int32) << tl.arange(0, 32)[None, :]
        found &= tl.sum(may, 1)[:, None]
    row = row[None, :]
    tl.store(bits + tl.cast(row, tl.int64) * (blocks * BW) + word[:, None], found, mask=row < rows)
    count = tl.sum(_ones(found.to(tl.uint32, bitcast=True)), 0)[None, :]
    tl.store(counts + tl.cast(row, tl.int64) * blocks + block, count, mask=row < rows)


@triton.jit
def _ones(x):
    """How many bits of uint32 are set, int32: sums of neighbours, then of these."""
    x -= (x >> 1) & 0x55555555
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F
    return ((x * 0x01010101) >> 24).to(tl.int32)


@triton.jit(do_not_specialize=["blocks", "capacity", "groups"])
def _place(bits, ends, ids, blocks, capacity, groups, BW: tl.constexpr, BP: tl.constexpr):
    """The ids of BP words of one query: where they begin follows from the running sum of counts `(R, blocks)`."""
    row = tl.cast(tl.program_id(0) // groups, tl.int64)
    group = tl.program_id(0) % groups
    block = group * (BP // BW)
    before = tl.load(ends + row * blocks + block - 1, mask=block > 0, other=0)
    after = tl.load(ends + row * blocks + tl.minimum(block + BP // BW, blocks) - 1)
    if (after > before) & (before < capacity):
        word = group * BP + tl.arange(0, BP)
        left = tl.load(bits + row * (blocks * BW) + word, mask=word < blocks * BW, other=0).to(tl.uint32, bitcast=True)
        count = _ones(left)
        place = before + tl.cumsum(count, 0) - count
        while tl.max(left, 0) > 0:
            lowest = left & (0 - left)
            item = tl.cast(word, tl.int64) * 32 + _ones(lowest - 1)
            tl.store(ids + row * capacity + place, item, mask=(left > 0) & (place < capacity))
            place += 1
            left ^= lowest
