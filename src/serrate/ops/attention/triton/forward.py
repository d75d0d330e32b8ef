"""The forward kernel of jagged attention."""

# ruff: noqa: N803, N806

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from .plan import Plan, describable, descriptor
from .problem import Problem
from .relative import biased, key_side, open_block, queries_of_tile
from .tile import (
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
    visible,
)
from .weigh import activated, fast, kind, share


def launch(inputs: Sequence[Tensor], problem: Problem, plan: Plan, results: Sequence[Tensor]) -> None:
    """Fill the results, output `(T, H, Dv)` and log-sum-exp `(H, T)` in base 2, from q, k and v.

    The last stride of q, k and v is 1, and there are queries.
    """
    q, k, v = inputs
    heads, sizes = q.shape[-2], plan.tiling.forward
    tiles, count = plan.find(True, sizes.tile)
    tma = sizes.tma and describable(k, v)
    keys = (descriptor(k, sizes.block), descriptor(v, sizes.block)) if tma else (k, v)
    _forward[(count * heads,)](
        q, *keys, *results, tiles, count, *plan.numbers(q, k, v), sizes.tile, sizes.block,
        kind(problem, heads // k.shape[1], plan.searched, q.device), (precision(q.dtype), tma, plan.tiling.heads_first),
        num_warps=sizes.warps, num_stages=sizes.stages)


@triton.jit
def _block(q, m, total, acc, k_source, v_source, at, row, n, h, begin, strides, length, scale, dropped, events, bias,
           side, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BN: tl.constexpr,
           INSIDE: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """Let the queries of a tile see one block of keys: the running maximum, sum and weighted values.

    h: head of the keys; side: of the queries, see `relative.queries_of_tile`.
    """
    PRECISION: tl.constexpr = HOW[0]
    BM: tl.constexpr = q.shape[0]
    FAST: tl.constexpr = fast(KIND[8], q.dtype)
    keys = n + tl.arange(0, BN)
    if KIND[7]:
        place, happened = key_side(bias, keys, row, begin, length, side[2])
        room, happened = open_block(bias, side[3], side[4], side[5] - n - (BN - 1), happened, BM, BN, KIND)
    k = load_rows(k_source, begin + n, h, strides[4], strides[5], begin + length, D, BD, BN, INSIDE, HOW[1])
    v = load_rows(v_source, begin + n, h, strides[7], strides[8], begin + length, DV, BDV, BN, INSIDE, HOW[1])
    q, scale = scaled(q, scale)
    s = product(q, k, PRECISION)
    if KIND[5] or KIND[7]:
        s = s * scale
        scale = 1.0
    if KIND[7]:
        within = (tl.arange(0, BM) + (BN - 1))[:, None] - tl.arange(0, BN)[None, :]
        s, _ = biased(s, bias, side[3], room, within, side[0][:, None] - place[None, :],
                      side[1][:, None] - happened[None, :], KIND)
    if KIND[5]:
        p, _ = activated(s, KIND[5], FAST)
        if not INSIDE:
            p = tl.where(visible(at[:, None], keys[None, :], row, KIND[0]), p, 0.0)
    else:
        if not INSIDE:
            s = tl.where(visible(at[:, None], keys[None, :], row, KIND[0]), s, float("-inf"))
        top = tl.maximum(m, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - top[:, None])
        shrink = tl.exp2(m - top)
        total = total * shrink + tl.sum(p, 1)
        acc *= shrink[:, None]
        m = top
    if dropped[0] is not None:
        bits = key_bits(dropped[0], begin + keys)
        p = tl.where(mixed(events[:, None] ^ bits[None, :]) >= dropped[1], p * dropped[2], 0.0)
    acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
    return m, total, acc


@launched
@triton.jit(do_not_specialize=["T", "count"])
def _forward(q_source, k_source, v_source, out, lse, plan, count, T, factors, H, strides, limits, counts, dropped,
             bias, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, BM: tl.constexpr,
             BN: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """Attend from the BM queries of a tile to the keys of their row."""
    MASK: tl.constexpr = KIND[0]
    h, first, row, begin, m_row, other, length = find_tile(plan, count, H, T, BM, KIND, HOW[2], MASK == 1)
    if first >= m_row:
        return
    mask = sizes_of_row(limits, counts, row, length, KIND[3])
    step = tl.arange(0, BM)
    start = first + length - m_row  # position of the first query among the keys
    at = start + step
    blocks = key_blocks(start, tl.minimum(first + BM, m_row) - 1 + length - m_row, mask, BN, MASK)
    q = load_queries(q_source, row, begin, first, h, strides, m_row, D, BD, BM, False, False, KIND[2])
    m = tl.full([BM], -1e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, BDV], tl.float32)
    events = step
    if dropped[0] is not None:
        events = query_bits(dropped[0], h, begin + first + step)
    side = queries_of_tile(bias, start, mask, begin + first + step, first + step < m_row, other, length, h, KIND)
    g = h // KIND[4]
    for i in range(blocks[0], blocks[1]):
        m, total, acc = _block(q, m, total, acc, k_source, v_source, at, mask, i * BN, g, other, strides, length,
                               factors[0], dropped, events, bias, side, D, DV, BD, BDV, BN, True, KIND, HOW)
    for i in range(0, blocks[2]):
        n = other_block(i, blocks, MASK) * BN
        m, total, acc = _block(q, m, total, acc, k_source, v_source, at, mask, n, g, other, strides, length,
                               factors[0], dropped, events, bias, side, D, DV, BD, BDV, BN, False, KIND, HOW)
    if KIND[5]:
        acc *= share(factors[1], mask[4], KIND[6])
    else:
        if MASK == 2 or not KIND[1]:  # a query may have seen no key
            blind = total == 0.0
            m = tl.where(blind, float("-inf"), m)
            total = tl.where(blind, 1.0, total)
        tl.store(lse + tl.cast(h, tl.int64) * T + begin + first + step, m + tl.log2(total), mask=first + step < m_row)
        acc *= (1.0 / total)[:, None]
    store_rows(out, acc, begin + first, h, H, begin + m_row, DV, BDV, BM)
