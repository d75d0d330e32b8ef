"""The backward kernels of jagged attention: gradients of queries, of keys and values, and of all for short rows."""

# pyright: reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: N803

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .forward import LOG2_E, find_tile, load_rows, precision, product, scaled, store_rows, strides
from .plan import Plan, block_width, describable, descriptor

LN_2 = tl.constexpr(0.6931471805599453)


def launch(grad: Tensor, inputs: Sequence[Tensor], plan: Plan, results: Sequence[Tensor], gradients: Sequence[Tensor],
           causal: bool, scale: float) -> None:
    """Fill the gradients of q, k and v from `grad`, and from the inputs, plan and results of the forward pass.

    The last stride of q, k and v is 1, `grad` is contiguous, and there are events.
    """
    q, k, v = inputs
    out, logsumexp = results
    events, heads, width = q.shape
    numbers = (events, scale * LOG2_E, heads, strides(q, k, v), width, v.shape[2], block_width(width),
               block_width(v.shape[2]))
    if plan.tiling.packed:
        sizes = plan.tiling.short
        _backward_short[(triton.cdiv(events, sizes.tile) * heads,)](
            q, k, v, out, grad, logsumexp, plan.tiles, *gradients, *numbers, sizes.tile, sizes.block, causal,
            precision(), num_warps=sizes.warps, num_stages=sizes.stages)
        return
    dq, dk, dv = gradients
    delta = torch.empty_like(logsumexp)
    heads_first = plan.tiling.heads_first
    sizes, count = plan.tiling.queries, plan.tiles.shape[1]
    tma = sizes.tma and describable(k, v)
    keys = (descriptor(k, sizes.block), descriptor(v, sizes.block)) if tma else (k, v)
    _backward_q[(count * heads,)](
        q, *keys, out, grad, logsumexp, delta, plan.tiles, dq, count, *numbers, sizes.tile, sizes.block, causal,
        precision(), tma, heads_first, num_warps=sizes.warps, num_stages=sizes.stages)
    sizes, count = plan.tiling.keys, plan.keys.shape[1]
    tma = sizes.tma and describable(q, grad)
    queries = (descriptor(q, sizes.block), descriptor(grad, sizes.block)) if tma else (q, grad)
    _backward_kv[(count * heads,)](
        queries[0], k, v, queries[1], logsumexp, delta, plan.keys, dk, dv, count, *numbers, sizes.block, sizes.tile,
        causal, precision(), tma, heads_first, num_warps=sizes.warps, num_stages=sizes.stages)


@triton.jit
def _query_block(q, do, lse, delta, dq, k_source, v_source, high, n, h, strides, end, scale,
                D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr,
                MASKED: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr):
    """Add what one block of keys gives to the gradient of a tile's queries."""
    k = load_rows(k_source, n, h, strides[2], strides[3], end, D, BD, BN, not MASKED, TMA)
    v = load_rows(v_source, n, h, strides[4], strides[5], end, DV, BDV, BN, not MASKED, TMA)
    ready, factor = scaled(q, scale)
    s = product(ready, k, PRECISION)
    dp = product(do, v, PRECISION)
    p = tl.exp2(s * factor - lse[:, None])
    if MASKED:
        cols = n + tl.arange(0, BN)
        p = tl.where(cols[None, :] < high[:, None], p, 0.0)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=["T", "count"])
def _backward_q(q_source, k_source, v_source, out, grad, lse_source, delta_target, plan, dq_target, count, T,
                scale, H, strides, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
                BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
                HEADS_FIRST: tl.constexpr):
    """The gradient of the queries of a tile; on the way delta, the sum of out · grad of each, for `backward_kv`."""
    first, h, begin, end = find_tile(plan, count, T, H, BM, False, HEADS_FIRST, CAUSAL)
    if first >= end:
        return
    rows = first + tl.arange(0, BM)
    high = tl.minimum(rows + 1, end) if CAUSAL else rows * 0 + end  # each query sees the keys before this one
    unmasked = first if CAUSAL else end
    limit = end
    if CAUSAL:
        end = tl.minimum(end, first + BM)
    unmasked = begin + (unmasked - begin) // BN * BN
    q = load_rows(q_source, first, h, strides[0], strides[1], limit, D, BD, BM, False, False)
    do = load_rows(grad, first, h, H * DV, DV, limit, DV, BDV, BM, False, False)
    o = load_rows(out, first, h, H * DV, DV, limit, DV, BDV, BM, False, False)
    if do.dtype == tl.float32:  # rounded as `dp` is, so that one key alone gets a gradient of exactly 0
        step = tl.arange(0, BM)
        delta = tl.sum(tl.where(step[:, None] == step[None, :], product(do, o, PRECISION), 0.0), 1)
    else:
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    of_head = tl.cast(h, tl.int64) * T
    tl.store(delta_target + of_head + rows, delta, mask=rows < limit)
    lse = tl.load(lse_source + of_head + rows, mask=rows < limit, other=0.0)
    dq = tl.zeros([BM, BD], tl.float32)
    for n in range(begin, unmasked, BN):
        dq = _query_block(q, do, lse, delta, dq, k_source, v_source, high, n, h, strides, end, scale,
                          D, DV, BD, BDV, BN, False, PRECISION, TMA)
    for n in range(unmasked, end, BN):
        dq = _query_block(q, do, lse, delta, dq, k_source, v_source, high, n, h, strides, end, scale,
                          D, DV, BD, BDV, BN, True, PRECISION, TMA)
    store_rows(dq_target, dq * (scale * LN_2), first, h, H, limit, D, BD, BM)


@triton.jit
def _key_block(k, v, dk, dv, q_source, grad, lse_source, delta_source, cols, m, end, h, H, strides,
              scale, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
              CAUSAL: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr):
    """Add what one block of queries gives to the gradients of a tile's keys and values."""
    q = load_rows(q_source, m, h, strides[0], strides[1], end, D, BD, BM, not MASKED, TMA)
    do = load_rows(grad, m, h, H * DV, DV, end, DV, BDV, BM, not MASKED, TMA)
    rows = m + tl.arange(0, BM)
    if MASKED:
        lse = tl.load(lse_source + rows, mask=rows < end, other=0.0)
        delta = tl.load(delta_source + rows, mask=rows < end, other=0.0)
    else:
        lse = tl.load(lse_source + rows)
        delta = tl.load(delta_source + rows)
    ready, factor = scaled(q, scale)
    s = product(k, ready, PRECISION)
    p = tl.exp2(s * factor - lse[None, :])
    if MASKED:
        seen = (rows < end)[None, :]
        if CAUSAL:
            seen &= rows[None, :] >= cols[:, None]
        p = tl.where(seen, p, 0.0)
    dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
    dp = product(v, do, PRECISION)
    ds = p * (dp - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit(do_not_specialize=["T", "count"])
def _backward_kv(q_source, k_source, v_source, grad, lse, delta, plan, dk_target, dv_target, count, T, scale, H,
                 strides, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
                 BN: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
                 HEADS_FIRST: tl.constexpr):
    """The gradients of the keys and values of a tile, from the one range of queries that can see them."""
    first, h, begin, end = find_tile(plan, count, T, H, BN, False, HEADS_FIRST, False)
    if first >= end:
        return
    cols = first + tl.arange(0, BN)
    if CAUSAL:
        begin = first
    # under a causal mask the first blocks of queries are masked, and the last one always, unless it is whole
    diagonal = tl.cdiv(BN, BM) if CAUSAL else 0
    inner = tl.minimum(begin + diagonal * BM, end)
    tail = inner + (end - inner) // BM * BM
    k = load_rows(k_source, first, h, strides[2], strides[3], end, D, BD, BN, False, False)
    v = load_rows(v_source, first, h, strides[4], strides[5], end, DV, BDV, BN, False, False)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BDV], tl.float32)
    lse += tl.cast(h, tl.int64) * T
    delta += tl.cast(h, tl.int64) * T
    for m in range(inner, tail, BM):
        dk, dv = _key_block(k, v, dk, dv, q_source, grad, lse, delta, cols, m, end, h, H, strides,
                            scale, D, DV, BD, BDV, BM, CAUSAL, False, PRECISION, TMA)
    for i in range(0, diagonal + tl.cdiv(end - tail, BM)):
        m = begin + i * BM
        if i >= diagonal:
            m = tail
        dk, dv = _key_block(k, v, dk, dv, q_source, grad, lse, delta, cols, m, end, h, H, strides,
                            scale, D, DV, BD, BDV, BM, CAUSAL, True, PRECISION, TMA)
    store_rows(dk_target, dk * (scale * LN_2), first, h, H, end, D, BD, BN)
    store_rows(dv_target, dv, first, h, H, end, DV, BDV, BN)


@triton.jit(do_not_specialize=["T"])
def _backward_short(q_source, k_source, v_source, out, grad, lse_source, plan, dq_target, dk_target, dv_target, T,
                    scale, H, strides, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
                   BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr):
    """All gradients of BM packed events in one pass over the one range of events that their rows span."""
    first, h, begin, end = find_tile(plan, 0, T, H, BM, True, True, False)
    rows = first + tl.arange(0, BM)
    low = tl.load(plan + rows, mask=rows < T, other=0)
    high = tl.load(plan + T + rows, mask=rows < T, other=0)
    q = load_rows(q_source, first, h, strides[0], strides[1], T, D, BD, BM, False, False)
    k = load_rows(k_source, first, h, strides[2], strides[3], T, D, BD, BM, False, False)
    v = load_rows(v_source, first, h, strides[4], strides[5], T, DV, BDV, BM, False, False)
    do = load_rows(grad, first, h, H * DV, DV, T, DV, BDV, BM, False, False)
    o = load_rows(out, first, h, H * DV, DV, T, DV, BDV, BM, False, False)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    lse_source += tl.cast(h, tl.int64) * T
    lse = tl.load(lse_source + rows, mask=rows < T, other=0.0)
    dq = tl.zeros([BM, BD], tl.float32)
    dk = tl.zeros([BM, BD], tl.float32)
    dv = tl.zeros([BM, BDV], tl.float32)
    for n in range(begin, end, BN):
        at = tl.minimum(n, T - BN)  # the last block of all is moved back to lie inside; what it repeats is not seen
        others = at + tl.arange(0, BN)
        k_n = load_rows(k_source, at, h, strides[2], strides[3], end, D, BD, BN, True, False)
        v_n = load_rows(v_source, at, h, strides[4], strides[5], end, DV, BDV, BN, True, False)
        q_n = load_rows(q_source, at, h, strides[0], strides[1], end, D, BD, BN, True, False)
        do_n = load_rows(grad, at, h, H * DV, DV, end, DV, BDV, BN, True, False)
        o_n = load_rows(out, at, h, H * DV, DV, end, DV, BDV, BN, True, False)
        delta_n = tl.sum(o_n.to(tl.float32) * do_n.to(tl.float32), 1)
        lse_n = tl.load(lse_source + others)
        same = (others[None, :] >= tl.maximum(low, n)[:, None]) & (others[None, :] < high[:, None])
        seen = same & (others[None, :] <= rows[:, None]) if CAUSAL else same
        p = tl.exp2(tl.dot(q, k_n.T, input_precision=PRECISION) * scale - lse[:, None])
        p = tl.where(seen, p, 0.0)
        ds = p * (tl.dot(do, v_n.T, input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k_n, dq, input_precision=PRECISION)
        seen = same & (others[None, :] >= rows[:, None]) if CAUSAL else same
        p = tl.exp2(tl.dot(k, q_n.T, input_precision=PRECISION) * scale - lse_n[None, :])
        p = tl.where(seen, p, 0.0)
        dv = tl.dot(p.to(k.dtype), do_n, dv, input_precision=PRECISION)
        ds = p * (tl.dot(v, do_n.T, input_precision=PRECISION) - delta_n[None, :])
        dk = tl.dot(ds.to(k.dtype), q_n, dk, input_precision=PRECISION)
    store_rows(dq_target, dq * (scale * LN_2), first, h, H, T, D, BD, BM)
    store_rows(dk_target, dk * (scale * LN_2), first, h, H, T, D, BD, BM)
    store_rows(dv_target, dv, first, h, H, T, DV, BDV, BM)


