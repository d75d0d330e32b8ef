"""The backward kernels of plain jagged self-attention for Hopper, in Gluon, for heads 33 to 64 wide.

A program is one warp group with a tile of 64 events; three or four share a multiprocessor and cover for each other.
One kernel gives the gradients of queries, one those of keys and values. No atomics: each gradient is written once.

The last block of a tile is seen whole or by half, by one of two loops of one round or none. An `if` with both would be
compiled wrong: ptxas 12.8 sets addresses that both branches multiply from in one of them only.

The log-sum-exp and delta of a query reach the second kernel as factors of two small products: see `_store_terms`.
"""

# ruff: noqa: N803, N806, RUF005, SIM102 - conditions of the compiler and of the device do not combine

from collections.abc import Sequence
from dataclasses import dataclass

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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ....launch import launched
from ..plan import Plan
from ..problem import CAUSAL, Problem
from .backward import maskable, of_scores, weights_and_slopes
from .forward import barriers, changed, describe, fold, folds, hidden, scaled, share, slope, store_rows, weights_of
from .tiles import abreast, count_blocks, find_tile, number_of

TILE = 64  # events of a tile: what one matrix instruction takes
TERMS = 5  # planes of `_store_terms`
SUMMED = 16  # of which a product sums over no fewer: the copy engine fills the rest with zeros


@dataclass(frozen=True)
class _Sizes:
    """Events of the blocks that a kernel works through, how many of these it has asked for at a time, registers."""

    block: int
    stages: int
    registers: int


_QUERIES, _KEYS = _Sizes(64, 2, 128), _Sizes(64, 2, 168)


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
    pointwise = problem.pointwise
    tiles = plan.queries(TILE)
    count = tiles.shape[1]
    terms = None if pointwise else q.new_empty((heads, TERMS, count * TILE), dtype=torch.bfloat16)
    numbers = (tiles, count, events, *weights_of(problem), heads, width, v.shape[2], problem.kind == CAUSAL,
               abreast(heads, plan.tiling.heads_first), folds(problem, q))
    size = _QUERIES
    _queries[(count * heads,)](
        describe(q, TILE), describe(grad, TILE), describe(k, size.block), describe(v, size.block), out, grad_lse, lse,
        terms, dq, *numbers, size.stages, num_warps=4, maxnreg=size.registers)
    size = _KEYS
    _keys[(count * heads,)](
        describe(k, TILE), describe(v, TILE), describe(q, size.block), describe(grad, size.block),
        None if terms is None else _describe_terms(terms, size.block), dk, dv, *numbers, size.stages, num_warps=4,
        maxnreg=size.registers)


def _describe_terms(x: Tensor, block: int) -> TensorDescriptor:
    """Describe terms `(H, 5, events of all tiles)` to the copy engine: loads of 16 planes, eleven of them 0."""
    layout = gl.NVMMASharedLayout(128, 16, rank=3)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, SUMMED, block], layout)


@gluon.jit
def _load(descs, buffers, full, j, blocks, n, h, tile):
    """Ask for block j, at n, of each of some tensors, if there is that block; of terms for that of a tile."""
    stage = j % full.shape[0]
    there = j < blocks
    size: gl.constexpr = _bytes(descs)
    mbarrier.expect(full.index(stage), size, pred=there)
    for i in gl.static_range(len(descs)):
        at = [n, h, 0]
        if descs[i].block_type.shape[0] == 1:
            at = [h, 0, tile * descs[i].block_type.shape[2]]
        tma.async_copy_global_to_shared(descs[i], at, full.index(stage), buffers[i].index(stage), pred=there)


@gluon.constexpr_function
def _bytes(descs):
    """The size of a block of each of some tensors."""
    return sum(each.block_type.nbytes for each in descs)


@gluon.jit
def _buffer(desc, N: gl.constexpr):
    """Room for N blocks of a tensor."""
    return gl.allocate_shared_memory(desc.dtype, [N] + desc.block_type.shape, desc.layout)


# --- gradients of keys and values ---


@gluon.jit
def _see_queries(dk, dv, k, v, buffers, stage, n, first, end, scale, N: gl.constexpr, CAUSAL: gl.constexpr,
                 LAST: gl.constexpr, ACT: gl.constexpr):
    """The gradients of a tile of keys and values, with what the first N queries of a block at n add.

    Only of the LAST block some may lie past the end of the row.
    """
    BM: gl.constexpr = k.shape[0]
    BD: gl.constexpr = k.shape[1]
    BN: gl.constexpr = buffers[0].shape[1]
    dtype: gl.constexpr = k.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    a_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    p_layout: gl.constexpr = gl.DotOperandLayout(0, dk.type.layout, 2)
    q = buffers[0].index(stage).reshape([BN, BD]).slice(0, N)
    grad = buffers[1].index(stage).reshape([BN, BD]).slice(0, N)
    zeros = gl.full([BM, N], 0.0, gl.float32, s_layout)
    if ACT:
        scores = warpgroup_mma(k, q.permute([1, 0]), zeros, use_acc=False, is_async=True)
        dots = warpgroup_mma(v, grad.permute([1, 0]), zeros, use_acc=False, is_async=True)
        x = scaled(warpgroup_mma_wait(1, [scores]), scale, ACT)
    else:
        column = gl.arange(0, 16, gl.SliceLayout(0, a_layout))[None, :] + gl.full([BM, 16], 0, gl.int32, a_layout)
        take_lse = gl.where(column < 3, 1.0, 0.0).to(gl.bfloat16)
        take_delta = gl.where((column == 3) | (column == 4), 1.0, 0.0).to(gl.bfloat16)
        terms = buffers[2].index(stage).reshape([16, BN]).slice(0, N, 1)
        scores = warpgroup_mma(take_lse, terms, zeros, use_acc=False, is_async=True)
        scores = warpgroup_mma(k, q.permute([1, 0]), scores, is_async=True)
        dots = warpgroup_mma(take_delta, terms, zeros, use_acc=False, is_async=True)
        dots = warpgroup_mma(v, grad.permute([1, 0]), dots, is_async=True)
        x = gl.exp2(scaled(warpgroup_mma_wait(2, [scores]), scale, ACT))
    rows = n + gl.arange(0, N, gl.SliceLayout(0, s_layout))
    if CAUSAL:
        keys = first + gl.arange(0, BM, gl.SliceLayout(1, s_layout))
        if (n < first + BM) | (n + N > end):
            seen = (rows[None, :] >= keys[:, None]) & (rows < end)[None, :]
            x = gl.where(seen, x, hidden(ACT))
    elif LAST:
        if n + N > end:
            x = gl.where((rows < end)[None, :], x, hidden(ACT))
    p, change = weights_and_slopes(x, dtype, ACT)
    weights = gl.convert_layout(p.to(dtype), p_layout)
    dp = warpgroup_mma_wait(0, [dots])
    dv_next = warpgroup_mma(weights, grad, dv, is_async=True)
    ds = gl.convert_layout(changed(change, dp, ACT).to(dtype), p_layout)
    dk_next = warpgroup_mma(ds, q, dk, is_async=True)
    dv, dk, weights, ds = warpgroup_mma_wait(0, [dv_next, dk_next, weights, ds])
    return dk, dv


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _keys(k_desc, v_desc, q_desc, grad_desc, terms_desc, dk_target, dv_target, plan, count, T, factors,
          ACT: gl.constexpr, H, D: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr, ABREAST: gl.constexpr,
          FOLDED: gl.constexpr, S: gl.constexpr):
    """The gradients of a tile of keys and values, from the one range of queries that can see them."""
    BM: gl.constexpr = k_desc.block_type.shape[0]
    BN: gl.constexpr = q_desc.block_type.shape[0]
    BD: gl.constexpr = k_desc.block_type.shape[2]
    dtype: gl.constexpr = k_desc.dtype
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    first, h, begin, end = find_tile(gl.program_id(0), plan, count, H, False, ABREAST)
    if first < end:
        tile, _ = number_of(gl.program_id(0), count, H, False, ABREAST)
        start = begin
        if CAUSAL:
            start = first
        else:
            tile -= (first - begin) // BN  # the first of the row: blocks are tiles of queries
        blocks = (end - start + BN - 1) // BN
        k_smem, v_smem = _buffer(k_desc, 1), _buffer(v_desc, 1)
        q_smem, grad_smem = _buffer(q_desc, S), _buffer(grad_desc, S)
        if ACT:
            descs = (q_desc, grad_desc)
            buffers = (q_smem, grad_smem)
        else:
            terms_smem = _buffer(terms_desc, S)
            descs = (q_desc, grad_desc, terms_desc)
            buffers = (q_smem, grad_smem, terms_smem)
        own, full = barriers(1, 1), barriers(S, 1)
        fence_async_shared()
        _load((k_desc, v_desc), (k_smem, v_smem), own, 0, 1, first, h, tile)
        for j in gl.static_range(S):
            _load(descs, buffers, full, j, blocks, start + j * BN, h, tile + j)
        dk = gl.full([BM, BD], 0.0, gl.float32, o_layout)
        dv = gl.full([BM, BD], 0.0, gl.float32, o_layout)
        mbarrier.wait(own.index(0), 0)
        k = k_smem.index(0).reshape([BM, BD])
        v = v_smem.index(0).reshape([BM, BD])
        scale = factors[0]
        if FOLDED:
            fold(k, 0.5 * scale)
            scale = None
        for j in range(blocks - 1):
            stage = j % S
            mbarrier.wait(full.index(stage), (j // S) & 1)
            dk, dv = _see_queries(dk, dv, k, v, buffers, stage, start + j * BN, first, end, scale, BN, CAUSAL, False,
                                  ACT)
            gl.thread_barrier()  # all warps are through with the block
            _load(descs, buffers, full, j + S, blocks, start + (j + S) * BN, h, tile + j + S)
        stage = (blocks - 1) % S
        n = start + (blocks - 1) * BN
        mbarrier.wait(full.index(stage), ((blocks - 1) // S) & 1)
        some = gl.where(end - n <= BN // 2, 1, 0)
        for _ in range(some):
            dk, dv = _see_queries(dk, dv, k, v, buffers, stage, n, first, end, scale, BN // 2, CAUSAL, True, ACT)
        for _ in range(1 - some):
            dk, dv = _see_queries(dk, dv, k, v, buffers, stage, n, first, end, scale, BN, CAUSAL, True, ACT)
        if ACT:
            dv = dv * share(factors, begin, end, ACT)
        store_rows(dv_target, dv.to(dtype), first, h, end, H, DV)
        store_rows(dk_target, (dk * slope(factors, begin, end, ACT)).to(dtype), first, h, end, H, D)


# --- gradients of queries ---


@gluon.jit
def _see_keys(dq, q, do, k, v, zeros, sums, n, limits, scale, ACT: gl.constexpr):
    """The gradient of queries, with what a block of keys at n adds.

    sums: log-sum-exp and delta of the queries, of a softmax; limits: the end of the keys that all of them see, and of
    those that each sees, None where they see the whole block; zeros: of a block's scores.
    """
    s_layout: gl.constexpr = zeros.type.layout
    p_layout: gl.constexpr = gl.DotOperandLayout(0, dq.type.layout, 2)
    BN: gl.constexpr = zeros.shape[1]
    scores = warpgroup_mma(q, k.permute([1, 0]), zeros, use_acc=False, is_async=True)
    dots = warpgroup_mma(do, v.permute([1, 0]), zeros, use_acc=False, is_async=True)
    x = maskable(warpgroup_mma_wait(1, [scores]), sums[0], scale, ACT)
    if limits is not None:
        if n + BN > limits[0]:
            seen = (n + gl.arange(0, BN, gl.SliceLayout(0, s_layout)))[None, :] < limits[1][:, None]
            x = gl.where(seen, x, hidden(ACT))
    _, change = weights_and_slopes(x, k.dtype, ACT)
    ds = of_scores(change, warpgroup_mma_wait(0, [dots]), sums[1], k.dtype, ACT)
    ds = gl.convert_layout(ds, p_layout)
    dq, ds = warpgroup_mma_wait(0, [warpgroup_mma(ds, k, dq, is_async=True), ds])
    return dq


@gluon.jit
def _load_rows(source, first, h, end, H, D: gl.constexpr, BM: gl.constexpr, BD: gl.constexpr, layout: gl.constexpr):
    """The events from `first` on, up to `end`, of one head of a contiguous (T, H, D): (BM, BD), in float32."""
    step = gl.arange(0, BM, gl.SliceLayout(1, layout))
    d = gl.arange(0, BD, gl.SliceLayout(0, layout))
    at = source + gl.cast(first, gl.int64) * (H * D) + h * D + (step[:, None] * (H * D) + d[None, :])
    return gl.load(at, mask=(first + step < end)[:, None] & (d[None, :] < D), other=0.0).to(gl.float32)


@gluon.jit
def _store_terms(target, lse, delta, tile, h, count, scale):
    """Store `-lse / scale` of a tile's queries as three bfloat16 terms, `-delta` as two: target (H, 5, count tiles).

    Three terms keep 24 bits, two 16, of which float16 gradients of scores keep 11. The copy engine reads where eight
    events begin, which rows do not: every tile has room of its own.
    """
    N: gl.constexpr = lse.shape[0]
    layout: gl.constexpr = gl.BlockedLayout([1, 2], [1, 32], [4, 1], [1, 0])
    plane = gl.arange(0, 8, gl.SliceLayout(1, layout))[:, None]
    step = gl.arange(0, N, gl.SliceLayout(0, layout))[None, :]
    lse = gl.convert_layout(lse, gl.SliceLayout(0, layout))
    delta = gl.convert_layout(delta, gl.SliceLayout(0, layout))
    rest = gl.where(plane < 3, (-lse / scale)[None, :], -delta[None, :])
    a = rest.to(gl.bfloat16)
    rest -= a.to(gl.float32)
    b = rest.to(gl.bfloat16)
    c = (rest - b.to(gl.float32)).to(gl.bfloat16)
    terms = gl.where(plane % 3 == 0, a, gl.where(plane % 3 == 1, b, c))
    at = target + gl.cast(h * 5 + plane, gl.int64) * (count * N) + (tile * N + step)
    gl.store(at, terms, mask=plane < 5)


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _queries(q_desc, grad_desc, k_desc, v_desc, out, grad_lse, lse, terms, dq_target, plan, count, T, factors,
             ACT: gl.constexpr, H, D: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr, ABREAST: gl.constexpr,
             FOLDED: gl.constexpr, S: gl.constexpr):
    """The gradient of a tile of queries; on the way delta, the sum of out · grad of each, for `_keys`."""
    BM: gl.constexpr = q_desc.block_type.shape[0]
    BN: gl.constexpr = k_desc.block_type.shape[0]
    BD: gl.constexpr = k_desc.block_type.shape[2]
    dtype: gl.constexpr = k_desc.dtype
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    io: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BD, BD // 8], [4, 1], [1, 0])
    first, h, begin, end = find_tile(gl.program_id(0), plan, count, H, CAUSAL, ABREAST)
    if first < end:
        blocks = count_blocks(first, begin, end, BM, BN, CAUSAL)
        q_smem, grad_smem = _buffer(q_desc, 1), _buffer(grad_desc, 1)
        k_smem, v_smem = _buffer(k_desc, S), _buffer(v_desc, S)
        own, full = barriers(1, 1), barriers(S, 1)
        fence_async_shared()
        _load((q_desc, grad_desc), (q_smem, grad_smem), own, 0, 1, first, h, 0)
        for j in gl.static_range(S):
            _load((k_desc, v_desc), (k_smem, v_smem), full, j, blocks, begin + j * BN, h, 0)
        if ACT:
            past, deltas = None, None
            mbarrier.wait(own.index(0), 0)
            q = q_smem.index(0).reshape([BM, BD])
            do = grad_smem.index(0).reshape([BM, BD])
        else:
            ours = _load_rows(out, first, h, end, H, DV, BM, BD, io)
            rows_io = first + gl.arange(0, BM, gl.SliceLayout(1, io))
            of_head = gl.cast(h, gl.int64) * T
            past_io = gl.load(lse + of_head + rows_io, mask=rows_io < end, other=0.0)
            mbarrier.wait(own.index(0), 0)
            q = q_smem.index(0).reshape([BM, BD])
            do = grad_smem.index(0).reshape([BM, BD])
            deltas_io = gl.sum(ours * do.load(io).to(gl.float32), 1)
            if grad_lse is not None:  # the log-sum-exp grows with each score by its weight
                deltas_io -= gl.load(grad_lse + of_head + rows_io, mask=rows_io < end, other=0.0) * 1.4426950408889634
            tile, _ = number_of(gl.program_id(0), count, H, CAUSAL, ABREAST)
            _store_terms(terms, past_io, deltas_io, tile, h, count, factors[0])
            past = gl.convert_layout(past_io, s_rows)
            deltas = gl.convert_layout(deltas_io, s_rows)
        scale = factors[0]
        if FOLDED:
            fold(q, 0.5 * scale)
            scale = None
        rows = first + gl.arange(0, BM, s_rows)
        high = rows * 0 + end
        safe = end
        if CAUSAL:
            high = gl.minimum(high, rows + 1)
            safe = gl.minimum(end, first)
        dq = gl.full([BM, BD], 0.0, gl.float32, o_layout)
        zeros = gl.full([BM, BN], 0.0, gl.float32, s_layout)
        for j in range(blocks - 1):
            stage = j % S
            mbarrier.wait(full.index(stage), (j // S) & 1)
            k = k_smem.index(stage).reshape([BN, BD])
            v = v_smem.index(stage).reshape([BN, BD])
            dq = _see_keys(dq, q, do, k, v, zeros, (past, deltas), 0, None, scale, ACT)
            gl.thread_barrier()  # all warps are through with the block
            _load((k_desc, v_desc), (k_smem, v_smem), full, j + S, blocks, begin + (j + S) * BN, h, 0)
        stage = (blocks - 1) % S
        n = begin + (blocks - 1) * BN
        mbarrier.wait(full.index(stage), ((blocks - 1) // S) & 1)
        k = k_smem.index(stage).reshape([BN, BD])
        v = v_smem.index(stage).reshape([BN, BD])
        some = gl.where(end - n <= BN // 2, 1, 0)
        half: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN // 2, 16])
        rows_of: gl.constexpr = gl.SliceLayout(1, half)
        for _ in range(some):
            few = gl.full([BM, BN // 2], 0.0, gl.float32, half)
            sums = (past, deltas)
            if not ACT:
                sums = (gl.convert_layout(past, rows_of), gl.convert_layout(deltas, rows_of))
            dq = _see_keys(dq, q, do, k.slice(0, BN // 2), v.slice(0, BN // 2), few, sums, n,
                          (safe, gl.convert_layout(high, rows_of)), scale, ACT)
        for _ in range(1 - some):
            dq = _see_keys(dq, q, do, k, v, zeros, (past, deltas), n, (safe, high), scale, ACT)
        store_rows(dq_target, (dq * slope(factors, begin, end, ACT)).to(dtype), first, h, end, H, D)
