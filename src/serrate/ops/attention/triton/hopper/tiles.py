"""Which tiles a program has: the one of its number, or one after the other as it draws them.

A program that has a multiprocessor for itself stays and draws, so that its next tile is loaded while the products of
the last are under way. Who draws which changes no bit of any result.
"""

# ruff: noqa: N803

from functools import lru_cache

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

ABREAST = 4  # heads of a tile side by side where rows are long: they stay in cache, and the last tiles are short


def abreast(heads: int, heads_first: bool) -> int:
    """Return how many heads of a tile run side by side, a divisor of all heads; 0: all of them do."""
    return 0 if heads_first else next(each for each in (ABREAST, 2, 1) if heads % each == 0)


def stay(count: int, device: torch.device) -> tuple[int, Tensor]:
    """Return how many programs stay for so many tiles, and where they draw: int32 `(1,)`, zero."""
    return min(count, _multiprocessors(device)), torch.zeros(1, dtype=torch.int32, device=device)


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@gluon.jit
def number_of(number, count, H, CAUSAL: gl.constexpr, ABREAST: gl.constexpr):
    """Which of count tiles has a number, and of which head."""
    if ABREAST == 0:
        tile = number // H
        h = number % H
    else:
        rest = number % (count * ABREAST)
        tile = rest // ABREAST
        h = number // (count * ABREAST) * ABREAST + rest % ABREAST
    if CAUSAL:  # later tiles of a row have more to do: first
        tile = count - 1 - tile
    return tile, h


@gluon.jit
def find_tile(number, plan, count, H, CAUSAL: gl.constexpr, ABREAST: gl.constexpr):
    """The tile of a number: its first event, its head, and where its row begins and ends."""
    tile, h = number_of(number, count, H, CAUSAL, ABREAST)
    begin = gl.load(plan + count + tile)
    return begin + gl.load(plan + tile), h, begin, gl.load(plan + 2 * count + tile)


@gluon.jit
def count_blocks(first, begin, end, BM: gl.constexpr, BN: gl.constexpr, CAUSAL: gl.constexpr):
    """How many blocks of keys a tile sees."""
    if CAUSAL:
        end = gl.minimum(end, first + BM)
    return (end - begin + BN - 1) // BN


@gluon.jit
def draw(drawn):
    """The number of the next tile of a program that stays; past the last one when there are no more."""
    return gl.num_programs(0) + gl.atomic_add(drawn, 1, sem="relaxed")


@gluon.jit
def room_for_places(N: gl.constexpr):
    """Room for N tiles, as `tell` writes them."""
    return gl.allocate_shared_memory(gl.int32, [N, 4], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def tell(room, first, h, begin, end):
    """Write down a tile for the other warps; one that begins before 0 is none, and they go home."""
    i = gl.arange(0, 4, gl.BlockedLayout([4], [32], [1], [0]))
    room.store(gl.where(i == 0, first, gl.where(i == 1, h, gl.where(i == 2, begin, end))))


@gluon.jit
def send_home(room, full, empty, phase):
    """Tell the warp groups that there are no more tiles, once they have left the place where they are told."""
    mbarrier.wait(empty, phase ^ 1)
    tell(room, -1, 0, 0, 0)
    mbarrier.arrive(full, count=2)


@gluon.jit
def hear(room):
    """Read a tile."""
    layout: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    place = room.load(layout)
    i = gl.arange(0, 4, layout)
    return (gl.sum(gl.where(i == 0, place, 0), 0), gl.sum(gl.where(i == 1, place, 0), 0),
            gl.sum(gl.where(i == 2, place, 0), 0), gl.sum(gl.where(i == 3, place, 0), 0))
