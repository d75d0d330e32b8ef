"""Relative bias in the kernels for Hopper: where the pairs of a block look it up, as `relative.py` says.

What a block needs is fetched while the block before is worked on: a window of positions and the times of its events,
each with two places in shared memory, which blocks take in turn.
"""

# ruff: noqa: N803, N806

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from .. import relative

first_time, _entry, _since, _numbered, _of_bucket, _of_shared, _put, _clear, _increase, _take_4, _lane = (
    gluon.jit(each.fn) for each in (relative.first_time, relative.entry, relative.since, relative.numbered,
                                    relative.of_bucket, relative.of_shared, relative.put, relative.clear,
                                    relative.increase, relative.take_4, relative.lane))


@gluon.jit
def make_room(N: gl.constexpr):
    """Room in shared memory for 128 entries of times and two windows of 256 of positions; for times of two blocks."""
    room = gl.inline_asm_elementwise("{ .shared .align 16 .b8 windows[2560]; mov.u32 $0, windows; }", "=r,r",
                                     [gl.program_id(0)], dtype=gl.int32, is_pure=False, pack=1)
    return room, gl.allocate_shared_memory(gl.int32, [2, N], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def _counted(entries, ACT: gl.constexpr):
    """Entries of tables as scores count: under silu half as large; see `forward.scaled` and `relative.counted`."""
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
def fetch(bias, origin, place, n, M: gl.constexpr, N: gl.constexpr, OF_KEYS: gl.constexpr, ACT: gl.constexpr):
    """What the pairs of a tile of M and the block of N events at n look up; the block may lie beside its row, unused.

    origin: `first_time` of the row; OF_KEYS: the tile is of keys and the block of queries.
    """
    first, h, begin, end = place
    SIZE: gl.constexpr = 128 if M + N <= 128 else 256
    window, times = begin, begin
    if bias[0] is not None:
        lowest = n - first - (M - 1) if OF_KEYS else first - n - (N - 1)
        window = _counted(gl.load(bias[0] + h * bias[2] + _entry(bias, lowest + _line(SIZE))), ACT)
    if bias[3] is not None:
        times = times_of(bias, origin, n + _line(N), begin, end, not OF_KEYS)
    return window, times


@gluon.jit
def hand_over(look, found, stage):
    """Put what `fetch` has found into the places of a stage, and wait until all threads have; look: see `of_pairs`."""
    room, bias, _, times = look
    window, own = found
    if bias[3] is not None:
        times.index(stage).store(own)
    if bias[0] is not None:
        _put(room + (512 + 1024 * stage) + 4 * _line(window.shape[0]), window)
    gl.thread_barrier()


@gluon.jit
def times_of(bias, origin, rows, begin, end, OF_KEYS: gl.constexpr):
    """When the events `rows` of a row ask, or as keys happened; those outside it at any time."""
    times = rows
    if bias[3] is not None:
        times = _since(bias[7] if OF_KEYS else bias[6], rows, (rows >= begin) & (rows < end), origin)
    return times


@gluon.jit
def of_pairs(look, stage, layout: gl.constexpr, M: gl.constexpr, N: gl.constexpr, OF_KEYS: gl.constexpr):
    """The bias of the pairs of a tile and a block, (M, N), and the buckets of their times, `relative.numbered`.

    look: room for tables, the tables, times of the tile (M,), room for those of blocks.
    """
    room, bias, own, times = look
    cols: gl.constexpr = gl.SliceLayout(0, layout)
    # volatile, so that what is read from there is read after the wait for it
    room = gl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [room], dtype=gl.int32, is_pure=False, pack=1)
    buckets = room
    if bias[3] is not None:
        buckets = _numbered(own[:, None] - times.index(stage).load(cols)[None, :])
        of_times = _of_bucket(buckets, room)
    if bias[0] is None:
        added = of_times
    else:
        added = _of_shared(room + (512 + 1024 * stage) + 4 * within(layout, M, N, OF_KEYS))
        if bias[3] is not None:
            added += of_times
    return added, buckets


@gluon.jit
def within(layout: gl.constexpr, M: gl.constexpr, N: gl.constexpr, OF_KEYS: gl.constexpr):
    """Where in the window of a block its pairs are, (M, N)."""
    i = gl.arange(0, M, gl.SliceLayout(1, layout))[:, None]
    j = gl.arange(0, N, gl.SliceLayout(0, layout))[None, :]
    return j - i + (M - 1) if OF_KEYS else i - j + (N - 1)


# --- the gradients of tables ---


@gluon.jit
def room_for_sums(sums, h, part):
    """Room in shared memory for what a program adds to tables: where it is, which copy of `Tables.sums`, a factor.

    128 sums of buckets in 32 columns, then twice 256 of distances in 4, which pairs of blocks take in turn: int32, 0.
    part: what is multiplied into what pairs give, the unit apart.
    """
    place = gl.inline_asm_elementwise("{ .shared .align 16 .b8 sums[24576]; mov.u32 $0, sums; }", "=r,r", [h],
                                      dtype=gl.int32, is_pure=False, pack=1)
    _clear(place + 16 * _line(1024))
    _clear(place + 16384 + 16 * _line(512))
    return place, (gl.program_id(0) % sums[0]).to(gl.int64), part * gl.load(sums[1])


@gluon.jit
def add_to_tables(ds, tables, j, buckets):
    """Add what the pairs of a tile of 64 queries and block j of keys give, ds (64, N), to sums in shared memory.

    tables: `Tables.sums` and what `room_for_sums` returns; buckets: as of `of_pairs`.
    """
    sums, own, _, part = tables
    # rounded at 1.5 · 2**23, a float32 ends in its whole part
    whole = (ds * part + 12582912.0).to(gl.int32, bitcast=True) - 0x4B400000
    if sums[2] is not None:
        _add_along(whole, own + (16384 + 4096 * (j // 2 % 2)), j)
    if sums[4] is not None:
        _increase(buckets * 128 + (own + 4 * _lane() + 0x60000000), whole)  # see `relative.add_to_tables`


@gluon.jit
def _add_along(whole, own, j):
    """Add numbers of pairs (64, N) of block j to the sums of their distances at `own`, in the column of each lane.

    A thread has two rows eight apart, and two neighbours of every eight columns: what lies along a diagonal is added
    up first, and addresses are one number and constants.
    """
    N: gl.constexpr = whole.shape[1]
    K: gl.constexpr = N // 8
    rest = whole.reshape([4, 2, 8, K, 4, 2]).permute([0, 2, 4, 3, 1, 5])  # warp, row, pair of columns, eight, half, one
    even, odd = gl.split(rest)
    lane = _lane()
    base = own + (16 * (_warp() * 16 + lane // 4 - 2 * (lane & 3) + (2 * N - 1) - j % 2 * N) + 4 * (lane & 3))
    for b in gl.static_range(2):
        above, below = gl.split(even if b == 0 else odd)  # rows 0 to 7, and 8 to 15
        above, below = _parts(above, K), _parts(below, K)
        for e in gl.static_range(-1, K):  # eights that the columns are to the right of the rows
            if e < 0:
                found = below[0]
            elif e == K - 1:
                found = above[e]
            else:
                found = above[e] + below[e + 1]
            _increase(base - 16 * (8 * e + b), found)


@gluon.jit
def _parts(x, K: gl.constexpr):
    """Split x (4, 8, 4, K) into its K parts."""
    if K == 1:
        parts = (x.reshape([4, 8, 4]),)
    else:
        left, right = gl.split(x.reshape([4, 8, 4, 2, K // 2]).permute([0, 1, 2, 4, 3]))
        parts = _parts(left, K // 2) + _parts(right, K // 2)
    return parts


@gluon.jit
def _warp():
    """Which warp of the first four a thread is in; see `relative.lane`."""
    return gl.inline_asm_elementwise("{ mov.u32 $0, %tid.x; shr.u32 $0, $0, 5; }", "=r", [], dtype=gl.int32,
                                     is_pure=True, pack=1)


@gluon.jit
def hand_on_positions(tables, j, bias, place, M: gl.constexpr, N: gl.constexpr):
    """Add the sums of distances of blocks j - 1 and j, which is odd, to those in global memory, and begin anew."""
    sums, own, copy, _ = tables
    first, h, begin, _ = place
    if sums[2] is not None:
        n = _line(128 if M + 2 * N <= 128 else 256)
        found = _take_4(own + (16384 + 4096 * (j // 2 % 2)) + 16 * n)
        lowest = first - begin - ((j + 1) * N - 1)
        target = sums[2] + copy * sums[3] + h * bias[2]
        gl.atomic_add(target + _entry(bias, lowest + n), found, mask=found != 0, sem="relaxed")


@gluon.jit
def hand_on_times(tables, bias, h):
    """Add the sums of buckets to those in global memory, and begin anew; each thread has its own bucket."""
    sums, own, copy, _ = tables
    if sums[4] is not None:
        b = _line(128)
        found = gl.full([128], 0, gl.int64, b.type.layout)
        for i in gl.static_range(8):  # each thread begins elsewhere: they would all meet in the same banks
            found += _take_4(own + 128 * b + 16 * ((b + i) & 7))
        target = sums[4] + copy * sums[5] + h * bias[5]
        gl.atomic_add(target + gl.minimum(b, bias[4]), found, mask=found != 0, sem="relaxed")
