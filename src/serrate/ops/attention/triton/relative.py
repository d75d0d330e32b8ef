"""Relative bias in the kernels, and the gradients of its tables.

A program keeps what its pairs look up in shared memory: of times the table of its head, of positions a window, which
has the entries for the distances that a block can have. A look-up is then one load, and of positions nothing else. The
gradients add up there too, in whole numbers, so that their order does not matter, and in columns, so that the lanes of
a warp seldom meet; after a block or some they go on to global memory. This is written in assembly, as Triton has no
words for it: two arrays that it knows nothing of, their addresses, loads, stores and additions.

Under the interpreter, which knows no assembly, pairs look up and add in global memory. So do targets, of positions:
theirs do not follow from their places; and the gradients of float32, whose sums need more bits.
"""

# ruff: noqa: N803, N806

import ctypes
from contextlib import suppress
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .problem import Problem


def admit(module: Any, function: int, name: str, *others: Any) -> None:
    """Ask the driver for the shared memory that a kernel of ours needs, once Triton has loaded it.

    A kernel gets more than 48 KiB on demand only, and Triton asks where the part that it knows of is larger alone.
    """
    if name not in _WITH_BIAS:
        return
    with suppress(OSError):
        driver, granted = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        driver.cuFuncGetAttribute(ctypes.byref(granted), _DYNAMIC_SHARED, ctypes.c_void_p(function))
        if granted.value < _UNASKED:
            driver.cuFuncSetAttribute(ctypes.c_void_p(function), _DYNAMIC_SHARED, _UNASKED)


_WITH_BIAS = {"_forward", "_backward_packed", "_backward_q", "_backward_kv", "_forward_biased",
              "_queries_biased", "_keys_biased"}
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_UNASKED = 48 * 1024
if not triton.knobs.runtime.interpret:
    triton.knobs.runtime.kernel_load_end_hook.add(admit)


def of_bias(problem: Problem) -> tuple | None:
    """Return the tables as kernels take them: each with its largest index and the step from head to head; times.

    (position, reach, step, time, last bucket, step, query_times, key_times); None and 0 where there is none.
    """
    if not problem.biased:
        return None

    def parts(table: Tensor | None, last: int) -> tuple:
        return (None, 0, 0) if table is None else (table, last, table.shape[1] if table.shape[0] > 1 else 0)

    position, time = problem.position, problem.time
    return (*parts(position, 0 if position is None else position.shape[1] // 2),
            *parts(time, 0 if time is None else time.shape[1] - 1), problem.query_times, problem.key_times)


# --- where queries and keys stand, and when: see `bias.py` for the meaning and the numbers ---


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
def queries_of_tile(bias, start, row, events, inside, begin, length, h, KIND: tl.constexpr):
    """What a tile of queries needs of the bias: `query_side`, `first_time`, its head, where its tables are, `start`.

    start: the position of the first query; events: their places, of which `inside` are in the row, whose keys begin at
    `begin`.
    """
    at = start + tl.arange(0, events.shape[0])
    asked = at
    first = tl.cast(begin, tl.int64)
    place = h
    if KIND[7]:
        first = first_time(bias, begin, length)
        at, asked = query_side(bias, at, row, events, inside, first)
        place = fill(bias, h, room(h, KIND), KIND)
    return at, asked, first, h, place, start


@triton.jit
def keys_of_tile(bias, keys, row, begin, length, h, start, KIND: tl.constexpr):
    """What a tile of keys needs of the bias: `key_side`, `first_time`, a head, room for its tables, the first key."""
    place = keys
    happened = keys
    first = tl.cast(begin, tl.int64)
    where = h
    if KIND[7]:
        first = first_time(bias, begin, length)
        place, happened = key_side(bias, keys, row, begin, length, first)
        where = room(h, KIND)
    return place, happened, first, h, where, start


# --- looking up ---


@triton.jit
def entry(bias, distance):
    """Which entry of the table of positions is for a distance."""
    return tl.minimum(tl.maximum(distance, -bias[1]), bias[1]) + bias[1]


@triton.jit
def bucket(difference):
    """Which bucket a difference in time is in, 0 to 71: its 12 leading bits count, so that no border is missed."""
    size = tl.maximum(tl.abs(difference.to(tl.float32)), 1.0)  # of int32, -2**31 has no magnitude
    cut = (size.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    return (tl.log2(cut) * 2.3028145533553).to(tl.int32)


@triton.jit
def numbered(difference):
    """`bucket` and 0x4B400000, in fewer instructions: a float32 rounded down at 1.5 · 2**23, as it is stored."""
    return tl.inline_asm_elementwise("""{
        .reg .f32 x; .reg .b32 t;
        cvt.rn.f32.s32 x, $1; abs.f32 x, x; max.f32 x, x, 0f3F800000;
        mov.b32 t, x; and.b32 t, t, 0xFFFFF000; mov.b32 x, t;
        lg2.approx.ftz.f32 x, x; fma.rm.f32 x, x, 0f40136150, 0f4B400000; mov.b32 $0, x;
        }""", "=r,r", [difference], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def of_bucket(number, place):
    """The float32 of a bucket, as `numbered`, in the table at `place` of shared memory."""
    # the assembler is not to know that this is a sum with a constant, which it would add apart to each address
    start = tl.inline_asm_elementwise("shfl.sync.idx.b32 $0, $1, 0, 31, -1;", "=r,r", [place - 0x2D000000],
                                      dtype=tl.int32, is_pure=False, pack=1)
    return of_shared(number * 4 + start)  # 0x2D000000 is 4 · 0x4B400000 in 32 bits


@triton.jit
def of_memory(table, index):
    """Entries of a table. Not by a load that Triton knows: it would copy them through shared memory one by one."""
    return tl.inline_asm_elementwise("""{
        .reg .u64 at;
        mad.wide.s32 at, $2, 4, $1; ld.global.nc.f32 $0, [at];
        }""", "=f,l,r", [table.to(tl.int64), index], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def of_shared(place):
    """The float32 at these addresses of shared memory, which `meet` has given."""
    return tl.inline_asm_elementwise("ld.shared.f32 $0, [$1];", "=f,r", [place], dtype=tl.float32, is_pure=True, pack=1)


@triton.jit
def put(place, values):
    """Store float32 at addresses of shared memory."""
    tl.inline_asm_elementwise("{ st.shared.f32 [$1], $2; mov.b32 $0, 0; }", "=r,r,f", [place, values], dtype=tl.int32,
                              is_pure=False, pack=1)


@triton.jit
def meet(place):
    """Wait for all warps; return `place`, so that what is read from there is read afterwards.

    Not by a barrier that Triton knows: it would not load ahead in a loop that has one.
    """
    return tl.inline_asm_elementwise("{ bar.sync 0; mov.b32 $0, $1; }", "=r,r", [place], dtype=tl.int32, is_pure=False,
                                     pack=1)


@triton.jit
def room(h, KIND: tl.constexpr):
    """Where in shared memory there is room for a head's times of 128 buckets, a window of 256 distances, 128 times."""
    place = h
    if KIND[8]:
        place = tl.inline_asm_elementwise("{ .shared .align 16 .b8 tables[2048]; mov.u32 $0, tables; }", "=r,r", [h],
                                          dtype=tl.int32, is_pure=False, pack=1)
    return place


@triton.jit
def fill(bias, h, place, KIND: tl.constexpr):
    """Fill the room at `place` with the table of times of head h."""
    if KIND[8] and bias[3] is not None:
        n = tl.arange(0, 128)
        place = meet(place)  # all have looked up what they wanted of another head
        put(place + 4 * n, counted(tl.load(bias[3] + h * bias[5] + tl.minimum(n, bias[4])), KIND))
        place = meet(place)
    return place


@triton.jit
def open_block(bias, h, place, lowest, times, M: tl.constexpr, N: tl.constexpr, KIND: tl.constexpr):
    """Put into the room at `place` what the pairs of a block look up; return `place` and the block's times from there.

    lowest: the least of the block's distances; times: of the block's events, not of the tile's.
    """
    SIZE: tl.constexpr = 128 if M + N <= 128 else 256
    if KIND[8]:
        n = tl.arange(0, SIZE)
        if bias[0] is not None and not KIND[3]:
            entries = counted(tl.load(bias[0] + h * bias[2] + entry(bias, lowest + n)), KIND)
        place = meet(place)  # all have looked up what they wanted of the last block
        if bias[0] is not None and not KIND[3]:
            put(place + 512 + 4 * n, entries)
        if bias[3] is not None:
            t = 4 * tl.arange(0, times.shape[0])
            put(place + 1536 + t, times.to(tl.float32, bitcast=True))
        place = meet(place)
        if bias[3] is not None:
            times = of_shared(place + 1536 + t).to(tl.int32, bitcast=True)
    return place, times


@triton.jit
def counted(entries, KIND: tl.constexpr):
    """Entries of tables as scores count: those of a softmax in base 2, by halves where `fast` is 3."""
    return entries * (0.5 if KIND[8] == 3 else 1.0) if KIND[5] else entries * 1.4426950408889634


@triton.jit
def biased(x, bias, h, place, within, distance, difference, KIND: tl.constexpr):
    """Scores x with the bias of head h, and which bucket each difference is in: `numbered`, if in shared memory.

    place: from `open_block`; within: the pairs' places in the window; distance, difference: of positions and times.
    """
    at = difference
    added = tl.zeros_like(x)
    if bias[0] is not None:
        table = bias[0] + h * bias[2]
        if not KIND[8]:
            added = counted(tl.load(table + entry(bias, distance)), KIND)
        elif KIND[3]:
            added = counted(of_memory(table, entry(bias, distance)), KIND)
        else:
            added = of_shared(place + 512 + 4 * within)
    if bias[3] is not None:
        if KIND[8]:
            at = numbered(difference)
            added += of_bucket(at, place)
        else:
            at = tl.minimum(bucket(difference), bias[4])
            added += counted(tl.load(bias[3] + h * bias[5] + at), KIND)
    return x + added, at


# --- the gradients of tables ---


@triton.jit
def room_for_sums(h, WANTED: tl.constexpr, KIND: tl.constexpr):
    """Where in shared memory there are 256 sums of distances in 4 columns, then 73 of buckets in 32: int32, all 0.

    There are 72 buckets; nothing is added to the last of these sums. It is whole KiB, as all room of ours: what Triton
    puts behind it is swizzled by its address, by the copy engine and matrix instructions of warp groups.
    """
    place = h
    if WANTED and KIND[8]:
        place = tl.inline_asm_elementwise("{ .shared .align 16 .b8 sums[14336]; mov.u32 $0, sums; }", "=r,r", [h],
                                          dtype=tl.int32, is_pure=False, pack=1)
        clear(place + 16 * tl.minimum(tl.arange(0, 1024), 839))
    return place


@triton.jit
def clear(place):
    """Set 16 bytes at each of these addresses of shared memory to 0."""
    tl.inline_asm_elementwise("{ .reg .b32 t; mov.b32 t, 0; st.shared.v4.b32 [$1], {t, t, t, t}; mov.b32 $0, 0; }",
                              "=r,r", [place], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def increase(place, values):
    """Add int32 to what stands at addresses of shared memory."""
    tl.inline_asm_elementwise("{ red.shared.add.u32 [$1], $2; mov.b32 $0, 0; }", "=r,r,r", [place, values],
                              dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def take_4(place):
    """The sum of the four int32 at each of these addresses of shared memory, int64; they are set to 0."""
    return tl.inline_asm_elementwise("""{
        .reg .b32 a, b, c, d; .reg .s64 e, f, g;
        ld.shared.v4.b32 {a, b, c, d}, [$1];
        cvt.s64.s32 e, a; cvt.s64.s32 f, b; add.s64 e, e, f;
        cvt.s64.s32 f, c; cvt.s64.s32 g, d; add.s64 f, f, g; add.s64 $0, e, f;
        mov.b32 a, 0; st.shared.v4.b32 [$1], {a, a, a, a};
        }""", "=l,r", [place], dtype=tl.int64, is_pure=False, pack=1)


@triton.jit
def lane():
    """Which lane of its warp a thread is; no two threads of a warp have the same, though this looks like one number."""
    return tl.inline_asm_elementwise("mov.u32 $0, %laneid;", "=r", [], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def add_to_tables(ds, tables, bias, side, lowest, within, at, distance, part, blocks, WIDE: tl.constexpr,
                  KIND: tl.constexpr):
    """Add what the pairs of a block give to the tables: ds (M, N), 0 where a pair is not seen.

    tables: `Tables.sums` and `room_for_sums`; side, lowest, within, distance: as of `open_block` and `biased`, which
    has found `at`; part: what ds is multiplied by; blocks: how many came before. WIDE: as of `Tables`.

    Those of times stay in shared memory for four blocks, from each of which a column gets 2^7 pairs, and 2^21 at most
    from a pair; what the last blocks leave is for `hand_on_times`.
    """
    sums = tables[0]
    SHARED: tl.constexpr = KIND[8] and not WIDE
    whole = whole_part(ds * (tl.load(sums[1]) * part), SHARED)
    own = meet(tables[1]) if SHARED else tables[1]  # all sums that were handed on are 0
    add_pairs(whole, sums, own, bias, side[3], within, distance, at, SHARED, KIND)
    if SHARED:
        own = meet(own)
        take_positions(sums, bias, side[3], own, lowest, 128 if ds.shape[0] + ds.shape[1] <= 128 else 256, KIND)
        if blocks % 4 == 3:
            take_times(sums, bias, side[3], own)


@triton.jit
def whole_part(ds, SHARED: tl.constexpr):
    """Whole numbers, int32, of at most 22 bits, or for sums in global memory int64."""
    # rounded at 1.5 · 2**23, a float32 ends in its whole part
    return (ds + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000 if SHARED else tl.floor(ds + 0.5).to(tl.int64)


@triton.jit
def add_pairs(whole, sums, own, bias, h, within, distance, at, SHARED: tl.constexpr, KIND: tl.constexpr):
    """Add whole numbers of pairs to the sums in shared memory at `own`, or to those in global memory."""
    copy = (tl.program_id(0) % sums[0]).to(tl.int64)
    if sums[2] is not None:
        if SHARED and not KIND[3]:
            increase(own + 16 * within + (lane() & 3) * 4, whole)
        else:
            target = sums[2] + copy * sums[3] + h * bias[2]
            tl.atomic_add(target + entry(bias, distance), whole.to(tl.int64), mask=whole != 0, sem="relaxed")
    if sums[4] is not None:
        if SHARED:
            increase(at * 128 + (own + lane() * 4 + 0x60001000), whole)  # 128 · 0x4B400000 is 0xA0000000 in 32 bits
        else:
            index = tl.minimum(at - 0x4B400000, bias[4]) if KIND[8] else at
            target = sums[4] + copy * sums[5] + h * bias[5]
            tl.atomic_add(target + index, whole.to(tl.int64), mask=whole != 0, sem="relaxed")


@triton.jit
def take_positions(sums, bias, h, own, lowest, SIZE: tl.constexpr, KIND: tl.constexpr):
    """Add the sums of so many distances from `lowest` on to those in global memory, and begin anew."""
    if sums[2] is not None and not KIND[3]:
        n = tl.arange(0, SIZE)
        found = take_4(own + 16 * n)
        target = sums[2] + (tl.program_id(0) % sums[0]).to(tl.int64) * sums[3] + h * bias[2]
        tl.atomic_add(target + entry(bias, lowest + n), found, mask=found != 0, sem="relaxed")


@triton.jit
def take_times(sums, bias, h, own):
    """Add the sums of buckets to those in global memory, and begin anew; each of 72 threads has its own bucket."""
    if sums[4] is not None:
        b = tl.minimum(tl.arange(0, 128), 72)
        found = tl.zeros([128], tl.int64)
        for i in tl.static_range(8):  # each thread begins elsewhere: they would all meet in the same banks
            found += take_4(own + 4096 + 128 * b + 16 * ((b + i) & 7))
        target = sums[4] + (tl.program_id(0) % sums[0]).to(tl.int64) * sums[5] + h * bias[5]
        tl.atomic_add(target + tl.minimum(b, bias[4]), found, mask=found != 0, sem="relaxed")


@triton.jit
def hand_on_times(tables, bias, side, WIDE: tl.constexpr, KIND: tl.constexpr):
    """Add what is left in shared memory after the last block of a tile to the sums in global memory."""
    if KIND[8] and not WIDE:
        take_times(tables[0], bias, side[3], meet(tables[1]))


# --- packed tiles, which cross the borders of rows: events of one row are as far apart on the axis as in the row ---


@triton.jit
def open_chunk(bias, h, place, plan, T, first, n, OF_KEYS: tl.constexpr, M: tl.constexpr, KIND: tl.constexpr):
    """Put into the room at `place` what pairs of a tile of M events at `first` and 128 from n on look up; return it.

    plan: `Plan.events`; OF_KEYS: the tile is of keys and the other events are queries.
    """
    if KIND[8]:
        times = n + tl.arange(0, 128)
        if bias[3] is not None:
            times = tl.load(plan + (2 if OF_KEYS else 3) * T + tl.minimum(times, T - 1))
        lowest = n - first - (M - 1) if OF_KEYS else first - n - 127
        place, _ = open_block(bias, h, place, lowest, times, M, 128, KIND)
    return place


@triton.jit
def of_packed(x, bias, h, place, own, plan, T, first, chunk, n, OF_KEYS: tl.constexpr, KIND: tl.constexpr):
    """Add the bias to what there is for pairs of a tile at `first` and a block at n, x (M, N).

    place: of the chunk that the block is in, see `open_chunk`; own: times of the tile. Returns also what `add_pairs`
    takes: the places of pairs in the window of distances, the distances, the buckets of times as of `biased`.
    """
    i = tl.arange(0, x.shape[0])
    j = tl.arange(0, x.shape[1])
    times = j
    if bias[3] is not None:
        if KIND[8]:
            times = of_shared(place + 1536 + 4 * (n - chunk + j)).to(tl.int32, bitcast=True)
        else:
            times = tl.load(plan + (2 if OF_KEYS else 3) * T + tl.minimum(n + j, T - 1))
    distance = (n + j)[None, :] - (first + i)[:, None]
    within = (n - chunk + j)[None, :] - i[:, None] + (x.shape[0] - 1)
    if not OF_KEYS:
        distance = -distance
        within = (i + 127)[:, None] - (n - chunk + j)[None, :]
    x, at = biased(x, bias, h, place, within, distance, own[:, None] - times[None, :], KIND)
    return x, within, distance, at
