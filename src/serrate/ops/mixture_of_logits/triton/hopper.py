"""The kernel of gradients for Hopper, in Gluon: what `gradients.py` has in Triton, with products spelled out.

A program is one warp group with a tile of 64 items, two of which share a multiprocessor and cover for each other. What
products read from shared memory is put there once: hidden numbers after their SiLU, whose product with gradients comes
last, do not stay in registers. Products of the gate's gradients are under way while gradients of logits are stored.
"""

# ruff: noqa: N803, N806, RUF005

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

from ...launch import launched

_HIDDEN = gl.constexpr(64)  # hidden numbers at a time


@gluon.jit
def _silu_and_slope(x):
    """`silu(2 x)`, and twice the slope of SiLU there, less 1."""
    tanh = gl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1)
    return x * tanh + x, (1.0 - tanh * tanh) * x + tanh


@gluon.jit
def _low(x, dtype: gl.constexpr):
    """A tensor in half precision, two numbers an instruction: single ones take the unit for exponentials."""
    if dtype == gl.bfloat16:
        return gl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.bfloat16,
                                         is_pure=True, pack=2)
    else:
        return gl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=gl.float16,
                                         is_pure=True, pack=2)


@gluon.jit
def _times(x, y):
    """`x · (1 + y)` of a float32 tensor and one in half precision, in that."""
    if y.dtype == gl.bfloat16:
        return gl.inline_asm_elementwise(
            "{ .reg .b32 low; cvt.rn.bf16x2.f32 low, $2, $1; fma.rn.bf16x2 $0, low, $3, low; }", "=r,f,f,r", [x, y],
            dtype=gl.bfloat16, is_pure=True, pack=2)
    else:
        return gl.inline_asm_elementwise(
            "{ .reg .b32 low; cvt.rn.f16x2.f32 low, $2, $1; fma.rn.f16x2 $0, low, $3, low; }", "=r,f,f,r", [x, y],
            dtype=gl.float16, is_pure=True, pack=2)


@gluon.jit
def _mixed(x):
    """32 bits that look random for each number: see `dropout.mixed`."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@gluon.jit
def _stay(dropped, query, items, pairs):
    """Which weights (BM, BP) of the pairs of a query and items stay, as `scores._stay`."""
    seed = gl.load(dropped[0])
    low, high = (seed & 0xFFFFFFFF).to(gl.uint32), ((seed >> 32) & 0xFFFFFFFF).to(gl.uint32)
    own = _mixed((dropped[2] + query).to(gl.uint32) ^ low)
    of_pairs = _mixed(own + pairs.to(gl.uint32) * 0x7FEB352D)
    of_items = _mixed(_mixed(items.to(gl.uint32) ^ high) + 0x9E3779B9)
    return _mixed(of_pairs[None, :] ^ of_items[:, None]) >= dropped[1]


@gluon.jit
def _rooms(dtype: gl.constexpr, N: gl.constexpr, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Shared memory for N matrices that products read, each by itself: else a store would wait for reads of others."""
    layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([ROWS, COLUMNS], dtype)
    rooms = ()
    for _ in gl.static_range(N):
        rooms = rooms + (gl.allocate_shared_memory(dtype, [1, ROWS, COLUMNS], layout),)
    return rooms


@gluon.jit
def _fetch(source, rows, stride, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """A matrix of some rows, None for the first ones, each `stride` from the one before."""
    threads: gl.constexpr = COLUMNS // 8
    io: gl.constexpr = gl.BlockedLayout([1, 8], [32 // threads, threads], [4, 1], [1, 0])
    if rows is None:
        row = gl.arange(0, ROWS, gl.SliceLayout(1, io)).to(gl.int64)
    else:
        row = gl.convert_layout(rows, gl.SliceLayout(1, io))
    return gl.load(source + row[:, None] * stride + gl.arange(0, COLUMNS, gl.SliceLayout(0, io))[None, :])


@gluon.jit
def _joined(tensors):
    """Half as many, each one joined with the one half of them further."""
    joined = ()
    for i in gl.static_range(len(tensors) // 2):
        joined = joined + (gl.join(tensors[i], tensors[i + len(tensors) // 2]),)
    return joined


@gluon.jit
def _side_by_side(parts, BP: gl.constexpr, layout: gl.constexpr):
    """Tensors (BM, P_Q), a power of two of them, as one (BM, P)."""
    BM: gl.constexpr = parts[0].shape[0]
    components: gl.constexpr = BP // parts[0].shape[1]
    for _ in gl.static_range(components - 1):
        if len(parts) > 1:
            parts = _joined(parts)
    beside = parts[0].reshape([BM, BP // components, components])
    return gl.convert_layout(beside.permute([0, 2, 1]).reshape([BM, BP]), layout)


@launched
@gluon.jit(do_not_specialize=["rows", "count", "several"])
def gradients_of_tiles(items, item_gates, queries, query_gates, gate, log_sums, grads, shifts, excluded, dropped, out,
                       rows, count, several, pitch, inverse, scale, P_Q: gl.constexpr, P_X: gl.constexpr,
                       BP_Q: gl.constexpr, BP: gl.constexpr, G: gl.constexpr, D: gl.constexpr):
    """What the pairs of 64 items and `several` queries give to gradients: as `gradients._gradients`.

    Of the sums over items for gates of queries each warp stores its own: (4 tiles, rows, BP).
    """
    BM: gl.constexpr = 64
    BP_X: gl.constexpr = BP // BP_Q
    K: gl.constexpr = BP_X * D
    BG: gl.constexpr = _HIDDEN
    PARTS: gl.constexpr = G // BG
    dtype: gl.constexpr = items.dtype.element_ty
    lp: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BP, 16])
    lq: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BP_Q, 16])
    lh: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BG, 16])
    lo: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
    to_pairs: gl.constexpr = gl.DotOperandLayout(0, lp, 2)
    to_hidden: gl.constexpr = gl.DotOperandLayout(0, lh, 2)
    columns: gl.constexpr = gl.SliceLayout(0, lp)
    lines: gl.constexpr = gl.SliceLayout(1, lp)
    groups = (rows + several - 1) // several
    tile, group = gl.program_id(0) // groups, gl.program_id(0) % groups
    item = tile * BM + gl.arange(0, BM, lines)
    there = item < count
    row = gl.minimum(item, count - 1).to(gl.int64)
    begin = group * several
    end = gl.minimum(begin + several, rows)
    column = gl.arange(0, BP, columns)
    real = (column % BP_Q < P_Q) & (column // BP_Q < P_X)
    pair = column % BP_Q * P_X + column // BP_Q
    own = gl.load(item_gates + row[:, None] * BP + (column % BP_Q * BP_X + column // BP_Q)[None, :])
    bias = gl.load(gate[3] + column)

    item_smem, query_smem = _rooms(dtype, BP_X, BM, D), _rooms(dtype, 1, BP_Q, D)
    first_smem, second_smem = _rooms(dtype, PARTS, BG, BP), _rooms(dtype, PARTS, BP, BG)
    bias_smem, ones_smem = _rooms(dtype, PARTS, BG, 16), _rooms(dtype, 1, BM, 8)
    low_smem, z_smem = _rooms(dtype, 1, BM, BP), _rooms(dtype, 1, BM, BP)
    silu_smem, hidden_smem = _rooms(dtype, PARTS, BM, BG), _rooms(dtype, PARTS, BM, BG)
    for m in gl.static_range(BP_X):
        item_smem[m].index(0).store(_fetch(items + m * D, row, K, BM, D))
    for part in gl.static_range(PARTS):
        first_smem[part].index(0).store(_fetch(gate[0] + part * BG * BP, None, BP, BG, BP))
        second_smem[part].index(0).store(_fetch(gate[2] + part * BG, None, G, BP, BG))
        bias_smem[part].index(0).store(_fetch(gate[1] + part * BG * 16, None, 16, BG, 16))
    ones_smem[0].index(0).store(gl.full([BM, 8], 1.0, dtype, lo))
    place = gl.arange(0, 16, gl.SliceLayout(0, to_hidden))[None, :] + gl.full([BM, 16], 0, gl.int32, to_hidden)
    ones = gl.where(place == 0, 1.0, 0.0).to(dtype)

    if excluded is not None:
        label = gl.load(excluded[0] + row)
    shift = gl.full([BM], 0.0, gl.float32, lines)
    if shifts is not None:
        shift += gl.load(shifts + row)
    no_logits = gl.full([BM, BP_Q], 0.0, gl.float32, lq)
    no_hidden = gl.full([BM, BG], 0.0, gl.float32, lh)
    d_item_gates = gl.full([BM, BP], 0.0, gl.float32, lp)
    d_bias = gl.sum(d_item_gates.reshape([4, 2, 8, BP]), 1)
    sums = ()
    for _ in gl.static_range(PARTS):
        sums = sums + (warpgroup_mma_init(gl.full([BG, BP], 0.0, gl.float32, lp)),
                       warpgroup_mma_init(gl.full([BG, BP], 0.0, gl.float32, lp)),
                       warpgroup_mma_init(gl.full([BG, 8], 0.0, gl.float32, lo)))
    # by query component, and along items: BP_X beside each other
    stored: gl.constexpr = _stored(BP_Q, BP_X)
    to_row = gl.arange(0, BM, gl.SliceLayout(1, stored))[:, None]
    to_column = gl.arange(0, BP, gl.SliceLayout(0, stored))[None, :]
    along = to_column // BP_X * pitch + to_row * BP_X + to_column % BP_X
    following = _fetch(queries + gl.cast(begin, gl.int64) * (BP_Q * D), None, D, BP_Q, D)
    for r in range(begin, end):
        # 0, which compilers cannot tell: addresses of products are worked out where these are, by the unit for numbers
        # that all threads share, and not kept in more registers than there are
        zero = r >> 31
        query_smem[0].index(zero).store(following)
        following = _fetch(queries + gl.cast(gl.minimum(r + 1, end - 1), gl.int64) * (BP_Q * D), None, D, BP_Q, D)
        own_query = gl.load(query_gates + r * BP + column)
        past, grad = gl.load(log_sums + r), gl.load(grads + r)
        fence_async_shared()
        gl.thread_barrier()
        query = query_smem[0].index(zero).permute([1, 0])
        parts = ()
        for m in gl.static_range(BP_X):
            own_part = item_smem[m].index(zero)
            parts = parts + (warpgroup_mma(own_part, query, no_logits, use_acc=False, is_async=True),)
        found = warpgroup_mma_wait(0, parts + sums)
        parts = ()
        for m in gl.static_range(BP_X):
            parts = parts + (found[m],)
        gl.thread_barrier()
        logits = _side_by_side(parts, BP, lp)
        low = logits.to(dtype)
        low_smem[0].index(zero).store(low)
        low_rows = gl.convert_layout(low, to_hidden)
        xs = ()
        for part in gl.static_range(PARTS):
            first, own_bias = first_smem[part].index(zero), bias_smem[part].index(zero)
            x = warpgroup_mma(ones, own_bias.permute([1, 0]), no_hidden, use_acc=False, is_async=True)
            xs = xs + (warpgroup_mma(low_rows, first.permute([1, 0]), x, is_async=True),)
        z = own * own_query[None, :] + bias[None, :]
        slopes, kept = (), (low_rows,)
        for part in gl.static_range(PARTS):
            x = warpgroup_mma_wait(2 * (PARTS - 1 - part) + part, [xs[part]])
            silu, slope = _silu_and_slope(x)
            low_silu = silu.to(dtype)
            silu_smem[part].index(zero).store(low_silu)
            slopes = slopes + (_low(slope, dtype),)
            operand = gl.convert_layout(low_silu, to_pairs)
            z = warpgroup_mma(operand, second_smem[part].index(zero).permute([1, 0]), z, is_async=True)
            kept = kept + (operand,)
        z = warpgroup_mma_wait(0, (z,) + kept)[0]

        w, slope = _silu_and_slope(z)
        if P_Q != BP_Q or P_X != BP_X:
            w = gl.where(real[None, :], w, float("-inf"))
        if dropped is not None:
            w = gl.where(_stay(dropped, r, item, pair), w, float("-inf"))
        top = gl.maximum(gl.max(w, 1), -1.0)  # SiLU is never below -0.28; of nothing all weights are 0
        weight = gl.exp2(w * 1.4426950408889634 - (top * 1.4426950408889634)[:, None])
        total = gl.sum(weight, 1)
        share = 1.0 / gl.where(total == 0, 1.0, total)
        mean = gl.sum(weight * logits, 1) * share
        counts = there
        if excluded is not None:
            counts = counts & (label != gl.load(excluded[1] + r))
        given = gl.exp2((mean * (inverse * scale) + shift - past) * 1.4426950408889634) * (grad * (scale * inverse))
        d_logits = gl.where(counts, given * share, 0.0)[:, None] * weight
        d_z = d_logits * (logits - mean[:, None])
        d_z += d_z * slope
        d_item_gates += d_z * own_query[None, :]
        d_bias += gl.sum(d_z.reshape([4, 2, 8, BP]), 1)
        low_z = d_z.to(dtype)
        z_smem[0].index(zero).store(low_z)
        z_rows = gl.convert_layout(low_z, to_hidden)
        of_query = gl.sum((d_z * own).reshape([4, 16, BP]), 1)
        warp = gl.arange(0, 4, gl.SliceLayout(1, of_query.type.layout))[:, None]
        at = ((tile * 4 + warp) * rows + r) * BP + gl.arange(0, BP, gl.SliceLayout(0, of_query.type.layout))[None, :]
        gl.store(out[1] + at, of_query)
        kept = (z_rows,)
        d_hidden = ()
        for part in gl.static_range(PARTS):
            d_hidden = d_hidden + (warpgroup_mma(z_rows, second_smem[part].index(zero), no_hidden, use_acc=False,
                                                 is_async=True),)
        for part in gl.static_range(PARTS):
            low_hidden = _times(warpgroup_mma_wait(PARTS - 1, [d_hidden[part]]), slopes[part])
            hidden_smem[part].index(zero).store(low_hidden)
            operand = gl.convert_layout(low_hidden, to_pairs)
            d_logits = warpgroup_mma(operand, first_smem[part].index(zero), d_logits, is_async=True)
            kept = kept + (operand,)
        fence_async_shared()
        gl.thread_barrier()
        sums = ()
        for part in gl.static_range(PARTS):
            across, silus = hidden_smem[part].index(zero).permute([1, 0]), silu_smem[part].index(zero).permute([1, 0])
            sums = sums + (warpgroup_mma(across, low_smem[0].index(zero), found[BP_X + 3 * part], is_async=True),
                           warpgroup_mma(silus, z_smem[0].index(zero), found[BP_X + 3 * part + 1], is_async=True),
                           warpgroup_mma(across, ones_smem[0].index(zero), found[BP_X + 3 * part + 2], is_async=True))
        d_logits = warpgroup_mma_wait(3 * PARTS, (d_logits,) + kept)[0]
        by_query = d_logits.to(dtype).reshape([BM, BP_X, BP_Q]).permute([0, 2, 1]).reshape([BM, BP])
        gl.store(out[0] + gl.cast(r, gl.int64) * BP_Q * pitch + tile * (BM * BP_X) + along,
                 gl.convert_layout(by_query, stored))
    sums = warpgroup_mma_wait(0, sums)
    gl.store(out[2] + (group * gl.cast(count, gl.int64) + item[:, None]) * BP + column[None, :], d_item_gates,
             mask=there[:, None])
    program = gl.cast(gl.program_id(0), gl.int64)
    for part in gl.static_range(PARTS):
        hidden = program * G + part * BG + gl.arange(0, BG, lines)
        gl.store(out[3] + hidden[:, None] * BP + column[None, :], sums[3 * part])
        gl.store(out[4] + hidden[:, None] * BP + column[None, :], sums[3 * part + 1])
        one = gl.max(sums[3 * part + 2], 1)  # all eight columns are alike
        gl.store(out[5] + program * G + part * BG + gl.arange(0, BG, one.type.layout), one)
    total = gl.sum(gl.sum(d_bias, 1), 0)
    gl.store(out[6] + program * BP + gl.arange(0, BP, total.type.layout), total)


@gluon.constexpr_function
def _stored(P_Q, P_X):
    """The layout (64, P) in which the threads that have logits have P_X of a query component beside each other."""
    def bits(size):
        return [1 << i for i in range(size.bit_length() - 1)]

    of_items, of_queries = bits(P_X), [n * P_X for n in bits(P_Q)]
    registers = [[0, m] for m in of_items] + [[0, of_queries[0]]] + [[0, n] for n in of_queries[3:]] + [[8, 0]]
    lanes = [[0, of_queries[1]], [0, of_queries[2]], [1, 0], [2, 0], [4, 0]]
    return gl.DistributedLinearLayout(registers, lanes, [[16, 0], [32, 0]], [], [64, P_Q * P_X])
