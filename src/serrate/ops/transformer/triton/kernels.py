"""The kernels of a transformer block but for its attention: programs stay, and go through tiles of events.

Weights are read once a program, in the dtype that they are kept in. A program adds up its part of their gradients on
the chip; `launch_…_backward` give these parts, one for each program, whose sum over programs the caller takes.
"""

# ruff: noqa: N803, RUF005 - of tuples the compiler knows sums alone

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...launch import launched
from ...sizes import ceil_div, power_of_two

_EVENTS = 64  # of a tile
_PROGRAMS = 264  # two on each processor of the device it was measured on, where their weights leave room
_PART = 64  # of the hidden layer


def launch_norm_linear(x: Tensor, weights: tuple[Tensor, ...], eps: float, out: Tensor) -> None:
    """Fill `out` `(T, F)`; `weights` are those of norm and, if any, layer; all is contiguous, as everywhere here."""
    (events, width), columns = x.shape, out.shape[1]
    _norm_linear[min(ceil_div(events, _EVENTS), _PROGRAMS),](
        x, *weights, *(None,) * (4 - len(weights)), out, events, eps, width, columns, _block(width), _block(columns),
        _EVENTS, num_warps=4 if columns <= 128 else 8, num_stages=2)


def launch_norm_linear_backward(grad: Tensor, x: Tensor, weights: tuple[Tensor, ...], eps: float,
                                d_x: Tensor) -> Tensor:
    """Fill `d_x` `(T, E)`; return parts `(programs, …)`, of all weights in their order."""
    (events, width), columns = x.shape, grad.shape[1]
    programs = min(ceil_div(events, _EVENTS), _PROGRAMS // 2)
    total = sum(each.numel() for each in weights)
    parts = torch.empty(programs, total, device=x.device)
    _norm_linear_backward[programs,](
        grad, x, *weights[:2], weights[2] if len(weights) > 2 else None, d_x, parts, events, total, eps, width, columns,
        _block(width), _block(columns), _EVENTS, num_warps=8, num_stages=2)
    return parts


def launch_feed_forward(x: Tensor, attended: Tensor, weights: tuple[Tensor, ...], eps: float, out: Tensor) -> None:
    """Fill `out` `(T, E)`; `weights` are those of `api.feed_forward`, in its order."""
    (events, width), hidden = x.shape, weights[4].shape[0]
    _feed_forward[min(ceil_div(events, _EVENTS), _PROGRAMS),](
        x, attended, *weights, out, events, eps, width, hidden, _block(width), _PART, _EVENTS, num_warps=4,
        num_stages=1)


def launch_feed_forward_backward(grad: Tensor, x: Tensor, attended: Tensor, weights: tuple[Tensor, ...], eps: float,
                                 d_x: Tensor, d_attended: Tensor) -> Tensor:
    """Fill `d_x` and `d_attended` `(T, E)`; return parts `(programs, …)`, of all weights in their order."""
    (events, width), hidden = x.shape, weights[4].shape[0]
    programs = min(ceil_div(events, _EVENTS), _PROGRAMS // 2)
    total = sum(each.numel() for each in weights)
    normed = torch.empty_like(attended)
    parts = torch.empty(programs, total, device=x.device)
    sizes = width, hidden, _block(width), _PART, _EVENTS
    _feed_forward_backward[programs,](
        grad, x, attended, *weights[:-1], d_x, d_attended, normed, parts, events, total, eps, *sizes, num_warps=4,
        num_stages=1)
    _weights_backward[programs * (ceil_div(hidden, _PART) + 1),](
        grad, d_x, attended, normed, *weights[4:7], parts, events, total, programs, *sizes, num_warps=4, num_stages=2)
    return parts


def _block(width: int) -> int:
    """Return the width of a tile, which products take from 16 on."""
    return max(16, power_of_two(width))


@triton.jit
def _rows(tile, events, W: tl.constexpr, BW: tl.constexpr, BT: tl.constexpr):
    """Places of a tile of events in `(T, W)`, and which there are, both (BT, BW)."""
    event = tl.cast(tile, tl.int64) * BT + tl.arange(0, BT)
    column = tl.arange(0, BW)
    return event[:, None] * W + column[None, :], (event < events)[:, None] & (column < W)[None, :]


@triton.jit
def _matrix(source, rows, columns, R: tl.constexpr, C: tl.constexpr, dtype: tl.constexpr):
    """Lines `rows` and columns `columns` of a matrix (R, C), 0 past it."""
    inside = (rows < R)[:, None] & (columns < C)[None, :]
    return tl.load(source + rows[:, None] * C + columns[None, :], mask=inside, other=0.0).to(dtype)


@triton.jit
def _vector(source, columns, C: tl.constexpr):
    """Columns of a vector (C,) as float32, 0 past it."""
    return tl.load(source + columns, mask=columns < C, other=0.0).to(tl.float32)


@triton.jit
def _standard(x, columns, eps, W: tl.constexpr):
    """The events less their mean over their deviation, 0 past the width, and one over the deviation, (BT, 1)."""
    mean = tl.sum(x, 1) / W
    centred = tl.where((columns < W)[None, :], x - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 1) / W + eps)[:, None]
    return centred * inverse, inverse


@triton.jit
def _standard_gradient(grad, normed, inverse, columns, W: tl.constexpr):
    """The gradient of what was standardised, of which nothing past the width is to be used; there `grad` is 0."""
    grad = tl.where((columns < W)[None, :], grad, 0.0)  # a product would be fused into the difference, never 0 then
    along = normed * (tl.sum(grad * normed, 1) / W)[:, None]
    return (grad - (tl.sum(grad, 1) / W)[:, None] - along) * inverse


@triton.jit
def _share(x):
    """The normal distribution's share below x, GELU's factor."""
    return 0.5 * tl.erf(x * 0.7071067811865476) + 0.5


@triton.jit
def _density(x):
    return 0.3989422804014327 * tl.exp2(x * x * -0.7213475204444817)


@launched
@triton.jit(do_not_specialize=["events"])
def _norm_linear(x_source, scale, shift, weight, bias, out, events, eps, E: tl.constexpr, F: tl.constexpr,
                 BE: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr):
    """Linear results of BT normed events at a time, without a weight these themselves."""
    dtype: tl.constexpr = out.dtype.element_ty
    wide = tl.arange(0, BE)
    column = tl.arange(0, BF)
    if weight is not None:
        matrix = _matrix(weight, column, wide, F, E, dtype).T
        added = _vector(bias, column, F)
    gain = _vector(scale, wide, E)
    offset = _vector(shift, wide, E)
    for tile in range(tl.program_id(0), tl.cdiv(events, BT), tl.num_programs(0)):
        place, inside = _rows(tile, events, E, BE, BT)
        x = tl.load(x_source + place, mask=inside, other=0.0).to(tl.float32)
        normed, _ = _standard(x, wide, eps, E)
        y = normed * gain + offset
        if weight is not None:
            y = tl.dot(y.to(dtype), matrix) + added
        place, inside = _rows(tile, events, F, BF, BT)
        tl.store(out + place, y.to(dtype), mask=inside)


@launched
@triton.jit(do_not_specialize=["events", "total"])
def _norm_linear_backward(grad_source, x_source, scale, shift, weight, d_x, parts, events, total, eps, E: tl.constexpr,
                          F: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr):
    """The gradients of BT events at a time, and this program's part of those of the weights."""
    dtype: tl.constexpr = grad_source.dtype.element_ty
    wide = tl.arange(0, BE)
    column = tl.arange(0, BF)
    gain = _vector(scale, wide, E)
    offset = _vector(shift, wide, E)
    if weight is not None:
        matrix = _matrix(weight, column, wide, F, E, dtype)
        d_weight = tl.zeros([BF, BE], tl.float32)
        d_bias = tl.zeros([BF], tl.float32)
    d_scale = tl.zeros([BE], tl.float32)
    d_shift = tl.zeros([BE], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(events, BT), tl.num_programs(0)):
        place, inside = _rows(tile, events, F, BF, BT)
        grad = tl.load(grad_source + place, mask=inside, other=0.0)
        place, inside = _rows(tile, events, E, BE, BT)
        x = tl.load(x_source + place, mask=inside, other=0.0).to(tl.float32)
        normed, inverse = _standard(x, wide, eps, E)
        if weight is not None:
            d_y = tl.dot(grad, matrix)
            d_weight = tl.dot(grad.T, (normed * gain + offset).to(dtype), d_weight)
            d_bias += tl.sum(grad.to(tl.float32), 0)
        else:
            d_y = grad.to(tl.float32)
        d_scale += tl.sum(d_y * normed, 0)
        d_shift += tl.sum(d_y, 0)
        found = _standard_gradient(d_y * gain, normed, inverse, wide, E)
        tl.store(d_x + place, found.to(d_x.dtype.element_ty), mask=inside)
    parts += tl.cast(tl.program_id(0), tl.int64) * total
    tl.store(parts + wide, d_scale, mask=wide < E)
    tl.store(parts + E + wide, d_shift, mask=wide < E)
    if weight is not None:
        parts += 2 * E
        inside = (column < F)[:, None] & (wide < E)[None, :]
        tl.store(parts + column[:, None] * E + wide[None, :], d_weight, mask=inside)
        tl.store(parts + F * E + column, d_bias, mask=column < F)


@triton.jit
def _parts_of(weight, F: tl.constexpr, E: tl.constexpr, BF: tl.constexpr, BE: tl.constexpr, dtype: tl.constexpr,
              last: tl.constexpr):
    """A matrix `(F, E)`, or `(E, F)` of the `last` layer, in parts of BF of its hidden side."""
    wide = tl.arange(0, BE)
    parts = ()
    for part in tl.static_range((F + BF - 1) // BF):
        column = part * BF + tl.arange(0, BF)
        if last:
            parts = parts + (_matrix(weight, wide, column, E, F, dtype),)
        else:
            parts = parts + (_matrix(weight, column, wide, F, E, dtype),)
    return parts


@launched
@triton.jit(do_not_specialize=["events"])
def _feed_forward(x_source, attended, out_weight, out_bias, scale, shift, weight, bias, last_weight, last_bias, out,
                  events, eps, E: tl.constexpr, F: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr):
    """The results of BT events at a time; BF of their hidden layer are on the chip at once."""
    dtype: tl.constexpr = attended.dtype.element_ty
    wide = tl.arange(0, BE)
    projection = _matrix(out_weight, wide, wide, E, E, dtype)
    first = _parts_of(weight, F, E, BF, BE, dtype, False)
    last = _parts_of(last_weight, F, E, BF, BE, dtype, True)
    for tile in range(tl.program_id(0), tl.cdiv(events, BT), tl.num_programs(0)):
        place, inside = _rows(tile, events, E, BE, BT)
        x = tl.load(x_source + place, mask=inside, other=0.0).to(tl.float32)
        x += tl.dot(tl.load(attended + place, mask=inside, other=0.0), projection.T) + _vector(out_bias, wide, E)
        normed, _ = _standard(x, wide, eps, E)
        normed = (normed * _vector(scale, wide, E) + _vector(shift, wide, E)).to(dtype)
        x += _vector(last_bias, wide, E)
        for part in tl.static_range((F + BF - 1) // BF):
            hidden = tl.dot(normed, first[part].T) + _vector(bias, part * BF + tl.arange(0, BF), F)
            x = tl.dot((hidden * _share(hidden)).to(dtype), last[part].T, x)
        tl.store(out + place, x.to(out.dtype.element_ty), mask=inside)


@launched
@triton.jit(do_not_specialize=["events", "total"])
def _feed_forward_backward(grad_source, x_source, attended, out_weight, out_bias, scale, shift, weight, bias,
                           last_weight, d_x, d_attended, kept, parts, events, total, eps, E: tl.constexpr,
                           F: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr):
    """The gradients of BT events at a time and what the hidden layer reads; the part of those of the norm."""
    dtype: tl.constexpr = attended.dtype.element_ty
    wide = tl.arange(0, BE)
    projection = _matrix(out_weight, wide, wide, E, E, dtype)
    first = _parts_of(weight, F, E, BF, BE, dtype, False)
    last = _parts_of(last_weight, F, E, BF, BE, dtype, True)
    d_scale = tl.zeros([BE], tl.float32)
    d_shift = tl.zeros([BE], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(events, BT), tl.num_programs(0)):
        place, inside = _rows(tile, events, E, BE, BT)
        x = tl.load(x_source + place, mask=inside, other=0.0).to(tl.float32)
        x += tl.dot(tl.load(attended + place, mask=inside, other=0.0), projection.T) + _vector(out_bias, wide, E)
        normed, inverse = _standard(x, wide, eps, E)
        gain = _vector(scale, wide, E)
        y = (normed * gain + _vector(shift, wide, E)).to(dtype)
        low = tl.load(grad_source + place, mask=inside, other=0.0).to(dtype)
        d_y = tl.zeros([BT, BE], tl.float32)
        for part in tl.static_range((F + BF - 1) // BF):
            hidden = tl.dot(y, first[part].T) + _vector(bias, part * BF + tl.arange(0, BF), F)
            d_hidden = tl.dot(low, last[part]) * (_share(hidden) + hidden * _density(hidden))
            d_y = tl.dot(d_hidden.to(dtype), first[part], d_y)
        tl.store(kept + place, y, mask=inside)
        d_scale += tl.sum(d_y * normed, 0)
        d_shift += tl.sum(d_y, 0)
        grad = tl.load(grad_source + place, mask=inside, other=0.0).to(tl.float32)  # again: registers are few
        grad += tl.where((wide < E)[None, :], _standard_gradient(d_y * gain, normed, inverse, wide, E), 0.0)
        tl.store(d_x + place, grad.to(d_x.dtype.element_ty), mask=inside)
        tl.store(d_attended + place, tl.dot(grad.to(dtype), projection).to(dtype), mask=inside)
    parts += tl.cast(tl.program_id(0), tl.int64) * total + E * E + E
    tl.store(parts + wide, d_scale, mask=wide < E)
    tl.store(parts + E + wide, d_shift, mask=wide < E)


@launched
@triton.jit(do_not_specialize=["events", "total", "programs"])
def _weights_backward(grad_source, d_x, attended, normed, weight, bias, last_weight, parts, events, total, programs,
                      E: tl.constexpr, F: tl.constexpr, BE: tl.constexpr, BF: tl.constexpr, BT: tl.constexpr):
    """A program's part of the gradients of the weights of BF of the hidden layer; of the others, by the last ones."""
    dtype: tl.constexpr = normed.dtype.element_ty
    splits: tl.constexpr = (F + BF - 1) // BF
    wide = tl.arange(0, BE)
    program = tl.program_id(0) % programs
    split = tl.program_id(0) // programs
    column = split * BF + tl.arange(0, BF)
    parts += tl.cast(program, tl.int64) * total
    tiles = tl.cdiv(events, BT)
    if split < splits:
        first = _matrix(weight, column, wide, F, E, dtype)
        last = _matrix(last_weight, wide, column, E, F, dtype)
        added = _vector(bias, column, F)
        d_first = tl.zeros([BF, BE], tl.float32)
        d_last = tl.zeros([BE, BF], tl.float32)
        d_bias = tl.zeros([BF], tl.float32)
        for tile in range(program, tiles, programs):
            place, inside = _rows(tile, events, E, BE, BT)
            y = tl.load(normed + place, mask=inside, other=0.0)
            grad = tl.load(grad_source + place, mask=inside, other=0.0).to(dtype)
            hidden = tl.dot(y, first.T) + added
            share = _share(hidden)
            d_hidden = tl.dot(grad, last) * (share + hidden * _density(hidden))
            d_bias += tl.sum(d_hidden, 0)
            d_last = tl.dot(grad.T, (hidden * share).to(dtype), d_last)
            d_first = tl.dot(d_hidden.to(dtype).T, y, d_first)
        parts += E * E + 3 * E
        inside = (column < F)[:, None] & (wide < E)[None, :]
        tl.store(parts + column[:, None] * E + wide[None, :], d_first, mask=inside)
        parts += F * E
        tl.store(parts + column, d_bias, mask=column < F)
        tl.store(parts + F + wide[:, None] * F + column[None, :], d_last, mask=inside.T)
    else:
        d_projection = tl.zeros([BE, BE], tl.float32)
        d_out_bias = tl.zeros([BE], tl.float32)
        d_last_bias = tl.zeros([BE], tl.float32)
        for tile in range(program, tiles, programs):
            place, inside = _rows(tile, events, E, BE, BT)
            d_last_bias += tl.sum(tl.load(grad_source + place, mask=inside, other=0.0).to(tl.float32), 0)
            grad = tl.load(d_x + place, mask=inside, other=0.0)
            d_out_bias += tl.sum(grad.to(tl.float32), 0)
            d_projection = tl.dot(grad.to(dtype).T, tl.load(attended + place, mask=inside, other=0.0), d_projection)
        there = wide < E
        tl.store(parts + wide[:, None] * E + wide[None, :], d_projection, mask=there[:, None] & there[None, :])
        parts += E * E
        tl.store(parts + wide, d_out_bias, mask=there)
        tl.store(parts + 3 * E + 2 * E * F + F + wide, d_last_bias, mask=there)
