"""The backward kernel for few dense queries a row, all of which one tile holds: every gradient in one pass.

A program owns a row and a head: it goes through the keys once, stores the gradients of each block and keeps those of
the queries, so that five products do where two kernels need seven.
"""

# ruff: noqa: N803, N806

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from .plan import Sizes, block_width, describable, descriptor
from .problem import Problem
from .tile import (
    base_2,
    key_bits,
    load_rows,
    mixed,
    natural,
    precision,
    product,
    query_bits,
    scaled,
    sizes_of_row,
    store_rows,
    strides,
    visible,
)


def launch(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, sizes: Sizes,
           results: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Fill the gradients of q `(B, K, H, D)`, k and v; as `backward.launch`."""
    q, k, v = inputs
    rows, count, heads, width = q.shape
    tma = sizes.tma and describable(k, v)
    keys = (descriptor(k, sizes.block), descriptor(v, sizes.block)) if tma else (k, v)
    _backward[(rows * heads,)](
        q, *keys, *results, *grads, *gradients, problem.keys, count, rows * count,
        problem.factor, heads, strides(q, k, v), problem.limits, problem.counts, problem.dropped,
        width, v.shape[2], (block_width(width), block_width(v.shape[2]), sizes.tile, sizes.block),
        (problem.kind, problem.per_row), (precision(q.dtype), tma), num_warps=sizes.warps, num_stages=sizes.stages)


@triton.jit
def _block(q, do, lse, delta, dq, k_source, v_source, dk_target, dv_target, at, row, n, h, H, begin, length, strides,
           scale, dropped, bits, D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
           BN: tl.constexpr, INSIDE: tl.constexpr, HOW: tl.constexpr, MASK: tl.constexpr):
    """Store the gradients of one block of keys, return those of the queries with what it adds."""
    PRECISION: tl.constexpr = HOW[0]
    k = load_rows(k_source, begin + n, h, strides[4], strides[5], begin + length, D, BD, BN, INSIDE, HOW[1])
    v = load_rows(v_source, begin + n, h, strides[7], strides[8], begin + length, DV, BDV, BN, INSIDE, HOW[1])
    ready, factor = scaled(q, scale)
    keys = n + tl.arange(0, BN)
    p = tl.exp2(product(k, ready, PRECISION) * factor - lse[None, :])
    if not INSIDE:
        p = tl.where(visible(at[None, :], keys[:, None], row, MASK), p, 0.0)
    dp = product(v, do, PRECISION)
    kept = p
    if dropped[0] is not None:
        stays = mixed(bits[None, :] ^ key_bits(dropped[0], begin + keys)[:, None]) >= dropped[1]
        kept = tl.where(stays, p * dropped[2], 0.0)
        dp = tl.where(stays, dp * dropped[2], 0.0)
    dv = tl.dot(kept.to(do.dtype), do, input_precision=PRECISION)
    ds = (p * (dp - delta[None, :])).to(q.dtype)
    dk = tl.dot(ds, q, input_precision=PRECISION)
    store_rows(dv_target, dv, begin + n, h, H, begin + length, DV, BDV, BN)
    store_rows(dk_target, dk * natural(scale), begin + n, h, H, begin + length, D, BD, BN)
    return tl.dot(ds.T, k, dq, input_precision=PRECISION)


@launched
@triton.jit(do_not_specialize=["count", "T"])
def _backward(q_source, k_source, v_source, out, lse_source, grad, grad_lse, dq_target, dk_target, dv_target, offsets,
              count, T, scale, H, strides, limits, counts, dropped, D: tl.constexpr,
              DV: tl.constexpr, SIZES: tl.constexpr, KIND: tl.constexpr, HOW: tl.constexpr):
    """All gradients of one row and head, whose `count` queries are one tile."""
    BD: tl.constexpr = SIZES[0]
    BDV: tl.constexpr = SIZES[1]
    BM: tl.constexpr = SIZES[2]
    BN: tl.constexpr = SIZES[3]
    MASK: tl.constexpr = KIND[0]
    row = tl.program_id(0) // H
    h = tl.program_id(0) % H
    begin = tl.load(offsets + row).to(tl.int32)
    length = tl.load(offsets + row + 1).to(tl.int32) - begin
    mask = sizes_of_row(limits, counts, row, length, KIND[1])
    step = tl.arange(0, BM)
    inside = step < count
    start = row * count
    q = load_rows(q_source + tl.cast(row, tl.int64) * strides[0], 0, h, strides[1], strides[2], count, D, BD, BM,
                  False, False)
    do = load_rows(grad, start, h, H * DV, DV, start + count, DV, BDV, BM, False, False)
    o = load_rows(out, start, h, H * DV, DV, start + count, DV, BDV, BM, False, False)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    of_row = tl.cast(h, tl.int64) * T + start + step
    if grad_lse is not None:
        delta -= base_2(tl.load(grad_lse + of_row, mask=inside, other=0.0))
    # queries past the last: a log-sum-exp that makes their weights 0
    lse = tl.load(lse_source + of_row, mask=inside, other=float("inf"))
    bits = step
    if dropped[0] is not None:
        bits = query_bits(dropped[0], h, start + step)
    at = step + length - count
    dq = tl.zeros([BM, BD], tl.float32)
    whole = 0
    if MASK == 0:
        whole = length // BN
    for i in range(0, whole):
        dq = _block(q, do, lse, delta, dq, k_source, v_source, dk_target, dv_target, at, mask, i * BN, h, H, begin,
                    length, strides, scale, dropped, bits, D, DV, BD, BDV, BN, True, HOW, MASK)
    for i in range(whole, tl.cdiv(length, BN)):
        dq = _block(q, do, lse, delta, dq, k_source, v_source, dk_target, dv_target, at, mask, i * BN, h, H, begin,
                    length, strides, scale, dropped, bits, D, DV, BD, BDV, BN, False, HOW, MASK)
    store_rows(dq_target, dq * natural(scale), start, h, H, start + count, D, BD, BM)
