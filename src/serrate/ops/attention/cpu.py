"""Attention on the CPU: rows of equal length run together through torch's flash kernel, nothing padded.

Events are brought into order of row length, so that each group of `n` rows of length `L` is one contiguous slice and
becomes a dense `(n, H, L, D)` batch without a copy. Long rows mostly have a length of their own and run alone, short
ones share a call; README.md has the measurements.
"""

import torch
from torch import Tensor

from .api import Call, Mask


def unusable(call: Call) -> str | None:
    """Serve CPU tensors whose values are as wide as their keys."""
    if call.device.type != "cpu":
        return f"needs a CPU tensor, got {call.device.type}"
    if call.width != call.value_width:
        return f"needs values as wide as keys, got {call.value_width} and {call.width}"
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, mask: Mask, scale: float, longest: int) -> Tensor:
    """Attend within each row; see `api.attention`."""
    return _forward(q, k, v, offsets, mask.causal, scale)[0]


@torch.library.custom_op("serrate::attention_cpu", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output `(T, H, D)` and the log-sum-exp `(T, H)`, both in the order of the events."""
    out, logsumexp = _outputs(q, v)
    order, groups = _groups(offsets)
    q, k, v = (x.index_select(0, order) for x in (q, k, v))
    sorted_out, sorted_lse = torch.empty_like(out), torch.empty_like(logsumexp)
    for start, rows, length in groups:
        query, key, value = (_dense(x, start, rows, length) for x in (q, k, v))
        result, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, causal, scale=scale)
        _dense(sorted_out, start, rows, length).copy_(result)
        _dense(sorted_lse, start, rows, length).copy_(lse)
    return out.index_copy_(0, order, sorted_out), logsumexp.index_copy_(0, order, sorted_lse)


@torch.library.custom_op("serrate::attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(grad: Tensor, saved: list[Tensor], offsets: Tensor, causal: bool,
              scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `k` and `v`; `saved` holds these, the output and the log-sum-exp."""
    order, groups = _groups(offsets)
    sorted_inputs = [x.index_select(0, order) for x in (grad, *saved)]
    sorted_grads = [torch.empty(x.shape, dtype=x.dtype) for x in saved[:3]]
    for start, rows, length in groups:
        dense = [_dense(x, start, rows, length) for x in sorted_inputs]
        results = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *dense, 0.0, causal, scale=scale)
        for target, result in zip(sorted_grads, results, strict=True):
            _dense(target, start, rows, length).copy_(result)
    dq, dk, dv = (torch.empty_like(x).index_copy_(0, order, x) for x in sorted_grads)
    return dq, dk, dv


def _groups(offsets: Tensor) -> tuple[Tensor, list[tuple[int, int, int]]]:
    """Return the events `(T,)` in order of row length, and (first event, rows, length) of each group."""
    lengths = offsets.diff()
    by_length = torch.argsort(lengths, stable=True)
    sorted_lengths = lengths[by_length]
    starts = sorted_lengths.cumsum(0) - sorted_lengths
    shift = torch.repeat_interleave(offsets[:-1][by_length] - starts, sorted_lengths)
    order = shift + torch.arange(shift.shape[0])
    sizes, counts = torch.unique_consecutive(sorted_lengths, return_counts=True)
    groups, start = [], 0
    for length, rows in zip(sizes.tolist(), counts.tolist(), strict=True):
        if length:
            groups.append((start, rows, length))
            start += rows * length
    return order, groups


def _dense(x: Tensor, start: int, rows: int, length: int) -> Tensor:
    """View `rows` rows of one `length`, events `(T, H, ...)`, as `(rows, H, length, ...)`."""
    return x[start : start + rows * length].unflatten(0, (rows, length)).transpose(1, 2)


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    return torch.empty(v.shape, dtype=v.dtype, device=v.device), q.new_empty(q.shape[:2], dtype=wide)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    return _outputs(q, v)


@_backward.register_fake
def _(grad: Tensor, saved: list[Tensor], offsets: Tensor, causal: bool,
      scale: float) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in saved[:3])
    return dq, dk, dv


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, offsets, ctx.causal, ctx.scale = inputs
    out, logsumexp = output
    ctx.save_for_backward(offsets, q, k, v, out, logsumexp)
    ctx.mark_non_differentiable(logsumexp)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad: Tensor | None, _: Tensor | None):
    if grad is None:
        return None, None, None, None, None, None
    offsets, *saved = ctx.saved_tensors
    return *_backward(grad, saved, offsets, ctx.causal, ctx.scale), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
