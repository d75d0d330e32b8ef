"""The backward kernels of jagged attention: gradients of queries, and of keys and values, each written once."""

# ruff: noqa: N803, N806

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .plan import Plan, block_width, describable, descriptor
from .problem import Problem
from .tile import (
    LN_2,
    LOG2_E,
    find_tile,
    key_bits,
    key_blocks,
    load_rows,
    mixed,
    other_block,
    precision,
    product,
    query_bits,
    query_blocks,
    scaled,
    sizes_of_row,
    store_rows,
    strides,
    visible,
)


def launch(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, plan: Plan,
           results: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Fill the gradients of q, k and v from those of the results, the inputs, the plan and results of the forward pass.

    The last stride of q, k and v is 1; `grads` of output and log-sum-exp are contiguous; there are queries and keys.
    """
    q, k, v = inputs
    grad, grad_lse = grads
    out, logsumexp = results
    dq, dk, dv = gradients
    heads, width = q.shape[-2:]
    groups = k.shape[1]
    delta = torch.empty_like(logsumexp)
    heads_first = plan.tiling.heads_first
    sizes = plan.tiling.queries
    tiles = plan.queries(sizes.tile)
    count = tiles.shape[1]
    kind = (problem.kind, problem.self_attention, problem.dense, problem.per_row, heads // groups)
    numbers = (logsumexp.shape[1], problem.scale * LOG2_E.value, heads, strides(q, k, v), problem.limits,
               problem.counts, problem.dropped, width, v.shape[2], block_width(width), block_width(v.shape[2]))
    tma = sizes.tma and describable(k, v)
    keys = (descriptor(k, sizes.block), descriptor(v, sizes.block)) if tma else (k, v)
    _backward_q[(count * heads,)](
        q, *keys, out, grad, logsumexp, grad_lse, delta, dq, tiles, count, *numbers,
        sizes.tile, sizes.block, kind, (precision(), tma, heads_first), num_warps=sizes.warps, num_stages=sizes.stages)
    sizes = plan.tiling.keys
    tiles = plan.keys(sizes.tile)
    count = tiles.shape[1]
    tma = sizes.tma and not problem.dense and describable(q, grad)
    queries = (descriptor(q, sizes.block), descriptor(grad, sizes.block)) if tma else (q, grad)
    _backward_kv[(count * groups,)](
        queries[0], k, v, queries[1], logsumexp, delta, dk, dv, tiles, count, *numbers,
        sizes.block, sizes.tile, kind, (precision(), tma, heads_first), num_warps=sizes.warps,
        num_stages=sizes.stages)


@triton.jit
def _query_block(q, do, lse, delta, dq, k_source, v_source, at, row, n, h, begin, strides, length, scale, dropped,
                 events, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr,
                 INSIDE: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
                 DROP: tl.constexpr):
    """Add what one block of keys gives to the gradient of a tile's queries."""
    k = load_rows(k_source, begin + n, h, strides[4], strides[5], begin + length, D, BD, BN, INSIDE, TMA)
    v = load_rows(v_source, begin + n, h, strides[7], strides[8], begin + length, DV, BDV, BN, INSIDE, TMA)
    ready, factor = scaled(q, scale)
    s = product(ready, k, PRECISION)
    dp = product(do, v, PRECISION)
    p = tl.exp2(s * factor - lse[:, None])
    if not INSIDE:
        p = tl.where(visible(at[:, None], n + tl.arange(0, BN)[None, :], row, MASK), p, 0.0)
    if DROP:
        keys = key_bits(dropped[0], begin + n + tl.arange(0, BN))
        dp = tl.where(mixed(events[:, None] ^ keys[None, :]) >= dropped[1], dp * dropped[2], 0.0)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=["T", "count"])
def _backward_q(q_source, k_source, v_source, out, grad, lse_source, grad_lse, delta_target, dq_target, plan, count, T,
                scale, H, strides, limits, counts, dropped, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr,
                BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """The gradient of the queries of a tile; on the way delta, the sum of out · grad of each, for `_backward_kv`."""
    MASK: tl.constexpr = KIND[0]
    PRECISION: tl.constexpr = HOW[0]
    TMA: tl.constexpr = HOW[1]
    DROP: tl.constexpr = dropped[0] is not None
    h, first, row, begin, m_row, other, length = find_tile(plan, count, H, KIND[1], HOW[2], MASK == 1)
    if first >= m_row:
        return
    mask = sizes_of_row(limits, counts, row, length, KIND[3])
    step = tl.arange(0, BM)
    inside = first + step < m_row
    at = first + step + length - m_row
    blocks = key_blocks(first + length - m_row, tl.minimum(first + BM, m_row) - 1 + length - m_row, mask, BN, MASK)
    start = begin + first
    limit = begin + m_row
    if KIND[2]:
        q = load_rows(q_source + tl.cast(row, tl.int64) * strides[0], first, h, strides[1], strides[2], m_row, D, BD,
                      BM, False, False)
    else:
        q = load_rows(q_source, start, h, strides[1], strides[2], limit, D, BD, BM, False, False)
    do = load_rows(grad, start, h, H * DV, DV, limit, DV, BDV, BM, False, False)
    o = load_rows(out, start, h, H * DV, DV, limit, DV, BDV, BM, False, False)
    if do.dtype == tl.float32:  # rounded as `dp` is, so that one key alone gets a gradient of exactly 0
        delta = tl.sum(tl.where(step[:, None] == step[None, :], product(do, o, PRECISION), 0.0), 1)
    else:
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    of_tile = tl.cast(h, tl.int64) * T + start + step
    if grad_lse is not None:  # the log-sum-exp grows with each score by its weight
        delta -= tl.load(grad_lse + of_tile, mask=inside, other=0.0) * LOG2_E
    tl.store(delta_target + of_tile, delta, mask=inside)
    lse = tl.load(lse_source + of_tile, mask=inside, other=0.0)
    dq = tl.zeros([BM, BD], tl.float32)
    events = step
    if DROP:
        events = query_bits(dropped[0], h, start + step)
    g = h // KIND[4]
    for i in range(blocks[0], blocks[1]):
        dq = _query_block(q, do, lse, delta, dq, k_source, v_source, at, mask, i * BN, g, other, strides, length,
                          scale, dropped, events, D, DV, BD, BDV, BN, True, MASK, PRECISION, TMA, DROP)
    for i in range(0, blocks[2]):
        n = other_block(i, blocks, MASK) * BN
        dq = _query_block(q, do, lse, delta, dq, k_source, v_source, at, mask, n, g, other, strides, length,
                          scale, dropped, events, D, DV, BD, BDV, BN, False, MASK, PRECISION, TMA, DROP)
    store_rows(dq_target, dq * (scale * LN_2), start, h, H, limit, D, BD, BM)


@triton.jit
def _key_block(k, v, dk, dv, q_source, grad, lse_source, delta_source, keys, row, m, h, H, begin, ends,
               strides, scale, dropped, events, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr,
               BDV: tl.constexpr, BM: tl.constexpr, INSIDE: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr,
               DROP: tl.constexpr):
    """Add what one block of queries gives to the gradients of a tile's keys and values."""
    PRECISION: tl.constexpr = HOW[0]
    m_row, shift = ends
    if KIND[2]:
        q = load_rows(q_source, m, h, strides[1], strides[2], m_row, D, BD, BM, INSIDE, False)
    else:
        q = load_rows(q_source, begin + m, h, strides[1], strides[2], begin + m_row, D, BD, BM, INSIDE, HOW[1])
    do = load_rows(grad, begin + m, h, H * DV, DV, begin + m_row, DV, BDV, BM, INSIDE, HOW[1])
    step = m + tl.arange(0, BM)
    if INSIDE:
        lse = tl.load(lse_source + step)
        delta = tl.load(delta_source + step)
    else:
        lse = tl.load(lse_source + step, mask=step < m_row, other=0.0)
        delta = tl.load(delta_source + step, mask=step < m_row, other=0.0)
    ready, factor = scaled(q, scale)
    p = tl.exp2(product(k, ready, PRECISION) * factor - lse[None, :])
    if not INSIDE:
        seen = visible((step + shift)[None, :], keys[:, None], row, KIND[0])
        p = tl.where(seen & (step < m_row)[None, :], p, 0.0)
    dp = product(v, do, PRECISION)
    if DROP:
        queries = query_bits(dropped[0], h, begin + step)
        stays = mixed(queries[None, :] ^ events[:, None]) >= dropped[1]
        dv = tl.dot(tl.where(stays, p * dropped[2], 0.0).to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.where(stays, dp * dropped[2], 0.0)
    else:
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
    ds = p * (dp - delta[None, :])
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def _head_of_queries(k, v, dk, dv, q_source, grad, lse, delta, keys, row, blocks, h, H, begin, ends, strides, scale,
                     dropped, events, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
                     BM: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr, DROP: tl.constexpr):
    """Add what the queries of one head give."""
    b0, b1, u0, u1 = blocks
    for i in range(u0, u1):
        dk, dv = _key_block(k, v, dk, dv, q_source, grad, lse, delta, keys, row, i * BM, h, H, begin, ends, strides,
                            scale, dropped, events, D, DV, BD, BDV, BM, True, KIND, HOW, DROP)
    for i in range(0, b1 - b0 - (u1 - u0)):
        m = b0 + i
        if m >= u0:
            m += u1 - u0
        dk, dv = _key_block(k, v, dk, dv, q_source, grad, lse, delta, keys, row, m * BM, h, H, begin, ends, strides,
                            scale, dropped, events, D, DV, BD, BDV, BM, False, KIND, HOW, DROP)
    return dk, dv


@triton.jit(do_not_specialize=["T", "count"])
def _backward_kv(q_source, k_source, v_source, grad, lse, delta, dk_target, dv_target, plan, count, T, scale, H,
                 strides, limits, counts, dropped, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr,
                 BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """The gradients of the keys and values of a tile, from the one range of queries that can see them."""
    MASK: tl.constexpr = KIND[0]
    GROUP: tl.constexpr = KIND[4]
    DROP: tl.constexpr = dropped[0] is not None
    g, first, row, begin, length, other, m_row = find_tile(plan, count, H // GROUP, KIND[1], HOW[2], False)
    if first >= length:
        return
    mask = sizes_of_row(limits, counts, row, length, KIND[3])
    keys = first + tl.arange(0, BN)
    blocks = query_blocks(first, tl.minimum(first + BN, length) - 1, mask, m_row, length, BM, MASK)
    k = load_rows(k_source, begin + first, g, strides[4], strides[5], begin + length, D, BD, BN, False, False)
    v = load_rows(v_source, begin + first, g, strides[7], strides[8], begin + length, DV, BDV, BN, False, False)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BDV], tl.float32)
    events = keys
    if DROP:
        events = key_bits(dropped[0], begin + keys)
    if KIND[2]:
        q_source += tl.cast(row, tl.int64) * strides[0]
    ends = (m_row, length - m_row)
    if GROUP == 1:  # no loop, which would cost registers
        of_row = tl.cast(g, tl.int64) * T + other
        dk, dv = _head_of_queries(k, v, dk, dv, q_source, grad, lse + of_row, delta + of_row, keys, mask, blocks, g, H,
                                  other, ends, strides, scale, dropped, events, D, DV, BD, BDV, BM, KIND, HOW, DROP)
    else:
        for h in range(g * GROUP, g * GROUP + GROUP):
            of_row = tl.cast(h, tl.int64) * T + other
            dk, dv = _head_of_queries(k, v, dk, dv, q_source, grad, lse + of_row, delta + of_row, keys, mask, blocks, h,
                                      H, other, ends, strides, scale, dropped, events, D, DV, BD, BDV, BM, KIND, HOW,
                                      DROP)
    store_rows(dk_target, dk * (scale * LN_2), begin + first, g, H // GROUP, begin + length, D, BD, BN)
    store_rows(dv_target, dv, begin + first, g, H // GROUP, begin + length, DV, BDV, BN)
