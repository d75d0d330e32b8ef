"""The kernels of norm, gate and dropout: a program owns some events of one group of columns."""

# ruff: noqa: N803

import triton
import triton.language as tl
from torch import Tensor

from ...attention.triton.tile import key_bits, mixed, query_bits
from ...dropout import threshold
from ...launch import launched
from ...sizes import ceil_div, power_of_two
from ..api import Settings

_ELEMENTS = 2048  # of a program, 16 a thread


def launch(x: Tensor, gate: Tensor | None, settings: Settings, out: Tensor) -> None:
    """Fill `out` `(T, E)`. The last stride of `x` and `gate` is 1."""
    sizes, grid, warps = _tiles(x, settings)
    _forward[grid](x, gate, out, *_numbers(x, gate, settings), *sizes, num_warps=warps)


def launch_backward(grad: Tensor, x: Tensor, gate: Tensor | None, settings: Settings,
                    gradients: tuple[Tensor, Tensor | None]) -> None:
    """Fill the gradients of `x` and `gate`, contiguous as `grad` is."""
    sizes, grid, warps = _tiles(x, settings)
    _backward[grid](grad, x, gate, *gradients, *_numbers(x, gate, settings), *sizes, num_warps=warps)


def _tiles(x: Tensor, settings: Settings) -> tuple[tuple[int, int, int], tuple[int], int]:
    """Return the width of a group, that of its tile and how many events this has; the grid; warps of a program."""
    width = x.shape[1] // settings.groups
    tile = power_of_two(width)
    events = max(1, _ELEMENTS // tile)
    warps = min(max(tile * events // 512, 4), 16)
    return (width, tile, events), (ceil_div(x.shape[0], events) * settings.groups,), warps


def _numbers(x: Tensor, gate: Tensor | None, settings: Settings) -> tuple:
    """Return what both kernels are told of events and settings."""
    rate = settings.dropout
    dropped = (settings.seed, threshold(rate), 1 / (1 - rate))
    return x.shape[0], settings.groups, x.stride(0), 0 if gate is None else gate.stride(0), settings.eps, dropped


@triton.jit
def _place(count, groups, W: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr):
    """Which events (BM,) and columns (BW,) this program has, and which of them there are: (BM, BW), (BW,)."""
    group = tl.program_id(0) % groups
    events = tl.cast(tl.program_id(0) // groups, tl.int64) * BM + tl.arange(0, BM)
    column = tl.arange(0, BW)
    there = column < W
    return events, group * W + column, (events < count)[:, None] & there[None, :], there


@triton.jit
def _load(source, events, columns, stride, inside):
    """Events as float32, 0 where there is none."""
    return tl.load(source + events[:, None] * stride + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _store(target, rows, events, columns, width, inside):
    tl.store(target + events[:, None] * width + columns[None, :], rows.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _normed(x, there, eps, W: tl.constexpr):
    """The events less their mean over their deviation, 0 past the width, and one over the deviation, (BM, 1)."""
    mean = tl.sum(x, 1) / W
    centred = tl.where(there[None, :], x - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / W + eps)[:, None]
    return centred * inverse, inverse


@triton.jit
def _dropped(x, events, columns, dropped):
    """`x` with some of it 0 and the rest divided by the share that stays."""
    bits = query_bits(dropped[0], 0, events)[:, None] ^ key_bits(dropped[0], columns)[None, :]
    return tl.where(mixed(bits) >= dropped[1], x * dropped[2], 0.0)


@launched
@triton.jit(do_not_specialize=["count"])
def _forward(x_source, gate_source, out, count, groups, x_stride, gate_stride, eps, dropped, W: tl.constexpr,
             BW: tl.constexpr, BM: tl.constexpr):
    """The results of BM events of one group."""
    events, columns, inside, there = _place(count, groups, W, BW, BM)
    y, _ = _normed(_load(x_source, events, columns, x_stride, inside), there, eps, W)
    if gate_source is not None:
        y *= _load(gate_source, events, columns, gate_stride, inside)
    if dropped[0] is not None:
        y = _dropped(y, events, columns, dropped)
    _store(out, y, events, columns, groups * W, inside)


@launched
@triton.jit(do_not_specialize=["count"])
def _backward(grad, x_source, gate_source, d_x, d_gate, count, groups, x_stride, gate_stride, eps, dropped,
              W: tl.constexpr, BW: tl.constexpr, BM: tl.constexpr):
    """The gradients of BM events of one group."""
    events, columns, inside, there = _place(count, groups, W, BW, BM)
    width = groups * W
    normed, inverse = _normed(_load(x_source, events, columns, x_stride, inside), there, eps, W)
    dy = _load(grad, events, columns, width, inside)
    if dropped[0] is not None:
        dy = _dropped(dy, events, columns, dropped)
    if gate_source is not None:
        _store(d_gate, dy * normed, events, columns, width, inside)
        dy *= _load(gate_source, events, columns, gate_stride, inside)
    # what the mean and the deviation take out of the gradient; past the width all parts are 0
    along = normed * (tl.sum(dy * normed, 1) / W)[:, None]
    _store(d_x, (dy - (tl.sum(dy, 1) / W)[:, None] - along) * inverse, events, columns, width, inside)
