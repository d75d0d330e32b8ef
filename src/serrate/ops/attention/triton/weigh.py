"""From scores to weights and back: pointwise activations, and relative bias with the gradients of its tables.

The tables get theirs as sums of whole numbers, which do not depend on the order of the summands: each part of a
gradient is rounded to a unit that is chosen so that no sum can overflow: see `Tables`.
"""

# ruff: noqa: N803, N806

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..weights import ACTIVATIONS
from .problem import LOG2_E, Problem
from .tile import natural

COPIES = 64  # of each sum, so that few programs at a time add to the same one
FEW = 6  # buckets of a block that are summed one by one, as far from the diagonal; of more, pairs add for themselves


# --- pointwise weights: ACT counts as `weights.ACTIVATIONS` ---


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)). Not by tanh, which is one instruction, but leaves little of the weights of low scores."""
    return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def activated(x, ACT: tl.constexpr):
    """The weights of scores x, before the normaliser, and their derivatives."""
    if ACT == 1:
        y = sigmoid(x)
        p = x * y
        slope = p * (1.0 - y) + y
    elif ACT == 2:
        y = 0.5 * tl.erf(x * 0.7071067811865476) + 0.5
        p = x * y
        slope = y + x * (0.3989422804014327 * tl.exp2(x * x * -0.7213475204444817))
    elif ACT == 3:
        y = tl.maximum(x, 0.0)
        p = y * y
        slope = 2.0 * y
    else:
        p = x
        slope = tl.zeros_like(x) + 1.0
    return p, slope


@triton.jit
def slope_of(factors, history, KIND: tl.constexpr):
    """What the gradients of scores are multiplied by on their way to queries and keys."""
    return factors[0] * share(factors[1], history, KIND[6]) if KIND[5] else natural(factors[0])


@triton.jit
def share(normaliser, history, LENGTH: tl.constexpr):
    """What the weights of a row are multiplied by."""
    if LENGTH:
        normaliser = 1.0 / tl.maximum(history, 1).to(tl.float32)
    return normaliser


# --- relative bias: see `bias.py` for its meaning and its numbers ---


@triton.jit
def since(times, events, inside, first):
    """Times of events counted from `first`, int32."""
    ago = tl.load(times + events, mask=inside, other=0) - first
    return tl.minimum(tl.maximum(ago, -1073741824), 1073741824).to(tl.int32)


@triton.jit
def query_side(bias, at, row, events, inside, first):
    """Where queries at positions `at` stand, and when they ask; `events` are their places, `row` `sizes_of_row`'s."""
    stand = tl.minimum(at, row[4])
    asked = stand
    if bias[3] is not None:
        asked = since(bias[6], events, inside, first)
    return stand, asked


@triton.jit
def key_side(bias, keys, row, begin, length, first):
    """Where keys stand, and when they happened; keys counted from the start of their row."""
    place = tl.minimum(keys, row[4])
    happened = place
    if bias[3] is not None:
        happened = since(bias[7], begin + keys, keys < length, first)
    return place, happened


@triton.jit
def first_time(bias, begin, length):
    """The time of the first key of the row that begins at `begin`; 0 without a table of times."""
    first = tl.cast(begin, tl.int64) * 0
    if bias[3] is not None:
        first = tl.load(bias[7] + begin, mask=length > 0, other=0)
    return first


@triton.jit
def queries_of_tile(bias, at, row, events, inside, begin, length, h, BIASED: tl.constexpr):
    """Return `query_side` of a tile, `first_time` of its row, whose keys begin at `begin`, and its head."""
    stand = at
    asked = at
    first = tl.cast(begin, tl.int64)
    if BIASED:
        first = first_time(bias, begin, length)
        stand, asked = query_side(bias, at, row, events, inside, first)
    return stand, asked, first, h


@triton.jit
def keys_of_tile(bias, keys, row, begin, length, BIASED: tl.constexpr):
    """Return `key_side` of a tile and `first_time` of its row."""
    place = keys
    happened = keys
    first = tl.cast(begin, tl.int64)
    if BIASED:
        first = first_time(bias, begin, length)
        place, happened = key_side(bias, keys, row, begin, length, first)
    return place, happened, first


@triton.jit
def entry(bias, distance):
    """Which entry of the table of positions is for a distance."""
    return tl.minimum(tl.maximum(distance, -bias[1]), bias[1]) + bias[1]


@triton.jit
def bucket(bias, difference):
    """Which entry of the table of times is for a difference: its 12 leading bits count, so that no border is missed."""
    if bias[8] is not None:  # the same in fewer instructions: a difference of 0 ends as the least float, then as 0
        n = tl.inline_asm_elementwise("""{
            .reg .f32 x; .reg .b32 t;
            cvt.rn.f32.s32 x, $1; mov.b32 t, x; and.b32 t, t, 0x7FFFF000; mov.b32 x, t;
            lg2.approx.ftz.f32 x, x; mul.f32 x, x, 0f40136150; cvt.rzi.u32.f32 t, x; min.u32 $0, t, $2;
            }""", "=r,r,r", [difference, bias[4]], dtype=tl.int32, is_pure=True, pack=1)
    else:
        size = tl.maximum(tl.abs(difference.to(tl.float32)), 1.0)  # of int32, -2**31 has no magnitude
        cut = (size.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
        n = tl.minimum((tl.log2(cut) * 2.3028145533553).to(tl.int32), bias[4])
    return n


@triton.jit
def look_up(bias, table, index):
    """Entries of a table. Not by a load that Triton knows: it would copy them through shared memory one by one."""
    if bias[8] is not None:
        entries = tl.inline_asm_elementwise("""{
            .reg .u64 at;
            mad.wide.s32 at, $2, 4, $1; ld.global.nc.f32 $0, [at];
            }""", "=f,l,r", [table.to(tl.int64), index], dtype=tl.float32, is_pure=True, pack=1)
    else:
        entries = tl.load(table + index)
    return entries


@triton.jit
def biased(x, bias, h, distance, difference, ACT: tl.constexpr):
    """Scores x, of a softmax in base 2, with the bias of head h for distances and differences in time."""
    if bias[0] is not None:
        added = look_up(bias, bias[0] + h * bias[2], entry(bias, distance))
        if bias[3] is not None:
            added += look_up(bias, bias[3] + h * bias[5], bucket(bias, difference))
    else:
        added = look_up(bias, bias[3] + h * bias[5], bucket(bias, difference))
    if ACT:
        x += added
    else:
        x += added * 1.4426950408889634
    return x


# --- what kernels take of a problem ---


def kind(problem: Problem, group: int) -> tuple:
    """Return what kernels are compiled for: mask, shape of rows, heads that share keys, weights, whether biased."""
    return (problem.kind, problem.self_attention, problem.dense, problem.per_row, group, problem.activation,
            problem.normaliser == 0, problem.biased)


def share_of(problem: Problem) -> float:
    """Return what weights are multiplied by, unless the length of the row says."""
    return 1 / problem.normaliser if problem.normaliser else 1.0


def of_bias(problem: Problem) -> tuple | None:
    """Return the tables as kernels take them: each with its largest index and the step from head to head; times.

    (position, reach, step, time, last bucket, step, query_times, key_times, 1); None and 0 where there is none, and
    None in the place of the 1 under the interpreter, which knows no assembly.
    """
    if not problem.biased:
        return None

    def parts(table: Tensor | None, last: int) -> tuple:
        return (None, 0, 0) if table is None else (table, last, table.shape[1] if table.shape[0] > 1 else 0)

    position, time = problem.position, problem.time
    return (*parts(position, 0 if position is None else position.shape[1] // 2),
            *parts(time, 0 if time is None else time.shape[1] - 1), problem.query_times, problem.key_times,
            None if triton.knobs.runtime.interpret else 1)


# --- the gradients of tables ---


class Tables:
    """The sums of the gradients of a problem's tables, each in whole numbers of a unit.

    Sums are int64. Unless `wide`, the unit of times is also one of which a pair has less than 2³¹: see `add_to_tables`.

    Args:
        problem: whose tables.
        bounds: see `bounds`.
        wide: whether pairs are counted in int64 too, which half precision does not need.
    """

    def __init__(self, problem: Problem, bounds: tuple[Tensor, Tensor], wide: bool):
        pair, every = bounds
        room = 2.0**62 / every
        of_times = room if wide else torch.minimum(room, 2.0**30 / pair)
        units = torch.exp2(torch.stack([room, of_times]).log2().floor().clamp(max=100.0))
        self._sums = []
        self.sums = (COPIES, units)
        for table, unit in zip((problem.position, problem.time), units, strict=True):
            if table is None:
                self.sums += (None, 0)
                continue
            self._sums.append((table.new_zeros((COPIES, *table.shape), dtype=torch.int64), unit))
            self.sums += (self._sums[-1][0], table.numel())
        self.sums += (FEW,)

    def gradients(self) -> list[Tensor]:
        """Return the gradient of each table, `(H, N)` or `(1, N)` float32."""
        return [(sums.sum(0).double() / unit.double()).float() for sums, unit in self._sums]


def bounds(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor],
           problem: Problem) -> tuple[Tensor, Tensor]:
    """Return bounds on what a pair adds to a table, and on the sum of that over all pairs: () float32, on the device.

    Weights change 1.13 times as fast as their scores (silu, gelu) or less, of relu_squared twice the score times as
    fast. A softmax gives a score its weight times the difference of two gradients, and that of the log-sum-exp.
    """
    q, k, v = inputs
    grad, grad_lse = grads
    pair = 2 / (1 - problem.dropout) * _longest(grad) * _longest(v)
    if problem.activation == ACTIVATIONS.index("relu_squared"):
        pair = pair * sum((table.abs().amax() for table in problem.tables),
                          start=_longest(q) * _longest(k) * problem.scale)
    if grad_lse is not None:
        pair = pair + LOG2_E * grad_lse.abs().amax()
    keys = problem.keys.diff().float()
    queries = problem.queries.diff() if problem.queries is not None else q.shape[1]
    if problem.normaliser == 0:
        history = keys if problem.targets is None else keys - problem.targets
        keys = keys / history.clamp(min=1)
    pair = pair * share_of(problem)
    return pair, pair * q.shape[-2] * (keys * queries).sum()


def _longest(x: Tensor) -> Tensor:
    """Return the length of the longest vector of x `(…, D)`, () float32; at least 1e-18, whose square is no 0 yet."""
    return torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).amax().clamp(min=1e-18)


@triton.jit
def add_to_tables(ds, sums, bias, side, place, happened, seen, part, SKEWED: tl.constexpr, WIDE: tl.constexpr):
    """Add what the pairs of a block give to the tables: ds (M, N), 0 where a pair is not seen.

    sums: as `Tables.sums`; side: `queries_of_tile`; place, happened (N,): of the keys; seen: which pairs there are,
    broadcast to (M, N); part: what ds is multiplied by. SKEWED: whether some stand elsewhere than their place in the
    row says, so that diagonals of the block are not of one distance. WIDE: as of `Tables`.
    """
    M: tl.constexpr = ds.shape[0]
    N: tl.constexpr = ds.shape[1]
    copy = tl.program_id(0) % sums[0]
    if sums[2] is not None:
        unit = tl.load(sums[1]) * part
        target = sums[2] + copy.to(tl.int64) * sums[3] + side[3] * bias[2]
        if SKEWED:
            index = entry(bias, side[0][:, None] - place[None, :])
            tl.atomic_add(target + index, (ds * unit).to(tl.int64), mask=seen & (index >= 0), sem="relaxed")
        else:  # the sums of diagonals: row i shifted by i, so that each is a part of a column
            row = tl.arange(0, M)[:, None]
            column = tl.arange(0, N)
            shifted = tl.gather(ds, (row + column[None, :]) % N, 1)
            part_of = row // N + (row % N + column[None, :] >= N).to(tl.int32)
            distance = tl.min(side[0], 0) - tl.min(place, 0) - column
            for i in tl.static_range(M // N + 1):
                diagonals = tl.sum(tl.where(part_of == i, shifted, 0.0), 0)
                there = column >= 0 if i < M // N else column > 0
                index = entry(bias, distance + i * N)
                tl.atomic_add(target + index, (diagonals * unit).to(tl.int64), mask=there, sem="relaxed")
    if sums[4] is not None:
        unit = tl.load(sums[1] + 1) * part
        target = sums[4] + copy.to(tl.int64) * sums[5] + side[3] * bias[5]
        index = bucket(bias, side[1][:, None] - happened[None, :])
        low = tl.min(tl.min(tl.where(seen, index, bias[4]), 1), 0)
        high = tl.max(tl.max(tl.where(seen, index, 0), 1), 0)
        if high - low < sums[6]:
            for n in range(low, high + 1):
                of_bucket = tl.sum(tl.sum(tl.where(index == n, ds, 0.0), 1), 0)
                tl.atomic_add(target + n, (of_bucket * unit).to(tl.int64), sem="relaxed")
        else:  # neighbours are mostly of one bucket: together
            whole = (ds * unit).to(tl.int64) if WIDE else (ds * unit).to(tl.int32).to(tl.int64)
            left, right = tl.split(whole.reshape(M, N // 2, 2))
            index_left, index_right = tl.split(index.reshape(M, N // 2, 2))
            there_left, there_right = tl.split((seen & (index >= 0)).reshape(M, N // 2, 2))
            one = there_right & (index_left == index_right)
            left += tl.where(one, right, 0)
            tl.atomic_add(target + index_left, left, mask=there_left | one, sem="relaxed")
            tl.atomic_add(target + index_right, right, mask=there_right & (index_left != index_right), sem="relaxed")
