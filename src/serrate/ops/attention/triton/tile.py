"""What every kernel of jagged attention does with a tile: find it, load and store it, see the mask, drop weights.

Inside the kernels events of queries and keys are counted from the start of their row.
"""

# ruff: noqa: N803

import torch
import triton
import triton.language as tl
from torch import Tensor


def precision(dtype: torch.dtype = torch.float32) -> str:
    """Return how products of float32 are computed; half precision, to which it is the same, is not worth asking."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def strides(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, ...]:
    """Return the strides of q, k and v over dense rows (0 where there are none), events and heads."""
    dense = q.stride()[:3] if q.dim() == 4 else (0, *q.stride()[:2])
    return *dense, 0, *k.stride()[:2], 0, *v.stride()[:2]


# Numbers stand in the kernels and not at the top of the module: each launch compares what is read from there.


@triton.jit
def natural(x):
    """`x` counted in base 2, as a natural logarithm."""
    return x * 0.6931471805599453


@triton.jit
def base_2(x):
    """The gradient of a natural logarithm as that of one in base 2, or a natural logarithm in base 2."""
    return x * 1.4426950408889634


@triton.jit
def reciprocal(x, FAST: tl.constexpr):
    """1 / x; FAST: by the GPU's approximation, which serves half precision."""
    if FAST:
        y = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = 1.0 / x
    return y


@triton.jit
def log2(x, FAST: tl.constexpr):
    """The logarithm of x in base 2; FAST: by the GPU's approximation, which serves half precision."""
    if FAST:
        y = tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        y = tl.log2(x)
    return y


@triton.jit
def find_tile(plan, count, heads, T, TILE: tl.constexpr, KIND: tl.constexpr, HEADS_FIRST: tl.constexpr,
              BACKWARDS: tl.constexpr):
    """Which tile this program has: head, first event, row; where the row begins and its length, and those it meets.

    `plan` (6, count), or (3, count) in self-attention: see `plan.py`; or the offsets of all rows, where tiles of row b
    begin as they do in a plan: at the number `start // TILE + b`.
    """
    pid = tl.program_id(0)
    if HEADS_FIRST:
        tile = pid // heads
        h = pid % heads
    else:
        tile = pid % count
        h = pid // count
    if BACKWARDS:  # under a causal mask later tiles of a row have more to do: first
        tile = count - 1 - tile
    row = 0
    if KIND[9]:
        rows = count - T // TILE
        row -= 1
        for n in range(0, rows, 32):
            b = n + tl.arange(0, 32)
            start = tl.minimum(tl.load(plan + b, mask=b < rows, other=0), T).to(tl.int32)
            row += tl.sum(((b < rows) & (start // TILE + b <= tile)).to(tl.int32), 0)
        own = tl.minimum(tl.load(plan + row), T).to(tl.int32)
        own_end = tl.minimum(tl.load(plan + row + 1), T).to(tl.int32)
        first = tl.minimum((tile - own // TILE - row) * TILE, own_end - own)
    else:
        plan += tile
        first = tl.load(plan)
        own = tl.load(plan + count)
        own_end = tl.load(plan + 2 * count)
    other = own
    other_end = own_end
    if not (KIND[1] or KIND[9]):
        other = tl.load(plan + 3 * count)
        other_end = tl.load(plan + 4 * count)
        row = tl.load(plan + 5 * count)
    return h, first, row, own, own_end - own, other, other_end - other


@triton.jit
def load_rows(source, first, head, stride_t, stride_h, limit, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr,
              INSIDE: tl.constexpr, TMA: tl.constexpr):
    """Load `N` events from `first` on of one head, (N, BD); zero from event `limit` on and past the width."""
    if TMA:
        rows = source.load([first, head, 0]).reshape(N, BD)
    else:
        step = tl.arange(0, N)
        d = tl.arange(0, BD)
        at = source + tl.cast(first, tl.int64) * stride_t + tl.cast(head, tl.int64) * stride_h
        at += step[:, None] * stride_t + d[None, :]
        if INSIDE and D == BD:
            rows = tl.load(at)
        elif INSIDE:
            rows = tl.load(at, mask=d[None, :] < D, other=0.0)
        elif D == BD:
            rows = tl.load(at, mask=(first + step < limit)[:, None], other=0.0)
        else:
            rows = tl.load(at, mask=(first + step < limit)[:, None] & (d[None, :] < D), other=0.0)
    return rows


@triton.jit
def load_queries(source, row, begin, first, head, strides, count, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr,
                 INSIDE: tl.constexpr, TMA: tl.constexpr, DENSE: tl.constexpr):
    """Load `N` queries from the row's `first` on, as `load_rows`; the row has `count` and begins at `begin`."""
    if DENSE:
        rows = load_rows(source + tl.cast(row, tl.int64) * strides[0], first, head, strides[1], strides[2], count, D,
                         BD, N, INSIDE, False)
    else:
        rows = load_rows(source, begin + first, head, strides[1], strides[2], begin + count, D, BD, N, INSIDE, TMA)
    return rows


@triton.jit
def store_rows(target, rows, first, head, H, limit, D: tl.constexpr, BD: tl.constexpr, N: tl.constexpr):
    """Store `rows` (N, BD) as the events from `first` on, up to `limit`, of one head of a contiguous (T, H, D)."""
    step = tl.arange(0, N)
    d = tl.arange(0, BD)
    at = target + tl.cast(first, tl.int64) * (H * D) + head * D + (step[:, None] * (H * D) + d[None, :])
    tl.store(at, rows.to(target.dtype.element_ty), mask=(first + step < limit)[:, None] & (d[None, :] < D))


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """`a` (M, K) times the transpose of `b` (N, K), (M, N); long float32 sums are added in halves, which round less."""
    if a.dtype == tl.float32 and a.shape[1] > 64 and PRECISION == "ieee":
        a_left, a_right = tl.split(a.reshape(a.shape[0], 2, a.shape[1] // 2).permute(0, 2, 1))
        b_left, b_right = tl.split(b.reshape(b.shape[0], 2, b.shape[1] // 2).permute(0, 2, 1))
        c = product(a_left, b_left, PRECISION) + product(a_right, b_right, PRECISION)
    else:
        c = tl.dot(a, b.T, input_precision=PRECISION)
    return c


@triton.jit
def scaled(q, scale):
    """The queries to multiply with keys, and the factor that their products still need.

    Half precision leaves the factor to be fused with the subtraction that follows. In float32 that fusion would give
    each kernel scores of its own, and one key alone a weight next to 1.
    """
    if q.dtype == tl.float32:
        q = q * scale
        scale = 1.0
    return q, scale


# --- the mask: see `mask.py` for its meaning ---


@triton.jit
def sizes_of_row(limits, counts, row, n, PER_ROW: tl.constexpr):
    """The mask of one row of `n` keys: reach to the left and right, block, end of the context and of the history."""
    prefix = n * 0
    history = n
    if PER_ROW:
        history = tl.maximum(n - tl.load(counts[1] + row).to(tl.int32), 0)
        prefix = tl.minimum(tl.load(counts[0] + row).to(tl.int32), history)
    return limits[0], limits[1], limits[2], prefix, history


@triton.jit
def block_of(at, block):
    """Where the block of a position begins and ends; 2**30 is `problem.NO_LIMIT`."""
    start = tl.where(at < 0, -block, at // block * block)
    return tl.where(block == 2**30, -(2**30), start), tl.where(block == 2**30, 2**30, start + block)


@triton.jit
def span(at, row, MASK: tl.constexpr):
    """The keys [low, high) near a query at position `at` (a number or a tensor): without context and itself."""
    left, right, block, _, history = row
    low = at * 0
    high = at * 0 + history
    if MASK == 1:
        high = tl.minimum(high, at + 1)
    if MASK == 2:
        stand = tl.minimum(at, history)
        start, end = block_of(stand, block)
        low = tl.maximum(tl.maximum(stand - left, start), 0)
        high = tl.minimum(tl.minimum(stand + right + 1, end), history)
    return low, high


@triton.jit
def visible(at, key, row, MASK: tl.constexpr):
    """Whether queries at positions `at` see `key`, tensors that broadcast; keys past the row are never seen."""
    low, high = span(at, row, MASK)
    seen = key < high
    if MASK == 2:
        seen &= key >= low
        seen |= key < row[3]
        seen |= (key == at) & (at >= row[4])
    return seen


@triton.jit
def key_blocks(first, last, row, BN: tl.constexpr, MASK: tl.constexpr):
    """Which blocks of BN keys the queries at positions first to last see.

    Returns the blocks [u0, u1) that all of them see whole, and how to find the others: see `other_block`.
    """
    low, inner_high = span(first, row, MASK)
    inner_low, high = span(last, row, MASK)
    b0 = low // BN
    b1 = tl.maximum(tl.cdiv(high, BN), b0)
    if MASK == 2:  # context from the first near block on is seen with that
        context = tl.cdiv(row[3], BN)
        b1 = tl.where(b0 < context, tl.maximum(b1, context), b1)
    u0 = tl.minimum(tl.maximum(tl.cdiv(inner_low, BN), b0), b1)
    u1 = tl.maximum(tl.minimum(inner_high // BN, b1), u0)
    before = u0 * 0
    c0 = b1
    c1 = b1
    if MASK == 2:
        before = tl.minimum(context, b0)
        own = last >= row[4]  # targets see themselves
        c0 = tl.where(own, tl.maximum(tl.maximum(first, row[4]) // BN, b1), b1)
        c1 = tl.where(own, tl.maximum(last // BN + 1, c0), b1)
    others = before + (u0 - b0) + (b1 - u1) + (c1 - c0)
    return u0, u1, others, before, b0, b1, c0


@triton.jit
def other_block(i, blocks, MASK: tl.constexpr):
    """Return the `i`-th block of keys that not every query sees whole: context, near ones, targets themselves."""
    u0, u1, _, before, b0, b1, c0 = blocks
    if MASK == 2:
        at = i - before
        n = tl.where(at < 0, i, b0 + at)
        at -= u0 - b0
        n = tl.where(at < 0, n, u1 + at)
        at -= b1 - u1
        n = tl.where(at < 0, n, c0 + at)
    else:
        n = u1 + i
    return n


@triton.jit
def query_blocks(first, last, row, m, n, BM: tl.constexpr, MASK: tl.constexpr):
    """Which blocks of BM queries see the keys first to last of a row of `m` queries and `n` keys.

    Returns all of them, [b0, b1), and among them those that see every key, [u0, u1).
    """
    left, right, block, prefix, history = row
    start = first * 0 + n - m  # positions of the queries, all of which are from n - m to n
    end = first * 0 + n
    inner = first * 0 - m
    inner_end = end
    if MASK == 1:
        start = first
        inner = last
    if MASK == 2:
        near = tl.minimum(last, history - 1)
        block_start, block_end = block_of(first, block)
        start = tl.maximum(first - right, block_start)
        inner_end = tl.minimum(first + left + 1, block_end)
        block_start, block_end = block_of(near, block)
        end = tl.minimum(near + left + 1, block_end)
        inner = tl.maximum(near - right, block_start)
        end = tl.where(end > history, n, end)  # targets stand at the end of the history
        inner_end = tl.where(inner_end > history, n, inner_end)
        start = tl.where(first >= history, first, start)
        end = tl.where(last >= history, tl.where(first >= history, last + 1, tl.maximum(end, last + 1)), end)
        inner_end = tl.where(last >= history, inner, inner_end)
        start = tl.where(first < prefix, n - m, start)
        end = tl.where(first < prefix, n, end)
    b0 = tl.maximum(start - n + m, 0) // BM
    b1 = tl.maximum(tl.cdiv(tl.minimum(end - n + m, m), BM), b0)
    u0 = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(inner - n + m, 0), BM), b0), b1)
    u1 = tl.maximum(tl.minimum(tl.maximum(tl.minimum(inner_end - n + m, m), 0) // BM, b1), u0)
    return b0, b1, u0, u1


# --- dropout: see `dropout.py` for the draw and its numbers ---


@triton.jit
def mixed(x):
    """32 bits that look random for each number: the murmur3 finaliser."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def query_bits(seed, h, events):
    """The bits of queries, uint32."""
    low = (tl.load(seed) & 0xFFFFFFFF).to(tl.uint32)
    return mixed(mixed(events.to(tl.uint32) ^ low) + tl.cast(h, tl.uint32) * 0x7FEB352D)


@triton.jit
def key_bits(seed, events):
    """The bits of keys, uint32."""
    high = ((tl.load(seed) >> 32) & 0xFFFFFFFF).to(tl.uint32)
    return mixed(mixed(events.to(tl.uint32) ^ high) + 0x9E3779B9)
