"""The forward kernel of jagged attention."""

# ruff: noqa: N803, N806

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .plan import Plan, block_width, describable, descriptor
from .problem import Problem
from .tile import (
    LOG2_E,
    find_tile,
    key_bits,
    key_blocks,
    load_queries,
    load_rows,
    mixed,
    other_block,
    precision,
    product,
    query_bits,
    scaled,
    sizes_of_row,
    store_rows,
    strides,
    visible,
)


def launch(inputs: Sequence[Tensor], problem: Problem, plan: Plan, results: Sequence[Tensor]) -> None:
    """Fill the results, output `(T, H, Dv)` and log-sum-exp `(H, T)` in base 2, from q, k and v.

    The last stride of q, k and v is 1, and there are queries.
    """
    q, k, v = inputs
    heads, width = q.shape[-2:]
    sizes = plan.tiling.forward
    tiles = plan.queries(sizes.tile)
    count = tiles.shape[1]
    tma = sizes.tma and describable(k, v)
    keys = (descriptor(k, sizes.block), descriptor(v, sizes.block)) if tma else (k, v)
    _forward[(count * heads,)](
        q, *keys, *results, tiles, count, results[1].shape[1], problem.scale * LOG2_E,
        heads, strides(q, k, v), problem.limits, problem.counts, problem.dropped, width, v.shape[2],
        block_width(width), block_width(v.shape[2]), sizes.tile, sizes.block,
        (problem.kind, problem.self_attention, problem.dense, problem.per_row, heads // k.shape[1]),
        (precision(), tma, plan.tiling.heads_first), num_warps=sizes.warps, num_stages=sizes.stages)


@triton.jit
def _block(q, m, total, acc, k_source, v_source, at, row, n, h, begin, strides, length, scale, dropped, events,
           D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr,
           INSIDE: tl.constexpr, MASK: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr, DROP: tl.constexpr):
    """Let the queries of a tile see one block of keys: the running maximum, sum and weighted values."""
    k = load_rows(k_source, begin + n, h, strides[4], strides[5], begin + length, D, BD, BN, INSIDE, TMA)
    v = load_rows(v_source, begin + n, h, strides[7], strides[8], begin + length, DV, BDV, BN, INSIDE, TMA)
    q, scale = scaled(q, scale)
    s = product(q, k, PRECISION)
    if not INSIDE:
        s = tl.where(visible(at[:, None], n + tl.arange(0, BN)[None, :], row, MASK), s, float("-inf"))
    top = tl.maximum(m, tl.max(s, 1) * scale)
    p = tl.exp2(s * scale - top[:, None])
    shrink = tl.exp2(m - top)
    total = total * shrink + tl.sum(p, 1)
    if DROP:
        keys = key_bits(dropped[0], begin + n + tl.arange(0, BN))
        p = tl.where(mixed(events[:, None] ^ keys[None, :]) >= dropped[1], p * dropped[2], 0.0)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
    return top, total, acc


@triton.jit(do_not_specialize=["T", "count"])
def _forward(q_source, k_source, v_source, out, lse, plan, count, T, scale, H, strides, limits, counts, dropped,
             D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
             BN: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """Attend from the BM queries of a tile to the keys of their row."""
    MASK: tl.constexpr = KIND[0]
    PRECISION: tl.constexpr = HOW[0]
    TMA: tl.constexpr = HOW[1]
    DROP: tl.constexpr = dropped[0] is not None
    h, first, row, begin, m_row, other, length = find_tile(plan, count, H, KIND[1], HOW[2], MASK == 1)
    if first >= m_row:
        return
    mask = sizes_of_row(limits, counts, row, length, KIND[3])
    step = tl.arange(0, BM)
    at = first + step + length - m_row  # positions of the queries among the keys
    blocks = key_blocks(first + length - m_row, tl.minimum(first + BM, m_row) - 1 + length - m_row, mask, BN, MASK)
    q = load_queries(q_source, row, begin, first, h, strides, m_row, D, BD, BM, False, False, KIND[2])
    m = tl.full([BM], -1e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BDV], tl.float32)
    events = step
    if DROP:
        events = query_bits(dropped[0], h, begin + first + step)
    g = h // KIND[4]
    for i in range(blocks[0], blocks[1]):
        m, total, acc = _block(q, m, total, acc, k_source, v_source, at, mask, i * BN, g, other, strides, length, scale,
                               dropped, events, D, DV, BD, BDV, BN, True, MASK, PRECISION, TMA, DROP)
    for i in range(0, blocks[2]):
        n = other_block(i, blocks, MASK) * BN
        m, total, acc = _block(q, m, total, acc, k_source, v_source, at, mask, n, g, other, strides, length, scale,
                               dropped, events, D, DV, BD, BDV, BN, False, MASK, PRECISION, TMA, DROP)
    if MASK == 2 or not KIND[1]:  # a query may have seen no key
        blind = total == 0.0
        m = tl.where(blind, float("-inf"), m)
        total = tl.where(blind, 1.0, total)
    tl.store(lse + tl.cast(h, tl.int64) * T + begin + first + step, m + tl.log2(total), mask=first + step < m_row)
    store_rows(out, acc * (1.0 / total)[:, None], begin + first, h, H, begin + m_row, DV, BDV, BM)
