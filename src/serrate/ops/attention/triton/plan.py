"""How the rows of a call are cut into tiles, and which sizes of tiles serve it."""

# ruff: noqa: N803

from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...launch import has_gluon, launched
from ...sizes import power_of_two
from ..weights import ACTIVATIONS
from .problem import FULL, GENERAL, Problem
from .relative import of_bias, since
from .tile import strides
from .weigh import share_of

SILU = ACTIVATIONS.index("silu")
WORTH_DESCRIBING = 4096  # events, below which describing tensors to the copy engine takes longer than it saves
Tiles = dict[Hashable, Tensor]  # of a plan, by whether they are of queries and by their size: 0 of `Plan.events`
FEW_ROWS = 128  # among which a tile finds its own in less time than a kernel takes to start that plans all tiles


@dataclass(frozen=True)
class Sizes:
    """Sizes of one kernel: events of its tile, of the blocks it works through, warps, stages, TMA loads, registers.

    heads: of a program of packed tiles at most, one unless they share what they look up.
    """

    tile: int
    block: int
    warps: int
    stages: int
    tma: bool = False
    registers: int | None = None
    heads: int = 1


@dataclass(frozen=True)
class Tiling:
    """The kernels' sizes for one call.

    heads_first: the heads of one tile run side by side; else all tiles of one head do, which keeps long rows in cache.
    short: whether these are sizes of the kernels for short rows, of which the backward one without bias takes those of
    `queries`; few: of the one backward pass for few dense queries a row, in place of `queries` and `keys`; hopper:
    whether forward is that of `hopper`, and whether backward is too.
    """

    heads_first: bool
    forward: Sizes
    queries: Sizes
    keys: Sizes
    short: bool = False
    few: Sizes | None = None
    hopper: tuple[bool, bool] = (False, False)


def block_width(width: int) -> int:
    """Return the power of two, 16 or more, that holds a head's `width`."""
    return max(16, power_of_two(width))


def tiling(problem: Problem, q: Tensor, k: Tensor, v: Tensor) -> Tiling:
    """Choose the sizes for q `(T, H, D)` or `(B, K, H, D)`, k and v, as measured on an H200 (README.md)."""
    (events, heads, widest), values, own_heads = k.shape, v.shape[2], q.shape[-2] == k.shape[1]
    rows, width = problem.keys.shape[0] - 1, block_width(widest if widest > values else values)
    heads_first = events < 1024 * rows
    if q.dtype == torch.float32:
        return _of_float32(width, heads_first)
    tma = width in (64, 128) and events >= WORTH_DESCRIBING
    softmax = not problem.pointwise
    few = problem.dense and q.shape[1] <= 64 and width <= 128 and rows * heads >= 256  # enough to fill a device
    if few and softmax and not problem.biased:
        return _of_few_queries(min(64, block_width(q.shape[1])), own_heads, tma)
    if problem.plain_but_biased and own_heads and width <= 64 <= q.shape[0] < 48 * rows:
        return _of_short_rows(width, events >= WORTH_DESCRIBING, problem.biased)
    if tma and problem.plain and problem.activation <= SILU and on_hopper(q, k, v):
        return _on_hopper(width, heads_first, own_heads)
    tiling = _of_any(width, heads_first, tma, problem.kind, problem.plain and softmax)
    if not problem.biased:
        return tiling
    tiling = _biased(tiling, width, tma)
    if tma and problem.plain_but_biased and problem.activation <= SILU and on_hopper(q, k, v):
        return replace(tiling, hopper=(True, own_heads and width == 64 and problem.pointwise))
    return tiling


@lru_cache
def _of_float32(width: int, heads_first: bool) -> Tiling:
    """Return small sizes: products without matrix unit hold their operands in registers."""
    size = Sizes(*((32, 32, 4, 1) if width <= 64 else (32, 16, 4, 1) if width == 128 else (16, 16, 4, 1)))
    return Tiling(heads_first, size, size, size)


@lru_cache
def _of_few_queries(tile: int, own_heads: bool, tma: bool) -> Tiling:
    """Return the sizes for up to 64 dense queries a row, which one tile holds."""
    forward = {16: Sizes(16, 64, 1, 3), 32: Sizes(32, 32, 1, 4), 64: Sizes(64, 32, 4, 4)}[tile]
    few = Sizes(tile, 64, 4, 2, tma) if tile == 64 else Sizes(tile, 64, 4, 3)
    keys = Sizes(64, tile, 4, 2, tma)
    return Tiling(True, forward, Sizes(tile, 64, 4, 2, tma), keys, few=few if own_heads else None)


@lru_cache
def _of_short_rows(width: int, tma: bool, biased: bool) -> Tiling:
    """Return the sizes for packed tiles."""
    if biased:
        narrow = width <= 32
        forward = Sizes(16, 16, 1, 3, tma, 168, 4 if narrow else 2)
        backward = Sizes(32, 16, 2, 3, registers=168, heads=2 if narrow else 1)
        return Tiling(True, forward, backward, backward, short=True)
    forward = Sizes(32, 16, 2, 4 if tma else 3, tma, 144 if width <= 32 else 168, 2)
    backward = Sizes(64, 32, 4, 2, registers=128 if width <= 32 else None)
    return Tiling(True, forward, backward, backward, short=True)


@lru_cache
def _on_hopper(width: int, heads_first: bool, backward: bool) -> Tiling:
    """Return the tile for the kernels in `hopper`, and our sizes where their `backward` does not serve."""
    forward = Sizes(64 if width == 64 or heads_first else 128, 64, 4, 2)
    return replace(_of_any(width, heads_first, True, FULL, True), forward=forward, hopper=(True, backward))


@lru_cache
def _of_any(width: int, heads_first: bool, tma: bool, kind: int, plain: bool) -> Tiling:
    """Return the sizes for all other calls in half precision."""
    if width <= 64:
        forward, queries = Sizes(64, 64, 4, 3, tma and kind != FULL), Sizes(64, 32, 4, 3, tma)
        return Tiling(heads_first, forward, queries, Sizes(64, 32, 4, 3, tma, 128 if plain else None))
    if width == 128:
        forward = Sizes(128, 64, 8 if kind == GENERAL else 4, 2, tma)
        return Tiling(heads_first, forward, Sizes(128, 64, 8, 3, tma), Sizes(64, 64, 4, 2, tma))
    return Tiling(heads_first, Sizes(64, 32, 4, 2), Sizes(64, 32, 8, 2), Sizes(64, 32, 8, 2))


@lru_cache
def _biased(tiling: Tiling, width: int, tma: bool) -> Tiling:
    """Return the sizes where scores get a bias: small blocks of keys leave room for more programs, which wait less."""
    if width <= 64:
        queries, keys = Sizes(64, 64, 4, 2, tma), Sizes(64, 32, 4, 3, tma, 168)
        return replace(tiling, forward=Sizes(64, 32, 4, 3, tma), queries=queries, keys=keys)
    if width == 128:
        size = Sizes(64, 32, 4, 2, tma)
        return replace(tiling, forward=Sizes(64, 32, 4, 3), queries=size, keys=size)
    # of a tile of 64, eight warps would each hold pairs that another has too, and add them to the tables twice
    return replace(tiling, queries=Sizes(64, 32, 4, 2))


def descriptor(x: Tensor, block: int) -> TensorDescriptor:
    """Describe x `(T, H, D)` to the copy engine, for loads of `block` events of one head."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [block, 1, block_width(x.shape[2])])


def describable(*tensors: Tensor) -> bool:
    """Whether the copy engine can read every one of them: addresses and strides in multiples of 16 bytes."""
    return all(x.is_cuda and x.shape[0] > 0 and x.stride(-1) == 1 and x.data_ptr() % 16 == 0
               and x.stride(0) * x.element_size() % 16 == 0 and x.stride(1) * x.element_size() % 16 == 0
               for x in tensors)


def on_hopper(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the kernels in `hopper` take these, q `(T, H, D)`: both widths 33 to 64, or both 65 to 128."""
    return block_width(q.shape[2]) == block_width(v.shape[2]) and describable(q, k, v) and has_gluon(q.device)


class Plan:
    """How the rows of one call are cut: the sizes, and on the device, made when first asked for, the tiles.

    queries, keys: int32 `(6, count)` or `(3, count)`, see `_plan_tiles`; events: int32 `(2, T)` or, under a bias of
    times, `(4, T)`, see `_plan_events`.
    tiles: what has been made of these, in this pass or in one before. searched: whether the kernels for all calls look
    for the row of a tile themselves, among few.
    """

    def __init__(self, problem: Problem, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles | None = None):
        self.tiling = tiling(problem, q, k, v)
        self.searched = problem.queries is problem.keys and k.shape[0] < WORTH_DESCRIBING \
            and 1 < problem.keys.shape[0] <= FEW_ROWS
        self._problem = problem
        self._dense = q.shape[1] if problem.dense else 0
        self._events = q.shape[0] * (self._dense or 1), k.shape[0]
        self.tiles: Tiles = {} if tiles is None else dict(tiles)

    def numbers(self, q: Tensor, k: Tensor, v: Tensor) -> tuple:
        """Return what the kernels for all calls take of these and the problem, after their tensors and tiles.

        Queries, factors, heads, strides, limits, counts, dropout, bias, widths of keys and values, of their blocks.
        """
        problem, heads, width, values = self._problem, q.shape[-2], q.shape[-1], v.shape[2]
        return (self._events[0], (problem.factor, share_of(problem)), heads, strides(q, k, v), problem.limits,
                problem.counts, problem.dropped, of_bias(problem), width, values, block_width(width),
                block_width(values))

    def find(self, of_queries: bool, tile: int) -> tuple[Tensor, int]:
        """Return where `tile.find_tile` finds tiles of so many queries or keys, and how many tiles there are."""
        if self.searched:
            offsets = self._problem.keys
            return offsets, self._events[0] // tile + offsets.shape[0] - 1
        tiles = self.queries(tile) if of_queries else self.keys(tile)
        return tiles, tiles.shape[1]

    def queries(self, tile: int) -> Tensor:
        """Return the tiles of so many queries."""
        return self._cut(True, tile)

    def keys(self, tile: int) -> Tensor:
        """Return the tiles of so many keys."""
        return self._cut(self._problem.self_attention, tile)

    def events(self) -> Tensor:
        """Return where the row of every event begins and ends, and its times."""
        if (True, 0) not in self.tiles:
            offsets, events, rows = self._problem.keys, self._events[0], self._problem.keys.shape[0] - 1
            times = self._problem.query_times, self._problem.key_times
            count = 2 if times[1] is None else 4
            self.tiles[True, 0] = offsets.new_empty((count, events), dtype=torch.int32)
            own, step = (16, 16) if count == 2 else (4, 64)  # times are waited for at every step
            _plan_events[(-(-rows // own),)](offsets, *times, self.tiles[True, 0], rows, events, own, step, num_warps=4)
        return self.tiles[True, 0]

    def _cut(self, of_queries: bool, tile: int) -> Tensor:
        if (of_queries, tile) in self.tiles:
            return self.tiles[of_queries, tile]
        problem, rows = self._problem, self._problem.keys.shape[0] - 1
        own, other = (problem.queries, problem.keys) if of_queries else (problem.keys, problem.queries)
        events, others = self._events if of_queries else self._events[::-1]
        count = rows * -(-self._dense // tile) if own is None else events // tile + rows
        plan = problem.keys.new_empty((3 if problem.self_attention else 6, count), dtype=torch.int32)
        if count and rows:
            _plan_tiles[(rows,)](own, other, plan, count, events, others, self._dense, tile, problem.self_attention,
                                 32, num_warps=1)
        self.tiles[of_queries, tile] = plan
        return plan


@triton.jit
def _ends(offsets, b, dense, events):
    """Where row `b` begins and ends; no row reaches past the events that there are."""
    if offsets is None:
        start = (b * dense).to(tl.int32)
        end = start + dense
    else:
        start = tl.minimum(tl.load(offsets + b), events).to(tl.int32)
        end = tl.minimum(tl.load(offsets + b + 1), events).to(tl.int32)
    return start, end


@launched
@triton.jit(do_not_specialize=["count", "events", "others", "dense"])
def _plan_tiles(own, other, plan, count, events, others, dense, TILE: tl.constexpr, SELF: tl.constexpr,
                STEP: tl.constexpr):
    """For every tile of row `b`: its first event within the row, where the row begins and ends, `plan` (3, count).

    Unless under `SELF` also where the row that it meets begins and ends, and `b`: (6, count). Offsets of None are those
    of dense rows. Row b has the slots from `start // TILE + b` on: as many as it needs or one more, shared with no
    other row, and found without a sum over rows. One it does not need holds a tile that begins at its row's end.
    """
    b = tl.program_id(0).to(tl.int64)
    start, end = _ends(own, b, dense, events)
    if own is None:
        slots = tl.cdiv(dense, TILE)
        plan += b * slots
    else:
        slots = end // TILE - start // TILE + 1
        plan += start // TILE + b
    begin, finish = start, end
    if not SELF:
        begin, finish = _ends(other, b, dense, others)
    nothing = tl.zeros([STEP], tl.int32)
    for n in range(0, slots, STEP):
        i = n + tl.arange(0, STEP)
        inside = i < slots
        tl.store(plan + i, tl.minimum(i * TILE, end - start), mask=inside)
        tl.store(plan + count + i, nothing + start, mask=inside)
        tl.store(plan + 2 * count + i, nothing + end, mask=inside)
        if not SELF:
            tl.store(plan + 3 * count + i, nothing + begin, mask=inside)
            tl.store(plan + 4 * count + i, nothing + finish, mask=inside)
            tl.store(plan + 5 * count + i, nothing + b.to(tl.int32), mask=inside)


@launched
@triton.jit(do_not_specialize=["rows", "T"])
def _plan_events(offsets, query_times, key_times, plan, rows, T, ROWS: tl.constexpr, STEP: tl.constexpr):
    """For every event of `ROWS` rows, where its row starts and ends: `plan` (2, T).

    Where there are times also, counted from the first key of its row, when it asks and when it happened: (4, T).
    """
    b = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    start = tl.load(offsets + b, mask=b < rows, other=0).to(tl.int32)[:, None]
    end = tl.minimum(tl.load(offsets + b + 1, mask=b < rows, other=0), T).to(tl.int32)[:, None]
    nothing = tl.zeros([ROWS, STEP], tl.int32)
    if key_times is not None:
        origin = tl.load(key_times + start, mask=start < end, other=0)
    for n in range(0, tl.max(end - start), STEP):
        at = start + (n + tl.arange(0, STEP))[None, :]
        if key_times is not None:
            tl.store(plan + 2 * T + at, since(query_times, at, at < end, origin), mask=at < end)
            tl.store(plan + 3 * T + at, since(key_times, at, at < end, origin), mask=at < end)
        tl.store(plan + at, nothing + start, mask=at < end)
        tl.store(plan + T + at, nothing + end, mask=at < end)
