"""Attention on the CPU: rows of equal length run together through torch's flash kernel, nothing padded.

Events are brought into order of row length (where they are not), so that each group of `n` rows of length `L` is one
contiguous slice and becomes a dense `(n, H, L, D)` batch without a copy. Long rows mostly have a length of their own
and run alone, short ones share a call; README.md has the measurements.
"""

import torch
from torch import Tensor

from .api import Call, Rows, Settings


def unusable(call: Call) -> str | None:
    """Serve CPU tensors whose values are as wide as their keys."""
    if call.device.type != "cpu":
        return f"needs a CPU tensor, got {call.device.type}"
    if call.width != call.value_width:
        return f"needs values as wide as keys, got {call.value_width} and {call.width}"
    return call.beyond_plain()


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, settings: Settings) -> tuple[Tensor, None]:
    """Attend within each row; see `api.attention`."""
    return _forward(q, k, v, rows.keys, settings.mask.causal, settings.scale)[0], None


@torch.library.custom_op("serrate::attention_cpu", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Return the output `(T, H, D)` and the log-sum-exp `(T, H)`, both in the order of the events."""
    groups = _Groups(offsets)
    results = [torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*dense, 0.0, causal, scale=scale)
               for dense in groups.dense(q, k, v)]
    out, logsumexp = _outputs(q, v)
    return groups.gather(out, [out for out, _ in results]), groups.gather(logsumexp, [lse for _, lse in results])


@torch.library.custom_op("serrate::attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(grad: Tensor, saved: list[Tensor], offsets: Tensor, causal: bool,
              scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `k` and `v`; `saved` holds these, the output and the log-sum-exp."""
    groups = _Groups(offsets)
    results = [torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(*dense, 0.0, causal, scale=scale)
               for dense in groups.dense(grad, *saved)]
    dq, dk, dv = (groups.gather(torch.empty(x.shape, dtype=x.dtype), [result[at] for result in results])
                  for at, x in enumerate(saved[:3]))
    return dq, dk, dv


class _Groups:
    """The rows of a batch by length: each group of rows of one length is one contiguous slice of the events.

    Rows that come in order of length already, as in a training batch, are not moved.
    """

    def __init__(self, offsets: Tensor):
        lengths = offsets.diff()
        self._order: Tensor | None = None
        if not bool((lengths.diff() >= 0).all()):
            by_length = torch.argsort(lengths, stable=True)
            begins, lengths = offsets[:-1][by_length], lengths[by_length]
            shift = torch.repeat_interleave(begins - (lengths.cumsum(0) - lengths), lengths)
            self._order = shift + torch.arange(shift.shape[0])
        sizes, counts = torch.unique_consecutive(lengths, return_counts=True)
        self._shapes = [(rows, length) for rows, length in zip(counts.tolist(), sizes.tolist(), strict=True) if length]
        self._sizes = [rows * length for rows, length in self._shapes]

    def dense(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """Return for each group its part of all tensors `(T, H, ...)`, as `(rows, H, length, ...)`."""
        if not self._sizes:
            return []
        parts = [(x if self._order is None else x.index_select(0, self._order)).split(self._sizes) for x in tensors]
        return [tuple(part.view(*shape, *part.shape[1:]).transpose(1, 2) for part in group)
                for shape, group in zip(self._shapes, zip(*parts, strict=True), strict=True)]

    def gather(self, empty: Tensor, parts: list[Tensor]) -> Tensor:
        """Put the results `(rows, H, length, ...)` of all groups back into the order of the events, `(T, H, ...)`."""
        if not parts:
            return empty
        events = [part.transpose(1, 2).flatten(0, 1) for part in parts]
        if self._order is None:
            return torch.cat(events, out=empty)
        return empty.index_copy_(0, self._order, torch.cat(events))


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
