"""The forward kernel of jagged attention, and what it shares with the backward ones."""

# pyright: reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: N803

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .plan import Plan, block_width, describable, descriptor

LOG2_E = 1.4426950408889634


def launch(inputs: Sequence[Tensor], plan: Plan, results: Sequence[Tensor], causal: bool, scale: float) -> None:
    """Fill the results, output `(T, H, Dv)` and log-sum-exp `(H, T)` in base 2, from q, k and v.

    The last stride of q, k and v is 1, and there are events.
    """
    q, k, v = inputs
    events, heads, width = q.shape
    sizes, packed = plan.tiling.forward, plan.tiling.packed
    count = triton.cdiv(events, sizes.tile) if packed else plan.tiles.shape[1]
    tma = sizes.tma and describable(k, v)
    keys = (descriptor(k, sizes.block), descriptor(v, sizes.block)) if tma else (k, v)
    _forward[(count * heads,)](
        q, *keys, *results, plan.tiles, count, events, scale * LOG2_E, heads, strides(q, k, v), width, v.shape[2],
        block_width(width), block_width(v.shape[2]), sizes.tile, sizes.block, causal, packed, precision(), tma,
        plan.tiling.heads_first, num_warps=sizes.warps, num_stages=sizes.stages)


def strides(*tensors: Tensor) -> tuple[int, ...]:
    """Return the strides over events and over heads of each tensor `(T, H, D)`."""
    return tuple(stride for x in tensors for stride in x.stride()[:2])


def precision() -> str:
    """Return how products of float32 are computed; it makes no difference to half precision."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 else "ieee"


@triton.jit
def find_tile(plan, count, T, H, BM: tl.constexpr, PACKED: tl.constexpr, HEADS_FIRST: tl.constexpr,
              BACKWARDS: tl.constexpr):
    """Where this program's tile begins, its head, and the range of events that the rows of the tile span."""
    pid = tl.program_id(0)
    if HEADS_FIRST:
        tile = pid // H
        h = pid % H
    else:
        tile = pid % count
        h = pid // count
    if BACKWARDS:  # under a causal mask later tiles of a row have more to do: first
        tile = count - 1 - tile
    if PACKED:
        first = tile * BM
        begin = tl.load(plan + first)
        end = tl.load(plan + T + tl.minimum(first + BM, T) - 1)
    else:
        first = tl.load(plan + tile)
        begin = tl.load(plan + count + tile)
        end = tl.load(plan + 2 * count + tile)
    return first, h, begin, end


@triton.jit
def load_rows(source, first, head, stride_t, stride_h, limit, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr,
              INSIDE: tl.constexpr, TMA: tl.constexpr):
    """Load `N` events from `first` on of one head, (N, BD); zero from event `limit` on and past the width."""
    if TMA:
        rows = source.load([first, head, 0]).reshape(N, BD)
    else:
        step = tl.arange(0, N)
        d = tl.arange(0, BD)
        at = source + tl.cast(first, tl.int64) * stride_t + tl.cast(head, tl.int64) * stride_h
        at += step[:, None] * stride_t + d[None, :]
        if INSIDE and D == BD:
            rows = tl.load(at)
        elif INSIDE:
            rows = tl.load(at, mask=d[None, :] < D, other=0.0)
        elif D == BD:
            rows = tl.load(at, mask=(first + step < limit)[:, None], other=0.0)
        else:
            rows = tl.load(at, mask=(first + step < limit)[:, None] & (d[None, :] < D), other=0.0)
    return rows


@triton.jit
def store_rows(target, rows, first, head, H, limit, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr):
    """Store `rows` (N, BD) as the events from `first` on, up to `limit`, of one head of a contiguous (T, H, D)."""
    step = tl.arange(0, N)
    d = tl.arange(0, BD)
    at = target + tl.cast(first, tl.int64) * (H * D) + head * D + (step[:, None] * (H * D) + d[None, :])
    tl.store(at, rows.to(target.dtype.element_ty), mask=(first + step < limit)[:, None] & (d[None, :] < D))


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """`a` (M, K) times the transpose of `b` (N, K), (M, N); long float32 sums are added in halves, which round less."""
    if a.dtype == tl.float32 and a.shape[1] > 64 and PRECISION == "ieee":
        a_left, a_right = tl.split(a.reshape(a.shape[0], 2, a.shape[1] // 2).permute(0, 2, 1))
        b_left, b_right = tl.split(b.reshape(b.shape[0], 2, b.shape[1] // 2).permute(0, 2, 1))
        c = product(a_left, b_left, PRECISION) + product(a_right, b_right, PRECISION)
    else:
        c = tl.dot(a, b.T, input_precision=PRECISION)
    return c


@triton.jit
def scaled(q, scale):
    """The queries to multiply with keys, and the factor that their products still need.

    Half precision leaves the factor to be fused with the subtraction that follows. In float32 that fusion would give
    each kernel scores of its own, and one key alone a weight next to 1.
    """
    if q.dtype == tl.float32:
        q = q * scale
        scale = 1.0
    return q, scale


@triton.jit
def _block(q, m, total, acc, k_source, v_source, low, high, n, h, strides, T, end, scale,
                  D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr,
                  PACKED: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr):
    """Let the queries of a tile see one block of keys: the running maximum, sum and weighted values."""
    if PACKED:  # the last block of all is moved back to lie inside; what it repeats is not seen
        low = tl.maximum(low, n)
        n = tl.minimum(n, T - BN)
    k = load_rows(k_source, n, h, strides[2], strides[3], end, D, BD, BN, PACKED or not MASKED, TMA)
    v = load_rows(v_source, n, h, strides[4], strides[5], end, DV, BDV, BN, PACKED or not MASKED, TMA)
    q, scale = scaled(q, scale)
    s = product(q, k, PRECISION)
    if MASKED:
        cols = n + tl.arange(0, BN)
        seen = cols[None, :] < high[:, None]
        if PACKED:
            seen &= cols[None, :] >= low[:, None]
        s = tl.where(seen, s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - top[:, None])
    shrink = tl.exp2(m - top)
    total = total * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return top, total, acc


@triton.jit
def _seen_by(plan, first, begin, end, rows, T, CAUSAL: tl.constexpr, PACKED: tl.constexpr):
    """Per query the range of keys it sees, [low, high), and the event before which all queries see every key."""
    if PACKED:
        low = tl.load(plan + rows, mask=rows < T, other=0)
        high = tl.load(plan + T + rows, mask=rows < T, other=0)
        unmasked = begin
        if begin == tl.max(low, 0):
            unmasked = first if CAUSAL else end
    else:
        low = rows * 0 + begin
        high = rows * 0 + end
        unmasked = first if CAUSAL else end
    if CAUSAL:
        high = tl.minimum(high, rows + 1)
    return low, high, unmasked


@triton.jit(do_not_specialize=["T", "count"])
def _forward(q_source, k_source, v_source, out, lse, plan, count, T, scale, H, strides,
             D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
            BN: tl.constexpr, CAUSAL: tl.constexpr, PACKED: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
            HEADS_FIRST: tl.constexpr):
    """Attend from the BM events of a tile to the one range of keys that the rows of the tile span."""
    first, h, begin, end = find_tile(plan, count, T, H, BM, PACKED, HEADS_FIRST, CAUSAL)
    if first >= end:
        return
    limit = T if PACKED else end
    rows = first + tl.arange(0, BM)
    low, high, unmasked = _seen_by(plan, first, begin, end, rows, T, CAUSAL, PACKED)
    if CAUSAL:
        end = tl.minimum(end, first + BM)
    unmasked = begin + (unmasked - begin) // BN * BN
    q = load_rows(q_source, first, h, strides[0], strides[1], limit, D, BD, BM, False, False)
    m = tl.full([BM], -1e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BDV], tl.float32)
    for n in range(begin, unmasked, BN):
        m, total, acc = _block(q, m, total, acc, k_source, v_source, low, high, n, h, strides, T, end, scale,
                                  D, DV, BD, BDV, BN, PACKED, False, PRECISION, TMA)
    for n in range(unmasked, end, BN):
        m, total, acc = _block(q, m, total, acc, k_source, v_source, low, high, n, h, strides, T, end, scale,
                                  D, DV, BD, BDV, BN, PACKED, True, PRECISION, TMA)
    tl.store(lse + tl.cast(h, tl.int64) * T + rows, m + tl.log2(total), mask=rows < limit)
    store_rows(out, acc * (1.0 / total)[:, None], first, h, H, limit, DV, BDV, BM)


