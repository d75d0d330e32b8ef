"""The backward kernels of plain jagged self-attention for Hopper, in Gluon, for heads up to 128 wide.

Each tile of 128 events has two warp groups of 64, which take turns at the matrix units, and a warp that loads; one
kernel gives the gradients of queries, one those of keys and values. Each gradient is written once. Programs stay and
draw their tiles (`tiles.py`); a warp group skips the blocks that it sees nothing of.
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
from .forward import barriers, changed, describe, hidden, scaled, share, silu, slope, store_rows, weights_of
from .tiles import abreast, count_blocks, draw, find_tile, hear, room_for_places, send_home, stay, tell

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
               abreast(heads, plan.tiling.heads_first))
    own, block = TILE // 2, 64
    programs, drawn = stay(count * heads, q.device)
    _queries[(programs,)](
        drawn, describe(q, own), describe(grad, own), None if problem.pointwise else describe(out, own),
        describe(k, block), describe(v, block), grad_lse, lse, delta, dq, *numbers, num_warps=4)
    programs, drawn = stay(count * heads, q.device)
    _keys[(programs,)](
        drawn, describe(k, own), describe(v, own), describe(q, block), describe(grad, block), lse, delta, dk, dv,
        *numbers, num_warps=4)


@gluon.jit
def _load_own(a_desc, b_desc, a_smem, b_smem, room, barrier, place, SLOT):
    """Ask for the events of a tile, of two tensors, and tell the warp groups of it."""
    first, h, begin, end = place
    BM: gl.constexpr = a_smem.shape[1]
    tell(room, first, h, begin, end)
    mbarrier.expect(barrier, 2 * (a_desc.block_type.nbytes + b_desc.block_type.nbytes))
    for i in gl.static_range(2):
        tma.async_copy_global_to_shared(a_desc, [first + i * BM, h, 0], barrier, a_smem.index(SLOT + i))
        tma.async_copy_global_to_shared(b_desc, [first + i * BM, h, 0], barrier, b_smem.index(SLOT + i))
    mbarrier.arrive(barrier)


@gluon.jit
def _pass_over(full, empty, i, blocks):
    """Leave some blocks unused, from the i-th in the ring of buffers on; the one after them."""
    S: gl.constexpr = full.shape[0]
    for _ in range(blocks):
        mbarrier.wait(full.index(i % S), (i // S) & 1)
        mbarrier.arrive(empty.index(i % S))
        i += 1
    return i


@gluon.jit
def _buffers(a_desc, b_desc, N: gl.constexpr):
    """Room for N blocks of two tensors."""
    a = gl.allocate_shared_memory(a_desc.dtype, [N] + a_desc.block_type.shape, a_desc.layout)
    b = gl.allocate_shared_memory(b_desc.dtype, [N] + b_desc.block_type.shape, b_desc.layout)
    return a, b


# --- gradients of keys and values ---


@gluon.jit
def _load_queries(drawn, descs, sums, memory, plan, count, T, scale, H, CAUSAL: gl.constexpr, ABREAST: gl.constexpr):
    """Load tiles of keys and values, the next one while the last is in use, and all blocks of queries that see them.

    Beside a block lie `-lse / scale` and `-delta`, with which the products begin.
    """
    k_desc, v_desc, q_desc, grad_desc = descs
    k_smem, v_smem, q_smem, grad_smem, lse_smem, delta_smem, room, own_full, own_empty, full, empty = memory
    S: gl.constexpr = q_smem.shape[0]
    BN: gl.constexpr = q_smem.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([2], [32], [1], [0])
    number = gl.program_id(0)
    t = 0  # tiles and blocks so far
    i = 0
    while number < count * H:
        first, h, begin, end = find_tile(number, plan, count, H, False, ABREAST)
        if first < end:
            slot = t & 1
            mbarrier.wait(own_empty.index(slot), ((t // 2) & 1) ^ 1)
            _load_own(k_desc, v_desc, k_smem, v_smem, room.index(slot), own_full.index(slot), (first, h, begin, end),
                      2 * slot)
            t += 1
            n = begin
            if CAUSAL:
                n = first
            if sums[0] is not None:
                lse = sums[0] + gl.cast(h, gl.int64) * T
                delta = sums[1] + gl.cast(h, gl.int64) * T
            rows = n + gl.arange(0, BN, layout)
            while n < end:
                stage = i % S
                barrier = full.index(stage)
                if sums[0] is not None:
                    past = gl.load(lse + rows, mask=rows < end, other=1e30)  # past the row's end: weight 0
                    deltas = gl.load(delta + rows, mask=rows < end, other=0.0)
                mbarrier.wait(empty.index(stage), ((i // S) & 1) ^ 1)
                mbarrier.expect(barrier, q_desc.block_type.nbytes + grad_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(q_desc, [n, h, 0], barrier, q_smem.index(stage))
                tma.async_copy_global_to_shared(grad_desc, [n, h, 0], barrier, grad_smem.index(stage))
                if sums[0] is not None:
                    lse_smem.index(stage).store(past * (-1.0 / scale))
                    delta_smem.index(stage).store(-deltas)
                mbarrier.arrive(barrier)
                rows += BN
                n += BN
                i += 1
        number = draw(drawn)
    send_home(room.index(t & 1), own_full.index(t & 1), own_empty.index(t & 1), (t // 2) & 1)


@gluon.jit
def _see_queries(dk, dv, k, v, buffers, stage, n, first, end, scale, CAUSAL: gl.constexpr, ACT: gl.constexpr):
    """The gradients of keys and values from `first` on, with what a block of queries at n adds."""
    q_smem, grad_smem, lse_smem, delta_smem = buffers
    BM: gl.constexpr = k.shape[0]
    BD: gl.constexpr = k.shape[1]
    BN: gl.constexpr = q_smem.shape[1]
    dtype: gl.constexpr = k.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, dk.type.layout, 2)
    s_cols: gl.constexpr = gl.SliceLayout(0, s_layout)
    zeros = gl.full([BM, BN], 0.0, gl.float32, s_layout)
    q = q_smem.index(stage).reshape([BN, BD])
    grad = grad_smem.index(stage).reshape([BN, BD])
    if ACT:
        scores = warpgroup_mma(k, q.permute([1, 0]), zeros, use_acc=False, is_async=True)
        dots = warpgroup_mma(v, grad.permute([1, 0]), zeros, use_acc=False, is_async=True)
        x = scaled(warpgroup_mma_wait(1, [scores]), scale, ACT)
        if n + BN > end:  # of a softmax, queries past the row's end have a log-sum-exp that makes it 0
            x = gl.where((n + gl.arange(0, BN, s_cols) < end)[None, :], x, hidden(ACT))
    else:
        past, _ = gl.broadcast(lse_smem.index(stage).load(s_cols)[None, :], zeros)
        deltas, _ = gl.broadcast(delta_smem.index(stage).load(s_cols)[None, :], zeros)
        scores = warpgroup_mma(k, q.permute([1, 0]), past, is_async=True)
        dots = warpgroup_mma(v, grad.permute([1, 0]), deltas, is_async=True)
        x = gl.exp2(scaled(warpgroup_mma_wait(1, [scores]), scale, ACT))
    if CAUSAL:
        if n < first + BM:
            keys = first + gl.arange(0, BM, gl.SliceLayout(1, s_layout))
            x = gl.where((n + gl.arange(0, BN, s_cols))[None, :] >= keys[:, None], x, hidden(ACT))
    p, change = weights_and_slopes(x, dtype, ACT)
    weights = gl.convert_layout(p.to(dtype), p_layout)
    dp = warpgroup_mma_wait(0, [dots])
    dv_next = warpgroup_mma(weights, grad, dv, is_async=True)
    ds = gl.convert_layout(changed(change, dp, ACT).to(dtype), p_layout)
    dk_next = warpgroup_mma(ds, q, dk, is_async=True)
    dv, dk, weights, ds = warpgroup_mma_wait(0, [dv_next, dk_next, weights, ds])
    return dk, dv


@gluon.jit
def _add_to_keys(memory, dk_target, dv_target, factors, H, WHICH: gl.constexpr, D: gl.constexpr, DV: gl.constexpr,
                 CAUSAL: gl.constexpr, ACT: gl.constexpr):
    """The gradients of one warp group's keys and values of each tile."""
    k_smem, v_smem, q_smem, grad_smem, lse_smem, delta_smem, room, own_full, own_empty, full, empty = memory
    S: gl.constexpr = q_smem.shape[0]
    BM: gl.constexpr = k_smem.shape[1]
    BN: gl.constexpr = q_smem.shape[1]
    BD: gl.constexpr = k_smem.shape[3]
    dtype: gl.constexpr = k_smem.dtype
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    buffers = (q_smem, grad_smem, lse_smem, delta_smem)
    t = 0
    i = 0
    mbarrier.wait(own_full.index(0), 0)
    tile, h, begin, end = hear(room.index(0))
    while tile >= 0:
        first = tile + WHICH * BM
        start = begin
        unseen = 0
        if CAUSAL:
            start = tile
            unseen = WHICH  # the first 64 queries come before the second group's keys
        blocks = (end - start + BN - 1) // BN
        if first >= end:
            unseen = blocks
        i = _pass_over(full, empty, i, unseen)
        dk = gl.full([BM, BD], 0.0, gl.float32, o_layout)
        dv = gl.full([BM, BD], 0.0, gl.float32, o_layout)
        k = k_smem.index(2 * (t & 1) + WHICH).reshape([BM, BD])
        v = v_smem.index(2 * (t & 1) + WHICH).reshape([BM, BD])
        for j in range(unseen, blocks):
            mbarrier.wait(full.index(i % S), (i // S) & 1)
            dk, dv = _see_queries(dk, dv, k, v, buffers, i % S, start + j * BN, first, end, factors[0], CAUSAL, ACT)
            mbarrier.arrive(empty.index(i % S))
            i += 1
        mbarrier.arrive(own_empty.index(t & 1))
        if ACT:
            dv = dv * share(factors, begin, end, ACT)
        store_rows(dv_target, dv.to(dtype), first, h, end, H, DV)
        store_rows(dk_target, (dk * slope(factors, begin, end, ACT)).to(dtype), first, h, end, H, D)
        t += 1
        mbarrier.wait(own_full.index(t & 1), (t // 2) & 1)
        tile, h, begin, end = hear(room.index(t & 1))


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _keys(drawn, k_desc, v_desc, q_desc, grad_desc, lse, delta, dk, dv, plan, count, T, factors, ACT: gl.constexpr, H,
          D: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr, ABREAST: gl.constexpr):
    """The gradients of tiles of keys and values, from the one range of queries that can see them."""
    S: gl.constexpr = 2
    BN: gl.constexpr = q_desc.block_type.shape[0]
    k_smem, v_smem = _buffers(k_desc, v_desc, 4)
    q_smem, grad_smem = _buffers(q_desc, grad_desc, S)
    row: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    lse_smem = gl.allocate_shared_memory(gl.float32, [S, BN], row)
    delta_smem = gl.allocate_shared_memory(gl.float32, [S, BN], row)
    memory = (k_smem, v_smem, q_smem, grad_smem, lse_smem, delta_smem, room_for_places(2), barriers(2, 2),
              barriers(2, 2), barriers(S, 2), barriers(S, 2))
    fence_async_shared()
    gl.warp_specialize([
        (_add_to_keys, (memory, dk, dv, factors, H, 0, D, DV, CAUSAL, ACT)),
        (_add_to_keys, (memory, dk, dv, factors, H, 1, D, DV, CAUSAL, ACT)),
        (_load_queries, (drawn, (k_desc, v_desc, q_desc, grad_desc), (lse, delta), memory, plan, count, T, factors[0],
                         H, CAUSAL, ABREAST)),
    ], [4, 1], [240, 24])


# --- gradients of queries ---


@gluon.jit
def _load_keys(drawn, descs, memory, plan, count, H, CAUSAL: gl.constexpr, ABREAST: gl.constexpr):
    """Load tiles of queries and what comes back to them, and all blocks of keys and values that they see, from the end.

    Ahead of the blocks comes the tile's output, half of it in the place of keys, half in that of values.
    """
    q_desc, grad_desc, out_desc, k_desc, v_desc = descs
    q_smem, grad_smem, k_smem, v_smem, room, own_full, own_empty, full, empty = memory
    S: gl.constexpr = k_smem.shape[0]
    BM: gl.constexpr = q_smem.shape[1]
    BN: gl.constexpr = k_smem.shape[1]
    number = gl.program_id(0)
    t = 0  # tiles and blocks so far
    i = 0
    while number < count * H:
        first, h, begin, end = find_tile(number, plan, count, H, CAUSAL, ABREAST)
        if first < end:
            mbarrier.wait(own_empty.index(0), (t & 1) ^ 1)
            _load_own(q_desc, grad_desc, q_smem, grad_smem, room.index(0), own_full.index(0), (first, h, begin, end), 0)
            t += 1
            if out_desc is not None:
                barrier = full.index(i % S)
                mbarrier.wait(empty.index(i % S), ((i // S) & 1) ^ 1)
                mbarrier.expect(barrier, 2 * out_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(out_desc, [first, h, 0], barrier, k_smem.index(i % S))
                tma.async_copy_global_to_shared(out_desc, [first + BM, h, 0], barrier, v_smem.index(i % S))
                i += 1
            n = begin + count_blocks(first, begin, end, 2 * BM, BN, CAUSAL) * BN
            while n > begin:
                n -= BN
                barrier = full.index(i % S)
                mbarrier.wait(empty.index(i % S), ((i // S) & 1) ^ 1)
                mbarrier.expect(barrier, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(k_desc, [n, h, 0], barrier, k_smem.index(i % S))
                tma.async_copy_global_to_shared(v_desc, [n, h, 0], barrier, v_smem.index(i % S))
                i += 1
        number = draw(drawn)
    send_home(room.index(0), own_full.index(0), own_empty.index(0), t & 1)


@gluon.jit
def weights_and_slopes(x, dtype: gl.constexpr, ACT: gl.constexpr):
    """The weights that follow from those of a softmax, or half the scores under silu, and what `changed` takes."""
    p, change = x, x
    if ACT:
        p, change = silu(x, dtype)
    return p, change


@gluon.jit
def maskable(s, past, scale, ACT: gl.constexpr):
    """Products s as the weights of a softmax whose log-sum-exp is `past`, or half the scores under silu: see `hidden`.
    """
    x = scaled(s, scale, ACT)
    return x if ACT else gl.exp2(x - past[:, None])


@gluon.jit
def of_scores(change, dp, deltas, dtype: gl.constexpr, ACT: gl.constexpr):
    """The gradients of scores, from those of their weights."""
    if not ACT:
        dp = dp - deltas[:, None]
    return changed(change, dp, ACT).to(dtype)


@gluon.jit
def _see_keys(q, do, sums, memory, i, last, place, scale, CAUSAL: gl.constexpr, ACT: gl.constexpr):
    """The gradient of queries, from the i-th block in the ring of buffers to the last, of which the i-th is masked.

    The product of a block's gradients of scores with its keys is under way with those of the next block.
    """
    _, _, k_smem, v_smem, _, _, own_empty, full, empty = memory
    past, deltas = sums
    first, begin, end = place
    S: gl.constexpr = k_smem.shape[0]
    BM: gl.constexpr = q.shape[0]
    BN: gl.constexpr = k_smem.shape[1]
    BD: gl.constexpr = q.shape[1]
    dtype: gl.constexpr = q.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    zeros = gl.full([BM, BN], 0.0, gl.float32, s_layout)
    dq = gl.full([BM, BD], 0.0, gl.float32, o_layout)
    high = first + 1 + gl.arange(0, BM, gl.SliceLayout(1, s_layout))
    high = gl.minimum(high, end) if CAUSAL else high * 0 + end
    mbarrier.wait(full.index(i % S), (i // S) & 1)
    k = k_smem.index(i % S).reshape([BN, BD])
    v = v_smem.index(i % S).reshape([BN, BD])
    scores = warpgroup_mma(q, k.permute([1, 0]), zeros, use_acc=False, is_async=True)
    dots = warpgroup_mma(do, v.permute([1, 0]), zeros, use_acc=False, is_async=True)
    x = maskable(warpgroup_mma_wait(1, [scores]), past, scale, ACT)
    keys = begin + (last - i) * BN + gl.arange(0, BN, gl.SliceLayout(0, s_layout))
    _, change = weights_and_slopes(gl.where(keys[None, :] < high[:, None], x, hidden(ACT)), dtype, ACT)
    dp = warpgroup_mma_wait(0, [dots])
    mbarrier.arrive(own_empty.index(0))  # not before products have used q and do: a load has read nothing yet
    ds = gl.convert_layout(of_scores(change, dp, deltas, dtype, ACT), p_layout)
    for j in range(i + 1, last + 1):
        mbarrier.wait(full.index(j % S), (j // S) & 1)
        k = k_smem.index(j % S).reshape([BN, BD])
        v = v_smem.index(j % S).reshape([BN, BD])
        before = k_smem.index((j - 1) % S).reshape([BN, BD])
        scores = warpgroup_mma(q, k.permute([1, 0]), zeros, use_acc=False, is_async=True)
        dots = warpgroup_mma(do, v.permute([1, 0]), zeros, use_acc=False, is_async=True)
        more = warpgroup_mma(ds, before, dq, is_async=True)
        _, change = weights_and_slopes(maskable(warpgroup_mma_wait(2, [scores]), past, scale, ACT), dtype, ACT)
        fresh = of_scores(change, warpgroup_mma_wait(1, [dots]), deltas, dtype, ACT)
        dq, ds = warpgroup_mma_wait(0, [more, ds])
        mbarrier.arrive(empty.index((j - 1) % S))
        ds = gl.convert_layout(fresh, p_layout)
    before = k_smem.index(last % S).reshape([BN, BD])
    dq, ds = warpgroup_mma_wait(0, [warpgroup_mma(ds, before, dq, is_async=True), ds])
    mbarrier.arrive(empty.index(last % S))
    return dq


@gluon.jit
def _add_to_queries(memory, tensors, T, factors, H, WHICH: gl.constexpr, D: gl.constexpr, CAUSAL: gl.constexpr,
                    ACT: gl.constexpr):
    """The gradient of one warp group's queries of each tile, and their delta."""
    grad_lse, lse, delta_target, dq_target = tensors
    q_smem, grad_smem, k_smem, v_smem, room, own_full, own_empty, full, empty = memory
    S: gl.constexpr = k_smem.shape[0]
    BM: gl.constexpr = q_smem.shape[1]
    BN: gl.constexpr = k_smem.shape[1]
    BD: gl.constexpr = k_smem.shape[3]
    dtype: gl.constexpr = k_smem.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    q_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    t = 0
    i = 0
    mbarrier.wait(own_full.index(0), 0)
    tile, h, begin, end = hear(room.index(0))
    while tile >= 0:
        first = tile + WHICH * BM
        # what comes from registers loads shared memory less, which is near its limit
        q = q_smem.index(WHICH).reshape([BM, BD]).load(q_layout)
        do = grad_smem.index(WHICH).reshape([BM, BD]).load(q_layout)
        if ACT:
            sums = (None, None)
        else:
            rows = first + gl.arange(0, BM, s_rows)
            at = gl.cast(h, gl.int64) * T + rows
            past = gl.load(lse + at, mask=rows < end, other=0.0)
            mbarrier.wait(full.index(i % S), (i // S) & 1)
            half = k_smem if WHICH == 0 else v_smem
            out = half.index(i % S).reshape([BM, BD]).load(q_layout)
            deltas = gl.convert_layout(gl.sum(out.to(gl.float32) * do.to(gl.float32), 1), s_rows)
            if grad_lse is not None:  # the log-sum-exp grows with each score by its weight
                deltas -= gl.load(grad_lse + at, mask=rows < end, other=0.0) * 1.4426950408889634
            gl.store(delta_target + at, deltas, mask=rows < end)
            mbarrier.arrive(empty.index(i % S))  # now that out has been used
            i += 1
            sums = (past, deltas)
        last = i + count_blocks(tile, begin, end, 2 * BM, BN, CAUSAL) - 1
        if first < end:
            i = _pass_over(full, empty, i, last + 1 - i - count_blocks(first, begin, end, BM, BN, CAUSAL))
            dq = _see_keys(q, do, sums, memory, i, last, (first, begin, end), factors[0], CAUSAL, ACT)
            store_rows(dq_target, (dq * slope(factors, begin, end, ACT)).to(dtype), first, h, end, H, D)
        else:
            mbarrier.arrive(own_empty.index(0))
            _pass_over(full, empty, i, last + 1 - i)
        i = last + 1
        t += 1
        mbarrier.wait(own_full.index(0), t & 1)
        tile, h, begin, end = hear(room.index(0))


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _queries(drawn, q_desc, grad_desc, out_desc, k_desc, v_desc, grad_lse, lse, delta, dq, plan, count, T, factors,
             ACT: gl.constexpr, H, D: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr, ABREAST: gl.constexpr):
    """The gradient of tiles of queries; on the way delta, the sum of out · grad of each, for `_keys`."""
    S: gl.constexpr = 3
    q_smem, grad_smem = _buffers(q_desc, grad_desc, 2)
    k_smem, v_smem = _buffers(k_desc, v_desc, S)
    memory = (q_smem, grad_smem, k_smem, v_smem, room_for_places(1), barriers(1, 2), barriers(1, 2), barriers(S, 1),
              barriers(S, 2))
    fence_async_shared()
    tensors = (grad_lse, lse, delta, dq)
    gl.warp_specialize([
        (_add_to_queries, (memory, tensors, T, factors, H, 0, D, CAUSAL, ACT)),
        (_add_to_queries, (memory, tensors, T, factors, H, 1, D, CAUSAL, ACT)),
        (_load_keys, (drawn, (q_desc, grad_desc, out_desc, k_desc, v_desc), memory, plan, count, H, CAUSAL, ABREAST)),
    ], [4, 1], [240, 24])
