"""Kernels for short rows: packed tiles, which cross the borders of rows, so that a tile is full whatever their lengths.

A tile works through the one range of events that its rows span and masks by the row of each event. The backward pass is
a single one, which gives all gradients. Half precision, heads up to 64 wide, self-attention, causal or not.
"""

# ruff: noqa: N803, N806

import math
from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...launch import launched
from .plan import Plan, Sizes, block_width, describable
from .problem import CAUSAL, Problem
from .tile import base_2, load_rows, log2, natural, reciprocal, store_rows, strides
from .weigh import activated, share_of


def launch(inputs: Sequence[Tensor], problem: Problem, plan: Plan, results: Sequence[Tensor]) -> None:
    """Fill the results, output `(T, H, Dv)` and log-sum-exp `(H, T)` in base 2, from q, k and v."""
    sizes = _sizes(plan, 0)
    numbers = _numbers(inputs, problem, sizes)
    q, k, v = inputs
    events, heads = q.shape[:2]
    together = math.gcd(heads, sizes.warps)  # heads of a program, a warp each
    tma = sizes.tma and describable(k, v) and _side_by_side(k) and _side_by_side(v)
    keys = (_described(k, sizes.block, together), _described(v, sizes.block, together)) if tma else (k, v)
    _forward[(-(-events // sizes.tile) * (heads // together),)](
        q, *keys, *results, plan.events(), *numbers, together, tma, num_warps=together, num_stages=sizes.stages,
        maxnreg=sizes.registers)


def launch_backward(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, plan: Plan,
                    results: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Fill the gradients of q, k and v; `grads` of output and log-sum-exp are contiguous."""
    sizes = _sizes(plan, 1)
    numbers = _numbers(inputs, problem, sizes)
    events, heads = inputs[0].shape[:2]
    out, logsumexp = results
    _backward[(-(-events // sizes.tile) * heads,)](
        *inputs, out, *grads, logsumexp, plan.events(), *gradients, *numbers, num_warps=sizes.warps,
        num_stages=sizes.stages, maxnreg=sizes.registers)


def _side_by_side(x: Tensor) -> bool:
    """Whether the heads of x `(T, H, D)` lie side by side and fill their blocks."""
    return x.stride(1) == x.shape[2] == block_width(x.shape[2])


def _described(x: Tensor, block: int, heads: int) -> TensorDescriptor:
    """Describe x `(T, H, D)` to the copy engine, for loads of `block` events of so many heads side by side."""
    events, all_heads, width = x.shape
    return TensorDescriptor(x, [events, all_heads * width], [x.stride(0), 1], [block, heads * width])


def _sizes(plan: Plan, which: int) -> Sizes:
    assert plan.tiling.short is not None
    return plan.tiling.short[which]


def _numbers(inputs: Sequence[Tensor], problem: Problem, sizes: Sizes) -> tuple:
    """What both kernels take after their tensors."""
    q, k, v = inputs
    events, heads, width = q.shape
    return (events, (problem.factor, share_of(problem)), heads, strides(q, k, v), width, v.shape[2],
            block_width(width), block_width(v.shape[2]), sizes.tile, sizes.block, problem.kind == CAUSAL,
            problem.activation, problem.normaliser == 0, not triton.knobs.runtime.interpret)


@triton.jit
def _find_tile(plan, T, H, BM: tl.constexpr):
    """Where this program's tile begins, its head, and the range of events that the rows of the tile span."""
    pid = tl.program_id(0)
    first = pid // H * BM
    begin = tl.load(plan + first)
    end = tl.load(plan + T + tl.minimum(first + BM, T) - 1)
    return first, pid % H, begin, end


@triton.jit
def _between(events, low, high):
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
def _see_all(q, m, k_source, v_source, low, high, begin, end, h, strides, T, scale, D: tl.constexpr, DV: tl.constexpr,
             BDV: tl.constexpr, BN: tl.constexpr, ACT: tl.constexpr, FAST: tl.constexpr, TMA: tl.constexpr):
    """Let the queries of a tile see their keys: the weighted values, twice the sums (P, BM) of weights relative to m.

    Once of the weights themselves, for the log-sum-exp, once as they are rounded for their product with the values:
    what one key alone is seen by is its value.
    """
    P: tl.constexpr = q.shape[0]
    BM: tl.constexpr = q.shape[1]
    acc = tl.zeros([P, BM, BDV], tl.float32)
    total = tl.zeros([P, BM, 4], tl.float32)  # of the four threads that hold a row: none waits for another
    rounded = tl.zeros([P, BM, 8], tl.float32)  # as often as the narrowest product has columns
    for n in range(begin, end, BN):
        s = _scores(q, k_source, n, h, strides[4], strides[5], T, scale, D, BN, TMA)
        v = _load(v_source, n, h, strides[7], strides[8], T, DV, BDV, BN, P, TMA)
        seen = _between(n + tl.arange(0, BN), low, high)[None, :, :]
        if ACT:
            p, _ = activated(tl.where(seen, s, 0.0), ACT, FAST)  # which all make 0 of 0
        else:
            p = tl.exp2(tl.where(seen, s, float("-inf")) - m[:, :, None])
        weights = p.to(v.dtype)
        if not ACT:
            total += tl.sum(tl.sum(p.reshape(P, BM, BN // 8, 4, 2), 4), 2)
            rounded = tl.dot(weights, tl.full([P, BN, 8], 1.0, v.dtype), rounded)
        acc = tl.dot(weights, v, acc)
    return acc, tl.sum(total, 2), tl.max(rounded, 2)


@triton.jit
def _maxima(q, k_source, low, high, begin, end, h, strides, T, scale, D: tl.constexpr, BN: tl.constexpr,
            TMA: tl.constexpr):
    """The largest score of each query, (P, BM)."""
    m = tl.full([q.shape[0], q.shape[1]], float("-inf"), tl.float32)
    for n in range(begin, end, BN):
        cols = n + tl.arange(0, BN)  # compared twice: beside `_see_all`, Triton 3.6 does not compile `_between` here
        s = _scores(q, k_source, n, h, strides[4], strides[5], T, scale, D, BN, TMA)
        seen = (cols[None, :] >= low[:, None]) & (cols[None, :] < high[:, None])
        m = tl.maximum(m, tl.max(tl.where(seen[None, :, :], s, float("-inf")), 2))
    return m


@triton.jit
def _share(factors, low, high, LENGTH: tl.constexpr):
    """What pointwise weights are multiplied by, for events of rows from low to high."""
    part = factors[1]
    if LENGTH:
        part = (1.0 / tl.maximum(high - low, 1).to(tl.float32))[:, None]
    return part


@launched
@triton.jit(do_not_specialize=["T"])
def _forward(q_source, k_source, v_source, out, lse, plan, T, factors, H: tl.constexpr, strides, D: tl.constexpr,
             DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
             CAUSAL: tl.constexpr, ACT: tl.constexpr, LENGTH: tl.constexpr, FAST: tl.constexpr, P: tl.constexpr,
             TMA: tl.constexpr):
    """Attend from BM packed events of P heads, a warp each, to the one range of events that their rows span.

    A score is hardly ever so large or low that its exponential leaves the range of numbers: nobody looks for a maximum
    unless the sum of a row tells that one did.
    """
    first, part, begin, end = _find_tile(plan, T, H // P, BM)
    h = part * P
    heads = h + tl.arange(0, P)
    rows = first + tl.arange(0, BM)
    at = tl.minimum(rows, T - 1)
    low = tl.load(plan + at)
    high = tl.load(plan + T + at)
    share = _share(factors, low, high, LENGTH)
    if CAUSAL:
        high = tl.minimum(high, at + 1)
        end = tl.minimum(end, first + BM)
    tl.assume(begin < end)
    q = _load(q_source, first, h, strides[1], strides[2], T, D, BD, BM, P, False)
    m = tl.zeros([P, BM], tl.float32)
    acc, total, rounded = _see_all(q, m, k_source, v_source, low, high, begin, end, h, strides, T, factors[0], D, DV,
                                   BDV, BN, ACT, FAST, TMA)
    if ACT:
        acc *= share
    else:
        LOW: tl.constexpr = 2.0**-8 if q.dtype == tl.float16 else 2.0**-60  # of the weights on average
        HIGH: tl.constexpr = 2.0**15 if q.dtype == tl.float16 else 2.0**60
        fits = (total > ((high - low).to(tl.float32) * LOW)[None, :]) & (total < HIGH)
        if tl.min(fits.to(tl.int32)) == 0:  # the other rows of the tile get the same bits again
            m = _maxima(q, k_source, low, high, begin, end, h, strides, T, factors[0], D, BN, TMA)
            m = tl.where(fits, 0.0, m)
            acc, total, rounded = _see_all(q, m, k_source, v_source, low, high, begin, end, h, strides, T, factors[0],
                                           D, DV, BDV, BN, ACT, FAST, TMA)
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
              BM: tl.constexpr, BN: tl.constexpr, CAUSAL: tl.constexpr, ACT: tl.constexpr, LENGTH: tl.constexpr,
              FAST: tl.constexpr):
    """All gradients of BM packed events in one pass over the one range of events that their rows span."""
    first, h, begin, end = _find_tile(plan, T, H, BM)
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
        seen = _between(others, tl.maximum(low, n), tl.minimum(high, rows + 1) if CAUSAL else high)
        if ACT:
            _, change = activated(tl.dot(q, k_n.T) * scale, ACT, FAST)
            ds = tl.where(seen, change, 0.0) * tl.dot(do, v_n.T)
        else:
            p = tl.exp2(tl.dot(q, k_n.T) * scale - lse[:, None])
            p = tl.where(seen, p, 0.0)
            ds = p * (tl.dot(do, v_n.T) - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k_n, dq)
        if CAUSAL:
            seen = _between(others, tl.maximum(rows, n), high)
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
    factor = natural(scale)
    if ACT:
        part = _share(factors, low, high, LENGTH)
        dv *= part
        factor = scale * part
    store_rows(dq_target, dq * factor, first, h, H, T, D, BD, BM)
    store_rows(dk_target, dk * factor, first, h, H, T, D, BD, BM)
    store_rows(dv_target, dv, first, h, H, T, DV, BDV, BM)
