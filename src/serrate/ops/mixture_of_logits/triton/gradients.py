"""Gradients of sums over items: one kernel that computes scores again, and products with a large matrix.

A program has a tile of items and passes some queries by, as in `scores.py`. What pairs give to the weights of the gate
and to the gates of their items it sums up in registers. What they give to their logits goes to memory, of as many
queries at a time as a buffer holds, since components of queries and of items want sums over different programs. Laid
out as the products of components are, `(R · P_Q, V · P_X)`, it is multiplied by the components of either side.

Sizes are padded to powers of two; no pair weighs what is padded. Factors that the halves in the weights of `Scorer`
leave are taken out at the end.
"""

# ruff: noqa: N803, N806

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ...attention.triton.tile import precision
from ...direct import INTERPRETED
from ...launch import launched
from ...sizes import ceil_div
from ..api import Gate, Problem, Terms
from . import Sizes, whole
from .scores import (
    Scorer,
    Tiles,
    _exp,
    _hidden,
    _load_gates,
    _load_query,
    _load_resident,
    _load_resident_items,
    _logits,
    _shares,
    _stay,
    _twice_silu_half,
)

_PROGRAMS = 1024  # enough to fill a device
_LOGITS = 2**28  # whose gradients are in memory together: 512 MiB in half precision


def tiles_of(sizes: Sizes, dtype: torch.dtype) -> Tiles:
    """Return how to cut the work."""
    if dtype == torch.float32:
        return Tiles(16, 4, 1, hidden=16, apart=True)
    return Tiles(64, 4, 1, apart=True) if sizes.mixed <= 32 else Tiles(128, 8, 1, apart=True)


def gradients(problem: Problem, terms: Terms, log_sums: Tensor, grad: Tensor, tiles: Tiles | None = None
              ) -> list[Tensor]:
    """Return the gradients of both sides and of the gate, in the order of a problem, each of the dtype of its tensor.

    Args:
        problem: what was scored, in single or half precision.
        terms: what was summed.
        log_sums: the sums `(R,)` float32.
        grad: the gradients of these, `(R,)` float32.
        tiles: how to cut the work; None: as is best.
    """
    components = problem.query_components.shape[1], problem.item_components.shape[1]
    sizes = Sizes.of(*components, problem.item_components.shape[2], len(problem.gate.first_bias))
    p_q, p_x, width, hidden = sizes
    scorer = Scorer.of(_padded(problem, sizes), tiles or tiles_of(sizes, problem.item_gate.dtype))
    rows, count = len(log_sums), len(problem.item_gate)
    items, pitch = scorer.items.view(-1, width), ceil_div(count, scorer.tiles.items) * scorer.tiles.items * p_x
    d_queries, d_query_gates = log_sums.new_zeros(rows, p_q, width), log_sums.new_zeros(rows, sizes.mixed)
    d_items, d_item_gates = log_sums.new_zeros(count * p_x, width), log_sums.new_zeros(count, sizes.mixed)
    d_first, d_second = (log_sums.new_zeros(hidden, sizes.mixed) for _ in range(2))
    d_first_bias, d_second_bias = log_sums.new_zeros(hidden), log_sums.new_zeros(sizes.mixed)
    step = whole(_LOGITS // max(1, p_q * pitch))
    d_logits = items.new_empty(min(rows, step) * p_q, pitch)
    for first in range(0, rows if count else 0, step):
        some = slice(first, min(first + step, rows))
        sums = _launch(problem, scorer, terms, (log_sums, grad), some, d_logits)
        d_query_gates[some] = sums[0].sum(0)
        for total, part in zip((d_item_gates, d_first, d_second, d_first_bias, d_second_bias), sums[1:], strict=True):
            total += part.sum(0)
        of_some = d_logits[:(some.stop - first) * p_q, :count * p_x]
        d_queries[some] = _product(of_some, items).view(-1, p_q, width)
        d_items += _product(of_some.T, scorer.queries[some].view(-1, width))

    def pairs(x: Tensor) -> Tensor:
        apart = x.unflatten(-1, (p_x, p_q)).transpose(-1, -2)
        return apart[..., :components[0], :components[1]].flatten(-2)

    found = (d_queries, pairs(d_query_gates) / 2, d_items.view(count, p_x, width), pairs(d_item_gates),
             pairs(d_first) * (scorer.inverse / 2), d_first_bias / 2, pairs(d_second).T / 2, pairs(d_second_bias) / 2)
    return [x[tuple(map(slice, like.shape))].to(like.dtype)
            for x, like in zip(found, (*problem[:4], *problem.gate), strict=True)]


def _padded(problem: Problem, sizes: Sizes) -> Problem:
    """Return a problem of such sizes, with zeros where it is larger."""
    f, a, g, b, gate, temperature = problem
    components = f.shape[1], g.shape[1]

    def put(x: Tensor, *shape: int) -> Tensor:
        missing = [size - there for size, there in zip(shape, x.shape, strict=True)]
        return F.pad(x, [n for size in missing[::-1] for n in (0, size)])

    def pairs(x: Tensor) -> Tensor:
        return put(x.unflatten(-1, components), len(x), *sizes[:2]).flatten(1)

    gate = Gate(put(pairs(gate.first_weight), sizes.hidden, sizes.mixed), put(gate.first_bias, sizes.hidden),
                put(pairs(gate.second_weight.T), sizes.hidden, sizes.mixed).T, pairs(gate.second_bias[None])[0])
    return Problem(put(f, len(f), sizes.query_components, sizes.width), pairs(a),
                   put(g, len(g), sizes.item_components, sizes.width), pairs(b), gate, temperature)


def _launch(problem: Problem, scorer: Scorer, terms: Terms, of_rows: tuple[Tensor, Tensor], some: slice,
            d_logits: Tensor) -> list[Tensor]:
    """Fill `d_logits` for `some` queries; return sums of parts of all else.

    What is added up over their first axis: (tiles, rows, BP) for gates of queries, (groups, V, BP) for gates of items,
    (programs, …) for the gate: its weights, (G, BP) both, and its biases.
    """
    (log_sums, grad), rows, count = of_rows, some.stop - some.start, len(scorer.item_gates)
    tiles, (mixed, hidden) = ceil_div(count, scorer.tiles.items), scorer.gate.second_weight.shape
    several = ceil_div(rows, min(rows, ceil_div(_PROGRAMS, tiles)))
    groups = ceil_div(rows, several)
    programs = tiles * groups
    sums = [log_sums.new_empty(shape) for shape in (
        (tiles, rows, mixed), (groups, count, mixed), (programs, hidden, mixed),
        (programs, hidden, mixed), (programs, hidden), (programs, mixed))]
    excluded = None if terms.excluded is None else (terms.excluded[0], terms.excluded[1][some])
    dropped = terms.dropped and (*terms.dropped, some.start)
    fast = scorer.items.dtype != torch.float32 and not INTERPRETED
    _gradients[(programs,)](
        scorer.items, scorer.item_gates, scorer.queries[some], scorer.query_gates[some], tuple(scorer.gate),
        log_sums[some], grad[some], terms.shifts, excluded, dropped, (d_logits, *sums), rows, count, several,
        d_logits.shape[1], scorer.inverse, terms.scale, problem.query_components.shape[1],
        problem.item_components.shape[1], scorer.queries.shape[1], mixed, hidden, min(hidden, scorer.tiles.hidden),
        scorer.queries.shape[2], scorer.tiles.items, fast, precision(), num_warps=scorer.tiles.warps, num_stages=1,
        maxnreg=scorer.tiles.registers)
    return sums


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices in float32, whatever they are of."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else a.float() @ b.float()


@triton.jit
def _silu_and_slope(x, FAST: tl.constexpr):
    """`silu(2 x)`, and twice the slope of SiLU there."""
    if FAST:
        tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
        share = 1 + tanh
    else:
        share = tl.math.div_rn(2.0, 1 + _exp(-2 * x))
    silu = x * share
    return silu, share * (1 + 2 * x - silu)


@triton.jit
def _low(x, dtype: tl.constexpr, FAST: tl.constexpr):
    """A tensor in half precision, two numbers an instruction: single ones take the unit for exponentials."""
    if FAST and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.bfloat16,
                                         is_pure=True, pack=2)
    elif FAST:
        return tl.inline_asm_elementwise("cvt.rn.f16x2.f32 $0, $2, $1;", "=r,f,f", [x], dtype=tl.float16,
                                         is_pure=True, pack=2)
    return x.to(dtype)


@triton.jit
def _times(x, y, FAST: tl.constexpr):
    """The product of a float32 tensor and one in half precision, in that."""
    if FAST and y.dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 low; cvt.rn.bf16x2.f32 low, $2, $1; mul.rn.bf16x2 $0, low, $3; }", "=r,f,f,r", [x, y],
            dtype=tl.bfloat16, is_pure=True, pack=2)
    elif FAST:
        return tl.inline_asm_elementwise(
            "{ .reg .b32 low; cvt.rn.f16x2.f32 low, $2, $1; mul.rn.f16x2 $0, low, $3; }", "=r,f,f,r", [x, y],
            dtype=tl.float16, is_pure=True, pack=2)
    return (x * y).to(y.dtype)


@launched
@triton.jit(do_not_specialize=["rows", "count", "several"])
def _gradients(items, item_gates, queries, query_gates, gate, log_sums, grads, shifts, excluded, dropped, out, rows,
               count, several, pitch, inverse, scale, P_Q: tl.constexpr, P_X: tl.constexpr, BP_Q: tl.constexpr,
               BP: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
               FAST: tl.constexpr, PRECISION: tl.constexpr):
    """What the pairs of BM items and `several` queries give to gradients; programs of the same items are neighbours.

    Queries are P_Q of BP_Q components, items P_X of BP_X.
    """
    BP_X: tl.constexpr = BP // BP_Q
    K: tl.constexpr = BP_X * D
    PARTS: tl.constexpr = G // BG
    groups = tl.cdiv(rows, several)
    tile, group = tl.program_id(0) // groups, tl.program_id(0) % groups
    item = tile * BM + tl.arange(0, BM)
    there = item < count
    row = tl.minimum(item, count - 1).to(tl.int64)
    begin = group * several
    end = tl.minimum(begin + several, rows)
    column, hidden = tl.arange(0, BP), tl.arange(0, BG)
    real = (column % BP_Q < P_Q) & (column // BP_Q < P_X)
    pair = column % BP_Q * P_X + column // BP_Q
    resident = _load_resident_items(items, row, K, D, True)
    own = _load_gates(item_gates, row, BP, BP, BP_X, True)
    weights = _load_resident(gate, G, BG, BP, PARTS)
    bias = tl.load(gate[3] + column)
    low_type: tl.constexpr = items.dtype.element_ty
    ones = (tl.arange(0, 16) == 0).to(low_type)[None, :].broadcast_to(BM, 16)
    if excluded is not None:
        label = tl.load(excluded[0] + row)
    shift = tl.zeros((BM,), tl.float32)
    if shifts is not None:
        shift += tl.load(shifts + row)
    d_item_gates = tl.zeros((BM, BP), tl.float32)
    d_bias = tl.zeros((16, BP), tl.float32)
    row_of_ones = (tl.arange(0, 16) == 0).to(low_type)[:, None].broadcast_to(16, BM)
    d_first, d_second, d_hidden_bias = (), (), ()
    for _ in tl.static_range(PARTS):
        d_first = d_first + (tl.zeros((BG, BP), tl.float32),)  # noqa: RUF005 - Triton has no stars
        d_second = d_second + (tl.zeros((BG, BP), tl.float32),)  # noqa: RUF005
        d_hidden_bias = d_hidden_bias + (tl.zeros((BG, 16), tl.float32),)  # noqa: RUF005
    along = tl.arange(0, BP_Q)[:, None] * pitch + tl.arange(0, BM * BP_X)[None, :]
    size: tl.constexpr = BP_Q * D
    following = _load_query(queries + tl.cast(begin, tl.int64) * size, 0, BP, BP, D, K, D, True)
    for r in tl.range(begin, end, num_stages=1):
        wide = tl.cast(r, tl.int64)
        asked = following
        following = _load_query(queries + (wide + (r + 1 < end)) * size, 0, BP, BP, D, K, D, True)
        own_query = tl.load(query_gates + r * BP + column)[None, :]
        logits = _logits(items, row, queries, asked, resident, BP, BP, D, K, D, True, PRECISION)
        low = logits.to(low_type)
        z = own * own_query + bias[None, :]
        before = ()  # hidden numbers before their SiLU, which is computed twice: registers are dearer
        for part in tl.static_range(PARTS):
            x = _hidden(low, weights[part], PRECISION)
            before = before + (_low(x, low_type, FAST),)  # noqa: RUF005
            z = tl.dot(_twice_silu_half(x, FAST).to(low_type), weights[part][1], z, input_precision=PRECISION)
        w, slope = _silu_and_slope(z, FAST)
        stay = None
        if dropped is not None:
            stay = _stay(dropped, r, item, pair)
        if P_Q != BP_Q or P_X != BP_X:
            w = tl.where(real[None, :], w, float("-inf"))
        weight, share = _shares(w, stay, FAST)
        weight *= share[:, None]
        mean = tl.sum(weight * logits, 1)
        counts = there
        if excluded is not None:
            counts = counts & (label != tl.load(excluded[1] + r))
        log = mean * (inverse * scale) + shift - tl.load(log_sums + r)
        given = tl.where(counts, tl.exp(log) * (tl.load(grads + r) * (scale * inverse)), 0.0)
        d_logits = given[:, None] * weight
        d_z = d_logits * (logits - mean[:, None]) * slope
        d_item_gates += d_z * own_query
        tl.store(out[1] + (tile * rows + r) * BP + column, tl.sum(d_z * own, 0))
        low_z = d_z.to(low_type)
        d_bias = tl.dot(row_of_ones, low_z, d_bias, input_precision=PRECISION)
        firsts, seconds, biases = (), (), ()
        for part in tl.static_range(PARTS):
            silu, slope_of_hidden = _silu_and_slope(before[part].to(tl.float32), FAST)
            low_silu = silu.to(low_type)
            low_hidden = _times(tl.dot(low_z, weights[part][1].T, input_precision=PRECISION),
                                _low(slope_of_hidden, low_type, FAST), FAST)
            d_logits = tl.dot(low_hidden, weights[part][0].T, d_logits, input_precision=PRECISION)
            firsts = firsts + (tl.dot(low_hidden.T, low, d_first[part], input_precision=PRECISION),)  # noqa: RUF005
            seconds = seconds + (tl.dot(low_silu.T, low_z, d_second[part], input_precision=PRECISION),)  # noqa: RUF005
            biases = biases + (tl.dot(low_hidden.T, ones, d_hidden_bias[part], input_precision=PRECISION),)  # noqa: RUF005
        d_first, d_second, d_hidden_bias = firsts, seconds, biases
        # by query component, and along items: BP_X beside each other
        by_query = d_logits.to(low_type).reshape(BM, BP_X, BP_Q).permute(2, 0, 1).reshape(BP_Q, BM * BP_X)
        tl.store(out[0] + wide * BP_Q * pitch + tile * (BM * BP_X) + along, by_query)
    at = tl.program_id(0)
    tl.store(out[2] + (group * tl.cast(count, tl.int64) + item[:, None]) * BP + column[None, :], d_item_gates,
             mask=there[:, None])
    for part in tl.static_range(PARTS):
        h = (tl.cast(at, tl.int64) * G + part * BG + hidden)
        tl.store(out[3] + h[:, None] * BP + column[None, :], d_first[part])
        tl.store(out[4] + h[:, None] * BP + column[None, :], d_second[part])
        tl.store(out[5] + h, tl.sum(d_hidden_bias[part], 1))
    tl.store(out[6] + at * BP + column, tl.sum(d_bias, 0))
