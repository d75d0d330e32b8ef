"""Something of a row to each of its events: the gradients of all that is pooled."""

# ruff: noqa: N803

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from .chunks import Tiles, find_chunk, outer_strides, place
from .elements import exponential, widened


def spread(grad: Tensor, offsets: Tensor, out: Tensor, how: str, kept: Tensor, x: Tensor | None) -> None:
    """Fill `out` `(T, H, D)`, contiguous, with the gradients of events from those of their rows.

    Args:
        grad: `(B, H, D)`, contiguous.
        offsets: `(B + 1,)`, contiguous.
        out: to be filled.
        how: "sum", "mean", "max", "logsumexp".
        kept: as `autograd.like_kept` describes it, where it does.
        x: `(T, H, D)` events of a log-sum-exp; last stride 1.
    """
    events, heads, width = out.shape
    if not out.numel():
        return
    tiles, rows = Tiles.of(width), offsets.shape[0] - 1
    slots = tiles.slots(rows, events)
    # as many threads as columns would lay a tile out as its row's numbers are, and exchange it to store it
    _spread[(slots * heads * tiles.blocks,)](grad, offsets, out, kept, x, outer_strides(x), rows, events, heads, how,
                                             width, tiles.columns, tiles.blocks, tiles.chunk, tiles.events,
                                             num_warps=8 if tiles.columns > 64 else 4)


def spread_weighted(grad: Tensor, offsets: Tensor, x: Tensor, weights: Tensor, kept: Tensor | None,
                    gradients: tuple[Tensor, Tensor]) -> None:
    """Fill the gradients of events `(T, H, D)` and weights `(T, H)`, contiguous, from that of a weighted sum.

    Args:
        grad: `(B, H, D)`, contiguous.
        offsets: `(B + 1,)`, contiguous.
        x: `(T, H, D)`, last stride 1.
        weights: `(T, H)`.
        kept: `(B, H, D + 2)`, of a softmax of the weights; None where they are used as they are.
        gradients: to be filled.
    """
    events, heads, width = x.shape
    tiles, rows = Tiles.of(max(width, 1)), grad.shape[0]
    slots = tiles.slots(rows, events)
    if weights.numel():
        strides = *x.stride()[:2], *weights.stride()
        _spread_weighted[(slots * heads,)](grad, offsets, x, weights, kept, *gradients, strides, rows, events,
                                           heads, width, tiles.columns, tiles.chunk, tiles.events)


@triton.jit
def reciprocal(sums):
    """One over sums of exponents, 0 where nothing was added."""
    return tl.where(sums == 0, 0.0, 1.0 / sums)


@launched
@triton.jit(do_not_specialize=["rows", "events"])
def _spread(grad, offsets, out, kept, x, strides: tl.constexpr, rows, events, H, HOW: tl.constexpr, D: tl.constexpr,
            BD: tl.constexpr, BLOCKS: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr):
    """The gradients of the events of one chunk."""
    slot, head, block = place(H, BLOCKS)
    row, begin, length, first, count = find_chunk(offsets, rows, events, slot, CHUNK)
    column = block * BD + tl.arange(0, BD)
    inside = column < D
    at = (tl.cast(row, tl.int64) * H + head) * D + column
    value = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    if HOW == "mean":
        value = value / tl.maximum(length, 1).to(tl.float32)
    elif HOW == "max":
        largest = tl.load(kept + at, mask=inside, other=-1)
    elif HOW == "logsumexp":
        peak = tl.load(kept + at, mask=inside, other=0.0)
        value *= reciprocal(tl.load(kept + tl.cast(rows, tl.int64) * H * D + at, mask=inside, other=1.0))
    begin += first
    out += (begin * H + head) * D + column[None, :]
    if x is not None:
        x += begin * strides[0] + tl.cast(head, tl.int64) * strides[1] + column[None, :]
    for step in range(0, count, BM):
        event = step + tl.arange(0, BM)
        there = (event < count)[:, None] & inside[None, :]
        far = event.to(tl.int64)
        if HOW == "max":
            tile = tl.where((first.to(tl.int32) + event)[:, None] == largest[None, :], value[None, :], 0.0)
        elif HOW == "logsumexp":
            tile = tl.load(x + far[:, None] * strides[0], mask=there, other=0.0)
            tile = exponential(tile, peak[None, :]) * value[None, :]
        else:
            tile = tl.zeros([BM, BD], tl.float32) + value[None, :]
        tl.store(out + far[:, None] * (H * D), tile.to(out.dtype.element_ty), mask=there)


@launched
@triton.jit(do_not_specialize=["rows", "events"])
def _spread_weighted(grad, offsets, x, weights, kept, d_x, d_weights, strides: tl.constexpr, rows, events, H,
                     D: tl.constexpr, BD: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr):
    """The gradients of the events of one chunk, all columns of a head, and of their weights."""
    slot, head, _ = place(H, 1)
    row, begin, _, first, count = find_chunk(offsets, rows, events, slot, CHUNK)
    column = tl.arange(0, BD)
    at = tl.cast(row, tl.int64) * H + head
    grad += at * D
    begin += first
    x += begin * strides[0] + tl.cast(head, tl.int64) * strides[1]
    weights += begin * strides[2] + tl.cast(head, tl.int64) * strides[3]
    d_x += (begin * H + head) * D
    d_weights += begin * H + head
    peak = 0.0
    inverse = 1.0
    along = tl.full([], 0.0, tl.float32)  # the gradient of the row along its result
    if kept is not None:
        kept += at * (D + 2)
        peak = tl.load(kept + D)
        inverse = reciprocal(tl.load(kept + D + 1))
        for block in range(0, D, BD):
            inside = block + column < D
            along += tl.sum(tl.load(grad + block + column, mask=inside, other=0.0).to(tl.float32)
                            * tl.load(kept + block + column, mask=inside, other=0.0), 0)
    for step in range(0, count, BM):
        event = step + tl.arange(0, BM)
        there = event < count
        far = event.to(tl.int64)
        scale = tl.load(weights + far * strides[2], mask=there, other=0.0).to(tl.float32)
        if kept is not None:
            scale = exponential(scale, peak) * inverse
        product = tl.zeros([BM], tl.float32)
        for block in range(0, D, BD):
            inside = there[:, None] & (block + column < D)[None, :]
            g = tl.load(grad + block + column, mask=block + column < D, other=0.0).to(tl.float32)
            tile = tl.load(x + far[:, None] * strides[0] + block + column[None, :], mask=inside, other=0.0)
            product += tl.sum(widened(tile) * g[None, :], 1)
            tl.store(d_x + far[:, None] * (H * D) + block + column[None, :],
                     (scale[:, None] * g[None, :]).to(d_x.dtype.element_ty), mask=inside)
        if kept is not None:
            product = scale * (product - along)
        tl.store(d_weights + far * H, product.to(d_weights.dtype.element_ty), mask=there)
