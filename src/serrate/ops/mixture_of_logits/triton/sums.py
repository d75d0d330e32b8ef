"""The kernel that sums up scores: one program a query, one pass."""

# ruff: noqa: N803

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ..api import Terms

_BLOCK = 1024  # items at a time


def sum_rows(scores: Tensor, terms: Terms, some: slice, out: Tensor) -> None:
    """Fill `out` `(C,)` with `log Σ exp` of the terms that scores `(C, V)` float32 of `some` queries make."""
    excluded = None if terms.excluded is None else (terms.excluded[0], terms.excluded[1][some])
    _sum_rows[(len(scores),)](scores, terms.shifts, excluded, out, scores.shape[1], terms.scale, _BLOCK)


@launched
@triton.jit(do_not_specialize=["count"])
def _sum_rows(scores, shifts, excluded, out, count, scale, BLOCK: tl.constexpr):
    """A sum relative to its largest term: each lane has its own until the end."""
    row = tl.program_id(0)
    scores += tl.cast(row, tl.int64) * count
    top = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for begin in range(0, count, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        counts = at < count
        x = tl.load(scores + at, mask=counts, other=0.0) * scale
        if shifts is not None:
            x += tl.load(shifts + at, mask=counts, other=0.0)
        if excluded is not None:
            counts = counts & (tl.load(excluded[0] + at, mask=counts, other=0) != tl.load(excluded[1] + row))
        x = tl.where(counts, x, float("-inf"))
        higher = tl.maximum(top, x)
        total = total * tl.exp(top - _finite(higher)) + tl.exp(x - _finite(higher))
        top = higher
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - _finite(highest)), 0)
    tl.store(out + row, _finite(highest) + tl.log(total))


@triton.jit
def _finite(x):
    """0 in place of minus infinity, from which nothing can be subtracted."""
    return tl.where(x == float("-inf"), 0.0, x)
