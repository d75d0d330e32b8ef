"""How the axis of events is cut into tiles, and which sizes of tiles serve which call."""

# pyright: reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: N803

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Sizes:
    """Sizes of one kernel: events of its tile, of the blocks it works through, warps, stages, TMA loads."""

    tile: int
    block: int
    warps: int
    stages: int
    tma: bool = False


@dataclass(frozen=True)
class Tiling:
    """The kernels' sizes for one call; packed: tiles cross the borders of rows, else they are cut within rows.

    heads_first: the heads of one tile run side by side; else all tiles of one head do, which keeps long rows in cache.
    """

    packed: bool
    heads_first: bool
    forward: Sizes
    queries: Sizes
    keys: Sizes
    short: Sizes


def block_width(width: int) -> int:
    """Return the power of two, 16 or more, that holds a head's `width`."""
    return max(16, triton.next_power_of_2(width))


def tiling(q: Tensor, v: Tensor, rows: int, causal: bool) -> Tiling:
    """Choose the sizes for q `(T, H, D)` and v `(T, H, Dv)` in `rows` rows, as measured on an H200 (README.md)."""
    events, width = q.shape[0], block_width(max(q.shape[2], v.shape[2]))
    heads_first = events < 1024 * rows
    if q.dtype == torch.float32:  # products without matrix unit hold their operands in registers
        size = Sizes(*((32, 32, 4, 1) if width <= 64 else (32, 16, 4, 1) if width == 128 else (16, 16, 4, 1)))
        return Tiling(False, heads_first, size, size, size, size)
    packed = events < 48 * rows and events >= 64 and width <= 64
    tma = width in (64, 128)
    if width <= 64:
        forward = Sizes(64, 64, 4, 3, tma and causal)
        if packed:
            forward = Sizes(32, 32, 1, 3) if width <= 32 else Sizes(64, 32, 4, 3)
        return Tiling(packed, heads_first, forward, Sizes(64, 32, 4, 3, tma), Sizes(64, 32, 4, 3, tma),
                      Sizes(64, 32, 4, 2))
    if width == 128:
        forward, queries, keys = Sizes(128, 64, 4, 2, tma), Sizes(128, 64, 8, 3, tma), Sizes(64, 64, 4, 2, tma)
    else:
        forward, queries, keys = Sizes(64, 32, 4, 2), Sizes(64, 32, 8, 2), Sizes(64, 32, 8, 2)
    return Tiling(False, heads_first, forward, queries, keys, keys)


def descriptor(x: Tensor, block: int) -> TensorDescriptor:
    """Describe x `(T, H, D)` to the copy engine, for loads of `block` events of one head."""
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [block, 1, block_width(x.shape[2])])


def describable(*tensors: Tensor) -> bool:
    """Whether the copy engine can read every one of them: addresses and strides in multiples of 16 bytes."""
    return all(x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0
               and x.stride(1) * x.element_size() % 16 == 0 for x in tensors)


@dataclass(frozen=True)
class Plan:
    """What the kernels of one call follow: their sizes, and where the tiles are, int32.

    tiles: of forward and of queries, `(2, T)` for packed tiles (see `_plan_events`), else `(3, count)` (see
    `_plan_tiles`); keys: the tiles of keys, likewise.
    """

    tiling: Tiling
    tiles: Tensor
    keys: Tensor


def make_plan(offsets: Tensor, q: Tensor, v: Tensor, causal: bool) -> Plan:
    """Return the plan for offsets `(B + 1,)`, q `(T, H, D)` and v `(T, H, Dv)`."""
    events, rows = q.shape[0], offsets.shape[0] - 1
    sizes = tiling(q, v, rows, causal)
    if sizes.packed:
        tiles = offsets.new_empty((2, events), dtype=torch.int32)
        _plan_events[(rows,)](offsets, tiles, events, STEP=32, num_warps=1)
        return Plan(sizes, tiles, tiles)
    tiles = _cut(offsets, events, sizes.forward.tile)
    same = sizes.keys.tile == sizes.forward.tile
    return Plan(sizes, tiles, tiles if same else _cut(offsets, events, sizes.keys.tile))


def _cut(offsets: Tensor, events: int, tile: int) -> Tensor:
    rows = offsets.shape[0] - 1
    count = events // tile + rows
    tiles = offsets.new_empty((3, count), dtype=torch.int32)
    if count:
        _plan_tiles[(rows,)](offsets, tiles, events, count, tile, STEP=32, num_warps=1)
    return tiles


@triton.jit(do_not_specialize=["T"])
def _plan_events(offsets, plan, T, STEP: tl.constexpr):
    """For every event of row `b`, where the row starts and ends: `plan` (2, T)."""
    b = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + b).to(tl.int32)
    end = tl.minimum(tl.load(offsets + b + 1), T).to(tl.int32)
    for n in range(start, end, STEP):
        at = n + tl.arange(0, STEP)
        tl.store(plan + at, tl.zeros([STEP], tl.int32) + start, mask=at < end)
        tl.store(plan + T + at, tl.zeros([STEP], tl.int32) + end, mask=at < end)


@triton.jit(do_not_specialize=["T", "count"])
def _plan_tiles(offsets, plan, T, count, TILE: tl.constexpr, STEP: tl.constexpr):
    """For every tile of row `b`, where the tile, the row and the row's end are: `plan` (3, count).

    Row b has the slots from `start // TILE + b` on: as many as it needs or one more, shared with no other row, and
    found without a sum over rows. One it does not need holds a tile that begins at its row's end.
    """
    b = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + b).to(tl.int32)
    end = tl.minimum(tl.load(offsets + b + 1), T).to(tl.int32)
    slots = end // TILE - start // TILE + 1
    plan += start // TILE + b
    for n in range(0, slots, STEP):
        i = n + tl.arange(0, STEP)
        tl.store(plan + i, tl.minimum(start + i * TILE, end), mask=i < slots)
        tl.store(plan + count + i, tl.zeros([STEP], tl.int32) + start, mask=i < slots)
        tl.store(plan + 2 * count + i, tl.zeros([STEP], tl.int32) + end, mask=i < slots)
