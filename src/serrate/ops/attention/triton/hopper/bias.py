"""Relative bias in the forward kernel of one warp group: where its pairs look it up, as `relative.py` says.

What a block of keys needs is fetched while the block before is worked on: a window of positions and the times of its
keys, each with two places in shared memory, which blocks take in turn.
"""

# ruff: noqa: N803, N806

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .. import relative

first_time, _entry, _since, _bucket_place, _of_shared, _put = (
    gluon.jit(each.fn) for each in (relative.first_time, relative.entry, relative.since, relative.bucket_place,
                                    relative.of_shared, relative.put))


@gluon.jit
def make_room(BN: gl.constexpr):
    """Room in shared memory for 128 entries of times and two windows of 256 of positions; for times of two blocks."""
    room = gl.inline_asm_elementwise("{ .shared .align 16 .b8 windows[2560]; mov.u32 $0, windows; }", "=r,r",
                                     [gl.program_id(0)], dtype=gl.int32, is_pure=False, pack=1)
    return room, gl.allocate_shared_memory(gl.int32, [2, BN], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def rest(ACT: gl.constexpr):
    """What biased scores are still to be multiplied by: under silu they are half as large, which is what it needs."""
    return 2.0 if ACT else 1.0


@gluon.jit
def _counted(entries, ACT: gl.constexpr):
    """Entries of tables as scores count: see `rest`, and `relative.counted`."""
    return entries * (0.5 if ACT else 1.4426950408889634)


@gluon.jit
def _line(N: gl.constexpr):
    """The numbers below N, spread over the threads."""
    return gl.arange(0, N, gl.BlockedLayout([1], [32], [gl.num_warps()], [0]))


@gluon.jit
def put_times(bias, h, room, ACT: gl.constexpr):
    """Put the table of times of a head into its place."""
    if bias[3] is not None:
        at = _line(128)
        _put(room + 4 * at, _counted(gl.load(bias[3] + h * bias[5] + gl.minimum(at, bias[4])), ACT))


@gluon.jit
def fetch(bias, origin, place, n, BM: gl.constexpr, BN: gl.constexpr, ACT: gl.constexpr):
    """What the pairs of BM queries and the block of BN keys at n look up; the block may lie before its row, unused.

    origin: `first_time` of the row.
    """
    first, h, begin, end = place
    SIZE: gl.constexpr = 128 if BM + BN <= 128 else 256
    window, happened = begin, begin
    if bias[0] is not None:
        at = _entry(bias, first - n - (BN - 1) + _line(SIZE))
        window = _counted(gl.load(bias[0] + h * bias[2] + at), ACT)
    if bias[3] is not None:
        keys = n + _line(BN)
        happened = _since(bias[7], keys, (keys >= begin) & (keys < end), origin)
    return window, happened


@gluon.jit
def hand_over(bias, found, room, times, stage):
    """Put what `fetch` has found into the places of a stage, and wait until all threads have."""
    window, happened = found
    if bias[0] is not None:
        _put(room + (512 + 1024 * stage) + 4 * _line(window.shape[0]), window)
    if bias[3] is not None:
        times.index(stage).store(happened)
    gl.thread_barrier()


@gluon.jit
def times_of_queries(bias, origin, rows, end):
    """When the queries `rows` of a row ask; those past its end at any time."""
    asked = rows
    if bias[3] is not None:
        asked = _since(bias[6], rows, rows < end, origin)
    return asked


@gluon.jit
def biased(s, look, stage, ACT: gl.constexpr):
    """Scores with their bias, from the places of a stage, but for `rest`.

    look: room for tables, the tables, the factor of products s, where in a window the pair of first query and first key
    is, times of queries (BM,), room for those of keys.
    """
    room, bias, factor, shift, asked, times = look
    rows: gl.constexpr = gl.SliceLayout(1, s.type.layout)
    cols: gl.constexpr = gl.SliceLayout(0, s.type.layout)
    # volatile, so that what is read from there is read after the wait for it
    room = gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [room], dtype=gl.int32, is_pure=False, pack=1)
    x = s * (factor * (0.5 if ACT else 1.0))
    if bias[0] is not None:
        within = shift + gl.arange(0, s.shape[0], rows)[:, None] - gl.arange(0, s.shape[1], cols)[None, :]
        x += _of_shared(room + (512 + 1024 * stage) + 4 * within)
    if bias[3] is not None:
        happened = times.index(stage).slice(0, s.shape[1]).load(cols)
        x += _of_shared(_bucket_place(gl.convert_layout(asked, rows)[:, None] - happened[None, :], room))
    return x
