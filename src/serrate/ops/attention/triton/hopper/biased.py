"""The kernels of plain jagged self-attention with a relative bias for Hopper, in Gluon.

A program is one warp group with a tile of 64 events, in several heads where these share their tables: what the pairs of
a block look up, and what they add to the gradients of tables, is then found once for all of them. The products of one
head are under way while the weights of another are found.

The gradients are those of silu; a softmax has the kernels for all calls.
"""

# ruff: noqa: N803, N806, RUF005, SIM102 - conditions of the compiler and of the device do not combine

from collections.abc import Sequence
from dataclasses import dataclass

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
from ..relative import of_bias
from .bias import (
    add_to_tables,
    fetch,
    first_time,
    hand_on_positions,
    hand_on_times,
    hand_over,
    make_room,
    of_pairs,
    put_times,
    room_for_sums,
    times_of,
)
from .forward import (
    barriers,
    changed,
    finish,
    hidden,
    no_sums,
    share,
    silu,
    slope,
    store_rows,
    weigh,
    weights_of,
)
from .tiles import abreast, count_blocks, find_tile

TILE = 64  # events of a tile: what one matrix instruction takes


@dataclass(frozen=True)
class _Sizes:
    """Heads of a program at most, events of the blocks that it works through, how many it asks for ahead, registers.

    What the heads of a program add to tables is a sum of whole numbers that has no bits for more than 64 events of a
    block in all its heads.
    """

    heads: int
    block: int
    stages: int
    registers: int


_FORWARD = {64: _Sizes(2, 32, 2, 168), 128: _Sizes(1, 64, 2, 255)}  # by the width of a head
_QUERIES, _KEYS = _Sizes(2, 32, 2, 255), _Sizes(2, 32, 2, 255)


def launch(inputs: Sequence[Tensor], problem: Problem, plan: Plan, results: Sequence[Tensor]) -> None:
    """Fill the results, output `(T, H, Dv)` and log-sum-exp `(H, T)` in base 2, from q, k and v.

    The copy engine can read q, k and v, which have events.
    """
    q, k, v = inputs
    size = _FORWARD[block_width(q.shape[2])]
    numbers, programs, heads = _numbers(q, k, problem, plan, size)
    _forward_biased[(programs,)](
        _describe(q, TILE, heads), _describe(k, size.block, heads), _describe(v, size.block, heads), *results, *numbers,
        v.shape[2], q.shape[1] // k.shape[1], num_warps=4, maxnreg=size.registers)


def launch_backward(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, plan: Plan,
                    gradients: Sequence[Tensor], sums: tuple | None) -> None:
    """Fill the gradients of q, k and v `(T, H, D)` from that of the output, contiguous, and the inputs.

    The copy engine can read these, which have events and as many heads each. sums: where the gradients of tables add
    up, as `sums.Tables` has them; None where nobody asks.
    """
    grad, _ = grads
    q, k, v = inputs
    dq, dk, dv = gradients
    width, values, size = q.shape[2], v.shape[2], _QUERIES
    numbers, programs, heads = _numbers(q, k, problem, plan, size)
    _queries_biased[(programs,)](
        _describe(q, TILE, heads), _describe(grad, TILE, heads), _describe(k, size.block, heads),
        _describe(v, size.block, heads), dq, *numbers, width, sums is not None, sums, num_warps=4,
        maxnreg=size.registers)
    size = _KEYS
    numbers, programs, heads = _numbers(q, k, problem, plan, size)
    _keys_biased[(programs,)](
        _describe(k, TILE, heads), _describe(v, TILE, heads), _describe(q, size.block, heads),
        _describe(grad, size.block, heads), dk, dv, *numbers, width, values, num_warps=4, maxnreg=size.registers)


def _numbers(q: Tensor, k: Tensor, problem: Problem, plan: Plan, size: _Sizes) -> tuple[tuple, int, int]:
    """Return what all kernels take after their tensors, how many programs they are, and the heads of each."""
    events, heads, _ = q.shape
    tiles = plan.queries(TILE)
    count = tiles.shape[1]
    shared = heads == k.shape[1] and all(table.shape[0] == 1 for table in problem.tables)
    together = size.heads if shared and heads % size.heads == 0 else 1
    numbers = (tiles, count, events, *weights_of(problem), heads, problem.kind == CAUSAL,
               abreast(heads // together, plan.tiling.heads_first), of_bias(problem), together, size.stages)
    return numbers, count * (heads // together), together


def _describe(x: Tensor, block: int, heads: int) -> TensorDescriptor:
    """Describe x `(T, H, D)` to the copy engine, for loads of `block` events of some heads, one after the other."""
    layout = gl.NVMMASharedLayout(128, 16, rank=3)
    shape, strides = (x.shape[1], x.shape[0], x.shape[2]), (x.stride(1), x.stride(0), x.stride(2))
    return TensorDescriptor(x, list(shape), list(strides), [heads, block, block_width(x.shape[2])], layout)


# --- what all kernels do ---


@gluon.jit
def _room(descs, S: gl.constexpr):
    """Room for S blocks of each of some tensors: a buffer and S barriers for each.

    Each in memory of its own: the compiler lets the warps wait for each other between all that touches the same.
    """
    buffers, full = (), ()
    for i in gl.static_range(len(descs)):
        buffers += (gl.allocate_shared_memory(descs[i].dtype, [S] + descs[i].block_type.shape, descs[i].layout),)
        full += (barriers(S, 1),)
    return buffers, full


@gluon.jit
def _announce(descs, room, j, blocks):
    """Announce block j to its barriers, if there is that block."""
    for i in gl.static_range(len(descs)):
        barrier = room[1][i]
        mbarrier.expect(barrier.index(j % barrier.shape[0]), descs[i].block_type.nbytes, pred=j < blocks)


@gluon.jit
def _ask(descs, room, j, blocks, n, h):
    """Ask for block j, at n from head h on, which was announced, once all warps are through with what it replaces."""
    for i in gl.static_range(len(descs)):
        buffer, barrier = room[0][i], room[1][i]
        tma.async_copy_global_to_shared(descs[i], [h, n, 0], barrier.index(j % barrier.shape[0]),
                                        buffer.index(j % barrier.shape[0]), pred=j < blocks)


@gluon.jit
def _wait(room, j):
    """Wait until block j has arrived."""
    for i in gl.static_range(len(room[1])):
        barrier = room[1][i]
        mbarrier.wait(barrier.index(j % barrier.shape[0]), (j // barrier.shape[0]) & 1)


@gluon.jit
def _block(room, i, j, h):
    """Block j of the i-th tensor, in the h-th of its heads: (N, BD)."""
    buffer = room[0][i]
    N: gl.constexpr = buffer.shape[2]
    return buffer.index(j % buffer.shape[0]).reshape([buffer.shape[1] * N, buffer.shape[3]]).slice(h * N, N)


@gluon.jit
def _begin(tile, descs, place, g, start, blocks, bias, S: gl.constexpr, OF_KEYS: gl.constexpr, ACT: gl.constexpr):
    """Ask for a tile and the first of its blocks, which begin at `start`, and put in place what these look up.

    Returns room for the tile, room for blocks, `first_time` of the row, and what `bias.of_pairs` looks at beside the
    tables, which may be none and so cannot be returned. OF_KEYS: the tile is of keys; g: the first head of the blocks.
    """
    first, h, begin, end = place
    BM: gl.constexpr = tile[0].block_type.shape[1]
    BN: gl.constexpr = descs[0].block_type.shape[1]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    table, times = make_room(BN)
    own, ring = _room(tile, 1), _room(descs, S)
    fence_async_shared()
    _announce(tile, own, 0, 1)
    for j in gl.static_range(S):
        _announce(descs, ring, j, blocks)
    _ask(tile, own, 0, 1, first, h)
    for j in gl.static_range(S):
        _ask(descs, ring, j, blocks, start + j * BN, g)
    origin = first_time(bias, begin, end - begin)
    rows = first + gl.arange(0, BM, gl.SliceLayout(1, layout))
    asked = times_of(bias, origin, rows, begin, end, OF_KEYS)
    put_times(bias, h, table, ACT)
    hand_over((table, bias, asked, times), fetch(bias, origin, place, start, BM, BN, OF_KEYS, ACT), 0)
    _wait(own, 0)
    return own, ring, origin, table, asked, times


@gluon.jit
def _go_on(descs, memory, found, j, g, start, blocks):
    """After block j: hand over what the next one looks up, and ask for another."""
    _, ring, look, _ = memory
    S: gl.constexpr = ring[1][0].shape[0]
    BN: gl.constexpr = descs[0].block_type.shape[1]
    _announce(descs, ring, j + S, blocks)
    hand_over(look, found, (j + 1) % 2)
    _ask(descs, ring, j + S, blocks, start + (j + S) * BN, g)


# --- forward ---


@gluon.jit
def _see_keys(states, memory, j, seen, factor, HEADS: gl.constexpr,
                  ACT: gl.constexpr):
    """Let the queries of some heads see block j of keys: of each the weighted values, under a softmax maxima and sums.

    seen: which pairs are, None: all.
    """
    own, ring, look, _ = memory
    BM: gl.constexpr = own[0][0].shape[2]
    BN: gl.constexpr = ring[0][0].shape[2]
    dtype: gl.constexpr = own[0][0].dtype
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = states[0][0].type.layout
    p_layout: gl.constexpr = gl.DotOperandLayout(0, o_layout, 2)
    zeros = gl.full([BM, BN], 0.0, gl.float32, layout)
    scores, before, products = (), states, ()
    for i in gl.static_range(HEADS):
        keys = _block(ring, 0, j, i).permute([1, 0])
        scores += (warpgroup_mma(_block(own, 0, 0, i), keys, zeros, use_acc=False, is_async=True),)
    added, _ = of_pairs(look, j % 2, layout, BM, BN, False)
    if seen is not None:
        added = gl.where(seen, added, hidden(ACT) if ACT else float("-inf"))
    states = ()
    for i in gl.static_range(HEADS):
        s = warpgroup_mma_wait(HEADS - 1, [scores[i]]) * (factor * (0.5 if ACT else 1.0)) + added
        acc = before[i][0]
        if ACT:
            p, _ = silu(s, dtype)
            states += ((),)
        else:
            m, total, p, shrink = weigh(s, before[i][1], before[i][2], 1.0, dtype, False)
            acc = acc * gl.convert_layout(shrink, gl.SliceLayout(1, o_layout))[:, None]
            states += ((m, total),)
        p = gl.convert_layout(p.to(dtype), p_layout)
        products += ((warpgroup_mma(p, _block(ring, 1, j, i), acc, is_async=True), p),)
    after = states
    states = ()
    for i in gl.static_range(HEADS):
        acc, p = warpgroup_mma_wait(HEADS - 1 - i, [products[i][0], products[i][1]])
        states += ((acc,) + after[i],)
    return states


@gluon.jit
def _forward_step(states, descs, memory, j, high, place, g, blocks, factor, HEADS: gl.constexpr,
                  ACT: gl.constexpr):
    """See block j of keys, and ask for another. high: the end of the keys that each query sees, None: all see all."""
    begin = place[2]
    own, ring, look, origin = memory
    BM: gl.constexpr = own[0][0].shape[2]
    BN: gl.constexpr = ring[0][0].shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    n = begin + j * BN
    _wait(ring, j)
    found = fetch(look[1], origin, place, n + BN, BM, BN, False, ACT)
    seen = None
    if high is not None:
        seen = (n + gl.arange(0, BN, gl.SliceLayout(0, layout)))[None, :] < high[:, None]
    states = _see_keys(states, memory, j, seen, factor, HEADS, ACT)
    _go_on(descs, memory, found, j, g, begin, blocks)
    return states


@gluon.jit
def _ends(first, begin, end, layout: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """The end of the keys that each query from `first` on sees, (BM,), and how many blocks all of them see whole."""
    rows = first + gl.arange(0, BM, gl.SliceLayout(1, layout))
    high = rows * 0 + end
    whole = (end - begin) // BN
    if CAUSAL:
        high = gl.minimum(high, rows + 1)
        whole = (first - begin) // BN
    return high, whole


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _forward_biased(q_desc, k_desc, v_desc, out, lse, plan, count, T, factors, ACT: gl.constexpr, H,
                    CAUSAL: gl.constexpr, ABREAST: gl.constexpr, bias, HEADS: gl.constexpr, S: gl.constexpr,
                    DV: gl.constexpr, GROUP: gl.constexpr):
    """Attend from a tile of 64 queries to the keys of their row, in some heads."""
    BM: gl.constexpr = q_desc.block_type.shape[1]
    BN: gl.constexpr = k_desc.block_type.shape[1]
    BD: gl.constexpr = k_desc.block_type.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    s_rows: gl.constexpr = gl.SliceLayout(1, layout)
    descs = (k_desc, v_desc)
    first, h, begin, end = find_tile(gl.program_id(0), plan, count, H // HEADS, CAUSAL, ABREAST)
    h *= HEADS
    place = (first, h, begin, end)
    if first < end:
        blocks = count_blocks(first, begin, end, BM, BN, CAUSAL)
        g = h // GROUP
        own, ring, origin, table, asked, times = _begin((q_desc,), descs, place, g, begin, blocks, bias, S, False, ACT)
        memory = (own, ring, (table, bias, asked, times), origin)
        states = ()
        for _ in gl.static_range(HEADS):
            acc = gl.full([BM, BD], 0.0, gl.float32, o_layout)
            if ACT:
                states += ((acc,),)
            else:
                states += ((acc, gl.full([BM], float("-inf"), gl.float32, s_rows), no_sums(BM)),)
        high, whole = _ends(first, begin, end, layout, BM, BN, CAUSAL)
        for j in range(whole):
            states = _forward_step(states, descs, memory, j, None, place, g, blocks, factors[0], HEADS, ACT)
        for j in range(whole, blocks):
            states = _forward_step(states, descs, memory, j, high, place, g, blocks, factors[0], HEADS, ACT)
        for i in gl.static_range(HEADS):
            m, total = high, high
            if not ACT:
                m, total = states[i][1], gl.convert_layout(gl.sum(states[i][2], 1), s_rows)
            finish(states[i][0], out, lse, m, total, first, h + i, begin, end, T, factors, H, DV, ACT)


# --- gradients of queries, and of tables ---


@gluon.jit
def _add_keys(dqs, memory, j, seen, OF_TABLES: gl.constexpr, tables, factor, HEADS: gl.constexpr, ACT: gl.constexpr):
    """Add what block j of keys gives to the gradients of the queries of some heads, and to those of tables.

    seen: which pairs are, None: all; tables: where OF_TABLES, see `bias.add_to_tables`.
    """
    own, ring, look, _ = memory
    BM: gl.constexpr = own[0][0].shape[2]
    BN: gl.constexpr = ring[0][0].shape[2]
    dtype: gl.constexpr = own[0][0].dtype
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, dqs[0].type.layout, 2)
    zeros = gl.full([BM, BN], 0.0, gl.float32, layout)
    scores, dots, products = (), (), ()
    for i in gl.static_range(HEADS):
        keys, values = _block(ring, 0, j, i).permute([1, 0]), _block(ring, 1, j, i).permute([1, 0])
        scores += (warpgroup_mma(_block(own, 0, 0, i), keys, zeros, use_acc=False, is_async=True),)
        dots += (warpgroup_mma(_block(own, 1, 0, i), values, zeros, use_acc=False, is_async=True),)
    added, buckets = of_pairs(look, j % 2, layout, BM, BN, False)
    if seen is not None:
        added = gl.where(seen, added, hidden(ACT))
    together = zeros
    for i in gl.static_range(HEADS):
        x = warpgroup_mma_wait(2 * HEADS - 1 - i, [scores[i]]) * (0.5 * factor) + added
        _, change = silu(x, dtype)
        ds = changed(change, warpgroup_mma_wait(2 * HEADS - 2 - i, [dots[i]]), ACT)
        together = ds if i == 0 else together + ds
        ds = gl.convert_layout(ds.to(dtype), p_layout)
        products += ((warpgroup_mma(ds, _block(ring, 0, j, i), dqs[i], is_async=True), ds),)
    if OF_TABLES:
        add_to_tables(together, tables, j, buckets)
    dqs = ()
    for i in gl.static_range(HEADS):
        dq, ds = warpgroup_mma_wait(HEADS - 1 - i, [products[i][0], products[i][1]])
        dqs += (dq,)
    return dqs


@gluon.jit
def _queries_step(dqs, descs, memory, OF_TABLES: gl.constexpr, tables, j, high, place, g, blocks, factor,
                  HEADS: gl.constexpr, ACT: gl.constexpr):
    """Add what block j of keys gives, hand on what a step leaves to tables, and ask for another block."""
    h, begin = place[1], place[2]
    own, ring, look, origin = memory
    BM: gl.constexpr = own[0][0].shape[2]
    BN: gl.constexpr = ring[0][0].shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    n = begin + j * BN
    _wait(ring, j)
    found = fetch(look[1], origin, place, n + BN, BM, BN, False, ACT)
    seen = None
    if high is not None:
        seen = (n + gl.arange(0, BN, gl.SliceLayout(0, layout)))[None, :] < high[:, None]
    dqs = _add_keys(dqs, memory, j, seen, OF_TABLES, tables, factor, HEADS, ACT)
    _go_on(descs, memory, found, j, g, begin, blocks)
    if OF_TABLES:
        if j % 2 == 1:  # all have added, and meet again before they do to the same sums of positions
            hand_on_positions(tables, j, look[1], place, BM, BN)
            if j % 4 == 3:
                hand_on_times(tables, look[1], h)
                gl.thread_barrier()
    return dqs


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _queries_biased(q_desc, grad_desc, k_desc, v_desc, dq_target, plan, count, T, factors, ACT: gl.constexpr, H,
                    CAUSAL: gl.constexpr, ABREAST: gl.constexpr, bias, HEADS: gl.constexpr, S: gl.constexpr,
                    D: gl.constexpr, OF_TABLES: gl.constexpr, sums):
    """The gradients of a tile of queries, in some heads, and, OF_TABLES, what they add to those of tables."""
    BM: gl.constexpr = q_desc.block_type.shape[1]
    BN: gl.constexpr = k_desc.block_type.shape[1]
    BD: gl.constexpr = k_desc.block_type.shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    descs = (k_desc, v_desc)
    first, h, begin, end = find_tile(gl.program_id(0), plan, count, H // HEADS, CAUSAL, ABREAST)
    h *= HEADS
    place = (first, h, begin, end)
    if first < end:
        blocks = count_blocks(first, begin, end, BM, BN, CAUSAL)
        tables = ()
        if OF_TABLES:  # `changed` gives twice what pairs give
            tables = (sums,) + room_for_sums(sums, h, 0.5 * share(factors, begin, end, ACT))
        own, ring, origin, table, asked, times = _begin(
            (q_desc, grad_desc), descs, place, h, begin, blocks, bias, S, False, ACT)
        memory = (own, ring, (table, bias, asked, times), origin)
        if first + BM > end:  # of another row, or of none
            for i in gl.static_range(HEADS):
                _forget(_block(memory[0], 1, 0, i), end - first)
        dqs = ()
        for _ in gl.static_range(HEADS):
            dqs += (gl.full([BM, BD], 0.0, gl.float32, o_layout),)
        high, whole = _ends(first, begin, end, layout, BM, BN, CAUSAL)
        for j in range(whole):
            dqs = _queries_step(
                dqs, descs, memory, OF_TABLES, tables, j, None, place, h, blocks, factors[0], HEADS, ACT)
        for j in range(whole, blocks):
            dqs = _queries_step(
                dqs, descs, memory, OF_TABLES, tables, j, high, place, h, blocks, factors[0], HEADS, ACT)
        if OF_TABLES:
            if blocks % 2 == 1:
                hand_on_positions(tables, blocks, bias, place, BM, BN)
            hand_on_times(tables, bias, h)
        for i in gl.static_range(HEADS):
            dq = dqs[i] * slope(factors, begin, end, ACT)
            store_rows(dq_target, dq.to(q_desc.dtype), first, h + i, end, H, D)


@gluon.jit
def _forget(tile, count):
    """Set the events of a tile (N, BD) in shared memory from the count-th on to 0, before products read it."""
    N: gl.constexpr = tile.shape[0]
    BD: gl.constexpr = tile.shape[1]
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BD, BD // 8], [4, 1], [1, 0])
    rows = gl.arange(0, N, gl.SliceLayout(1, layout))[:, None]
    tile.store(gl.where(rows < count, tile.load(layout), 0.0))
    fence_async_shared()
    gl.thread_barrier()


# --- gradients of keys and values ---


@gluon.jit
def _add_queries(states, memory, j, seen, factor, HEADS: gl.constexpr,
                  ACT: gl.constexpr):
    """Add what block j of queries gives to the gradients of the keys and values of some heads."""
    own, ring, look, _ = memory
    BM: gl.constexpr = own[0][0].shape[2]
    BN: gl.constexpr = ring[0][0].shape[2]
    dtype: gl.constexpr = own[0][0].dtype
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    p_layout: gl.constexpr = gl.DotOperandLayout(0, states[0][0].type.layout, 2)
    zeros = gl.full([BM, BN], 0.0, gl.float32, layout)
    scores, dots, products = (), (), ()
    for i in gl.static_range(HEADS):
        q, grad = _block(ring, 0, j, i).permute([1, 0]), _block(ring, 1, j, i).permute([1, 0])
        scores += (warpgroup_mma(_block(own, 0, 0, i), q, zeros, use_acc=False, is_async=True),)
        dots += (warpgroup_mma(_block(own, 1, 0, i), grad, zeros, use_acc=False, is_async=True),)
    added, _ = of_pairs(look, j % 2, layout, BM, BN, True)
    if seen is not None:
        added = gl.where(seen, added, hidden(ACT))
    for i in gl.static_range(HEADS):
        x = warpgroup_mma_wait(2 * HEADS - 1, [scores[i]]) * (0.5 * factor) + added
        p, change = silu(x, dtype)
        p = gl.convert_layout(p.to(dtype), p_layout)
        dv = warpgroup_mma(p, _block(ring, 1, j, i), states[i][1], is_async=True)
        ds = changed(change, warpgroup_mma_wait(2 * HEADS - 1, [dots[i]]), ACT)
        ds = gl.convert_layout(ds.to(dtype), p_layout)
        dk = warpgroup_mma(ds, _block(ring, 0, j, i), states[i][0], is_async=True)
        products += ((dk, dv, p, ds),)
    states = ()
    for i in gl.static_range(HEADS):
        dk, dv, p, ds = products[i]
        dk, dv, p, ds = warpgroup_mma_wait(2 * (HEADS - 1 - i), [dk, dv, p, ds])
        states += ((dk, dv),)
    return states


@gluon.jit
def _keys_step(states, descs, memory, j, MASKED: gl.constexpr, place, start, blocks, factor, HEADS: gl.constexpr,
               CAUSAL: gl.constexpr, ACT: gl.constexpr):
    """Add what block j of queries gives, and ask for another."""
    first, h, begin, end = place
    own, ring, look, origin = memory
    BM: gl.constexpr = own[0][0].shape[2]
    BN: gl.constexpr = ring[0][0].shape[2]
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    n = start + j * BN
    _wait(ring, j)
    found = fetch(look[1], origin, place, n + BN, BM, BN, True, ACT)
    seen = None
    if MASKED:
        low = begin + gl.full([BM], 0, gl.int32, gl.SliceLayout(1, layout))
        if CAUSAL:
            low = first + gl.arange(0, BM, gl.SliceLayout(1, layout))
        asked = (n + gl.arange(0, BN, gl.SliceLayout(0, layout)))[None, :]
        seen = (asked >= low[:, None]) & (asked < end)
    states = _add_queries(states, memory, j, seen, factor, HEADS, ACT)
    _go_on(descs, memory, found, j, h, start, blocks)
    return states


@launched
@gluon.jit(do_not_specialize=["T", "count"])
def _keys_biased(k_desc, v_desc, q_desc, grad_desc, dk_target, dv_target, plan, count, T, factors, ACT: gl.constexpr,
                 H, CAUSAL: gl.constexpr, ABREAST: gl.constexpr, bias, HEADS: gl.constexpr, S: gl.constexpr,
                 D: gl.constexpr, DV: gl.constexpr):
    """The gradients of a tile of keys and values, in some heads, from the one range of queries that can see them."""
    BM: gl.constexpr = k_desc.block_type.shape[1]
    BN: gl.constexpr = q_desc.block_type.shape[1]
    BD: gl.constexpr = k_desc.block_type.shape[2]
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BD, 16])
    descs = (q_desc, grad_desc)
    first, h, begin, end = find_tile(gl.program_id(0), plan, count, H // HEADS, False, ABREAST)
    h *= HEADS
    place = (first, h, begin, end)
    if first < end:
        start = begin
        before = 0  # blocks of which a causal mask hides some pairs
        if CAUSAL:
            start = first
            before = BM // BN
        blocks = (end - start + BN - 1) // BN
        before = gl.minimum(before, blocks)
        whole = gl.maximum((end - start) // BN, before)
        own, ring, origin, table, asked, times = _begin(
            (k_desc, v_desc), descs, place, h, start, blocks, bias, S, True, ACT)
        memory = (own, ring, (table, bias, asked, times), origin)
        states = ()
        for _ in gl.static_range(HEADS):
            zeros = gl.full([BM, BD], 0.0, gl.float32, o_layout)
            states += ((zeros, zeros),)
        for j in range(before):
            states = _keys_step(states, descs, memory, j, True, place, start, blocks, factors[0], HEADS, CAUSAL, ACT)
        for j in range(before, whole):
            states = _keys_step(states, descs, memory, j, False, place, start, blocks, factors[0], HEADS, CAUSAL, ACT)
        for j in range(whole, blocks):
            states = _keys_step(states, descs, memory, j, True, place, start, blocks, factors[0], HEADS, False, ACT)
        for i in gl.static_range(HEADS):
            dk = states[i][0] * slope(factors, begin, end, ACT)
            dv = states[i][1] * share(factors, begin, end, ACT)
            store_rows(dk_target, dk.to(q_desc.dtype), first, h + i, end, H, D)
            store_rows(dv_target, dv.to(q_desc.dtype), first, h + i, end, H, DV)
