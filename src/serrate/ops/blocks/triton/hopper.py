"""The product `X Yᵀ` into blocks of long rows for Hopper, of wide events, in Gluon: with layouts and loads spelled out.

A program keeps 256 keys of a row in shared memory, and multiplies 64 queries at a time of an eighth of the row with
them, the next ones being on their way. The keys stand there in such an order that a thread has the sums of 8 keys that
follow each other, a word. Where the lines of a row begin with sectors of 32 bytes it stores these as it has them;
elsewhere a warp collects whole lines first, asking no other warp, so that fewer sectors are written in parts. What
shares a word with other queries goes by itself.

Queries and words are as in `products.py`.
"""

# ruff: noqa: N803, N806

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from ...launch import launched

_QUERIES, _KEYS = 64, 256  # what one matrix instruction takes
_COLUMNS = 128
_STAGES = 2  # tiles of queries in shared memory: with three a multiprocessor has room for one program, not two


def launch(x: Tensor, y: Tensor, offsets: Tensor, blocks: Tensor, out: Tensor) -> None:
    """Fill `out` `(P, 1)`, contiguous, from x and y `(T, 1, D)`, half precision, up to 128 wide and made of words."""
    (events, _, width), rows = x.shape, offsets.shape[0] - 1
    _products[((events // (_KEYS - 8) + rows) * 8,)](
        x, y, out, offsets, blocks, events, out.shape[0], rows, x.stride(0), y.stride(0), width,
        _COLUMNS, _QUERIES, _KEYS, _STAGES, num_warps=4)


@gluon.jit
def _tile_of(offsets, slot, T, B, TILE: gl.constexpr):
    """The tile of events that a slot has: as `rows.events_of`, with the number of the tile."""
    probe = gl.arange(0, 128, gl.BlockedLayout([1], [32], [4], [0])) + 1
    row = slot * 0
    last = row + B - 1
    while row < last:  # one of 128 parts is left each time
        step = (last - row + 127) // 128
        at = row + probe * step
        offset = gl.load(offsets + at, mask=at <= last, other=0).to(gl.int32)
        before = (at <= last) & (offset // TILE + at <= slot)
        row += gl.sum(before.to(gl.int32), 0) * step
        last = gl.minimum(row + step - 1, last)
    begin = gl.load(offsets + row).to(gl.int64)
    start = gl.minimum(begin, T)
    end = gl.minimum(gl.load(offsets + row + 1).to(gl.int64), T)
    return row, slot - (begin // TILE).to(gl.int32) - row, start, (end - start).to(gl.int32)


@gluon.jit
def _clear_past(out, blocks, B, P):
    """Let all programs together set what lies past the last block to 0."""
    step = gl.arange(0, 1024, gl.BlockedLayout([8], [32], [4], [0]))
    begin = gl.load(blocks + B) + gl.program_id(0).to(gl.int64) * 1024
    for n in range(begin, P.to(gl.int64), gl.num_programs(0).to(gl.int64) * 1024):
        gl.store(out + (n + step), gl.full([1024], 0.0, out.dtype.element_ty, step.type.layout), mask=n + step < P)


@gluon.jit
def _share_of(length, block, turn, BM: gl.constexpr):
    """Which queries of a row a program has: the first, the last, with how many between them; whether pairs of all begin
    alike, and how far behind a word. As `rows.groups_of` and `rows.share_of`; of short rows the next BM queries.
    """
    period = gl.where(length % 8 == 0, 1, gl.where(length % 4 == 0, 2, gl.where(length % 2 == 0, 4, 8)))
    alike = (period == 1) | (length >= BM // 2 * period)
    period = gl.where(alike, period, 1)
    share = gl.where(alike, ((length + 7) // 8 + BM - 1) // BM * BM * period, BM)
    group = gl.where(alike, turn % period, 0)
    begin = gl.where(alike, group + turn // period * share, turn * BM)
    shift = gl.where(alike, ((block + group.to(gl.int64) * length) % 8).to(gl.int32), 0)
    return begin, gl.minimum(begin + share, length), period, alike, shift


@gluon.jit
def _copy(room, source, events, there, stride, D: gl.constexpr, layout: gl.constexpr):
    """Begin to copy those of the events (N,) of a row that are there to shared memory (N, BD), zeros beside them."""
    d = gl.arange(0, room.shape[1], gl.SliceLayout(0, layout))
    async_copy.async_copy_global_to_shared(room, source + (events * stride)[:, None] + d[None, :],
                                           mask=there[:, None] & (d < D)[None, :])


@launched
@gluon.jit(do_not_specialize=["T", "P", "B"])
def _products(x, y, out, offsets, blocks, T, P, B, x_stride, y_stride, D: gl.constexpr, BD: gl.constexpr,
              BM: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr):
    """The pairs of BN keys of one row with an eighth of its queries."""
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    word_layout: gl.constexpr = gl.DistributedLinearLayout(  # that products have already
        [[0, 1], [0, 2], [0, 4], [8, 0], [0, 32], [0, 64], [0, 128]],
        [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [BM, BN])
    line_layout: gl.constexpr = gl.BlockedLayout([16, 8], [1, 32], [4, 1], [1, 0])
    in_layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BD, BD // 8], [4, 1], [1, 0])
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    row, tile, start, length = _tile_of(offsets, gl.program_id(0) // 8, T, B, BN - 8)
    _clear_past(out, blocks, B, P)
    block = gl.load(blocks + row)
    held = gl.minimum(gl.maximum(P - block, 0) // gl.maximum(length, 1), length).to(gl.int32)
    first = tile * BN
    begin, end, period, alike, shift = _share_of(length, block, gl.program_id(0) % 8, BM)
    if (begin < end) & (first < length + shift):
        x_stride = x_stride // 8 * 8  # visibly words
        y_stride = y_stride // 8 * 8
        x += start * x_stride
        y += start * y_stride
        keys = gl.allocate_shared_memory(x.dtype.element_ty, [BN, BD], shared)
        queries = gl.allocate_shared_memory(x.dtype.element_ty, [STAGES, BM, BD], shared)
        i = gl.arange(0, BN, gl.SliceLayout(1, in_layout))
        key = first - shift + (i & ~30 | (i & 6) << 2 | (i & 24) >> 2)  # see `_words`
        _copy(keys, y, key, (key >= 0) & (key < length), y_stride, D, in_layout)
        step = gl.arange(0, BM, gl.SliceLayout(1, in_layout)) * period
        for n in gl.static_range(STAGES - 1):
            query = begin + n * BM * period + step
            _copy(queries.index(n), x, query, query < end, x_stride, D, in_layout)
            async_copy.commit_group()
        sectors = (length % 16 == 0) & (block % 16 < 8)  # the words of every line begin with one
        beside = ((first == 0) & (shift > 0)) | (first + BN > (shift + length) // 8 * 8)
        zeros = gl.full([BM, BN], 0.0, gl.float32, acc_layout)
        last = gl.minimum(end, held)
        now = 0
        for i in range(begin, end, BM * period):
            async_copy.wait_group(STAGES - 2)
            fence_async_shared()
            gl.thread_barrier()
            s = warpgroup_mma(queries.index(now), keys.permute([1, 0]), zeros, use_acc=False, is_async=True)
            query = i + (STAGES - 1) * BM * period + step
            _copy(queries.index((now + STAGES - 1) % STAGES), x, query, query < end, x_stride, D, in_layout)
            async_copy.commit_group()
            now = (now + 1) % STAGES
            s = _words(warpgroup_mma_wait(0, [s]).to(out.dtype.element_ty))
            if sectors:
                _store_words(out, block, s, i, last, period, first, shift, length, word_layout)
            elif alike:
                _store_words(out, block, s, i, last, period, first, shift, length, line_layout)
            if beside | (not alike):
                _store_beside(out, block, s, i, last, period, first, shift, length, alike)


@gluon.jit
def _words(s):
    """The products with keys in the order in which they stand in shared memory, in the order of the keys.

    Of 32 sums the matrix instruction gives a thread four times two, 8 apart: those of 8 keys that follow each other.
    """
    BM: gl.constexpr = s.shape[0]
    BN: gl.constexpr = s.shape[1]
    return s.reshape([BM, BN // 32, 4, 4, 2]).permute([0, 1, 3, 2, 4]).reshape([BM, BN])


@gluon.jit
def _store_words(out, block, s, i, last, period, first, shift, length, layout: gl.constexpr):
    """Store the pairs that fill words: a thread those that it has in a layout, 8 keys of a query each."""
    query = i + gl.arange(0, s.shape[0], gl.SliceLayout(1, layout)) * period
    place = first + gl.arange(0, s.shape[1], gl.SliceLayout(0, layout))
    whole = (place >= (shift + 7) // 8 * 8) & (place < (shift + length) // 8 * 8)
    at = (block + query.to(gl.int64) * length) // 8 * 8
    gl.store(out + at[:, None] + place[None, :], gl.convert_layout(s, layout),
             mask=(query < last)[:, None] & whole[None, :])


@gluon.jit
def _store_beside(out, block, s, i, last, period, first, shift, length, alike):
    """Store those pairs that do not fill words, or all where queries do not begin alike: 32 keys at a time that have
    such, for there are two such places in a line.
    """
    BM: gl.constexpr = s.shape[0]
    PARTS: gl.constexpr = s.shape[1] // 32
    parts = s.to(gl.int16, bitcast=True).reshape([BM, PARTS, 32])
    number = gl.arange(0, PARTS, gl.SliceLayout(0, gl.SliceLayout(2, parts.type.layout)))
    for n in range(PARTS):
        if (not alike) | (n == 0) | (n == (shift + length) % s.shape[1] // 32):
            part = gl.sum(gl.where(number[None, :, None] == n, parts, 0), 1).to(gl.int16)
            query = i + gl.arange(0, BM, gl.SliceLayout(1, part.type.layout)) * period
            place = first + n * 32 + gl.arange(0, 32, gl.SliceLayout(0, part.type.layout))
            own = (place >= shift) & (place < shift + length)
            own &= (not alike) | (place < (shift + 7) // 8 * 8) | (place >= (shift + length) // 8 * 8)
            at = block + query.to(gl.int64) * length - shift
            gl.store(out + at[:, None] + place[None, :], part.to(s.dtype, bitcast=True),
                     mask=(query < last)[:, None] & own[None, :])
