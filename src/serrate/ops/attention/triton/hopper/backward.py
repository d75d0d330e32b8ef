"""The backward kernels of plain jagged self-attention for Hopper, in Gluon, for heads up to 128 wide.

Each tile of 128 events has two warp groups of 64, which take turns at the matrix units, and a warp that loads; one
kernel gives the gradients of queries, one those of keys and values. No atomics: each gradient is written once.
"""

# ruff: noqa: N803, N806, RUF005, SIM102 - conditions of the compiler and of the device do not combine

from collections.abc import Sequence

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ....launch import launched
from ..plan import Plan
from ..problem import CAUSAL, Problem
from .forward import barriers, count_blocks, describe, find_tile, share, sigmoid, slope, store_rows, weights_of

TILE = 128  # events of a tile: 64 for each of two warp groups


def launch(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, plan: Plan,
           results: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Fill the gradients of q, k and v `(T, H, D)` from those of the results, the inputs, results of the forward pass.

    `grads` of output and log-sum-exp are contiguous; the copy engine can read q, k and v, which have events and as many
    heads each.
    """
    q, k, v = inputs
    grad, grad_lse = grads
    out, lse = results
    dq, dk, dv = gradients
    events, heads, width = q.shape
    lse, delta = (None, None) if problem.pointwise else (lse, torch.empty_like(lse))
    tiles = plan.queries(TILE)
    count = tiles.shape[1]
    numbers = (tiles, count, events, *weights_of(problem), heads, width, v.shape[2], problem.kind == CAUSAL,
               plan.tiling.heads_first)
    own, block = TILE // 2, 64
    _queries[(count * heads,)](
        describe(q, own), describe(grad, own), describe(k, block), describe(v, block), out, grad, grad_lse, lse,
        delta, dq, *numbers, num_warps=4)
    _keys[(count * heads,)](
        describe(k, own), describe(v, own), describe(q, block), describe(grad, block), lse, delta, dk, dv, *numbers,
        num_warps=4)


@gluon.jit
def _load_own(a_desc, b_desc, a_smem, b_smem, barrier, first, h):
    """Ask for the events of the tile, of two tensors."""
    BM: gl.constexpr = a_smem.shape[1]
    mbarrier.expect(barrier, 2 * (a_desc.block_type.nbytes + b_desc.block_type.nbytes))
    for i in gl.static_range(2):
        tma.async_copy_global_to_shared(a_desc, [first + i * BM, h, 0], barrier, a_smem.index(i))
        tma.async_copy_global_to_shared(b_desc, [first + i * BM, h, 0], barrier, b_smem.index(i))


@gluon.jit
def _buffers(a_desc, b_desc, N: gl.constexpr):
    """Room for N blocks of two tensors."""
    a = gl.allocate_shared_memory(a_desc.dtype, [N] + a_desc.block_type.shape, a_desc.layout)
    b = gl.allocate_shared_memory(b_desc.dtype, [N] + b_desc.block_type.shape, b_desc.layout)
    return a, b


# --- gradients of keys and values ---


@gluon.jit
def _load_queries(k_desc, v_desc, q_desc, grad_desc, sums, memory, place, start, blocks, T):
    """Load a tile of keys and values, and all blocks of queries that see it."""
    k_smem, v_smem, q_smem, grad_smem, lse_smem, delta_smem, own_full, full, empty = memory
    first, h, _begin, end = place
    S: gl.constexpr = q_smem.shape[0]
    BN: gl.constexpr = q_smem.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    _load_own(k_desc, v_desc, k_smem, v_smem, own_full.index(0), first, h)
    if sums[0] is not None:
        lse = sums[0] + gl.cast(h, gl.int64) * T
        delta = sums[1] + gl.cast(h, gl.int64) * T
    rows = start + gl.arange(0, BN, layout)
    for j in range(blocks):
        stage = j % S
        barrier = full.index(stage)
        if sums[0] is not None:
            past = gl.load(lse + rows, mask=rows < end, other=1e30)  # a query past the row's end gives weight 0
            deltas = gl.load(delta + rows, mask=rows < end, other=0.0)
        mbarrier.wait(empty.index(stage), ((j // S) & 1) ^ 1)
        mbarrier.expect(barrier, q_desc.block_type.nbytes + grad_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, [start + j * BN, h, 0], barrier, q_smem.index(stage))
        tma.async_copy_global_to_shared(grad_desc, [start + j * BN, h, 0], barrier, grad_smem.index(stage))
        if sums[0] is not None:
            lse_smem.index(stage).store(past)
            delta_smem.index(stage).store(deltas)
        mbarrier.arrive(barrier)
        rows += BN


@gluon.jit
def _add_to_keys(memory, place, start, blocks, dk_target, dv_target, factors, H, WHICH: gl.constexpr, D: gl.constexpr,
                 DV: gl.constexpr, CAUSAL: gl.constexpr, ACT: gl.constexpr):
    """The gradients of one warp group's keys and values."""
    k_smem, v_smem, q_smem, grad_smem, lse_smem, delta_smem, own_full, full, empty = memory
    first, h, begin, end = place
    S: gl.constexpr = q_smem.shape[0]
    BM: gl.constexpr = k_smem.shape[1]
    BN: gl.constexpr = q_smem.shape[1]
    BD: gl.constexpr = k_smem.shape[3]
    dtype: gl.constexpr = k_smem.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    s_cols: gl.constexpr = gl.SliceLayout(0, s_layout)
    first += WHICH * BM
    keys = first + gl.arange(0, BM, gl.SliceLayout(1, s_layout))
    zeros = gl.full([BM, BN], 0.0, gl.float32, s_layout)
    dk = gl.full([BM, BD], 0.0, gl.float32, o_layout)
    dv = gl.full([BM, BD], 0.0, gl.float32, o_layout)
    mbarrier.wait(own_full.index(0), 0)
    k = k_smem.index(WHICH).reshape([BM, BD])
    v = v_smem.index(WHICH).reshape([BM, BD])
    for j in range(blocks):
        stage = j % S
        mbarrier.wait(full.index(stage), (j // S) & 1)
        q = q_smem.index(stage).reshape([BN, BD])
        grad = grad_smem.index(stage).reshape([BN, BD])
        scores = warpgroup_mma(k, q.permute([1, 0]), zeros, use_acc=False, is_async=True)
        dots = warpgroup_mma(v, grad.permute([1, 0]), zeros, use_acc=False, is_async=True)
        n = start + j * BN
        if ACT:
            s = warpgroup_mma_wait(1, [scores])
            y = sigmoid(s, factors[0])
            x = s * factors[0]
            p = x * y
            change = y + y * (x - p)
            if n + BN > end:  # of a softmax, queries past the row's end have a log-sum-exp that makes it 0
                there = (n + gl.arange(0, BN, s_cols) < end)[None, :]
                p = gl.where(there, p, 0.0)
                change = gl.where(there, change, 0.0)
        else:
            sums = lse_smem.index(stage).load(s_cols)
            s = warpgroup_mma_wait(1, [scores])
            p = gl.exp2(s * factors[0] - sums[None, :])
            change = p
        if CAUSAL:
            late = n < first + BM
            if late:
                seen = (n + gl.arange(0, BN, s_cols))[None, :] >= keys[:, None]
                p = gl.where(seen, p, 0.0)
                change = gl.where(seen, change, 0.0)
        weights = gl.convert_layout(p.to(dtype), p_layout)
        dp = warpgroup_mma_wait(0, [dots])
        dv_next = warpgroup_mma(weights, grad, dv, is_async=True)
        if not ACT:
            dp = dp - delta_smem.index(stage).load(s_cols)[None, :]
        ds = gl.convert_layout((change * dp).to(dtype), p_layout)
        dk_next = warpgroup_mma(ds, q, dk, is_async=True)
        dv, dk, weights, ds = warpgroup_mma_wait(0, [dv_next, dk_next, weights, ds])
        mbarrier.arrive(empty.index(stage))
    if ACT:
        dv = dv * share(factors, begin, end, ACT)
    store_rows(dv_target, dv.to(dtype), first, h, end, H, DV)
    store_rows(dk_target, (dk * slope(factors, begin, end, ACT)).to(dtype), first, h, end, H, D)


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _keys(k_desc, v_desc, q_desc, grad_desc, lse, delta, dk, dv, plan, count, T, factors, ACT: gl.constexpr, H,
          D: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr, HEADS_FIRST: gl.constexpr):
    """The gradients of a tile of keys and values, from the one range of queries that can see them."""
    S: gl.constexpr = 2
    BN: gl.constexpr = q_desc.block_type.shape[0]
    place = find_tile(plan, count, H, False, HEADS_FIRST)
    if place[0] < place[3]:
        start = place[2]
        if CAUSAL:
            start = place[0]
        blocks = (place[3] - start + BN - 1) // BN
        k_smem, v_smem = _buffers(k_desc, v_desc, 2)
        q_smem, grad_smem = _buffers(q_desc, grad_desc, S)
        row: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
        lse_smem = gl.allocate_shared_memory(gl.float32, [S, BN], row)
        delta_smem = gl.allocate_shared_memory(gl.float32, [S, BN], row)
        sums = (lse, delta)
        memory = (k_smem, v_smem, q_smem, grad_smem, lse_smem, delta_smem, barriers(1, 1), barriers(S, 2),
                  barriers(S, 2))
        fence_async_shared()
        gl.warp_specialize([
            (_add_to_keys, (memory, place, start, blocks, dk, dv, factors, H, 0, D, DV, CAUSAL, ACT)),
            (_add_to_keys, (memory, place, start, blocks, dk, dv, factors, H, 1, D, DV, CAUSAL, ACT)),
            (_load_queries, (k_desc, v_desc, q_desc, grad_desc, sums, memory, place, start, blocks, T)),
        ], [4, 1], [232, 40])


# --- gradients of queries ---


@gluon.jit
def _load_keys(q_desc, grad_desc, k_desc, v_desc, memory, place, blocks):
    """Load a tile of queries and what comes back to them, and all blocks of keys and values that they see."""
    q_smem, grad_smem, k_smem, v_smem, own_full, full, empty = memory
    first, h, begin, _end = place
    S: gl.constexpr = k_smem.shape[0]
    BN: gl.constexpr = k_smem.shape[1]
    _load_own(q_desc, grad_desc, q_smem, grad_smem, own_full.index(0), first, h)
    for j in range(blocks):
        barrier = full.index(j % S)
        mbarrier.wait(empty.index(j % S), ((j // S) & 1) ^ 1)
        mbarrier.expect(barrier, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [begin + j * BN, h, 0], barrier, k_smem.index(j % S))
        tma.async_copy_global_to_shared(v_desc, [begin + j * BN, h, 0], barrier, v_smem.index(j % S))


@gluon.jit
def _delta(out, grad, first, h, end, H, DV: gl.constexpr, BM: gl.constexpr, BD: gl.constexpr):
    """The sum of out · grad of each of BM queries."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BD, BD // 8], [4, 1], [1, 0])
    step = gl.arange(0, BM, gl.SliceLayout(1, layout))
    d = gl.arange(0, BD, gl.SliceLayout(0, layout))
    at = gl.cast(first, gl.int64) * (H * DV) + h * DV + (step[:, None] * (H * DV) + d[None, :])
    there = (first + step < end)[:, None] & (d[None, :] < DV)
    ours = gl.load(out + at, mask=there, other=0.0).to(gl.float32)
    theirs = gl.load(grad + at, mask=there, other=0.0).to(gl.float32)
    return gl.sum(ours * theirs, 1)


@gluon.jit
def see_keys(dq, q, do, k, v, zeros, sums, n, limits, scale, ACT: gl.constexpr):
    """The gradient of queries, with what a block of keys at n adds.

    sums: log-sum-exp and delta of the queries, of a softmax; limits: the end of the keys that all of them see, and of
    those that each sees, None where they see the whole block; zeros: of a block's scores.
    """
    s_layout: gl.constexpr = zeros.type.layout
    p_layout: gl.constexpr = gl.DotOperandLayout(0, dq.type.layout, 2)
    BN: gl.constexpr = zeros.shape[1]
    scores = warpgroup_mma(q, k.permute([1, 0]), zeros, use_acc=False, is_async=True)
    dots = warpgroup_mma(do, v.permute([1, 0]), zeros, use_acc=False, is_async=True)
    s = warpgroup_mma_wait(1, [scores])
    if ACT:
        y = sigmoid(s, scale)
        x = s * scale
        change = y + y * (x - x * y)
    else:
        change = gl.exp2(s * scale - sums[0][:, None])
    if limits is not None:
        if n + BN > limits[0]:
            seen = (n + gl.arange(0, BN, gl.SliceLayout(0, s_layout)))[None, :] < limits[1][:, None]
            change = gl.where(seen, change, 0.0)
    dp = warpgroup_mma_wait(0, [dots])
    if not ACT:
        dp = dp - sums[1][:, None]
    ds = gl.convert_layout((change * dp).to(k.dtype), p_layout)
    dq, ds = warpgroup_mma_wait(0, [warpgroup_mma(ds, k, dq, is_async=True), ds])
    return dq


@gluon.jit
def _add_to_queries(memory, place, blocks, tensors, T, factors, H, WHICH: gl.constexpr, D: gl.constexpr,
                    DV: gl.constexpr, CAUSAL: gl.constexpr, ACT: gl.constexpr):
    """The gradient of one warp group's queries, and their delta."""
    out, grad, grad_lse, lse, delta_target, dq_target = tensors
    q_smem, grad_smem, k_smem, v_smem, own_full, full, empty = memory
    first, h, begin, end = place
    S: gl.constexpr = k_smem.shape[0]
    BM: gl.constexpr = q_smem.shape[1]
    BN: gl.constexpr = k_smem.shape[1]
    BD: gl.constexpr = k_smem.shape[3]
    dtype: gl.constexpr = k_smem.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    first += WHICH * BM
    rows = first + gl.arange(0, BM, s_rows)
    if ACT:
        sums, deltas = None, None
    else:
        at = gl.cast(h, gl.int64) * T + rows
        deltas = gl.convert_layout(_delta(out, grad, first, h, end, H, DV, BM, BD), s_rows)
        if grad_lse is not None:  # the log-sum-exp grows with each score by its weight
            deltas -= gl.load(grad_lse + at, mask=rows < end, other=0.0) * 1.4426950408889634
        gl.store(delta_target + at, deltas, mask=rows < end)
        sums = gl.load(lse + at, mask=rows < end, other=0.0)
    high = rows * 0 + end
    safe = end
    if CAUSAL:
        high = gl.minimum(high, rows + 1)
        safe = gl.minimum(end, first)
    zeros = gl.full([BM, BN], 0.0, gl.float32, s_layout)
    dq = gl.full([BM, BD], 0.0, gl.float32, o_layout)
    mbarrier.wait(own_full.index(0), 0)
    q = q_smem.index(WHICH).reshape([BM, BD])
    do = grad_smem.index(WHICH).reshape([BM, BD])
    for j in range(blocks):
        stage = j % S
        mbarrier.wait(full.index(stage), (j // S) & 1)
        k = k_smem.index(stage).reshape([BN, BD])
        v = v_smem.index(stage).reshape([BN, BD])
        dq = see_keys(dq, q, do, k, v, zeros, (sums, deltas), begin + j * BN, (safe, high), factors[0], ACT)
        mbarrier.arrive(empty.index(stage))
    store_rows(dq_target, (dq * slope(factors, begin, end, ACT)).to(dtype), first, h, end, H, D)


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _queries(q_desc, grad_desc, k_desc, v_desc, out, grad, grad_lse, lse, delta, dq, plan, count, T, factors,
             ACT: gl.constexpr, H, D: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr, HEADS_FIRST: gl.constexpr):
    """The gradient of a tile of queries; on the way delta, the sum of out · grad of each, for `_keys`."""
    BN: gl.constexpr = k_desc.block_type.shape[0]
    S: gl.constexpr = 2
    place = find_tile(plan, count, H, CAUSAL, HEADS_FIRST)
    if place[0] < place[3]:
        blocks = count_blocks(place[0], place[2], place[3], 2 * q_desc.block_type.shape[0], BN, CAUSAL)
        q_smem, grad_smem = _buffers(q_desc, grad_desc, 2)
        k_smem, v_smem = _buffers(k_desc, v_desc, S)
        memory = (q_smem, grad_smem, k_smem, v_smem, barriers(1, 1), barriers(S, 1), barriers(S, 2))
        fence_async_shared()
        tensors = (out, grad, grad_lse, lse, delta, dq)
        gl.warp_specialize([
            (_add_to_queries, (memory, place, blocks, tensors, T, factors, H, 0, D, DV, CAUSAL, ACT)),
            (_add_to_queries, (memory, place, blocks, tensors, T, factors, H, 1, D, DV, CAUSAL, ACT)),
            (_load_keys, (q_desc, grad_desc, k_desc, v_desc, memory, place, blocks)),
        ], [4, 1], [240, 24])
