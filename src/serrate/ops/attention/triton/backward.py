"""The backward kernels of jagged attention: gradients of queries, and of keys and values, each written once.

In half precision the log-sum-exp and delta of the queries reach `_backward_kv` as factors of two small products: the
products of keys with queries then end as `s - lse / factor`, those of values with gradients as `dp - delta`, and no
thread loads or subtracts a number for each score. See `_folded`.
"""

# ruff: noqa: N803, N806

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from .plan import Plan, describable, descriptor
from .problem import Problem
from .relative import (
    add_to_tables,
    biased,
    fill,
    hand_on_times,
    key_side,
    keys_of_tile,
    open_block,
    queries_of_tile,
    query_side,
    room_for_sums,
)
from .tile import (
    base_2,
    find_tile,
    key_bits,
    key_blocks,
    load_queries,
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
    visible,
)
from .weigh import activated, fast, kind, share, slope_of

_TERM = torch.float32 if triton.knobs.runtime.interpret else torch.bfloat16  # which the interpreter cannot multiply
_TERMS = 16  # columns of `_folded`: the least that a product on the matrix units sums over


def launch(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, plan: Plan,
           results: Sequence[Tensor], gradients: Sequence[Tensor], of_tables: tuple | None = None) -> None:
    """Fill the gradients of q, k and v from those of the results, the inputs, the plan and results of the forward pass.

    The last stride of q, k and v is 1; `grads` of output and log-sum-exp are contiguous; there are queries and keys.
    of_tables: where the gradients of tables add up, as `relative.add_to_tables` takes it; None where nobody asks.
    """
    q, k, v = inputs
    grad, grad_lse = grads
    out, logsumexp = results
    dq, dk, dv = gradients
    heads, width = q.shape[-2:]
    groups = k.shape[1]
    events = q.numel() // (heads * width)
    # dropout comes between products and delta, a bias between products and log-sum-exp; pointwise weights need neither
    fold = q.dtype != torch.float32 and problem.seed is None and not problem.pointwise and not problem.biased
    shape = (events, heads, _TERMS) if fold else (heads, 0 if problem.pointwise else events)
    sums = torch.empty(shape, dtype=_TERM if fold else torch.float32, device=q.device)
    heads_first = plan.tiling.heads_first
    sizes = plan.tiling.queries
    tiles, count = plan.find(True, sizes.tile)
    numbers, of_problem = plan.numbers(q, k, v), kind(problem, heads // groups, plan.searched, q.device)
    products = precision(q.dtype)
    tma = sizes.tma and describable(k, v)
    keys = (descriptor(k, sizes.block), descriptor(v, sizes.block)) if tma else (k, v)
    _backward_q[(count * heads,)](
        q, *keys, out, grad, logsumexp, grad_lse, sums, dq, of_tables, tiles, count, *numbers, sizes.tile, sizes.block,
        of_problem, (products, tma, heads_first, fold, of_tables is not None), num_warps=sizes.warps,
        num_stages=sizes.stages)
    sizes = plan.tiling.keys
    tiles, count = plan.find(False, sizes.tile)
    tma = sizes.tma and not problem.dense and describable(q, grad)
    whole = (q, grad, sums)
    blocks = tuple(descriptor(x, sizes.block) if x.dim() == 3 else x for x in whole) if tma else whole
    _backward_kv[(count * groups,)](
        *blocks, whole if tma else None, k, v, logsumexp, dk, dv, tiles, count, *numbers, sizes.block, sizes.tile,
        of_problem, (products, tma, heads_first, fold), num_warps=sizes.warps, num_stages=sizes.stages,
        maxnreg=sizes.registers)


@triton.jit
def _folded(lse, delta, factor, dtype: tl.constexpr, BM: tl.constexpr):
    """`-lse / factor` and `-delta` of BM queries as three bfloat16 terms each, which together keep 24 bits: (BM, 16).

    The terms of the one are in columns 0, 4 and 8, those of the other in 2, 6 and 10, all others are 0.
    """
    a = -lse / factor
    b = -delta
    a_0 = a.to(dtype)
    b_0 = b.to(dtype)
    a -= a_0.to(tl.float32)
    b -= b_0.to(tl.float32)
    a_1 = a.to(dtype)
    b_1 = b.to(dtype)
    a_2 = (a - a_1.to(tl.float32)).to(dtype)
    b_2 = (b - b_1.to(tl.float32)).to(dtype)
    none = tl.zeros_like(a_0)
    terms = tl.join(tl.join(tl.join(a_0, a_1), tl.join(a_2, none)), tl.join(tl.join(b_0, b_1), tl.join(b_2, none)))
    return tl.join(terms, tl.zeros_like(terms)).reshape(BM, 16)


@triton.jit
def _query_block(q, do, lse, delta, dq, k_source, v_source, at, row, n, h, begin, strides, length, factors, dropped,
                 events, bias, side, tables, blocks, WIDTHS: tl.constexpr, BN: tl.constexpr, INSIDE: tl.constexpr,
                 KIND: tl.constexpr, HOW: tl.constexpr):
    """Add what one block of keys gives to the gradient of a tile's queries, and to those of the tables.

    blocks: how many came before.
    """
    D: tl.constexpr = WIDTHS[0]
    DV: tl.constexpr = WIDTHS[1]
    BD: tl.constexpr = WIDTHS[2]
    BDV: tl.constexpr = WIDTHS[3]
    PRECISION: tl.constexpr = HOW[0]
    BM: tl.constexpr = q.shape[0]
    FAST: tl.constexpr = fast(KIND[8], q.dtype)
    lowest = side[5] - n - (BN - 1)
    keys = n + tl.arange(0, BN)
    if KIND[7]:
        place, happened = key_side(bias, keys, row, begin, length, side[2])
        room, happened = open_block(bias, side[3], side[4], lowest, happened, BM, BN, KIND)
    k = load_rows(k_source, begin + n, h, strides[4], strides[5], begin + length, D, BD, BN, INSIDE, HOW[1])
    v = load_rows(v_source, begin + n, h, strides[7], strides[8], begin + length, DV, BDV, BN, INSIDE, HOW[1])
    ready, factor = scaled(q, factors[0])
    s = product(ready, k, PRECISION)
    dp = product(do, v, PRECISION)
    within = (tl.arange(0, BM) + (BN - 1))[:, None] - tl.arange(0, BN)[None, :]
    distance = within
    bucket = within
    if KIND[7]:
        distance = side[0][:, None] - place[None, :]
        apart = side[1][:, None] - happened[None, :]
        s, bucket = biased(s * factor, bias, side[3], room, within, distance, apart, KIND)
        factor = 1.0
    if KIND[5]:
        _, p = activated(s * factor, KIND[5], FAST)
    else:
        p = tl.exp2(s * factor - lse[:, None])
    if not INSIDE:
        p = tl.where(visible(at[:, None], keys[None, :], row, KIND[0]), p, 0.0)
    if dropped[0] is not None:
        bits = key_bits(dropped[0], begin + keys)
        dp = tl.where(mixed(events[:, None] ^ bits[None, :]) >= dropped[1], dp * dropped[2], 0.0)
    ds = p * dp if KIND[5] else p * (dp - delta[:, None])
    if HOW[4]:
        add_to_tables(ds, tables, bias, side, lowest, within, bucket, distance, share(factors[1], row[4], KIND[6]),
                      blocks, q.dtype == tl.float32, KIND)
    return tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)


@launched
@triton.jit(do_not_specialize=["T", "count"])
def _backward_q(q_source, k_source, v_source, out, grad, lse_source, grad_lse, sums, dq_target, tables, plan, count, T,
                factors, H, strides, limits, counts, dropped, bias, D: tl.constexpr, DV: tl.constexpr,
                BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KIND: tl.constexpr,
                HOW: tl.constexpr):
    """The gradient of the queries of a tile, and what they add to those of tables.

    Of a softmax on the way delta, the sum of out · grad of each, for `_backward_kv`; sums: `_folded` terms (T, H, 16),
    or else delta (H, T).
    """
    MASK: tl.constexpr = KIND[0]
    h, first, row, begin, m_row, other, length = find_tile(plan, count, H, T, BM, KIND, HOW[2], MASK == 1)
    if first >= m_row:
        return
    mask = sizes_of_row(limits, counts, row, length, KIND[3])
    step = tl.arange(0, BM)
    inside = first + step < m_row
    stand = first + length - m_row
    at = stand + step
    blocks = key_blocks(stand, tl.minimum(first + BM, m_row) - 1 + length - m_row, mask, BN, MASK)
    start = begin + first
    limit = begin + m_row
    q = load_queries(q_source, row, begin, first, h, strides, m_row, D, BD, BM, False, False, KIND[2])
    do = load_rows(grad, start, h, H * DV, DV, limit, DV, BDV, BM, False, False)
    lse = tl.zeros([BM], tl.float32)
    delta = lse
    if not KIND[5]:
        o = load_rows(out, start, h, H * DV, DV, limit, DV, BDV, BM, False, False)
        lse, delta = _sums_of_queries(o, do, lse_source, grad_lse, sums, tl.cast(h, tl.int64) * T + start, inside,
                                      start, h, H, limit, factors[0], BM, HOW)
    dq = tl.zeros([BM, BD], tl.float32)
    events = step
    if dropped[0] is not None:
        events = query_bits(dropped[0], h, start + step)
    side = queries_of_tile(bias, stand, mask, start + step, inside, other, length, h, KIND)
    tables = (tables, room_for_sums(h, HOW[4] and q.dtype != tl.float32, KIND))
    g = h // KIND[4]
    for i in range(blocks[0], blocks[1]):
        dq = _query_block(q, do, lse, delta, dq, k_source, v_source, at, mask, i * BN, g, other, strides, length,
                          factors, dropped, events, bias, side, tables, i - blocks[0], (D, DV, BD, BDV), BN, True, KIND,
                          HOW)
    for i in range(0, blocks[2]):
        n = other_block(i, blocks, MASK) * BN
        dq = _query_block(q, do, lse, delta, dq, k_source, v_source, at, mask, n, g, other, strides, length,
                          factors, dropped, events, bias, side, tables, blocks[1] - blocks[0] + i,
                          (D, DV, BD, BDV), BN, False, KIND, HOW)
    if HOW[4]:
        hand_on_times(tables, bias, side, q.dtype == tl.float32, KIND)
    store_rows(dq_target, dq * slope_of(factors, mask[4], KIND), start, h, H, limit, D, BD, BM)


@triton.jit
def _sums_of_queries(o, do, lse_source, grad_lse, sums, of_tile, inside, start, h, H, limit, scale, BM: tl.constexpr,
                     HOW: tl.constexpr):
    """The log-sum-exp and delta of a tile's queries, which are stored for `_backward_kv` too."""
    PRECISION: tl.constexpr = HOW[0]
    step = tl.arange(0, BM)
    if do.dtype == tl.float32:  # rounded as `dp` is, so that one key alone gets a gradient of exactly 0
        delta = tl.sum(tl.where(step[:, None] == step[None, :], product(do, o, PRECISION), 0.0), 1)
    else:
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    if grad_lse is not None:  # the log-sum-exp grows with each score by its weight
        delta -= base_2(tl.load(grad_lse + of_tile + step, mask=inside, other=0.0))
    # queries past the last: a log-sum-exp that makes their weights 0, however large a bias is
    lse = tl.load(lse_source + of_tile + step, mask=inside, other=float("inf"))
    if HOW[3]:
        finite = tl.where(lse == float("-inf"), 0.0, lse)  # of a query that sees no key
        store_rows(sums, _folded(finite, delta, scale, sums.dtype.element_ty, BM), start, h, H, limit, 16, 16, BM)
    else:
        tl.store(sums + of_tile + step, delta, mask=inside)
    return lse, delta


@triton.jit
def _key_block(k, v, dk, dv, source, lse_source, take, keys, row, m, h, H, begin, ends, strides, factors, dropped,
               events, bias, side, WIDTHS: tl.constexpr, BM: tl.constexpr, INSIDE: tl.constexpr,
               MASKED: tl.constexpr, TMA: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """Add what one block of queries gives to the gradients of a tile's keys and values.

    Queries past the row's end are zeros: they add nothing, whatever their weights, if finite, and need no mask.
    """
    D: tl.constexpr = WIDTHS[0]
    DV: tl.constexpr = WIDTHS[1]
    BD: tl.constexpr = WIDTHS[2]
    BDV: tl.constexpr = WIDTHS[3]
    PRECISION: tl.constexpr = HOW[0]
    BN: tl.constexpr = k.shape[0]
    FAST: tl.constexpr = fast(KIND[8], k.dtype)
    m_row, shift = ends
    limit = begin + m_row
    step = m + tl.arange(0, BM)
    if KIND[7]:
        stand, asked = query_side(bias, step + shift, row, begin + step, step < m_row, side[2])
        room, asked = open_block(bias, h, side[4], m + shift - side[5] - (BN - 1), asked, BM, BN, KIND)
    if KIND[2]:
        q = load_rows(source[0], m, h, strides[1], strides[2], m_row, D, BD, BM, INSIDE, False)
    else:
        q = load_rows(source[0], begin + m, h, strides[1], strides[2], limit, D, BD, BM, INSIDE, TMA)
    do = load_rows(source[1], begin + m, h, H * DV, DV, limit, DV, BDV, BM, INSIDE, TMA)
    ready, factor = scaled(q, factors[0])
    if HOW[3]:
        terms = load_rows(source[2], begin + m, h, H * 16, 16, limit, 16, 16, BM, INSIDE, TMA)
        x = tl.dot(k, ready.T, tl.dot(take[0], terms.T)) * factor
    else:
        x = product(k, ready, PRECISION) * factor
        if KIND[7]:
            within = (tl.arange(0, BM) + (BN - 1))[None, :] - tl.arange(0, BN)[:, None]
            x, _ = biased(x, bias, h, room, within, stand[None, :] - side[0][:, None],
                          asked[None, :] - side[1][:, None], KIND)
        if not KIND[5]:
            x -= tl.load(lse_source + step, mask=step < m_row, other=float("inf"))[None, :]
    if KIND[5]:
        p, slope = activated(x, KIND[5], FAST)
        if MASKED:
            shown = visible((step + shift)[None, :], keys[:, None], row, KIND[0])
            p = tl.where(shown, p, 0.0)
            slope = tl.where(shown, slope, 0.0)
    else:
        if MASKED:
            x = tl.where(visible((step + shift)[None, :], keys[:, None], row, KIND[0]), x, float("-inf"))
        p = tl.exp2(x)
        slope = p
    if HOW[3]:
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        ds = p * tl.dot(v, do.T, tl.dot(take[1], terms.T))
    else:
        dp = product(v, do, PRECISION)
        if dropped[0] is not None:
            queries = query_bits(dropped[0], h, begin + step)
            stays = mixed(queries[None, :] ^ events[:, None]) >= dropped[1]
            p = tl.where(stays, p * dropped[2], 0.0)
            dp = tl.where(stays, dp * dropped[2], 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        if not KIND[5]:
            dp -= tl.load(source[2] + step, mask=step < m_row, other=0.0)[None, :]
        ds = slope * dp
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION), dv


@triton.jit
def _head_of_queries(k, v, dk, dv, blocks, whole, lse, take, keys, row, span, h, H, T, begin, ends, strides, factors,
                     dropped, events, bias, side, WIDTHS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
                     KIND: tl.constexpr, HOW: tl.constexpr):
    """Add what the queries of one head give."""
    b0, b1, u0, u1, first = span
    of_row = tl.cast(h, tl.int64) * T + begin
    lse += of_row
    if KIND[7]:
        fill(bias, h, side[4], KIND)
    if not HOW[3] and not KIND[5]:
        blocks = (blocks[0], blocks[1], blocks[2] + of_row)
        whole = (whole[0], whole[1], whole[2] + of_row)
    if KIND[0] == 2 or (KIND[0] == 1 and not KIND[1]):
        for i in range(u0, u1):
            dk, dv = _key_block(k, v, dk, dv, blocks, lse, take, keys, row, i * BM, h, H, begin, ends, strides, factors,
                                dropped, events, bias, side, WIDTHS, BM, True, False, HOW[1], KIND, HOW)
        for i in range(0, b1 - b0 - (u1 - u0)):
            m = b0 + i
            if m >= u0:
                m += u1 - u0
            dk, dv = _key_block(k, v, dk, dv, whole, lse, take, keys, row, m * BM, h, H, begin, ends, strides, factors,
                                dropped, events, bias, side, WIDTHS, BM, False, True, False, KIND, HOW)
    else:  # what needs a mask or ends with the row is known beforehand, and a second loop would cost registers
        past = first + BN if KIND[0] == 1 else 0
        tail = tl.maximum(ends[0] // BM * BM, past)
        for m in range(past, tail, BM):
            dk, dv = _key_block(k, v, dk, dv, blocks, lse, take, keys, row, m, h, H, begin, ends, strides, factors,
                                dropped, events, bias, side, WIDTHS, BM, True, False, HOW[1], KIND, HOW)
        if tail < ends[0]:
            dk, dv = _key_block(k, v, dk, dv, whole, lse, take, keys, row, tail, h, H, begin, ends, strides, factors,
                                dropped, events, bias, side, WIDTHS, BM, False, False, False, KIND, HOW)
        if KIND[0] == 1:
            for i in tl.static_range(0, BN, BM):
                dk, dv = _key_block(k, v, dk, dv, whole, lse, take, keys, row, first + i, h, H, begin, ends, strides,
                                    factors, dropped, events, bias, side, WIDTHS, BM, False, True, False, KIND, HOW)
    return dk, dv


@launched
@triton.jit(do_not_specialize=["T", "count"])
def _backward_kv(q_source, grad, sums, whole, k_source, v_source, lse, dk_target, dv_target, plan, count, T, factors, H,
                 strides, limits, counts, dropped, bias, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr,
                 BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """The gradients of the keys and values of a tile, from the one range of queries that can see them.

    sums: `_folded` terms or delta; whole: where these are described to the copy engine, q, grad and sums as they are,
    for the blocks that need a mask or end with the row.
    """
    MASK: tl.constexpr = KIND[0]
    GROUP: tl.constexpr = KIND[4]
    g, first, row, begin, length, other, m_row = find_tile(plan, count, H // GROUP, T, BN, KIND, HOW[2], False)
    if first >= length:
        return
    mask = sizes_of_row(limits, counts, row, length, KIND[3])
    keys = first + tl.arange(0, BN)
    b0, b1, u0, u1 = query_blocks(first, tl.minimum(first + BN, length) - 1, mask, m_row, length, BM, MASK)
    span = (b0, b1, u0, u1, first)
    k = load_rows(k_source, begin + first, g, strides[4], strides[5], begin + length, D, BD, BN, False, False)
    v = load_rows(v_source, begin + first, g, strides[7], strides[8], begin + length, DV, BDV, BN, False, False)
    dk = tl.zeros([BN, BD], tl.float32)
    dv = tl.zeros([BN, BDV], tl.float32)
    events = keys
    if dropped[0] is not None:
        events = key_bits(dropped[0], begin + keys)
    side = keys_of_tile(bias, keys, mask, begin, length, g * GROUP, first, KIND)
    blocks = (q_source, grad, sums)
    if KIND[2]:
        blocks = (q_source + tl.cast(row, tl.int64) * strides[0], grad, sums)
    if whole is None:
        whole = blocks
    take = (keys, keys)
    if HOW[3]:  # which of the terms are for scores, and which for gradients
        column = tl.arange(0, 16)[None, :] + tl.zeros([BN, 1], tl.int32)
        dtype: tl.constexpr = whole[2].dtype.element_ty
        take = (tl.where(column % 4 == 0, 1.0, 0.0).to(dtype), tl.where(column % 4 == 2, 1.0, 0.0).to(dtype))
    ends = (m_row, length - m_row)
    if GROUP == 1:  # no loop, which would cost registers
        dk, dv = _head_of_queries(k, v, dk, dv, blocks, whole, lse, take, keys, mask, span, g, H, T, other, ends,
                                  strides, factors, dropped, events, bias, side, (D, DV, BD, BDV), BM, BN, KIND, HOW)
    else:
        for h in range(g * GROUP, g * GROUP + GROUP):
            dk, dv = _head_of_queries(k, v, dk, dv, blocks, whole, lse, take, keys, mask, span, h, H, T, other, ends,
                                      strides, factors, dropped, events, bias, side, (D, DV, BD, BDV), BM, BN, KIND,
                                      HOW)
    dv *= share(factors[1], mask[4], KIND[6]) if KIND[5] else 1.0
    dk *= slope_of(factors, mask[4], KIND)
    store_rows(dk_target, dk, begin + first, g, H // GROUP, begin + length, D, BD, BN)
    store_rows(dv_target, dv, begin + first, g, H // GROUP, begin + length, DV, BDV, BN)
