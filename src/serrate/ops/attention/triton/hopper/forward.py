"""The forward kernels of plain jagged self-attention for Hopper, in Gluon, with the loads and products spelled out.

Both let 64 queries a warp group see the keys of their row in blocks, the last block first: it alone is masked. The
product of queries with block j and that of the weights with the values of block j - 1 are under way together; block j
of keys and block j - 1 of values therefore share a barrier, here called pair j.

- `_one_group`: a warp group of its own for each 64 queries, several on a multiprocessor, which cover for each other.
  Weights stay relative to the maxima of the block seen first, unless the sum of a row tells that others are far above;
- `_two_groups`: 128 queries, two warp groups that take turns at the matrix units, and a warp that loads; for width 128.
  Such a program fills a multiprocessor: it stays and draws tiles (`tiles.py`).

What one tile does not need of a block at its row's end or beyond belongs to other rows or is zero, and gets weight 0.
"""

# ruff: noqa: N803, N806, RUF005

import math
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
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from ....launch import launched
from ..plan import Plan, block_width
from ..problem import CAUSAL, Problem
from ..weigh import share_of
from .tiles import abreast, count_blocks, draw, find_tile, hear, room_for_places, send_home, stay, tell

_GROUP = 64  # queries of a warp group: what one matrix instruction takes


def launch(inputs: Sequence[Tensor], problem: Problem, plan: Plan, results: Sequence[Tensor]) -> None:
    """Fill the results, output `(T, H, Dv)` and log-sum-exp `(H, T)` in base 2, from q, k and v.

    The copy engine can read q, k and v, which have events.
    """
    q, k, v = inputs
    events, heads, _ = q.shape
    size, heads_first = plan.tiling.forward.tile, plan.tiling.heads_first
    tiles = plan.queries(size)
    # long rows are worth larger blocks
    block = 128 if size == 2 * _GROUP or not heads_first else 64
    count = tiles.shape[1]
    arguments = (describe(q, _GROUP), describe(k, block), describe(v, block), *results, tiles, count, events,
                 *weights_of(problem), heads, heads // k.shape[1], v.shape[2], problem.kind == CAUSAL,
                 abreast(heads, heads_first))
    if size == 2 * _GROUP:
        programs, drawn = stay(count * heads, q.device)
        _two_groups[(programs,)](drawn, *arguments, num_warps=4)
    else:
        _one_group[(count * heads,)](*arguments, folds(problem, q), num_warps=4)


def weights_of(problem: Problem) -> tuple[tuple[float, float], int]:
    """Return what scores and weights are multiplied by, and ACT: 0 softmax, 1 silu, 2 silu over the row's length."""
    return (problem.factor, share_of(problem)), problem.activation and 1 + (problem.normaliser == 0)


def folds(problem: Problem, q: Tensor) -> bool:
    """Return whether what scores are multiplied by can be multiplied into one side of their products beforehand."""
    factor = problem.factor
    return problem.pointwise and q.dtype == torch.bfloat16 and factor <= 1 and math.frexp(factor)[0] == 0.5


def describe(x: Tensor, block: int) -> TensorDescriptor:
    """Describe x `(T, H, D)` to the copy engine, for loads of `block` events of one head, wide as a power of two."""
    layout = gl.NVMMASharedLayout(128, 16, rank=3)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [block, 1, block_width(x.shape[2])], layout)


# --- what both kernels do ---


@gluon.jit
def barriers(N: gl.constexpr, arrivals: gl.constexpr):
    """N barriers that each wait for some arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(N):
        mbarrier.init(barriers.index(i), count=arrivals)
    return barriers


@gluon.jit
def scaled(s, scale, ACT: gl.constexpr):
    """Products s as weights follow from them: scores, under silu half of them; scale None: s are these already."""
    return s if scale is None else s * (0.5 * scale) if ACT else s * scale


@gluon.jit
def hidden(ACT: gl.constexpr):
    """What stands where a key is not seen: weights of a softmax, or half the scores under silu, which has 0 there too.

    Not silu's weight and slope, two numbers, of which the compiler keeps the halves of registers apart.
    """
    return -1e30 if ACT else 0.0


@gluon.jit
def fold(tile, factor):
    """Multiply a tile (N, BD) in shared memory by a power of two, which rounds nothing, before products read it."""
    BD: gl.constexpr = tile.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BD, BD // 8], [4, 1], [1, 0])
    tile.store(tile.load(layout) * factor.to(tile.dtype))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def silu(x, dtype: gl.constexpr):
    """The weights of scores 2 x, for values of a dtype, and twice their slopes, less 1: see `weigh.activated`."""
    if dtype == gl.bfloat16:
        t = gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
        p = x * t + x
        change = (1.0 - t * t) * x + t
    else:
        y = gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [1.0 + gl.exp2(x * -2.8853900817779268)],
                                      dtype=gl.float32, is_pure=True, pack=1)
        p = (x + x) * y
        change = (1.0 - y) * (2.0 * p) + (2.0 * y - 1.0)
    return p, change


@gluon.jit
def share(factors, begin, end, ACT: gl.constexpr):
    """What pointwise weights of a row are multiplied by."""
    part = factors[1]
    if ACT == 2:
        part = 1.0 / (end - begin).to(gl.float32)
    return part


@gluon.jit
def changed(change, dp, ACT: gl.constexpr):
    """The gradients of scores but for `slope`, from what `silu` gives beside weights, or the weights of a softmax."""
    return change * dp + dp if ACT else change * dp


@gluon.jit
def slope(factors, begin, end, ACT: gl.constexpr):
    """What the gradients of scores are multiplied by on their way to queries and keys."""
    # `changed` gives pointwise weights twice that; a softmax counts in base 2
    return factors[0] * 0.5 * share(factors, begin, end, ACT) if ACT else factors[0] * 0.6931471805599453


@gluon.jit
def _sums(p):
    """Sums of the rows of p (BM, N), each by the four threads that hold it, (BM, 4): none waits for another."""
    BM: gl.constexpr = p.shape[0]
    layout: gl.constexpr = gl.DistributedLinearLayout(
        [[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [BM, 4])
    return gl.convert_layout(gl.sum(gl.sum(p.reshape([BM, p.shape[1] // 8, 4, 2]), 3), 1), layout, assert_trivial=True)


@gluon.jit
def no_sums(BM: gl.constexpr):
    """Sums of no weights, as `_sums` has them."""
    layout: gl.constexpr = gl.DistributedLinearLayout(
        [[8, 0]], [[0, 1], [0, 2], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [BM, 4])
    return gl.full([BM, 4], 0.0, gl.float32, layout)


@gluon.jit
def _seen(first, end, n, layout: gl.constexpr, BM: gl.constexpr, N: gl.constexpr, CAUSAL: gl.constexpr):
    """Which of N keys from n on the queries from `first` on see, in a row that ends at `end`: (BM, N)."""
    rows = first + gl.arange(0, BM, gl.SliceLayout(1, layout))
    high = rows * 0 + end
    if CAUSAL:
        high = gl.minimum(high, rows + 1)
    return (n + gl.arange(0, N, gl.SliceLayout(0, layout)))[None, :] < high[:, None]


@gluon.jit
def _product(q, k, N: gl.constexpr, layout: gl.constexpr):
    """The scores of the queries and the first N keys of a block."""
    zeros = gl.full([q.shape[0], N], 0.0, gl.float32, layout)
    s = warpgroup_mma(q, k.slice(0, N).permute([1, 0]), zeros, use_acc=False, is_async=True)
    return warpgroup_mma_wait(0, [s])


@gluon.jit
def _masked_part(q, k, m, first, end, n, scale, N: gl.constexpr, CAUSAL: gl.constexpr, ACT: gl.constexpr,
                 p_layout: gl.constexpr, row_layout: gl.constexpr):
    """See the first N keys of a block at n that is the first to be seen: maxima, sums, weights of the whole block.

    Weights are relative to m, or without one to the maxima.
    """
    BM: gl.constexpr = q.shape[0]
    BN: gl.constexpr = k.shape[0]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    s = _product(q, k, N, layout)
    seen = _seen(first, end, n, layout, BM, N, CAUSAL)
    if ACT:
        p, _ = silu(gl.where(seen, scaled(s, scale, ACT), hidden(ACT)), k.dtype)
        if m is None:
            m = gl.full([BM], 0.0, gl.float32, row_layout)
    elif m is None:
        s = gl.where(seen, s, float("-inf"))
        top = gl.max(s, 1) * scale
        p = gl.exp2(s * scale - top[:, None])
        m = gl.convert_layout(top, row_layout)
    else:
        top = gl.convert_layout(m, gl.SliceLayout(1, layout))
        p = gl.where(seen, gl.exp2(s * scale - top[:, None]), 0.0)
    total = _sums(p)
    p = p.to(k.dtype)
    if N < BN:
        p = gl.join(p, gl.full([BM, N], 0.0, k.dtype, layout)).permute([0, 2, 1]).reshape([BM, BN])
    return m, total, gl.convert_layout(p, p_layout)


@gluon.jit
def _masked_block(q, k, m, first, end, n, scale, CAUSAL: gl.constexpr, ACT: gl.constexpr, p_layout: gl.constexpr,
                  row_layout: gl.constexpr):
    """See the block of keys at n, the first to be seen; only half of it where the rest is masked anyway."""
    BN: gl.constexpr = k.shape[0]
    high = end
    if CAUSAL:
        high = gl.minimum(end, first + q.shape[0])
    if high - n <= BN // 2:
        top, total, p = _masked_part(q, k, m, first, end, n, scale, BN // 2, CAUSAL, ACT, p_layout, row_layout)
    else:
        top, total, p = _masked_part(q, k, m, first, end, n, scale, BN, CAUSAL, ACT, p_layout, row_layout)
    return top, total, p


@gluon.jit
def finish(acc, out, lse, m, total, first, h, begin, end, T, factors, H, DV: gl.constexpr, ACT: gl.constexpr):
    """Normalise and store the output of a tile, and of a softmax its log-sum-exp; m and total (BM,)."""
    if ACT:
        acc = acc * share(factors, begin, end, ACT)
    else:
        o_rows: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
        _store_lse(lse, m, total, first, h, end, T)
        acc = acc * gl.convert_layout(1.0 / total, o_rows)[:, None]
    store_rows(out, acc.to(out.dtype.element_ty), first, h, end, H, DV)


@gluon.jit
def _store_lse(target, m, total, first, h, end, T):
    """Store the log-sum-exp of the queries from `first` on, up to `end`: target (H, T)."""
    rows = first + gl.arange(0, m.shape[0], m.type.layout)
    log = gl.inline_asm_elementwise("lg2.approx.f32 $0, $1;", "=f,f", [total], dtype=gl.float32, is_pure=True, pack=1)
    gl.store(target + gl.cast(h, gl.int64) * T + rows, m + log, mask=rows < end)


@gluon.jit
def store_rows(target, values, first, h, end, H, D: gl.constexpr):
    """Store values (BM, BD) as the events from `first` on, up to `end`, of one head of a contiguous (T, H, D)."""
    BM: gl.constexpr = values.shape[0]
    BD: gl.constexpr = values.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BD, BD // 8], [4, 1], [1, 0])
    step = gl.arange(0, BM, gl.SliceLayout(1, layout))
    d = gl.arange(0, BD, gl.SliceLayout(0, layout))
    at = target + gl.cast(first, gl.int64) * (H * D) + h * D + (step[:, None] * (H * D) + d[None, :])
    gl.store(at, gl.convert_layout(values, layout), mask=(first + step < end)[:, None] & (d[None, :] < D))


# --- one warp group ---


@gluon.jit
def _load_pair(k_desc, v_desc, k_smem, v_smem, full, j, begin, n, g):
    """Ask for pair j, whose keys are at n, if its values are in the row; the keys may lie before it, unused."""
    S: gl.constexpr = k_smem.shape[0]
    BN: gl.constexpr = k_smem.shape[1]
    there = n + BN >= begin
    barrier = full.index(j % S)
    mbarrier.expect(barrier, k_desc.block_type.nbytes + v_desc.block_type.nbytes, pred=there)
    tma.async_copy_global_to_shared(k_desc, [n, g, 0], barrier, k_smem.index(j % S), pred=there)
    tma.async_copy_global_to_shared(v_desc, [n + BN, g, 0], barrier, v_smem.index((j - 1) % S), pred=there)


@gluon.jit
def _see_all(q_desc, k_desc, v_desc, memory, place, m, scale, ACT: gl.constexpr, FOLDED: gl.constexpr,
             GROUP: gl.constexpr, CAUSAL: gl.constexpr):
    """Let a tile see the keys of its row: what weights are relative to, their sums (BM,), the weighted values.

    They are relative to m, or without one to the maxima of the block that is seen first.
    """
    q_smem, k_smem, v_smem = memory
    first, h, begin, end = place
    BM: gl.constexpr = q_smem.shape[0]
    S: gl.constexpr = k_smem.shape[0]
    BN: gl.constexpr = k_smem.shape[1]
    BD: gl.constexpr = k_smem.shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    g = h // GROUP
    blocks = count_blocks(first, begin, end, BM, BN, CAUSAL)
    last = begin + (blocks - 1) * BN
    full = barriers(S, 1)
    fence_async_shared()
    mbarrier.expect(full.index(0), q_desc.block_type.nbytes + k_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(q_desc, [first, h, 0], full.index(0), q_smem)
    tma.async_copy_global_to_shared(k_desc, [last, g, 0], full.index(0), k_smem.index(0))
    _load_pair(k_desc, v_desc, k_smem, v_smem, full, 1, begin, last - BN, g)
    mbarrier.wait(full.index(0), 0)
    q = q_smem.reshape([BM, BD])
    if FOLDED:
        fold(q, 0.5 * scale)
        scale = None
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    top, total, p = _masked_block(q, k_smem.index(0).reshape([BN, BD]), m, first, end, last, scale, CAUSAL, ACT,
                                  p_layout, s_rows)
    zeros = gl.full([BM, BN], 0.0, gl.float32, s_layout)
    acc = gl.full([BM, BD], 0.0, gl.float32, o_layout)
    gl.thread_barrier()  # all warps are through with the keys
    _load_pair(k_desc, v_desc, k_smem, v_smem, full, S, begin, last - S * BN, g)
    for j in range(1, blocks):
        mbarrier.wait(full.index(j % S), (j // S) & 1)
        keys = k_smem.index(j % S).reshape([BN, BD]).permute([1, 0])
        values = v_smem.index((j - 1) % S).reshape([BN, BD])
        scores = warpgroup_mma(q, keys, zeros, use_acc=False, is_async=True)
        sums = warpgroup_mma(p, values, acc, is_async=True)
        s = warpgroup_mma_wait(1, [scores])
        if ACT:
            fresh, _ = silu(scaled(s, scale, ACT), k_desc.dtype)
        else:
            fresh = gl.exp2(s * scale - top[:, None])
            total += _sums(fresh)
        acc, p = warpgroup_mma_wait(0, [sums, p])
        gl.thread_barrier()
        _load_pair(k_desc, v_desc, k_smem, v_smem, full, j + S, begin, last - (j + S) * BN, g)
        p = gl.convert_layout(fresh.to(k_desc.dtype), p_layout)
    mbarrier.wait(full.index(blocks % S), (blocks // S) & 1)
    values = v_smem.index((blocks - 1) % S).reshape([BN, BD])
    acc, p = warpgroup_mma_wait(0, [warpgroup_mma(p, values, acc, is_async=True), p])
    return top, gl.convert_layout(gl.sum(total, 1), s_rows), acc


@gluon.jit
def _maxima(k_desc, memory, place, scale, GROUP: gl.constexpr, CAUSAL: gl.constexpr):
    """The largest score of each query of a tile, which is in place, (BM,)."""
    q_smem, k_smem, _ = memory
    first, h, begin, end = place
    BM: gl.constexpr = q_smem.shape[0]
    BN: gl.constexpr = k_smem.shape[1]
    BD: gl.constexpr = k_smem.shape[3]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    m = gl.full([BM], float("-inf"), gl.float32, gl.SliceLayout(1, layout))
    full = barriers(1, 1)
    fence_async_shared()
    for j in range(count_blocks(first, begin, end, BM, BN, CAUSAL)):
        n = begin + j * BN
        gl.thread_barrier()  # all warps are through with the keys
        mbarrier.expect(full.index(0), k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [n, h // GROUP, 0], full.index(0), k_smem.index(0))
        mbarrier.wait(full.index(0), j & 1)
        s = _product(q_smem.reshape([BM, BD]), k_smem.index(0).reshape([BN, BD]), BN, layout)
        seen = _seen(first, end, n, layout, BM, BN, CAUSAL)
        m = gl.maximum(m, gl.max(gl.where(seen, s * scale, float("-inf")), 1))
    gl.thread_barrier()
    return m


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _one_group(q_desc, k_desc, v_desc, out, lse, plan, count, T, factors, ACT: gl.constexpr, H, GROUP: gl.constexpr,
               DV: gl.constexpr, CAUSAL: gl.constexpr, ABREAST: gl.constexpr, FOLDED: gl.constexpr):
    """Attend from a tile of 64 queries to the keys of their row."""
    S: gl.constexpr = 2
    place = find_tile(gl.program_id(0), plan, count, H, CAUSAL, ABREAST)
    first, h, begin, end = place
    if first < end:
        memory = (gl.allocate_shared_memory(q_desc.dtype, q_desc.block_type.shape, q_desc.layout),
                  gl.allocate_shared_memory(k_desc.dtype, [S] + k_desc.block_type.shape, k_desc.layout),
                  gl.allocate_shared_memory(v_desc.dtype, [S] + v_desc.block_type.shape, v_desc.layout))
        m, total, acc = _see_all(q_desc, k_desc, v_desc, memory, place, None, factors[0], ACT, FOLDED, GROUP, CAUSAL)
        if not ACT:
            # what came later was far larger than what m was found from: of such rows find the maxima, and begin anew
            LARGEST: gl.constexpr = 2.0**15 if q_desc.dtype == gl.float16 else 2.0**60
            rows = first + gl.arange(0, total.shape[0], total.type.layout)
            fits = (total < LARGEST) | (rows >= end)
            if gl.min(fits.to(gl.int32), 0) == 0:
                m = gl.where(fits, m, _maxima(k_desc, memory, place, factors[0], GROUP, CAUSAL))
                m, total, acc = _see_all(q_desc, k_desc, v_desc, memory, place, m, factors[0], ACT, FOLDED, GROUP,
                                         CAUSAL)
        finish(acc, out, lse, m, total, first, h, begin, end, T, factors, H, DV, ACT)


# --- two warp groups and one that loads ---


@gluon.jit
def _load(drawn, descs, memory, plan, count, H, GROUP: gl.constexpr, CAUSAL: gl.constexpr, ABREAST: gl.constexpr):
    """Load tiles and what they need, each pair once both warp groups are through with what is in its place."""
    q_desc, k_desc, v_desc = descs
    q_smem, k_smem, v_smem, room, own_full, own_empty, full, empty = memory
    S: gl.constexpr = k_smem.shape[0]
    BM: gl.constexpr = q_smem.shape[1]
    BN: gl.constexpr = k_smem.shape[1]
    number = gl.program_id(0)
    t = 0  # tiles and pairs so far
    i = 0
    while number < count * H:
        first, h, begin, end = find_tile(number, plan, count, H, CAUSAL, ABREAST)
        if first < end:
            blocks = count_blocks(first, begin, end, 2 * BM, BN, CAUSAL)
            g = h // GROUP
            n = begin + (blocks - 1) * BN
            slot = t & 1
            barrier = own_full.index(slot)
            mbarrier.wait(own_empty.index(slot), ((t // 2) & 1) ^ 1)
            tell(room.index(slot), first, h, begin, end)
            mbarrier.expect(barrier, 2 * q_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(q_desc, [first, h, 0], barrier, q_smem.index(2 * slot))
            tma.async_copy_global_to_shared(q_desc, [first + BM, h, 0], barrier, q_smem.index(2 * slot + 1))
            mbarrier.arrive(barrier)
            t += 1
            barrier = full.index(i % S)
            mbarrier.wait(empty.index(i % S), ((i // S) & 1) ^ 1)
            mbarrier.expect(barrier, k_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(k_desc, [n, g, 0], barrier, k_smem.index(i % S))
            i += 1
            for _ in range(1, blocks):
                barrier = full.index(i % S)
                mbarrier.wait(empty.index(i % S), ((i // S) & 1) ^ 1)
                mbarrier.expect(barrier, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
                tma.async_copy_global_to_shared(k_desc, [n - BN, g, 0], barrier, k_smem.index(i % S))
                tma.async_copy_global_to_shared(v_desc, [n, g, 0], barrier, v_smem.index((i - 1) % S))
                n -= BN
                i += 1
            barrier = full.index(i % S)
            mbarrier.wait(empty.index(i % S), ((i // S) & 1) ^ 1)
            mbarrier.expect(barrier, v_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(v_desc, [begin, g, 0], barrier, v_smem.index((i - 1) % S))
            i += 1
        number = draw(drawn)
    send_home(room.index(t & 1), own_full.index(t & 1), own_empty.index(t & 1), (t // 2) & 1)


@gluon.jit
def weigh(s, m, total, scale, dtype: gl.constexpr, ACT: gl.constexpr):
    """Scores to weights: the running maximum and sums, the weights, and what earlier ones shrink by (not pointwise)."""
    if ACT:
        p, _ = silu(scaled(s, scale, ACT), dtype)
        shrink = m
    else:
        top = gl.maximum(m, gl.max(s, 1) * scale)
        p = gl.exp2(s * scale - top[:, None])
        shrink = gl.exp2(m - top)
        m = top
        rows: gl.constexpr = gl.SliceLayout(1, total.type.layout)
        total = total * gl.convert_layout(shrink, rows)[:, None] + _sums(p)
    return m, total, p, shrink


@gluon.jit
def _attend(memory, out, lse, T, factors, H, WHICH: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr,
            ACT: gl.constexpr):
    """Attend from one warp group's half of each tile to the keys of their row."""
    q_smem, k_smem, v_smem, room, own_full, own_empty, full, empty = memory
    S: gl.constexpr = k_smem.shape[0]
    BM: gl.constexpr = q_smem.shape[1]
    BN: gl.constexpr = k_smem.shape[1]
    BD: gl.constexpr = k_smem.shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    q_layout: gl.constexpr = gl.DotOperandLayout(0, s_layout, 2)
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    zeros = gl.full([BM, BN], 0.0, gl.float32, s_layout)
    t = 0
    i = 0
    mbarrier.wait(own_full.index(0), 0)
    tile, h, begin, end = hear(room.index(0))
    while tile >= 0:
        first = tile + WHICH * BM
        blocks = count_blocks(tile, begin, end, 2 * BM, BN, CAUSAL)
        whole = q_smem.index(2 * (t & 1) + WHICH).reshape([BM, BD])
        mbarrier.wait(full.index(i % S), (i // S) & 1)
        m, total, p = _masked_block(whole, k_smem.index(i % S).reshape([BN, BD]), None, first, end,
                                    begin + (blocks - 1) * BN, factors[0], CAUSAL, ACT, p_layout, s_rows)
        q = whole.load(q_layout)  # what comes from registers loads shared memory less, which is near its limit
        mbarrier.arrive(empty.index(i % S))
        i += 1
        acc = gl.full([BM, BD], 0.0, gl.float32, o_layout)
        for _ in range(1, blocks):
            mbarrier.wait(full.index(i % S), (i // S) & 1)
            keys = k_smem.index(i % S).reshape([BN, BD]).permute([1, 0])
            values = v_smem.index((i - 1) % S).reshape([BN, BD])
            scores = warpgroup_mma(q, keys, zeros, use_acc=False, is_async=True)
            sums = warpgroup_mma(p, values, acc, is_async=True)
            s = warpgroup_mma_wait(1, [scores])
            m, total, fresh, shrink = weigh(s, m, total, factors[0], k_smem.dtype, ACT)
            # the assembler moves this wait up to the maxima: the other warp group's products, not ours, fill that time
            acc, p = warpgroup_mma_wait(0, [sums, p])
            mbarrier.arrive(empty.index(i % S))
            p = gl.convert_layout(fresh.to(k_smem.dtype), p_layout)
            if not ACT:
                acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
            i += 1
        mbarrier.arrive(own_empty.index(t & 1))
        mbarrier.wait(full.index(i % S), (i // S) & 1)
        values = v_smem.index((i - 1) % S).reshape([BN, BD])
        acc, p = warpgroup_mma_wait(0, [warpgroup_mma(p, values, acc, is_async=True), p])
        mbarrier.arrive(empty.index(i % S))
        i += 1
        total = gl.convert_layout(gl.sum(total, 1), s_rows)
        finish(acc, out, lse, m, total, first, h, begin, end, T, factors, H, DV, ACT)
        t += 1
        mbarrier.wait(own_full.index(t & 1), (t // 2) & 1)
        tile, h, begin, end = hear(room.index(t & 1))


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _two_groups(drawn, q_desc, k_desc, v_desc, out, lse, plan, count, T, factors, ACT: gl.constexpr, H,
                GROUP: gl.constexpr, DV: gl.constexpr, CAUSAL: gl.constexpr, ABREAST: gl.constexpr):
    """Attend from tiles of 128 queries, two warp groups of 64, to the keys of their row."""
    S: gl.constexpr = 2
    q_smem = gl.allocate_shared_memory(q_desc.dtype, [4] + q_desc.block_type.shape, q_desc.layout)
    k_smem = gl.allocate_shared_memory(k_desc.dtype, [S] + k_desc.block_type.shape, k_desc.layout)
    v_smem = gl.allocate_shared_memory(v_desc.dtype, [S] + v_desc.block_type.shape, v_desc.layout)
    memory = (q_smem, k_smem, v_smem, room_for_places(2), barriers(2, 2), barriers(2, 2), barriers(S, 1),
              barriers(S, 2))
    fence_async_shared()
    gl.warp_specialize([
        (_attend, (memory, out, lse, T, factors, H, 0, DV, CAUSAL, ACT)),
        (_attend, (memory, out, lse, T, factors, H, 1, DV, CAUSAL, ACT)),
        (_load, (drawn, (q_desc, k_desc, v_desc), memory, plan, count, H, GROUP, CAUSAL, ABREAST)),
    ], [4, 1], [240, 24])
