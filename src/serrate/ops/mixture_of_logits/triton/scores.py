"""The kernels that score: a tile of items, one query after the other, all of a pair in registers.

The components of an item lie one after the other, a row of P_X · d numbers, and a query is read as a matrix that such
rows are multiplied by: `(P_X · d, P)`, zero where a column's item component is another. So the product has the P logits
of a pair beside each other, which is how the gate wants them, at the price of P_X times the products, of which there
are few. What the temperature and the halves in `silu(x) = x/2 (1 + tanh(x/2))` do is done to the weights of the gate.
"""

# ruff: noqa: N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...attention.triton.tile import precision
from ...direct import INTERPRETED
from ...launch import launched
from ...sizes import ceil_div, power_of_two
from ..api import Gate, Problem

_PROGRAMS = 1024  # enough to fill a device


class Tiles(NamedTuple):
    """How the work is cut.

    Attributes:
        items: of a program.
        warps: of a program.
        stages: how many queries are on their way to the chip.
        depth: how much of a row of item components stays on chip; of a longer one the rest is read for each query.
        hidden: hidden numbers at a time.
        resident: how many of such parts of the gate's weights stay on chip; others are read for each query.
        registers: of a thread at most; None: what the compiler takes.
    """

    items: int
    warps: int
    stages: int
    depth: int = 512
    hidden: int = 64
    resident: int = 2
    registers: int | None = None


class Scorer(NamedTuple):
    """What the kernels read, the gate padded to the sizes of their tiles.

    Attributes:
        items: `(V, P_X · d)`.
        item_gates: `(V, P)`.
        queries: `(R, P_Q, d)`, in the dtype of the items.
        query_gates: `(R, BP)` float32, halved.
        gate: its weights `(G, BP)` and `(BP, G)` and first bias in the dtype of the items, the second one in float32.
        inverse: of the temperature.
        tiles: how the work is cut.
    """

    items: Tensor
    item_gates: Tensor
    queries: Tensor
    query_gates: Tensor
    gate: Gate
    inverse: float
    tiles: Tiles

    @classmethod
    def of(cls, problem: Problem, tiles: Tiles | None = None) -> "Scorer":
        """Prepare a problem; nothing of the size of the items is copied where they are contiguous."""
        dtype, items = problem.item_components.dtype, problem.item_components.flatten(1).contiguous()
        hidden, mixed = problem.gate.first_weight.shape
        rows, columns = len(problem.query_gate), _power(mixed)
        tiles = tiles or tiles_of(dtype, items.shape[1], columns)
        first, first_bias, second, second_bias = problem.gate
        hidden = _padded(hidden, tiles.hidden)
        gate = Gate(_put(first, (hidden, columns), dtype, 0.5 / problem.temperature),
                    _put(first_bias, (hidden,), dtype, 0.5),
                    _put(second, (columns, hidden), dtype, 0.5),
                    _put(second_bias, (columns,), torch.float32, 0.5))
        queries = problem.query_components.to(dtype).contiguous()
        return cls(items, problem.item_gate.contiguous(), queries,
                   _put(problem.query_gate, (rows, columns), torch.float32, 0.5), gate, 1 / problem.temperature,
                   tiles)

    def every(self, first: int, out: Tensor, allowed: Tensor | None = None, candidates: bool = False) -> None:
        """Fill `out` `(R, C)` with the scores of all queries and the items from `first` on.

        Of `candidates` a NaN is told as -inf, and so is an item that is not `allowed`, `(V,)` bool or bits in uint8,
        for which `first` is to be a multiple of 8.
        """
        rows, count = out.shape
        tiles = ceil_div(count, self.tiles.items)
        several = ceil_div(rows, min(rows, ceil_div(_PROGRAMS, tiles)))
        bits = allowed is not None and allowed.dtype == torch.uint8
        if allowed is not None:
            allowed = allowed[first // 8:] if bits else allowed[first:].view(torch.uint8)
        _every[(tiles * ceil_div(rows, several),)](
            self.items[first:], self.item_gates[first:], allowed, self.queries, self.query_gates, tuple(self.gate), out,
            rows, count, out.stride(0), self.inverse, several, candidates, bits, **self._sizes())

    def each(self, ids: Tensor, out: Tensor) -> None:
        """Fill `out` `(R, K)` with the scores of each query and the items `ids` `(R, K)`, both contiguous."""
        rows, count = ids.shape
        _each[(rows * ceil_div(count, self.tiles.items),)](
            self.items, self.item_gates, ids, self.queries, self.query_gates, tuple(self.gate), out, len(self.items),
            count, self.inverse, **self._sizes())

    def _sizes(self) -> dict:
        (columns, hidden), width = self.gate.second_weight.shape, self.queries.shape[2]
        depth, half = self.items.shape[1], self.items.dtype != torch.float32
        return {"P": self.item_gates.shape[1], "BP": columns, "G": hidden, "BG": min(hidden, self.tiles.hidden),
                "RESIDENT": self.tiles.resident, "D": width, "K": depth, "BK": min(_power(depth), self.tiles.depth),
                "BM": self.tiles.items, "STAGES": self.tiles.stages, "FAST": half and not INTERPRETED,
                "PRECISION": precision(), "num_warps": self.tiles.warps,
                "num_stages": 1, "maxnreg": self.tiles.registers}


def tiles_of(dtype: torch.dtype, depth: int, columns: int) -> Tiles:
    """Return how to cut the work for items of a dtype and so many numbers, and for so many pairs of components.

    Products of float32 have no matrix unit and hold their operands in registers: they are summed over few at a time.
    """
    if dtype == torch.float32:
        return Tiles(16, 4, 1, 16, 16, 0)
    if columns <= 64:
        whole = min(512, 16384 // columns)
        most = whole if depth <= whole else 128
        # of 32 columns and 256 numbers two programs fit: 113 KiB of shared memory and 128 registers a thread
        return Tiles(128, 8, 2, most, registers=128) if columns <= 32 else Tiles(64, 4, 1, most)
    return Tiles(4096 // columns, 4, 1, 8192 // columns, 8192 // columns, 1)


def _power(size: int) -> int:
    return max(16, power_of_two(size))


def _padded(size: int, most: int) -> int:
    """Return a size that tiles of a power of two, at most `most`, cover."""
    return _power(size) if size <= most else ceil_div(size, most) * most


def _put(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, scale: float) -> Tensor:
    """Return `x · scale`, rounded once, in the corner of a tensor of zeros where it does not fill it."""
    if x.shape == shape:
        return (x.float() * scale).to(dtype).contiguous()
    found = x.new_zeros(shape, dtype=dtype)
    found[tuple(slice(0, size) for size in x.shape)] = x.float() * scale
    return found


@triton.jit
def _exp(x, FAST: tl.constexpr):
    """`exp(x)`; of single precision with what rounding `x` to base 2 loses, which the exponential makes large."""
    if FAST:
        return tl.exp2(x * 1.4426950408889634)
    x = tl.maximum(x, -150.0, propagate_nan=tl.PropagateNan.ALL)  # of less it is 0, and of -inf nothing would be lost
    based = x * 1.4426950408889634
    lost = tl.fma(x, 1.4426950408889634, -based) + x * 1.925963033500e-8
    return tl.exp2(based) * (1 + lost * 0.6931471805599453)


@triton.jit
def _twice_silu_half(x, FAST: tl.constexpr):
    """`silu(2 x)`: what twice silu of the half would be; in one instruction for half precision."""
    if FAST:
        tanh = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
        return x + x * tanh
    return tl.math.div_rn(2 * x, 1 + _exp(-2 * x, False))


@triton.jit
def _load_weights(gate, begin, G: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr):
    """The weights of BG hidden numbers from `begin` on: (BP, BG), (BG, BP)."""
    hidden, column = begin + tl.arange(0, BG), tl.arange(0, BP)
    first = tl.load(gate[0] + hidden[:, None] * BP + column[None, :])
    second = tl.load(gate[2] + column[:, None] * G + hidden[None, :])
    return first.T, second.T


@triton.jit
def _load_resident(gate, G: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr, RESIDENT: tl.constexpr):
    """The weights of the first hidden numbers, in RESIDENT parts or as many as there are."""
    parts = ()
    for begin in tl.static_range(0, min(G, RESIDENT * BG), BG):
        parts = parts + (_load_weights(gate, begin, G, BG, BP),)  # noqa: RUF005 - Triton has no stars
    return parts


@triton.jit
def _through(logits, z, weights, bias, FAST: tl.constexpr, PRECISION: tl.constexpr):
    """`z` (BM, BP) and what some hidden numbers add to it, whose `bias` is read here: registers are dear."""
    hidden = tl.dot(logits, weights[0], input_precision=PRECISION) + tl.load(bias)[None, :]
    return tl.dot(_twice_silu_half(hidden, FAST).to(logits.dtype), weights[1], z, input_precision=PRECISION)


@triton.jit
def _load_query(query, begin, P: tl.constexpr, BP: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BK: tl.constexpr):
    """Numbers `begin` … of the matrix of a query (BK, BP): of column p component p // P_X, where item p % P_X is."""
    column, depth = tl.arange(0, BP)[:, None], begin + tl.arange(0, BK)[None, :]
    components: tl.constexpr = K // D
    own = depth // D == column % components
    if P != BP:
        own = own & (column < P)
    return tl.load(query + column // components * D + depth % D, mask=own, other=0.0).T


@triton.jit
def _logits(items, rows, query, resident, P: tl.constexpr, BP: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
            BK: tl.constexpr, PRECISION: tl.constexpr):
    """The logits (BM, BP) of a query, without temperature; the first BK numbers of the items are `resident`."""
    logits = tl.dot(resident, _load_query(query, 0, P, BP, D, K, BK), input_precision=PRECISION)
    for begin in tl.range(BK, K, BK, num_stages=1):
        part = _load_items(items, rows, begin, K, BK)
        logits = tl.dot(part, _load_query(query, begin, P, BP, D, K, BK), logits, input_precision=PRECISION)
    return logits


@triton.jit
def _load_items(items, rows, begin, K: tl.constexpr, BK: tl.constexpr):
    """Numbers `begin` … of item components (BM, BK), 0 past their end."""
    depth = begin + tl.arange(0, BK)
    at = items + rows[:, None] * K + depth[None, :]
    if K % BK == 0:
        return tl.load(at)
    return tl.load(at, mask=depth[None, :] < K, other=0.0)


@triton.jit
def _load_gates(gates, rows, P: tl.constexpr, BP: tl.constexpr):
    """The gates of items (BM, BP), 0 past their end."""
    column = tl.arange(0, BP)
    at = gates + rows[:, None] * P + column[None, :]
    if P == BP:
        return tl.load(at)
    return tl.load(at, mask=column[None, :] < P, other=0.0)


@triton.jit
def _mixed(logits, z, resident, gate, inverse, P: tl.constexpr, BP: tl.constexpr, G: tl.constexpr, BG: tl.constexpr,
           RESIDENT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr):
    """The scores (BM,) of logits without temperature and of `z`, half of what both sides give to the gate, (BM, BP)."""
    given = logits.to(gate[0].dtype.element_ty)
    bias = gate[1] + tl.arange(0, BG)
    for part in tl.static_range(len(resident)):
        z = _through(given, z, resident[part], bias + part * BG, FAST, PRECISION)
    for begin in tl.range(RESIDENT * BG, G, BG, num_stages=1):
        z = _through(given, z, _load_weights(gate, begin, G, BG, BP), bias + begin, FAST, PRECISION)
    w = _twice_silu_half(z, FAST)
    if P != BP:
        w = tl.where(tl.arange(0, BP)[None, :] < P, w, float("-inf"))
    weight = _exp(w - tl.max(w, 1)[:, None], FAST)
    return tl.sum(weight * logits, 1) / tl.sum(weight, 1) * inverse


@launched
@triton.jit(do_not_specialize=["rows", "count", "out_stride", "several"],
            do_not_specialize_on_alignment=["allowed", "out"])
def _every(items, item_gates, allowed, queries, query_gates, gate, out, rows, count, out_stride, inverse, several,
           CANDIDATES: tl.constexpr, BITS: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, G: tl.constexpr,
           BG: tl.constexpr, RESIDENT: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
           BM: tl.constexpr, STAGES: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr):
    """The scores of BM items and `several` queries; programs of the same items stand beside each other."""
    groups = tl.cdiv(rows, several)
    item = tl.program_id(0) // groups * BM + tl.arange(0, BM)
    there = item < count
    row = tl.minimum(item, count - 1).to(tl.int64)
    begin = tl.program_id(0) % groups * several
    end = tl.minimum(begin + several, rows)
    column = tl.arange(0, BP)
    if allowed is not None:
        at = row // 8 if BITS else row
        may = tl.load(allowed + at)
        may = ((may >> (row % 8).to(tl.uint8)) & 1 if BITS else may) != 0
        if tl.sum((may & there).to(tl.int32), 0) == 0:  # nothing is to be computed
            for r in range(begin, end):
                tl.store(out + tl.cast(r, tl.int64) * out_stride + item, float("-inf"), mask=there)
            end = begin
    resident = _load_items(items, row, 0, K, BK)
    own = _load_gates(item_gates, row, P, BP).to(tl.float32)
    weights = _load_resident(gate, G, BG, BP, RESIDENT)
    bias = tl.load(gate[3] + column)
    for r in tl.range(begin, end, num_stages=STAGES):
        query = queries + tl.cast(r, tl.int64) * (P // (K // D) * D)
        logits = _logits(items, row, query, resident, P, BP, D, K, BK, PRECISION)
        z = own * tl.load(query_gates + r * BP + column)[None, :] + bias[None, :]
        scores = _mixed(logits, z, weights, gate, inverse, P, BP, G, BG, RESIDENT, FAST, PRECISION)
        if CANDIDATES:
            scores = tl.where(scores == scores, scores, float("-inf"))
        if allowed is not None:
            scores = tl.where(may, scores, float("-inf"))
        tl.store(out + tl.cast(r, tl.int64) * out_stride + item, scores, mask=there)


@launched
@triton.jit(do_not_specialize=["total", "count"])
def _each(items, item_gates, ids, queries, query_gates, gate, out, total, count, inverse, P: tl.constexpr,
          BP: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, RESIDENT: tl.constexpr, D: tl.constexpr,
          K: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr, FAST: tl.constexpr,
          PRECISION: tl.constexpr):
    """The scores of BM candidates of one query; of those that are no items -inf."""
    tiles = tl.cdiv(count, BM)
    r = tl.cast(tl.program_id(0) // tiles, tl.int64)
    place = tl.program_id(0) % tiles * BM + tl.arange(0, BM)
    there = place < count
    found = tl.load(ids + r * count + place, mask=there, other=-1).to(tl.int64)
    real = (found >= 0) & (found < total)
    row = tl.where(real, found, 0)
    column = tl.arange(0, BP)
    query = queries + r * (P // (K // D) * D)
    logits = _logits(items, row, query, _load_items(items, row, 0, K, BK), P, BP, D, K, BK, PRECISION)
    own = _load_gates(item_gates, row, P, BP).to(tl.float32)
    z = own * tl.load(query_gates + r * BP + column)[None, :] + tl.load(gate[3] + column)[None, :]
    weights = _load_resident(gate, G, BG, BP, RESIDENT)
    scores = _mixed(logits, z, weights, gate, inverse, P, BP, G, BG, RESIDENT, FAST, PRECISION)
    tl.store(out + r * count + place, tl.where(real, scores, float("-inf")), mask=there)
