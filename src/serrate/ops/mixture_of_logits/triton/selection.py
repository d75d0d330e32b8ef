"""The kernels that keep the best of each row: those above the k-th best score, and the first of those equal to it.

Of long rows most scores are passed over beforehand. Cut a row into groups: a bound that k of their maxima reach, and
few more, is one that k scores reach, and what is above it lies in as few groups. Of groups whose maximum is the bound
the first k have enough. So only these groups are read again, room for them is room enough, whatever the scores are, and
the k-th best is looked for among what is not below the bound.
"""

# ruff: noqa: N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...sizes import ceil_div

_BLOCK = 2048  # scores of a program, fewer than 2^16
_WIDEST = 64  # group; wider ones would leave more behind
_GROUPS = 4  # of them at least for each score that is kept, so that few groups have several
_HELD = 2**14  # scores that a program has in its registers
_ALONE = 4 * _HELD  # of a row at most, that one program looks for the k-th best of


class _Rows(NamedTuple):
    """What is looked at of each row.

    Attributes:
        scores: `(R, W)`, the last stride 1.
        sizes: `(R,)` int32, how many of them, or of the groups, at least k; None: all.
        groups: `(R, N)` int32, which groups, ascending; None: all.
        group: scores of a group.
    """

    scores: Tensor
    sizes: Tensor | None = None
    groups: Tensor | None = None
    group: int = 1


def keep(scores: Tensor, k: int) -> Tensor:
    """Return the places `(R, k)` int64 of the best of `scores` `(R, W)`, k < W, ascending; of equal ones the first.

    The last stride is 1 and there is no NaN. Each place is computed, so the result does not depend on who is first.
    """
    rows, width = scores.shape
    group = _WIDEST
    while group > 1 and width < _GROUPS * k * group:
        group //= 2
    if group == 1 or width <= _HELD:
        return _best(_Rows(scores), k)
    maxima = scores.new_empty((rows, 16 * ceil_div(width, 16 * group)))  # of no score -inf; sixteens are read faster
    _maxima[(rows * ceil_div(width, _BLOCK),)](scores, maxima, scores.stride(0), width, maxima.shape[1], group,
                                                  _BLOCK)
    most = k + k // 16
    bound = _bound(_Rows(maxima), k, most)
    groups = torch.empty((rows, most + k), dtype=torch.int32, device=scores.device)
    sizes = groups.new_empty((2, rows))
    _pass(_Rows(maxima), bound, k, groups, sizes[0])
    room = most * group + k
    places, left = groups.new_empty((rows, room), dtype=torch.int64), scores.new_empty((rows, room))
    _pass(_Rows(scores, sizes[0], groups, group), bound, k, places, sizes[1], left)
    return places.gather(1, _best(_Rows(left, sizes[1]), k))


def _best(rows: _Rows, k: int) -> Tensor:
    """Return the same as `keep`, looking at all."""
    places = torch.empty((len(rows.scores), k), dtype=torch.int64, device=rows.scores.device)
    _pass(rows, _bound(rows, k, k), k, places)
    return places


def _bound(rows: _Rows, k: int, most: int) -> Tensor:
    """Return numbers `(R,)` that `k` scores of each row reach, and at most `most` do, or fewer than k are above."""
    scores = rows.scores
    if rows.sizes is None and scores.shape[1] > _ALONE:
        return scores.topk(k, sorted=False).values.amin(1)
    found = scores.new_empty(len(scores))
    _search[(len(scores),)](scores, rows.sizes, found, scores.stride(0), scores.shape[1], k, most, _HELD, num_warps=32)
    return found


def _pass(rows: _Rows, bound: Tensor, k: int, places: Tensor, sizes: Tensor | None = None,
          passed: Tensor | None = None) -> None:
    """Write the `places` of scores above the bound of their row, and of the first at it, ascending.

    Of scores at the bound as many are taken as are missing to `k`; with `sizes` k, and how many passed goes there. The
    scores go to `passed`.
    """
    scores, _, groups, group = rows
    held = 0 if groups is None else groups.shape[1]
    blocks = ceil_div(held * group or scores.shape[1], _BLOCK)
    counts = torch.empty((len(scores), blocks), dtype=torch.int64, device=scores.device)
    given = *rows[:3], bound, counts, scores.stride(0), scores.shape[1], blocks, held
    _count[(len(scores) * blocks,)](*given, group, _BLOCK)
    _write[(len(scores) * blocks,)](*given, places, sizes, passed, k, places.shape[1], group, _BLOCK, num_warps=8)


@launched
@triton.jit(do_not_specialize=["stride", "width", "groups"], do_not_specialize_on_alignment=["scores"])
def _maxima(scores, maxima, stride, width, groups, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """The largest score of each group of a block."""
    blocks = tl.cdiv(width, BLOCK)
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    block = tl.program_id(0) % blocks
    group = block * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    place = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    own = tl.load(scores + row * stride + place, mask=place < width, other=float("-inf"))
    tl.store(maxima + row * groups + group, tl.max(own, 1), mask=group < groups)


@launched
@triton.jit(do_not_specialize=["k", "most"], do_not_specialize_on_alignment=["sizes"])
def _search(scores, sizes, found, stride, width, k, most, BLOCK: tl.constexpr):
    """What `_bound` returns of a row, bit by bit: the largest number that k scores reach, or one before it."""
    row = tl.cast(tl.program_id(0), tl.int64)
    if sizes is not None:
        width = tl.load(sizes + row)
    scores += row * stride
    place = tl.arange(0, BLOCK)
    first = tl.load(scores + place, mask=place < width, other=float("nan"))
    best = tl.cast(-2147483648, tl.int64)
    step = tl.cast(2147483648, tl.int64)
    reached = most + 1
    while (step > 0) & (reached > most):
        least = _number(best + step)
        reach = tl.sum((first >= least).to(tl.int32), 0)
        for begin in range(BLOCK, width, BLOCK):
            more = tl.load(scores + begin + place, mask=begin + place < width, other=float("nan"))
            reach += tl.sum((more >= least).to(tl.int32), 0)
        best = tl.where(reach >= k, best + step, best)
        reached = tl.where(reach >= k, reach, reached)
        step >>= 1
    tl.store(found + row, _number(tl.maximum(best, -2139095041)))  # -inf: what is below stands for no number


@triton.jit
def _number(place):
    """The float32 that stands at a place among all, -2^31 … 2^31 - 1; they are ordered as their bits but for signs."""
    bits = place.to(tl.int32)
    return (bits ^ ((bits >> 31) & 2147483647)).to(tl.float32, bitcast=True)


@triton.jit
def _load(scores, sizes, groups, bound, row, block, stride, width, held, GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """Scores of a block of what is looked at of a row, their places, whether they are above the bound or at it."""
    place = block * BLOCK + tl.arange(0, BLOCK)
    if groups is not None:
        there = place < tl.load(sizes + row) * GROUP
        place = tl.load(groups + row * held + place // GROUP, mask=there, other=0) * GROUP + place % GROUP
        there = there & (place < width)
    elif sizes is not None:
        there = place < tl.load(sizes + row)
    else:
        there = place < width
    own = tl.load(scores + row * stride + place, mask=there, other=float("-inf"))
    least = tl.load(bound + row)
    return own, place, (own > least).to(tl.int32), ((own == least) & there).to(tl.int32)


@launched
@triton.jit(do_not_specialize=["stride", "width", "blocks", "held"], do_not_specialize_on_alignment=["scores", "sizes"])
def _count(scores, sizes, groups, bound, counts, stride, width, blocks, held, GROUP: tl.constexpr,
           BLOCK: tl.constexpr):
    """How many scores of a block are above the bound, and 2^32 times how many are at it."""
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    _, _, above, level = _load(scores, sizes, groups, bound, row, tl.program_id(0) % blocks, stride, width, held,
                               GROUP, BLOCK)
    both = tl.sum(above + (level << 16), 0)
    tl.store(counts + tl.program_id(0), (both & 65535) + ((both >> 16).to(tl.int64) << 32))


@triton.jit
def _sum(counts, size):
    """The sums of the first counts: above, level."""
    place, total = tl.arange(0, 512), tl.zeros([512], tl.int64)
    for begin in range(0, size, 512):
        total += tl.load(counts + begin + place, mask=begin + place < size, other=0)
    both = tl.sum(total, 0)
    return both.to(tl.int32), (both >> 32).to(tl.int32)


@launched
@triton.jit(do_not_specialize=["stride", "width", "blocks", "held", "k", "columns"],
            do_not_specialize_on_alignment=["scores", "sizes", "passing"])
def _write(scores, sizes, groups, bound, counts, stride, width, blocks, held, places, passing, passed, k, columns,
           GROUP: tl.constexpr, BLOCK: tl.constexpr):
    """What passes of a block, where it belongs; the first block tells how many that are of a row."""
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    block = tl.program_id(0) % blocks
    counts += row * blocks
    if (tl.load(counts + block) != 0) | (block == 0):
        if (passing is None) | (block == 0):
            all_above, all_level = _sum(counts, blocks)
            if passing is None:
                k -= all_above  # those above come first
            else:
                tl.store(passing + row, all_above + tl.minimum(all_level, k))
        above_before, level_before = _sum(counts, block)
        own, place, above, level = _load(scores, sizes, groups, bound, row, block, stride, width, held, GROUP, BLOCK)
        before = tl.cumsum(above + (level << 16), 0) - (above + (level << 16))  # both in one scan
        levels = level_before + (before >> 16)
        kept = (above > 0) | ((level > 0) & (levels < k))
        at = above_before + (before & 65535) + tl.minimum(levels, k)
        tl.store(places + row * columns + at, place, mask=kept)
        if passed is not None:
            tl.store(passed + row * columns + at, own, mask=kept)
