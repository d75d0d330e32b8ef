"""The forward kernels of plain jagged self-attention for Hopper, in Gluon, with the loads and products spelled out.

Both let 64 queries a warp group see the keys of their row in blocks, the last block first: it alone is masked. The
product of queries with block j and that of the weights with the values of block j - 1 are under way together; block j
of keys and block j - 1 of values therefore share a barrier, here called pair j.

- `_one_group`: a warp group of its own for each 64 queries, several on a multiprocessor, which cover for each other;
- `_two_groups`: 128 queries, two warp groups that take turns at the matrix units, and a warp that loads; for width 128.

What one tile does not need of a block at its row's end or beyond belongs to other rows or is zero, and gets weight 0.
"""

# ruff: noqa: N803, N806, RUF005

from collections.abc import Sequence

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

_GROUP = 64  # queries of a warp group: what one matrix instruction takes


def launch(inputs: Sequence[Tensor], problem: Problem, plan: Plan, results: Sequence[Tensor]) -> None:
    """Fill the results, output `(T, H, Dv)` and log-sum-exp `(H, T)` in base 2, from q, k and v.

    The copy engine can read q, k and v, which have events.
    """
    q, k, v = inputs
    events, heads, _ = q.shape
    size, heads_first = plan.tiling.forward.tile, plan.tiling.heads_first
    tiles = plan.queries(size)
    kernel = _two_groups if size == 2 * _GROUP else _one_group
    block = 128 if size == 2 * _GROUP or not heads_first else 64  # long rows are worth larger blocks
    count = tiles.shape[1]
    kernel[(count * heads,)](
        describe(q, _GROUP), describe(k, block), describe(v, block), *results, tiles, count, events,
        *weights_of(problem), heads, heads // k.shape[1], v.shape[2], problem.kind == CAUSAL, heads_first,
        num_warps=4)


def weights_of(problem: Problem) -> tuple[tuple[float, float], int]:
    """Return what scores and weights are multiplied by, and ACT: 0 softmax, 1 silu, 2 silu over the row's length."""
    return (problem.factor, share_of(problem)), problem.activation and 1 + (problem.normaliser == 0)


def describe(x: Tensor, block: int) -> TensorDescriptor:
    """Describe x `(T, H, D)` to the copy engine, for loads of `block` events of one head, wide as a power of two."""
    layout = gl.NVMMASharedLayout(128, 16, rank=3)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [block, 1, block_width(x.shape[2])], layout)


# --- what both kernels do ---


@gluon.jit
def find_tile(plan, count, H, CAUSAL: gl.constexpr, HEADS_FIRST: gl.constexpr):
    """Which tile this program has: its first event, its head, and where its row begins and ends."""
    pid = gl.program_id(0)
    if HEADS_FIRST:
        tile = pid // H
        h = pid % H
    else:
        tile = pid % count
        h = pid // count
    if CAUSAL:  # later tiles of a row have more to do: first
        tile = count - 1 - tile
    begin = gl.load(plan + count + tile)
    return begin + gl.load(plan + tile), h, begin, gl.load(plan + 2 * count + tile)


@gluon.jit
def count_blocks(first, begin, end, BM: gl.constexpr, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """How many blocks of keys a tile sees."""
    if CAUSAL:
        end = gl.minimum(end, first + BM)
    return (end - begin + BN - 1) // BN


@gluon.jit
def barriers(N: gl.constexpr, arrivals: gl.constexpr):
    """N barriers that each wait for some arrivals."""
    barriers = gl.allocate_shared_memory(gl.int64, [N, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(N):
        mbarrier.init(barriers.index(i), count=arrivals)
    return barriers


@gluon.jit
def sigmoid(s, scale):
    """1 / (1 + exp(-s · scale)); see `weigh.sigmoid`."""
    return gl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f",
                                     [1.0 + gl.exp2(s * (scale * -1.4426950408889634))], dtype=gl.float32,
                                     is_pure=True, pack=1)


@gluon.jit
def share(factors, begin, end, ACT: gl.constexpr):
    """What pointwise weights of a row are multiplied by."""
    part = factors[1]
    if ACT == 2:
        part = 1.0 / (end - begin).to(gl.float32)
    return part


@gluon.jit
def slope(factors, begin, end, ACT: gl.constexpr):
    """What the gradients of scores are multiplied by on their way to queries and keys."""
    # a softmax counts in base 2
    return factors[0] * share(factors, begin, end, ACT) if ACT else factors[0] * 0.6931471805599453


@gluon.jit
def _masked_part(q, k, first, end, n, scale, N: gl.constexpr, CAUSAL: gl.constexpr, ACT: gl.constexpr,
                 p_layout: gl.constexpr, row_layout: gl.constexpr):
    """See the first N keys of a block at n that is the first to be seen: maxima, sums, weights of the whole block."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    BM: gl.constexpr = q.shape[0]
    BN: gl.constexpr = k.shape[0]
    s = warpgroup_mma(q, k.slice(0, N).permute([1, 0]), gl.full([BM, N], 0.0, gl.float32, layout), use_acc=False,
                      is_async=True)
    s = warpgroup_mma_wait(0, [s])
    rows = first + gl.arange(0, BM, gl.SliceLayout(1, layout))
    cols = n + gl.arange(0, N, gl.SliceLayout(0, layout))
    high = rows * 0 + end
    if CAUSAL:
        high = gl.minimum(high, rows + 1)
    seen = cols[None, :] < high[:, None]
    if ACT:
        p = gl.where(seen, s * sigmoid(s, scale), 0.0)
        m = gl.full([BM], 0.0, gl.float32, gl.SliceLayout(1, layout))
        total = m
    else:
        s = gl.where(seen, s, float("-inf"))
        m = gl.max(s, 1) * scale
        p = gl.exp2(s * scale - m[:, None])
        total = gl.sum(p, 1)
    p = p.to(k.dtype)
    if N < BN:
        p = gl.join(p, gl.full([BM, N], 0.0, k.dtype, layout)).permute([0, 2, 1]).reshape([BM, BN])
    return gl.convert_layout(m, row_layout), gl.convert_layout(total, row_layout), gl.convert_layout(p, p_layout)


@gluon.jit
def _masked_block(q, k, first, end, n, scale, CAUSAL: gl.constexpr, ACT: gl.constexpr, p_layout: gl.constexpr,
                  row_layout: gl.constexpr):
    """See the block of keys at n, the first to be seen; of a large one only half where the rest is masked anyway."""
    BN: gl.constexpr = k.shape[0]
    high = end
    if CAUSAL:
        high = gl.minimum(end, first + q.shape[0])
    if BN == 128:
        if high - n <= BN // 2:
            m, total, p = _masked_part(q, k, first, end, n, scale, BN // 2, CAUSAL, ACT, p_layout, row_layout)
        else:
            m, total, p = _masked_part(q, k, first, end, n, scale, BN, CAUSAL, ACT, p_layout, row_layout)
    else:
        m, total, p = _masked_part(q, k, first, end, n, scale, BN, CAUSAL, ACT, p_layout, row_layout)
    return m, total, p


@gluon.jit
def _weigh(s, m, total, scale, ACT: gl.constexpr):
    """Scores to weights: the running maximum and sum, the weights, and what earlier ones shrink by (not pointwise)."""
    if ACT:
        p = s * sigmoid(s, scale)  # the rest of silu, `scale`, is left for the sum
        shrink = m
    else:
        top = gl.maximum(m, gl.max(s, 1) * scale)
        p = gl.exp2(s * scale - top[:, None])
        shrink = gl.exp2(m - top)
        m = top
        total = total * shrink + gl.sum(p, 1)
    return m, total, p, shrink


@gluon.jit
def _finish(acc, out, lse, m, total, first, h, begin, end, T, factors, H, DV: gl.constexpr, ACT: gl.constexpr):
    """Normalise and store the output of a tile, and of a softmax its log-sum-exp."""
    if ACT:
        acc = acc * (factors[0] * share(factors, begin, end, ACT))
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


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _one_group(q_desc, k_desc, v_desc, out, lse, plan, count, T, factors, ACT: gl.constexpr, H, GROUP: gl.constexpr,
               DV: gl.constexpr, CAUSAL: gl.constexpr, HEADS_FIRST: gl.constexpr):
    """Attend from a tile of 64 queries to the keys of their row."""
    BM: gl.constexpr = q_desc.block_type.shape[0]
    BN: gl.constexpr = k_desc.block_type.shape[0]
    BD: gl.constexpr = k_desc.block_type.shape[2]
    S: gl.constexpr = 2
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    first, h, begin, end = find_tile(plan, count, H, CAUSAL, HEADS_FIRST)
    if first < end:
        g = h // GROUP
        blocks = count_blocks(first, begin, end, BM, BN, CAUSAL)
        last = begin + (blocks - 1) * BN
        q_smem = gl.allocate_shared_memory(q_desc.dtype, q_desc.block_type.shape, q_desc.layout)
        k_smem = gl.allocate_shared_memory(k_desc.dtype, [S] + k_desc.block_type.shape, k_desc.layout)
        v_smem = gl.allocate_shared_memory(v_desc.dtype, [S] + v_desc.block_type.shape, v_desc.layout)
        full = barriers(S, 1)
        fence_async_shared()
        mbarrier.expect(full.index(0), q_desc.block_type.nbytes + k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(q_desc, [first, h, 0], full.index(0), q_smem)
        tma.async_copy_global_to_shared(k_desc, [last, g, 0], full.index(0), k_smem.index(0))
        _load_pair(k_desc, v_desc, k_smem, v_smem, full, 1, begin, last - BN, g)
        mbarrier.wait(full.index(0), 0)
        q = q_smem.reshape([BM, BD])
        m, total, p = _masked_block(q, k_smem.index(0).reshape([BN, BD]), first, end, last, factors[0], CAUSAL, ACT,
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
            m, total, fresh, shrink = _weigh(s, m, total, factors[0], ACT)
            acc, p = warpgroup_mma_wait(0, [sums, p])
            gl.thread_barrier()
            _load_pair(k_desc, v_desc, k_smem, v_smem, full, j + S, begin, last - (j + S) * BN, g)
            p = gl.convert_layout(fresh.to(k_desc.dtype), p_layout)
            if not ACT:
                acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
        mbarrier.wait(full.index(blocks % S), (blocks // S) & 1)
        values = v_smem.index((blocks - 1) % S).reshape([BN, BD])
        acc, p = warpgroup_mma_wait(0, [warpgroup_mma(p, values, acc, is_async=True), p])
        _finish(acc, out, lse, m, total, first, h, begin, end, T, factors, H, DV, ACT)


# --- two warp groups and one that loads ---


@gluon.jit
def _load_queries(q_desc, q_smem, q_full, first, h, WHICH: gl.constexpr):
    """Ask for the queries of one warp group."""
    mbarrier.expect(q_full.index(WHICH), q_desc.block_type.nbytes)
    at = first + WHICH * q_smem.shape[1]
    tma.async_copy_global_to_shared(q_desc, [at, h, 0], q_full.index(WHICH), q_smem.index(WHICH))


@gluon.jit
def _load(q_desc, k_desc, v_desc, memory, place, blocks, GROUP: gl.constexpr):
    """Load what a tile needs, each pair once both warp groups are through with what is in its place."""
    q_smem, k_smem, v_smem, q_full, full, empty = memory
    first, h, begin, _end = place
    S: gl.constexpr = k_smem.shape[0]
    BN: gl.constexpr = k_smem.shape[1]
    g = h // GROUP
    n = begin + (blocks - 1) * BN
    _load_queries(q_desc, q_smem, q_full, first, h, 0)
    mbarrier.expect(full.index(0), k_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(k_desc, [n, g, 0], full.index(0), k_smem.index(0))
    _load_queries(q_desc, q_smem, q_full, first, h, 1)
    for j in range(1, blocks):
        barrier = full.index(j % S)
        mbarrier.wait(empty.index(j % S), ((j // S) & 1) ^ 1)
        mbarrier.expect(barrier, k_desc.block_type.nbytes + v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [n - BN, g, 0], barrier, k_smem.index(j % S))
        tma.async_copy_global_to_shared(v_desc, [n, g, 0], barrier, v_smem.index((j - 1) % S))
        n -= BN
    barrier = full.index(blocks % S)
    mbarrier.wait(empty.index(blocks % S), ((blocks // S) & 1) ^ 1)
    mbarrier.expect(barrier, v_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(v_desc, [begin, g, 0], barrier, v_smem.index((blocks - 1) % S))


@gluon.jit
def _attend(memory, place, blocks, out, lse, T, factors, H, WHICH: gl.constexpr, DV: gl.constexpr,
            CAUSAL: gl.constexpr, ACT: gl.constexpr):
    """Attend from one warp group's half of a tile to the keys of their row."""
    q_smem, k_smem, v_smem, q_full, full, empty = memory
    first, h, begin, end = place
    S: gl.constexpr = k_smem.shape[0]
    BM: gl.constexpr = q_smem.shape[1]
    BN: gl.constexpr = k_smem.shape[1]
    BD: gl.constexpr = k_smem.shape[3]
    s_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    s_rows: gl.constexpr = gl.SliceLayout(1, s_layout)
    o_rows: gl.constexpr = gl.SliceLayout(1, o_layout)
    first += WHICH * BM
    q = q_smem.index(WHICH).reshape([BM, BD])
    mbarrier.wait(q_full.index(WHICH), 0)
    mbarrier.wait(full.index(0), 0)
    m, total, p = _masked_block(q, k_smem.index(0).reshape([BN, BD]), first, end, begin + (blocks - 1) * BN, factors[0],
                                CAUSAL, ACT, p_layout, s_rows)
    mbarrier.arrive(empty.index(0))
    zeros = gl.full([BM, BN], 0.0, gl.float32, s_layout)
    acc = gl.full([BM, BD], 0.0, gl.float32, o_layout)
    for j in range(1, blocks):
        mbarrier.wait(full.index(j % S), (j // S) & 1)
        keys = k_smem.index(j % S).reshape([BN, BD]).permute([1, 0])
        values = v_smem.index((j - 1) % S).reshape([BN, BD])
        scores = warpgroup_mma(q, keys, zeros, use_acc=False, is_async=True)
        sums = warpgroup_mma(p, values, acc, is_async=True)
        s = warpgroup_mma_wait(1, [scores])
        m, total, fresh, shrink = _weigh(s, m, total, factors[0], ACT)
        # the assembler moves this wait up to the maxima: the other warp group's products, not ours, fill that time
        acc, p = warpgroup_mma_wait(0, [sums, p])
        mbarrier.arrive(empty.index(j % S))
        p = gl.convert_layout(fresh.to(k_smem.dtype), p_layout)
        if not ACT:
            acc = acc * gl.convert_layout(shrink, o_rows)[:, None]
    mbarrier.wait(full.index(blocks % S), (blocks // S) & 1)
    values = v_smem.index((blocks - 1) % S).reshape([BN, BD])
    acc, p = warpgroup_mma_wait(0, [warpgroup_mma(p, values, acc, is_async=True), p])
    _finish(acc, out, lse, m, total, first, h, begin, end, T, factors, H, DV, ACT)


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _two_groups(q_desc, k_desc, v_desc, out, lse, plan, count, T, factors, ACT: gl.constexpr, H, GROUP: gl.constexpr,
                DV: gl.constexpr, CAUSAL: gl.constexpr, HEADS_FIRST: gl.constexpr):
    """Attend from a tile of 128 queries, two warp groups of 64, to the keys of their row."""
    BN: gl.constexpr = k_desc.block_type.shape[0]
    S: gl.constexpr = 2
    place = find_tile(plan, count, H, CAUSAL, HEADS_FIRST)
    if place[0] < place[3]:
        blocks = count_blocks(place[0], place[2], place[3], 2 * q_desc.block_type.shape[0], BN, CAUSAL)
        q_smem = gl.allocate_shared_memory(q_desc.dtype, [2] + q_desc.block_type.shape, q_desc.layout)
        k_smem = gl.allocate_shared_memory(k_desc.dtype, [S] + k_desc.block_type.shape, k_desc.layout)
        v_smem = gl.allocate_shared_memory(v_desc.dtype, [S] + v_desc.block_type.shape, v_desc.layout)
        memory = (q_smem, k_smem, v_smem, barriers(2, 1), barriers(S, 1), barriers(S, 2))
        fence_async_shared()
        gl.warp_specialize([
            (_attend, (memory, place, blocks, out, lse, T, factors, H, 0, DV, CAUSAL, ACT)),
            (_attend, (memory, place, blocks, out, lse, T, factors, H, 1, DV, CAUSAL, ACT)),
            (_load, (q_desc, k_desc, v_desc, memory, place, blocks, GROUP)),
        ], [4, 1], [240, 24])
