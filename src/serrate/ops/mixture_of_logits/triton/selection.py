"""The kernels that keep the best of each row: those above the k-th best score, and the first of those equal to it.

Of long rows most scores are passed over beforehand. Cut a row into groups: the k-th best of their maxima is a bound
that k scores reach, and what is above it lies in fewer than k groups. So room for those groups is room enough,
whatever the scores are, and the k-th best is looked for there.
"""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...sizes import ceil_div

_BLOCK = 2048  # scores of a program, fewer than 2^16
_WIDEST = 64  # group; wider ones would leave more behind
_GROUPS = 4  # of them at least for each score that is kept, so that few groups have several


def keep(scores: Tensor, k: int) -> Tensor:
    """Return the places `(R, k)` int64 of the best of `scores` `(R, W)`, k < W, ascending; of equal ones the first.

    The last stride is 1 and there is no NaN. Each place is computed, so the result does not depend on who is first.
    """
    rows, width = scores.shape
    group = _WIDEST
    while group > 1 and width < _GROUPS * k * group:
        group //= 2
    if group == 1:
        return _best(scores, k)
    maxima = scores.new_empty((rows, ceil_div(width, group)))
    _maxima[(rows * ceil_div(width, _BLOCK),)](scores, maxima, scores.stride(0), width, maxima.shape[1], group,
                                                  _BLOCK)
    room = (k - 1) * group + k
    left = scores.new_full((rows, room), -torch.inf)
    places = torch.empty((rows, room), dtype=torch.int64, device=scores.device)
    _pass(scores, _last(maxima, k), k, False, places, left)
    return places.gather(1, _best(left, k))  # k of them are there, and before any that is not


def _best(scores: Tensor, k: int) -> Tensor:
    """Return the same as `keep`, looking at all scores."""
    places = torch.empty((len(scores), k), dtype=torch.int64, device=scores.device)
    _pass(scores, _last(scores, k), k, True, places, None)
    return places


def _last(scores: Tensor, k: int) -> Tensor:
    """Return the k-th best score of each row `(R,)`."""
    return scores.topk(k, sorted=False).values.amin(1)


def _pass(scores: Tensor, bound: Tensor, k: int, together: bool, places: Tensor, passed: Tensor | None) -> None:
    """Write the places of scores above the bound of their row, and of the first at it, ascending; and these scores.

    Of scores at the bound `k` are taken, or with `together` as many as are missing to `k`.
    """
    rows, width = scores.shape
    blocks = ceil_div(width, _BLOCK)
    counts = torch.empty((2, rows, blocks), dtype=torch.int32, device=scores.device)
    sizes = scores.stride(0), width, rows * blocks, blocks
    _count[(rows * blocks,)](scores, bound, counts, *sizes, _BLOCK)
    counts = counts.cumsum(2, dtype=torch.int32)
    _write[(rows * blocks,)](scores, bound, counts, places, passed, *sizes, k, places.shape[1], together, _BLOCK)


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


@triton.jit
def _load(scores, bound, row, block, stride, width, BLOCK: tl.constexpr):
    """Scores of a block of a row, their places, and whether they are above the bound or at it."""
    place = block * BLOCK + tl.arange(0, BLOCK)
    there = place < width
    own = tl.load(scores + row * stride + place, mask=there, other=float("-inf"))
    least = tl.load(bound + row)
    return own, place, (own > least).to(tl.int32), ((own == least) & there).to(tl.int32)


@launched
@triton.jit(do_not_specialize=["stride", "width", "total", "blocks"], do_not_specialize_on_alignment=["scores"])
def _count(scores, bound, counts, stride, width, total, blocks, BLOCK: tl.constexpr):
    """How many scores of a block are above the bound, and how many are at it."""
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    _, _, above, level = _load(scores, bound, row, tl.program_id(0) % blocks, stride, width, BLOCK)
    tl.store(counts + tl.program_id(0), tl.sum(above, 0))
    tl.store(counts + total + tl.program_id(0), tl.sum(level, 0))


@launched
@triton.jit(do_not_specialize=["stride", "width", "total", "blocks", "k", "columns"],
            do_not_specialize_on_alignment=["scores"])
def _write(scores, bound, counts, places, passed, stride, width, total, blocks, k, columns, TOGETHER: tl.constexpr,
           BLOCK: tl.constexpr):
    """What passes of a block, where it belongs; `counts` are sums up to a block and with it."""
    row = tl.cast(tl.program_id(0) // blocks, tl.int64)
    block = tl.program_id(0) % blocks
    counts += row * blocks
    above_before = tl.load(counts + block - 1, mask=block > 0, other=0)
    level_before = tl.load(counts + total + block - 1, mask=block > 0, other=0)
    more_above = tl.load(counts + block) - above_before
    more_level = tl.load(counts + total + block) - level_before
    if TOGETHER:
        k -= tl.load(counts + blocks - 1)  # those above come first
    if (more_above > 0) | ((more_level > 0) & (level_before < k)):
        own, place, above, level = _load(scores, bound, row, block, stride, width, BLOCK)
        before = tl.cumsum(above + (level << 16), 0) - (above + (level << 16))  # both in one scan
        levels = level_before + (before >> 16)
        kept = (above > 0) | ((level > 0) & (levels < k))
        at = row * columns + above_before + (before & 65535) + tl.minimum(levels, k)
        tl.store(places + at, place.to(tl.int64), mask=kept)
        if passed is not None:
            tl.store(passed + at, own, mask=kept)
