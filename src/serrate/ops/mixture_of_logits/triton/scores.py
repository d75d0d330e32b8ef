"""The kernels that score: a tile of items, one query after the other, all of a pair in registers.

The gate wants the P logits of a pair beside each other. Where query components come in eights, each item component is
multiplied by the query as it lies, `(d, P_Q)`: the matrix unit leaves eight columns of a product to four threads, and
so P_X products that are put side by side are what it takes as the gate's input, in the threads where they are. Their
order is another one, pair `m · P_Q + n`, and the gate is brought into it. Otherwise the components of an item are one
row of P_X · d numbers and a query is read as a matrix that such rows are multiplied by, `(P_X · d, P)`, zero where a
column's item component is another: P_X times the products.

What the temperature and the halves in `silu(x) = x/2 (1 + tanh(x/2))` do is done to the weights of the gate.
"""

# ruff: noqa: N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...attention.triton.tile import key_bits, mixed, precision, query_bits
from ...direct import INTERPRETED
from ...launch import launched
from ...sizes import ceil_div, power_of_two
from ..api import Gate, Problem

_PROGRAMS = 1024  # enough to fill a device
_ONES = 16  # columns of the first bias, the fewest that the matrix unit sums over


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
        apart: whether item components are multiplied one by one, and all stay on chip.
    """

    items: int
    warps: int
    stages: int
    depth: int = 512
    hidden: int = 64
    resident: int = 2
    registers: int | None = None
    apart: bool = False


class Scorer(NamedTuple):
    """What the kernels read, the gate padded to the sizes of their tiles.

    Attributes:
        items: `(V, P_X · d)`.
        item_gates: `(V, P)`.
        queries: `(R, P_Q, d)`, in the dtype of the items.
        query_gates: `(R, BP)` float32, halved.
        gate: its weights `(G, BP)` and `(BP, G)` in the dtype of the items, and so the first bias, the first column of
            `(G, 16)`; the second one in float32.
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
        components = problem.query_components.shape[1], problem.item_components.shape[1]
        tiles = tiles or tiles_of(dtype, *components, problem.item_components.shape[2])
        pairs = components if tiles.apart else (mixed, 1)
        first, first_bias, second, second_bias = problem.gate
        hidden = _padded(hidden, tiles.hidden)
        gate = Gate(_put(first, (hidden, columns), dtype, 0.5 / problem.temperature, 1, pairs),
                    _put(first_bias[:, None], (hidden, _ONES), dtype, 0.5),
                    _put(second, (columns, hidden), dtype, 0.5, 0, pairs),
                    _put(second_bias, (columns,), torch.float32, 0.5, 0, pairs))
        queries = problem.query_components.to(dtype).contiguous()
        query_gates = _put(problem.query_gate, (rows, columns), torch.float32, 0.5, 1, pairs)
        return cls(items, problem.item_gate.contiguous(), queries, query_gates, gate, 1 / problem.temperature, tiles)

    def every(self, first: int, out: Tensor, allowed: Tensor | None = None, candidates: bool = False) -> None:
        """Fill `out` `(R, C)` with the scores of all queries and the items from `first` on.

        Of `candidates` a NaN is told as -inf, and so is an item that is not `allowed`, `(V,)` bool or bits in uint8,
        for which `first` is to be a multiple of 8.
        """
        bits = allowed is not None and allowed.dtype == torch.uint8
        if allowed is not None:
            allowed = allowed[first // 8:] if bits else allowed[first:].view(torch.uint8)
        part = self._replace(items=self.items[first:], item_gates=self.item_gates[first:])
        part._fill(out, allowed, None, candidates, bits)

    def some(self, first: int, out: Tensor, dropped: tuple[Tensor, int] | None) -> None:
        """Fill `out` `(C, V)` with the scores of queries from `first` on and all items; see `Terms.dropped`."""
        some = slice(first, first + len(out))
        part = self._replace(queries=self.queries[some], query_gates=self.query_gates[some])
        part._fill(out, None, dropped and (*dropped, first))

    def _fill(self, out: Tensor, allowed: Tensor | None, dropped: tuple[Tensor, int, int] | None,
              candidates: bool = False, bits: bool = False) -> None:
        rows, count = out.shape
        tiles = ceil_div(count, self.tiles.items)
        several = ceil_div(rows, min(rows, ceil_div(_PROGRAMS, tiles)))
        _every[(tiles * ceil_div(rows, several),)](
            self.items, self.item_gates, allowed, self.queries, self.query_gates, tuple(self.gate), dropped, out, rows,
            count, out.stride(0), self.inverse, several, candidates, bits, **self._sizes())

    def each(self, ids: Tensor, out: Tensor) -> None:
        """Fill `out` `(R, K)` with the scores of each query and the items `ids` `(R, K)`, both contiguous."""
        rows, count = ids.shape
        _each[(rows * ceil_div(count, self.tiles.items),)](
            self.items, self.item_gates, ids, self.queries, self.query_gates, tuple(self.gate), out, len(self.items),
            count, self.inverse, **self._sizes())

    def _sizes(self) -> dict:
        (columns, hidden), width = self.gate.second_weight.shape, self.queries.shape[2]
        depth, half = self.items.shape[1], self.items.dtype != torch.float32
        part = width if self.tiles.apart else min(_power(depth), self.tiles.depth)
        return {"P": self.item_gates.shape[1], "BP": columns, "G": hidden, "BG": min(hidden, self.tiles.hidden),
                "RESIDENT": self.tiles.resident, "D": width, "K": depth, "BK": part, "BM": self.tiles.items,
                "STAGES": self.tiles.stages, "APART": self.tiles.apart, "FAST": half and not INTERPRETED,
                "PRECISION": precision(), "num_warps": self.tiles.warps, "num_stages": 1,
                "maxnreg": self.tiles.registers}


def tiles_of(dtype: torch.dtype, query_components: int, item_components: int, width: int) -> Tiles:
    """Return how to cut the work for items of a dtype, and for so many components of a width.

    Products of float32 have no matrix unit and hold their operands in registers: they are summed over few at a time.
    """
    if dtype == torch.float32:
        return Tiles(16, 4, 1, 16, 16, 0)
    mixed, depth = query_components * item_components, item_components * width
    columns = _power(mixed)
    if columns == mixed <= 64 and query_components % 8 == 0 and item_components > 1 and width in (16, 32, 64, 128):
        # of 32 columns and 256 numbers four programs fit: 54 KiB of shared memory and 128 registers a thread
        return Tiles(64, 4, 1, registers=128 if columns <= 32 else None, apart=True)
    if columns <= 64:
        whole = min(512, 16384 // columns)
        most = whole if depth <= whole else 128
        return Tiles(128, 8, 2, most, registers=128) if columns <= 32 else Tiles(64, 4, 1, most)
    return Tiles(4096 // columns, 4, 1, 8192 // columns, 8192 // columns, 1)


def _power(size: int) -> int:
    return max(16, power_of_two(size))


def _padded(size: int, most: int) -> int:
    """Return a size that tiles of a power of two, at most `most`, cover."""
    return _power(size) if size <= most else ceil_div(size, most) * most


def _put(x: Tensor, shape: tuple[int, int] | tuple[int], dtype: torch.dtype, scale: float, axis: int = 0,
         pairs: tuple[int, int] = (1, -1)) -> Tensor:
    """Return `x · scale`, rounded once, in the corner of a tensor of zeros where it does not fill it.

    An axis that goes through `pairs` goes through the first of each pair faster.
    """
    found = x.new_empty(shape, dtype=dtype) if x.shape == shape else x.new_zeros(shape, dtype=dtype)
    there = found[tuple(slice(0, size) for size in x.shape)]
    x = x if x.dtype == dtype else x.float()
    torch.mul(x.unflatten(axis, pairs).transpose(axis, axis + 1), scale, out=there.unflatten(axis, pairs[::-1]))
    return found


@triton.jit
def _exp(x):
    """`exp(x)` with what rounding `x` to base 2 loses, which the exponential makes large."""
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
    return tl.math.div_rn(2 * x, 1 + _exp(-2 * x))


@triton.jit
def _load_weights(gate, begin, G: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr):
    """The weights of BG hidden numbers from `begin` on: (BP, BG), (BG, BP); and their bias (16, BG), single (1, BG)."""
    hidden, column = begin + tl.arange(0, BG), tl.arange(0, BP)
    first = tl.load(gate[0] + hidden[:, None] * BP + column[None, :])
    second = tl.load(gate[2] + column[:, None] * G + hidden[None, :])
    columns: tl.constexpr = 1 if gate[0].dtype.element_ty == tl.float32 else 16
    bias = tl.load(gate[1] + hidden[:, None] * 16 + tl.arange(0, columns)[None, :])
    return first.T, second.T, bias.T


@triton.jit
def _load_resident(gate, G: tl.constexpr, BG: tl.constexpr, BP: tl.constexpr, RESIDENT: tl.constexpr):
    """The weights of the first hidden numbers, in RESIDENT parts or as many as there are."""
    parts = ()
    for begin in tl.static_range(0, min(G, RESIDENT * BG), BG):
        parts = parts + (_load_weights(gate, begin, G, BG, BP),)  # noqa: RUF005 - Triton has no stars
    return parts


@triton.jit
def _hidden(logits, weights, PRECISION: tl.constexpr):
    """Some hidden numbers (BM, BG) before their SiLU, halved, of logits (BM, BP) in the dtype of products.

    Their bias is a product with ones, since it is dear in registers; but a sum that begins with it is rounded at its
    size, which would show in single precision.
    """
    if logits.dtype == tl.float32:
        return tl.dot(logits, weights[0], input_precision=PRECISION) + weights[2]
    else:  # without it the compiler reads on behind the return, and shapes do not fit
        ones = (tl.arange(0, 16) == 0).to(logits.dtype)[None, :].broadcast_to(logits.shape[0], 16)
        return tl.dot(logits, weights[0], tl.dot(ones, weights[2]))


@triton.jit
def _through(logits, z, weights, FAST: tl.constexpr, PRECISION: tl.constexpr):
    """`z` (BM, BP) and what some hidden numbers add to it."""
    hidden = _hidden(logits, weights, PRECISION)
    return tl.dot(_twice_silu_half(hidden, FAST).to(logits.dtype), weights[1], z, input_precision=PRECISION)


@triton.jit
def _load_query(query, begin, P: tl.constexpr, BP: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
                APART: tl.constexpr):
    """Components of a query (D, P_Q), or numbers `begin` … of its matrix (BK, BP).

    In the matrix column p has component p // P_X, where item p % P_X is.
    """
    components: tl.constexpr = K // D
    if APART:
        loaded = tl.load(query + tl.arange(0, P // components)[:, None] * D + tl.arange(0, D)[None, :])
    else:
        column, depth = tl.arange(0, BP)[:, None], begin + tl.arange(0, BK)[None, :]
        own = depth // D == column % components
        if P != BP:
            own = own & (column < P)
        loaded = tl.load(query + column // components * D + depth % D, mask=own, other=0.0)
    return loaded.T


@triton.jit
def _logits(items, rows, query, asked, resident, P: tl.constexpr, BP: tl.constexpr, D: tl.constexpr, K: tl.constexpr,
            BK: tl.constexpr, APART: tl.constexpr, PRECISION: tl.constexpr):
    """The logits (BM, BP) of a query, without temperature; of it the part that meets `resident` items is `asked`."""
    if APART:
        parts = ()
        for m in tl.static_range(K // D):
            parts = parts + (tl.dot(resident[m], asked, input_precision=PRECISION),)  # noqa: RUF005
        logits = _side_by_side(parts, P)
    else:
        logits = tl.dot(resident[0], asked, input_precision=PRECISION)
        for begin in tl.range(BK, K, BK, num_stages=1):
            part = _load_items(items, rows, begin, K, BK)
            asked = _load_query(query, begin, P, BP, D, K, BK, APART)
            logits = tl.dot(part, asked, logits, input_precision=PRECISION)
    return logits


@triton.jit
def _side_by_side(parts, P: tl.constexpr):
    """Tensors (BM, P_Q), a power of two of them, as one (BM, P)."""
    components: tl.constexpr = P // parts[0].shape[1]
    for _ in tl.static_range(components - 1):
        if len(parts) > 1:
            parts = _joined(parts)
    beside = parts[0].reshape(parts[0].shape[0], P // components, components)
    return beside.permute(0, 2, 1).reshape(parts[0].shape[0], P)


@triton.jit
def _joined(tensors):
    """Half as many, each one joined with the one half of them further."""
    joined = ()
    for i in tl.static_range(len(tensors) // 2):
        joined = joined + (tl.join(tensors[i], tensors[i + len(tensors) // 2]),)  # noqa: RUF005
    return joined


@triton.jit
def _load_resident_items(items, rows, K: tl.constexpr, BK: tl.constexpr, APART: tl.constexpr):
    """What stays on chip of item components, in parts (BM, BK): all of them apart, or the beginning of their row."""
    parts = ()
    for begin in tl.static_range(0, K if APART else BK, BK):
        parts = parts + (_load_items(items, rows, begin, K, BK),)  # noqa: RUF005
    return parts


@triton.jit
def _load_items(items, rows, begin, K: tl.constexpr, BK: tl.constexpr):
    """Numbers `begin` … of item components (BM, BK), 0 past their end."""
    depth = begin + tl.arange(0, BK)
    at = items + rows[:, None] * K + depth[None, :]
    if K % BK == 0:
        return tl.load(at)
    return tl.load(at, mask=depth[None, :] < K, other=0.0)


@triton.jit
def _load_gates(gates, rows, P: tl.constexpr, BP: tl.constexpr, P_X: tl.constexpr, APART: tl.constexpr):
    """The gates of items (BM, BP), 0 past their end, in the order of the logits."""
    column = _pairs(P, BP, P_X, APART)
    at = gates + rows[:, None] * P + column[None, :]
    if P == BP:
        return tl.load(at)
    return tl.load(at, mask=column[None, :] < P, other=0.0)


@triton.jit
def _pairs(P: tl.constexpr, BP: tl.constexpr, P_X: tl.constexpr, APART: tl.constexpr):
    """Which pair of components each column of the logits is."""
    column = tl.arange(0, BP)
    return column % (P // P_X) * P_X + column // (P // P_X) if APART else column


@triton.jit
def _stay(dropped, query, items, pairs):
    """Which weights (BM, BP) of the pairs of a query and items stay: by seed, threshold, and the place of query 0."""
    bits = query_bits(dropped[0], pairs, dropped[2] + query)
    return mixed(bits[None, :] ^ key_bits(dropped[0], items)[:, None]) >= dropped[1]


@triton.jit
def _shares(w, stay, FAST: tl.constexpr):
    """What a softmax of `w` (BM, BP) divides, and by what it multiplies it (BM,), over what stays or all of None.

    Of nothing both are 0. SiLU is never below -0.28.
    """
    if stay is not None:
        w = tl.where(stay, w, float("-inf"))
    top = tl.max(w, 1)[:, None]
    if stay is not None:
        top = tl.maximum(top, -1.0, propagate_nan=tl.PropagateNan.ALL)
    weight = tl.exp2(w * 1.4426950408889634 - top * 1.4426950408889634) if FAST else _exp(w - top)
    total = tl.sum(weight, 1)
    if stay is not None:
        total = tl.where(total == 0, 1.0, total)
    return weight, _reciprocal(total, FAST)


@triton.jit
def _mixed(logits, given, resident, gate, stay, inverse, P: tl.constexpr, BP: tl.constexpr, G: tl.constexpr,
           BG: tl.constexpr, RESIDENT: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr):
    """The scores (BM,) of logits without temperature and of half of what both sides give to the gate, (BM, BP)."""
    low = logits.to(gate[0].dtype.element_ty)
    z = tl.zeros_like(given) if low.dtype == tl.float32 else given  # see `_hidden`
    for part in tl.static_range(len(resident)):
        z = _through(low, z, resident[part], FAST, PRECISION)
    for begin in tl.range(RESIDENT * BG, G, BG, num_stages=1):
        z = _through(low, z, _load_weights(gate, begin, G, BG, BP), FAST, PRECISION)
    w = _twice_silu_half(z + given if low.dtype == tl.float32 else z, FAST)
    if P != BP:
        w = tl.where(tl.arange(0, BP)[None, :] < P, w, float("-inf"))
    weight, share = _shares(w, stay, FAST)
    return tl.sum(weight * logits, 1) * (share * inverse)


@triton.jit
def _reciprocal(x, FAST: tl.constexpr):
    """`1 / x` for x from 1 to 256."""
    if FAST:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True,
                                         pack=1)
    return tl.math.div_rn(1.0, x)


@launched
@triton.jit(do_not_specialize=["rows", "count", "out_stride", "several"],
            do_not_specialize_on_alignment=["allowed", "out"])
def _every(items, item_gates, allowed, queries, query_gates, gate, dropped, out, rows, count, out_stride, inverse,
           several, CANDIDATES: tl.constexpr, BITS: tl.constexpr, P: tl.constexpr, BP: tl.constexpr, G: tl.constexpr,
           BG: tl.constexpr, RESIDENT: tl.constexpr, D: tl.constexpr, K: tl.constexpr, BK: tl.constexpr,
           BM: tl.constexpr, STAGES: tl.constexpr, APART: tl.constexpr, FAST: tl.constexpr, PRECISION: tl.constexpr):
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
    resident = _load_resident_items(items, row, K, BK, APART)
    own = _load_gates(item_gates, row, P, BP, K // D, APART).to(tl.float32)
    weights = _load_resident(gate, G, BG, BP, RESIDENT)
    bias = tl.load(gate[3] + column)
    size: tl.constexpr = P // (K // D) * D
    if APART:
        following = _load_query(queries + tl.cast(begin, tl.int64) * size, 0, P, BP, D, K, BK, APART)
    for r in tl.range(begin, end, num_stages=STAGES):
        query = queries + tl.cast(r, tl.int64) * size
        if APART:  # of what is small the next one is on its way
            asked = following
            following = _load_query(query + tl.where(r + 1 < end, size, 0), 0, P, BP, D, K, BK, APART)
        else:
            asked = _load_query(query, 0, P, BP, D, K, BK, APART)
        logits = _logits(items, row, query, asked, resident, P, BP, D, K, BK, APART, PRECISION)
        given = own * tl.load(query_gates + r * BP + column)[None, :] + bias[None, :]
        stay = None
        if dropped is not None:
            stay = _stay(dropped, r, item, _pairs(P, BP, K // D, APART))
        scores = _mixed(logits, given, weights, gate, stay, inverse, P, BP, G, BG, RESIDENT, FAST, PRECISION)
        if CANDIDATES:
            scores = tl.where(scores == scores, scores, float("-inf"))
        if allowed is not None:
            scores = tl.where(may, scores, float("-inf"))
        tl.store(out + tl.cast(r, tl.int64) * out_stride + item, scores, mask=there)


@launched
@triton.jit(do_not_specialize=["total", "count"])
def _each(items, item_gates, ids, queries, query_gates, gate, out, total, count, inverse, P: tl.constexpr,
          BP: tl.constexpr, G: tl.constexpr, BG: tl.constexpr, RESIDENT: tl.constexpr, D: tl.constexpr,
          K: tl.constexpr, BK: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr, APART: tl.constexpr,
          FAST: tl.constexpr, PRECISION: tl.constexpr):
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
    asked = _load_query(query, 0, P, BP, D, K, BK, APART)
    resident = _load_resident_items(items, row, K, BK, APART)
    logits = _logits(items, row, query, asked, resident, P, BP, D, K, BK, APART, PRECISION)
    own = _load_gates(item_gates, row, P, BP, K // D, APART).to(tl.float32)
    given = own * tl.load(query_gates + r * BP + column)[None, :] + tl.load(gate[3] + column)[None, :]
    weights = _load_resident(gate, G, BG, BP, RESIDENT)
    scores = _mixed(logits, given, weights, gate, None, inverse, P, BP, G, BG, RESIDENT, FAST, PRECISION)
    tl.store(out + r * count + place, tl.where(real, scores, float("-inf")), mask=there)
