"""The gradients of packed tiles with a relative bias: programs for those of queries and tables, for keys and values.

A program has several heads where these share their tables: it looks pairs up once for all of them, and what they give
to an entry of a table is added up before it goes to shared memory. See `short.py` for the tiles.
"""

# ruff: noqa: N803, N806

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from .plan import Plan
from .problem import Problem
from .relative import (
    add_pairs,
    fill,
    meet,
    of_bias,
    of_memory,
    of_packed,
    open_chunk,
    room,
    room_for_sums,
    take_positions,
    take_times,
    whole_part,
)
from .short import between, find_packed, numbers, share_of_rows, together
from .tile import base_2, load_rows, store_rows
from .weigh import activated, fast

_QUERIES, _KEYS, _BOTH = range(3)  # sides of `_backward_packed`


def launch(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, plan: Plan,
           results: Sequence[Tensor], gradients: Sequence[Tensor], sums: tuple | None) -> None:
    """Fill the gradients of q, k and v; `grads` of output and log-sum-exp are contiguous.

    sums: where the gradients of tables add up, as `sums.Tables` has them; None where nobody asks.
    """
    grad, grad_lse = grads
    out, logsumexp = results
    delta = logsumexp if problem.pointwise else torch.empty_like(logsumexp)
    events, heads = inputs[0].shape[:2]
    sizes = plan.tiling.queries
    own = together(heads, problem, sizes)
    programs = -(-events // sizes.tile) * (heads // own)
    for side in (_BOTH,) if problem.pointwise else (_QUERIES, _KEYS):  # keys of a softmax need delta
        _backward_packed[(2 * programs if side == _BOTH else programs,)](
            *inputs, out, grad, grad_lse, logsumexp, delta, plan.events(), tuple(gradients),
            *numbers(inputs, problem, sizes), of_bias(problem), sums, own, side, sums is not None,
            num_warps=sizes.warps, num_stages=sizes.stages, maxnreg=sizes.registers)


@triton.jit
def _weights(x, seen, KIND: tl.constexpr, FAST: tl.constexpr):
    """The pointwise weights of scores and their derivatives, 0 where not seen; identity alone makes more of these."""
    p, slope = activated(x, KIND[5], FAST)
    if KIND[5] == 4:
        p = tl.where(seen, p, 0.0)
        slope = tl.where(seen, slope, 0.0)
    return p, slope


@triton.jit
def _block(source, first, h, stride_t, stride_h, T, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr):
    """Load `N` events from `first` on of one head, (N, BD): zero past the width, anything past the end."""
    events = tl.minimum(first + tl.arange(0, N), T - 1)
    d = tl.arange(0, BD)
    at = source + tl.cast(h, tl.int64) * stride_h + (tl.cast(events, tl.int64)[:, None] * stride_t + d[None, :])
    return tl.load(at) if D == BD else tl.load(at, mask=(d < D)[None, :], other=0.0)


@triton.jit
def _times_of(plan, bias, row, at, T, inside):
    """The times of events, of queries in row 2 of the plan and of keys in row 3; any number without a table of them."""
    times = at
    if bias[3] is not None:
        times = tl.load(plan + row * T + at, mask=inside, other=0)
    return times


@triton.jit
def _numbers_at(source, index, KIND: tl.constexpr):
    """The float32 at these places, loaded in whatever order its user has them."""
    return of_memory(source, index) if KIND[8] else tl.load(source + index)


@launched
@triton.jit(do_not_specialize=["T"])
def _backward_packed(q_source, k_source, v_source, out, grad, grad_lse, lse_source, delta, plan, targets, T, factors,
                     H: tl.constexpr, strides, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
                     BM: tl.constexpr, BN: tl.constexpr, KIND: tl.constexpr, bias, sums, P: tl.constexpr,
                     SIDE: tl.constexpr, OF_TABLES: tl.constexpr):
    """The gradients of BM packed queries, or keys and values, of P heads.

    targets: of queries, keys and values. SIDE: 0, of queries, 1, of keys, 2, both in turns, as what is loaded for the
    one is still near for the other.
    """
    tile = tl.program_id(0) // 2 if SIDE == 2 else tl.program_id(0)
    if SIDE == 0 or (SIDE == 2 and tl.program_id(0) % 2 == 0):
        _of_queries(tile, q_source, k_source, v_source, out, grad, grad_lse, lse_source, delta, plan, targets[0], T,
                    factors, H, strides, D, DV, BD, BDV, BM, BN, KIND, bias, sums, P, OF_TABLES)
    else:
        _of_keys(tile, q_source, k_source, v_source, grad, lse_source, delta, plan, targets[1], targets[2], T,
                 factors, H, strides, D, DV, BD, BDV, BM, BN, KIND, bias, P)


@triton.jit
def _of_queries(tile, q_source, k_source, v_source, out, grad, grad_lse, lse_source, delta_target, plan, dq_target, T,
                factors, H: tl.constexpr, strides, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr,
                BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KIND: tl.constexpr, bias, sums,
                P: tl.constexpr, OF_TABLES: tl.constexpr):
    """The gradients of BM packed queries of P heads, and what they add to those of tables.

    Of a softmax on the way delta (H, T), the sum of out · grad of each, for `_of_keys`.

    What pairs add stays in shared memory for a chunk of 128 keys: each of 32 columns of buckets then gets 2^9 numbers
    of 22 bits at most.
    """
    tl.static_assert(BM * P <= 128)
    SHARED: tl.constexpr = KIND[8] > 0
    FAST: tl.constexpr = fast(KIND[8], grad.dtype.element_ty)
    first, part, begin, end = find_packed(tile, plan, T, H // P, BM)
    h = part * P
    rows = first + tl.arange(0, BM)
    inside = rows < T
    low = tl.load(plan + rows, mask=inside, other=0)
    high = tl.load(plan + T + rows, mask=inside, other=0)
    asked = _times_of(plan, bias, 2, rows, T, inside)
    share = share_of_rows(factors, low, high, KIND[6])
    if KIND[0] == 1:
        high = tl.minimum(high, rows + 1)
        end = tl.minimum(end, first + BM)
    q, do, dq, lse, delta = (), (), (), (), ()
    for p in tl.static_range(P):
        of_head = tl.cast(h + p, tl.int64) * T + rows
        q += (load_rows(q_source, first, h + p, strides[1], strides[2], T, D, BD, BM, False, False),)
        do += (load_rows(grad, first, h + p, H * DV, DV, T, DV, BDV, BM, False, False),)
        dq += (tl.zeros([BM, BD], tl.float32),)
        if KIND[5]:
            lse += (low,)
            delta += (low,)
        else:
            o = load_rows(out, first, h + p, H * DV, DV, T, DV, BDV, BM, False, False)
            d = tl.sum(o.to(tl.float32) * do[p].to(tl.float32), 1)
            if grad_lse is not None:  # the log-sum-exp grows with each score by its weight
                d -= base_2(tl.load(grad_lse + of_head, mask=inside, other=0.0))
            tl.store(delta_target + of_head, d, mask=inside)
            delta += (d,)
            lse += (tl.load(lse_source + of_head, mask=inside, other=0.0),)
    place = fill(bias, h, room(h, KIND), KIND)
    own = room_for_sums(h, OF_TABLES, KIND)
    if OF_TABLES:
        unit = tl.load(sums[1])
        if KIND[5]:
            unit *= share
    for chunk in range(begin, end, 128):
        place = open_chunk(bias, h, place, plan, T, first, chunk, False, BM, KIND)
        for n in range(chunk, tl.minimum(chunk + 128, end), BN):
            seen = between(n + tl.arange(0, BN), low, high)
            added, within, distance, bucket = of_packed(tl.where(seen, 0.0, -1e30), bias, h, place, asked, plan, T,
                                                        first, chunk, n, False, KIND)
            found = ()
            whole = tl.zeros([BM, BN], tl.int32 if SHARED else tl.int64)
            for p in tl.static_range(P):
                k = _block(k_source, n, h + p, strides[4], strides[5], T, D, BD, BN)
                v = _block(v_source, n, h + p, strides[7], strides[8], T, DV, BDV, BN)
                x = tl.dot(q[p], k.T) * factors[0] + added
                if KIND[5]:
                    _, slope = _weights(x, seen, KIND, FAST)
                    ds = slope * tl.dot(do[p], v.T)
                else:
                    ds = tl.exp2(x - lse[p][:, None]) * (tl.dot(do[p], v.T) - delta[p][:, None])
                if OF_TABLES:
                    whole += whole_part(ds * unit, SHARED)
                found += (tl.dot(ds.to(k.dtype), k, dq[p]),)
            dq = found
            if OF_TABLES:
                add_pairs(whole, sums, own, bias, h, within, distance, bucket, SHARED, KIND)
        if OF_TABLES and SHARED:
            own = meet(own)
            take_positions(sums, bias, h, own, first - chunk - 127, 256, KIND)
            take_times(sums, bias, h, own)
    factor = factors[2] * share if KIND[5] else factors[2]
    for p in tl.static_range(P):
        store_rows(dq_target, dq[p] * factor, first, h + p, H, T, D, BD, BM)


@triton.jit
def _of_keys(tile, q_source, k_source, v_source, grad, lse_source, delta_source, plan, dk_target, dv_target, T, factors,
             H: tl.constexpr, strides, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
             BM: tl.constexpr, BN: tl.constexpr, KIND: tl.constexpr, bias, P: tl.constexpr):
    """The gradients of BM packed keys and their values of P heads."""
    FAST: tl.constexpr = fast(KIND[8], grad.dtype.element_ty)
    first, part, begin, end = find_packed(tile, plan, T, H // P, BM)
    h = part * P
    rows = first + tl.arange(0, BM)
    inside = rows < T
    low = tl.load(plan + rows, mask=inside, other=0)
    high = tl.load(plan + T + rows, mask=inside, other=0)
    happened = _times_of(plan, bias, 3, rows, T, inside)
    share = share_of_rows(factors, low, high, KIND[6])
    if KIND[0] == 1:
        low = tl.maximum(low, rows)
        begin = tl.maximum(begin, first)
    k, v, dk, dv = (), (), (), ()
    for p in tl.static_range(P):
        k += (load_rows(k_source, first, h + p, strides[4], strides[5], T, D, BD, BM, False, False),)
        v += (load_rows(v_source, first, h + p, strides[7], strides[8], T, DV, BDV, BM, False, False),)
        dk += (tl.zeros([BM, BD], tl.float32),)
        dv += (tl.zeros([BM, BDV], tl.float32),)
    place = fill(bias, h, room(h, KIND), KIND)
    for chunk in range(begin, end, 128):
        place = open_chunk(bias, h, place, plan, T, first, chunk, True, BM, KIND)
        for n in range(chunk, tl.minimum(chunk + 128, end), BN):
            others = n + tl.arange(0, BN)
            seen = between(others, low, high)
            added, _, _, _ = of_packed(tl.where(seen, 0.0, -1e30), bias, h, place, happened, plan, T, first, chunk, n,
                                       True, KIND)
            found = ()
            found_v = ()
            for p in tl.static_range(P):
                q = _block(q_source, n, h + p, strides[1], strides[2], T, D, BD, BN)
                do = _block(grad, n, h + p, H * DV, DV, T, DV, BDV, BN)
                x = tl.dot(k[p], q.T) * factors[0] + added
                if KIND[5]:
                    weights, slope = _weights(x, seen, KIND, FAST)
                    found_v += (tl.dot(weights.to(v[p].dtype), do, dv[p]),)
                    ds = slope * tl.dot(v[p], do.T)
                else:
                    at = tl.minimum(others, T - 1)
                    of_head = tl.cast(h + p, tl.int64) * T
                    weights = tl.exp2(x - _numbers_at(lse_source + of_head, at, KIND)[None, :])
                    found_v += (tl.dot(weights.to(v[p].dtype), do, dv[p]),)
                    ds = weights * (tl.dot(v[p], do.T) - _numbers_at(delta_source + of_head, at, KIND)[None, :])
                found += (tl.dot(ds.to(q.dtype), q, dk[p]),)
            dk = found
            dv = found_v
    factor = factors[2] * share if KIND[5] else factors[2]
    for p in tl.static_range(P):
        store_rows(dk_target, dk[p] * factor, first, h + p, H, T, D, BD, BM)
        store_rows(dv_target, dv[p] * share if KIND[5] else dv[p], first, h + p, H, T, DV, BDV, BM)
