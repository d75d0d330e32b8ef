"""Kernels for short rows: packed tiles, which cross the borders of rows, so that a tile is full whatever their lengths.

A tile works through the one range of events that its rows span and masks by the row of each event. The backward pass is
a single one, which gives all gradients. Half precision, heads up to 64 wide, self-attention, causal or not.
"""

# ruff: noqa: N803, N806

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...launch import launched
from .plan import SILU, Plan, Sizes, block_width, describable
from .problem import Problem
from .relative import fill, of_bias, of_packed, open_chunk, room
from .tile import base_2, load_rows, log2, reciprocal, store_rows, strides
from .weigh import activated, assembly, fast, kind, share_of


def launch(inputs: Sequence[Tensor], problem: Problem, plan: Plan, results: Sequence[Tensor]) -> None:
    """Fill the results, output `(T, H, Dv)` and log-sum-exp `(H, T)` in base 2, from q, k and v."""
    sizes = plan.tiling.forward
    q, k, v = inputs
    events, heads = q.shape[:2]
    own = together(heads, problem, sizes)
    tma = sizes.tma and describable(k, v) and _side_by_side(k) and _side_by_side(v)
    keys = (_described(k, sizes.block, own), _described(v, sizes.block, own)) if tma else (k, v)
    _forward[(-(-events // sizes.tile) * (heads // own),)](
        q, *keys, *results, plan.events(), *numbers(inputs, problem, sizes), of_bias(problem), own, tma,
        num_warps=min(own, sizes.warps), num_stages=sizes.stages, maxnreg=sizes.registers)


def launch_backward(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, plan: Plan,
                    results: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Fill the gradients of q, k and v; `grads` of output and log-sum-exp are contiguous."""
    sizes = plan.tiling.queries
    events, heads = inputs[0].shape[:2]
    out, logsumexp = results
    _backward[(-(-events // sizes.tile) * heads,)](
        *inputs, out, *grads, logsumexp, plan.events(), *gradients, *numbers(inputs, problem, sizes),
        num_warps=sizes.warps, num_stages=sizes.stages, maxnreg=sizes.registers)


def together(heads: int, problem: Problem, sizes: Sizes) -> int:
    """Return the heads of a program: several where they have the same tables of bias, or none."""
    return math.gcd(heads, sizes.heads) if all(table.shape[0] == 1 for table in problem.tables) else 1


def _side_by_side(x: Tensor) -> bool:
    """Whether the heads of x `(T, H, D)` lie side by side and fill their blocks."""
    return x.stride(1) == x.shape[2] == block_width(x.shape[2])


def _described(x: Tensor, block: int, heads: int) -> TensorDescriptor:
    """Describe x `(T, H, D)` to the copy engine, for loads of `block` events of so many heads side by side."""
    events, all_heads, width = x.shape
    return TensorDescriptor(x, [events, all_heads * width], [x.stride(0), 1], [block, heads * width])


def numbers(inputs: Sequence[Tensor], problem: Problem, sizes: Sizes) -> tuple:
    """Return what all kernels of packed tiles take after their tensors: see there.

    The factors are on products, for scores, by `halves` where tanh takes these; on weights; and on gradients of scores.
    """
    q, k, v = inputs
    events, heads, width = q.shape
    halves = problem.activation == SILU and q.dtype == torch.bfloat16 and assembly(q.device) == 2
    factors = problem.factor * (0.5 if halves else 1.0), share_of(problem), problem.scale
    return (events, factors, heads, strides(q, k, v), width, v.shape[2], block_width(width), block_width(v.shape[2]),
            sizes.tile, sizes.block, kind(problem, 1, False, q.device, halves))


@triton.jit
def find_packed(tile, plan, T, H, BM: tl.constexpr):
    """Where a tile begins, its head, and the range of events that the rows of the tile span."""
    first = tile // H * BM
    begin = tl.load(plan + first)
    end = tl.load(plan + T + tl.minimum(first + BM, T) - 1)
    return first, tile % H, begin, end


@triton.jit
def between(events, low, high):
    """Which of the events lie from `low` to `high`, by one comparison: what lies below is far above."""
    return (events[None, :] - low[:, None]).to(tl.uint32) < tl.maximum(high - low, 0).to(tl.uint32)[:, None]


@triton.jit
def _load(source, first, h, stride_t, stride_h, T, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr, P: tl.constexpr,
          TMA: tl.constexpr):
    """Load `N` events from `first` on of P heads from h on, (P, N, BD): zero past the width, anything past the end."""
    if TMA:
        rows = source.load([first, h * D]).reshape(N, P, BD).permute(1, 0, 2)
    else:
        events = tl.minimum(first + tl.arange(0, N), T - 1)
        d = tl.arange(0, BD)[None, None, :]
        at = source + tl.cast(h + tl.arange(0, P), tl.int64)[:, None, None] * stride_h
        at += tl.cast(events, tl.int64)[None, :, None] * stride_t + d
        rows = tl.load(at) if D == BD else tl.load(at, mask=d < D, other=0.0)
    return rows


@triton.jit
def _scores(q, source, first, h, stride_t, stride_h, T, scale, D: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr):
    """The scores of a tile's queries (P, BM, BD) and a block of keys, (P, BM, BN)."""
    k = _load(source, first, h, stride_t, stride_h, T, D, q.shape[2], BN, q.shape[0], TMA)
    return tl.dot(q, k.permute(0, 2, 1)) * scale


@triton.jit
def _bias_of(seen, look, chunk, n, T, KIND: tl.constexpr):
    """What is added to the scores of a tile's queries and the keys of a block at n, as `seen` (BM, BN) says.

    Far below 0 where a key is not seen: no activation but identity makes more than 0 of that. look: the tables, whose
    head, the room for what a chunk of keys looks up, the tile's first query, when its queries ask, the plan.
    """
    bias, h, place, first, asked, plan = look
    added, _, _, _ = of_packed(tl.where(seen, 0.0, -1e30), bias, h, place, asked, plan, T, first, chunk, n, False, KIND)
    return added[None, :, :]


@triton.jit
def _see_all(q, m, k_source, v_source, low, high, begin, end, h, strides, T, scale, look, D: tl.constexpr,
             DV: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr, KIND: tl.constexpr):
    """Let the queries of a tile see their keys: the weighted values, twice the sums (P, BM) of weights relative to m.

    Once of the weights themselves, for the log-sum-exp, once as they are rounded for their product with the values:
    what one key alone is seen by is its value.
    """
    P: tl.constexpr = q.shape[0]
    BM: tl.constexpr = q.shape[1]
    acc = tl.zeros([P, BM, BDV], tl.float32)
    total = tl.zeros([P, BM, 4], tl.float32)  # of the four threads that hold a row: none waits for another
    rounded = tl.zeros([P, BM, 8], tl.float32)  # as often as the narrowest product has columns
    if KIND[7]:
        bias, own, place, first, asked, plan = look
        for chunk in range(begin, end, 128):
            place = open_chunk(bias, own, place, plan, T, first, chunk, False, BM, KIND)
            look = (bias, own, place, first, asked, plan)
            acc, total, rounded = _see(q, m, acc, total, rounded, k_source, v_source, low, high, chunk,
                                       tl.minimum(chunk + 128, end), h, strides, T, scale, look, D, DV, BDV, BN, TMA,
                                       KIND)
    else:
        acc, total, rounded = _see(q, m, acc, total, rounded, k_source, v_source, low, high, begin, end, h, strides, T,
                                   scale, look, D, DV, BDV, BN, TMA, KIND)
    return acc, tl.sum(total, 2), tl.max(rounded, 2)


@triton.jit
def _see(q, m, acc, total, rounded, k_source, v_source, low, high, begin, end, h, strides, T, scale, look,
         D: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr, TMA: tl.constexpr,
         KIND: tl.constexpr):
    """Let the queries of a tile see the keys from begin to end."""
    P: tl.constexpr = q.shape[0]
    BM: tl.constexpr = q.shape[1]
    ACT: tl.constexpr = KIND[5]
    for n in range(begin, end, BN):
        s = _scores(q, k_source, n, h, strides[4], strides[5], T, scale, D, BN, TMA)
        v = _load(v_source, n, h, strides[7], strides[8], T, DV, BDV, BN, P, TMA)
        seen = between(n + tl.arange(0, BN), low, high)
        if KIND[7]:
            s += _bias_of(seen, look, begin, n, T, KIND)
        else:
            s = tl.where(seen[None, :, :], s, 0.0 if ACT else float("-inf"))  # which all make 0 of 0
        if ACT:
            p, _ = activated(s, ACT, fast(KIND[8], q.dtype))
            if KIND[7] and ACT == 4:
                p = tl.where(seen[None, :, :], p, 0.0)
        else:
            p = tl.exp2(s - m[:, :, None])
        weights = p.to(v.dtype)
        if not ACT:
            total += tl.sum(tl.sum(p.reshape(P, BM, BN // 8, 4, 2), 4), 2)
            rounded = tl.dot(weights, tl.full([P, BN, 8], 1.0, v.dtype), rounded)
        acc = tl.dot(weights, v, acc)
    return acc, total, rounded


@triton.jit
def _maxima(q, k_source, low, high, begin, end, h, strides, T, scale, look, D: tl.constexpr, BN: tl.constexpr,
            TMA: tl.constexpr, KIND: tl.constexpr):
    """The largest score of each query, (P, BM)."""
    m = tl.full([q.shape[0], q.shape[1]], float("-inf"), tl.float32)
    if KIND[7]:
        bias, own, place, first, asked, plan = look
        for chunk in range(begin, end, 128):
            place = open_chunk(bias, own, place, plan, T, first, chunk, False, q.shape[1], KIND)
            look = (bias, own, place, first, asked, plan)
            m = _larger(q, m, k_source, low, high, chunk, tl.minimum(chunk + 128, end), h, strides, T, scale, look, D,
                        BN, TMA, KIND)
    else:
        m = _larger(q, m, k_source, low, high, begin, end, h, strides, T, scale, look, D, BN, TMA, KIND)
    return m


@triton.jit
def _larger(q, m, k_source, low, high, begin, end, h, strides, T, scale, look, D: tl.constexpr, BN: tl.constexpr,
            TMA: tl.constexpr, KIND: tl.constexpr):
    """The larger of m and the largest score of each query and the keys from begin to end."""
    for n in range(begin, end, BN):
        cols = n + tl.arange(0, BN)  # compared twice: beside `_see`, Triton 3.6 does not compile `between` here
        s = _scores(q, k_source, n, h, strides[4], strides[5], T, scale, D, BN, TMA)
        seen = (cols[None, :] >= low[:, None]) & (cols[None, :] < high[:, None])
        if KIND[7]:
            s += _bias_of(seen, look, begin, n, T, KIND)
        else:
            s = tl.where(seen[None, :, :], s, float("-inf"))
        m = tl.maximum(m, tl.max(s, 2))
    return m


@triton.jit
def share_of_rows(factors, low, high, LENGTH: tl.constexpr):
    """What pointwise weights are multiplied by, for events of rows from low to high."""
    part = factors[1]
    if LENGTH:
        part = (1.0 / tl.maximum(high - low, 1).to(tl.float32))[:, None]
    return part


@launched
@triton.jit(do_not_specialize=["T"])
def _forward(q_source, k_source, v_source, out, lse, plan, T, factors, H: tl.constexpr, strides, D: tl.constexpr,
             DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
             KIND: tl.constexpr, bias, P: tl.constexpr, TMA: tl.constexpr):
    """Attend from BM packed events of P heads, a warp each or two, to the one range of events that their rows span.

    A score is hardly ever so large or low that its exponential leaves the range of numbers: nobody looks for a maximum
    unless the sum of a row tells that one did.
    """
    ACT: tl.constexpr = KIND[5]
    FAST: tl.constexpr = fast(KIND[8], q_source.dtype.element_ty)
    first, part, begin, end = find_packed(tl.program_id(0), plan, T, H // P, BM)
    h = part * P
    heads = h + tl.arange(0, P)
    rows = first + tl.arange(0, BM)
    at = tl.minimum(rows, T - 1)
    low = tl.load(plan + at)
    high = tl.load(plan + T + at)
    share = share_of_rows(factors, low, high, KIND[6])
    if KIND[0] == 1:
        high = tl.minimum(high, at + 1)
        end = tl.minimum(end, first + BM)
    tl.assume(begin < end)
    q = _load(q_source, first, h, strides[1], strides[2], T, D, BD, BM, P, False)
    m = tl.zeros([P, BM], tl.float32)
    look = h
    if KIND[7]:
        asked = at
        if bias[3] is not None:
            asked = tl.load(plan + 2 * T + at)
        look = (bias, h, fill(bias, h, room(h, KIND), KIND), first, asked, plan)
    acc, total, rounded = _see_all(q, m, k_source, v_source, low, high, begin, end, h, strides, T, factors[0], look, D,
                                   DV, BDV, BN, TMA, KIND)
    if ACT:
        acc *= share
    else:
        LOW: tl.constexpr = 2.0**-8 if q.dtype == tl.float16 else 2.0**-60  # of the weights on average
        HIGH: tl.constexpr = 2.0**15 if q.dtype == tl.float16 else 2.0**60
        fits = (total > ((high - low).to(tl.float32) * LOW)[None, :]) & (total < HIGH)
        if tl.min(fits.to(tl.int32)) == 0:  # the other rows of the tile get the same bits again
            m = _maxima(q, k_source, low, high, begin, end, h, strides, T, factors[0], look, D, BN, TMA, KIND)
            m = tl.where(fits, 0.0, m)
            acc, total, rounded = _see_all(q, m, k_source, v_source, low, high, begin, end, h, strides, T, factors[0],
                                           look, D, DV, BDV, BN, TMA, KIND)
        tl.store(lse + tl.cast(heads, tl.int64)[:, None] * T + rows[None, :], m + log2(total, FAST),
                 mask=(rows < T)[None, :])
        acc *= reciprocal(rounded, FAST)[:, :, None]
    d = tl.arange(0, BDV)[None, None, :]
    out += tl.cast(first, tl.int64) * (H * DV)
    out += tl.arange(0, BM)[None, :, None] * (H * DV) + heads[:, None, None] * DV + d
    tl.store(out, acc.to(out.dtype.element_ty), mask=(rows < T)[None, :, None] & (d < DV))


@launched
@triton.jit(do_not_specialize=["T"])
def _backward(q_source, k_source, v_source, out, grad, grad_lse, lse_source, plan, dq_target, dk_target, dv_target, T,
              factors, H: tl.constexpr, strides, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
              BM: tl.constexpr, BN: tl.constexpr, KIND: tl.constexpr):
    """All gradients of BM packed events in one pass over the one range of events that their rows span."""
    CAUSAL: tl.constexpr = KIND[0] == 1
    ACT: tl.constexpr = KIND[5]
    FAST: tl.constexpr = fast(KIND[8], q_source.dtype.element_ty)
    first, h, begin, end = find_packed(tl.program_id(0), plan, T, H, BM)
    rows = first + tl.arange(0, BM)
    low = tl.load(plan + rows, mask=rows < T, other=0)
    high = tl.load(plan + T + rows, mask=rows < T, other=0)
    q = load_rows(q_source, first, h, strides[1], strides[2], T, D, BD, BM, False, False)
    k = load_rows(k_source, first, h, strides[4], strides[5], T, D, BD, BM, False, False)
    v = load_rows(v_source, first, h, strides[7], strides[8], T, DV, BDV, BM, False, False)
    do = load_rows(grad, first, h, H * DV, DV, T, DV, BDV, BM, False, False)
    scale = factors[0]
    lse_source += tl.cast(h, tl.int64) * T
    if not ACT:
        o = load_rows(out, first, h, H * DV, DV, T, DV, BDV, BM, False, False)
        delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
        lse = tl.load(lse_source + rows, mask=rows < T, other=0.0)
        if grad_lse is not None:  # the log-sum-exp grows with each score by its weight
            grad_lse += tl.cast(h, tl.int64) * T
            delta -= base_2(tl.load(grad_lse + rows, mask=rows < T, other=0.0))
    dq = tl.zeros([BM, BD], tl.float32)
    dk = tl.zeros([BM, BD], tl.float32)
    dv = tl.zeros([BM, BDV], tl.float32)
    for n in range(begin, end, BN):
        at = tl.minimum(n, T - BN)  # the last block of all is moved back to lie inside; what it repeats is not seen
        others = at + tl.arange(0, BN)
        k_n = load_rows(k_source, at, h, strides[4], strides[5], end, D, BD, BN, True, False)
        v_n = load_rows(v_source, at, h, strides[7], strides[8], end, DV, BDV, BN, True, False)
        q_n = load_rows(q_source, at, h, strides[1], strides[2], end, D, BD, BN, True, False)
        do_n = load_rows(grad, at, h, H * DV, DV, end, DV, BDV, BN, True, False)
        if not ACT:
            o_n = load_rows(out, at, h, H * DV, DV, end, DV, BDV, BN, True, False)
            delta_n = tl.sum(o_n.to(tl.float32) * do_n.to(tl.float32), 1)
            lse_n = tl.load(lse_source + others)
            if grad_lse is not None:
                delta_n -= base_2(tl.load(grad_lse + others))
        seen = between(others, tl.maximum(low, n), tl.minimum(high, rows + 1) if CAUSAL else high)
        if ACT:
            _, change = activated(tl.dot(q, k_n.T) * scale, ACT, FAST)
            ds = tl.where(seen, change, 0.0) * tl.dot(do, v_n.T)
        else:
            p = tl.exp2(tl.dot(q, k_n.T) * scale - lse[:, None])
            p = tl.where(seen, p, 0.0)
            ds = p * (tl.dot(do, v_n.T) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k_n, dq)
        if CAUSAL:
            seen = between(others, tl.maximum(rows, n), high)
        if ACT:
            p, change = activated(tl.dot(k, q_n.T) * scale, ACT, FAST)
            p = tl.where(seen, p, 0.0)
            dv = tl.dot(p.to(k.dtype), do_n, dv)
            ds = tl.where(seen, change, 0.0) * tl.dot(v, do_n.T)
        else:
            p = tl.exp2(tl.dot(k, q_n.T) * scale - lse_n[None, :])
            p = tl.where(seen, p, 0.0)
            dv = tl.dot(p.to(k.dtype), do_n, dv)
            ds = p * (tl.dot(v, do_n.T) - delta_n[None, :])
        dk = tl.dot(ds.to(k.dtype), q_n, dk)
    factor = factors[2]
    if ACT:
        part = share_of_rows(factors, low, high, KIND[6])
        dv *= part
        factor *= part
    store_rows(dq_target, dq * factor, first, h, H, T, D, BD, BM)
    store_rows(dk_target, dk * factor, first, h, H, T, D, BD, BM)
    store_rows(dv_target, dv, first, h, H, T, DV, BDV, BM)
