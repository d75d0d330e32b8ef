"""The kernels that keep the best of each row: those above the k-th best score, and the first of those equal to it."""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # scores of a program


def keep(scores: Tensor, k: int) -> Tensor:
    """Return the places `(R, k)` int64 of the best of `scores` `(R, W)`, k < W, ascending; of equal ones the first.

    The last stride is 1 and there is no NaN. Each place is computed, so the result does not depend on who is first.
    """
    rows, width = scores.shape
    last = scores.topk(k, sorted=False).values.amin(1)
    blocks = triton.cdiv(width, _BLOCK)
    counts = torch.empty((2, rows, blocks), dtype=torch.int32, device=scores.device)
    _count[(rows * blocks,)](scores, last, counts, scores.stride(0), width, rows * blocks, blocks, _BLOCK)
    before = counts.cumsum(2, dtype=torch.int32)
    places = scores.new_empty((rows, k), dtype=torch.int64)
    _write[(rows * blocks,)](scores, last, before, places, scores.stride(0), width, rows * blocks, blocks, k, _BLOCK)
    return places


@triton.jit
def _load(scores, last, row, block, stride, width, BLOCK: tl.constexpr):
    """Places of a block of a row, and whether their scores are above the last one or equal to it."""
    place = block * BLOCK + tl.arange(0, BLOCK)
    there = place < width
    own = tl.load(scores + row * stride + place, mask=there, other=float("-inf"))
    least = tl.load(last + row)
    return place, own > least, (own == least) & there


@triton.jit(do_not_specialize=["stride", "width", "total", "blocks"])
def _count(scores, last, counts, stride, width, total, blocks, BLOCK: tl.constexpr):
    """How many scores of a block are above the last one, and how many are equal to it."""
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    _, above, level = _load(scores, last, row, tl.program_id(0) % blocks, stride, width, BLOCK)
    tl.store(counts + tl.program_id(0), tl.sum(above.to(tl.int32), 0))
    tl.store(counts + total + tl.program_id(0), tl.sum(level.to(tl.int32), 0))


@triton.jit(do_not_specialize=["stride", "width", "total", "blocks", "k"])
def _write(scores, last, counts, places, stride, width, total, blocks, k, BLOCK: tl.constexpr):
    """The places of a block that are kept, where they belong; `counts` are sums up to a block and with it."""
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    place, above, level = _load(scores, last, row, tl.program_id(0) % blocks, stride, width, BLOCK)
    above_here, level_here = above.to(tl.int32), level.to(tl.int32)
    at = counts + tl.program_id(0)
    above_before = tl.load(at) - tl.sum(above_here, 0) + tl.cumsum(above_here, 0) - above_here
    level_before = tl.load(at + total) - tl.sum(level_here, 0) + tl.cumsum(level_here, 0) - level_here
    room = k - tl.load(counts + row * blocks + blocks - 1)  # for scores equal to the last one
    kept = above | (level & (level_before < room))
    tl.store(places + row * k + above_before + tl.minimum(level_before, room), place.to(tl.int64), mask=kept)
