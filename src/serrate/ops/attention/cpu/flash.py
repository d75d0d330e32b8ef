"""A plain softmax through torch's flash kernel, one call for all rows of a shape.

A mask that the kernel does not know is written out, once for each group.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..api import Settings
from ..mask import seen
from .groups import Groups, limited, limits_of, wide


def attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp of packed queries; the kernel wants one width, reached by zeros.

    table: see `groups.tabulated`.
    """
    width, value_width = max(q.shape[2], v.shape[2]), v.shape[2]
    q, k, v = (x if x.shape[2] == width else pad(x, (0, width - x.shape[2])) for x in (q, k, v))
    out, lse = _forward(q, k, v, table, limits_of(settings.mask), settings.scale)
    return out if value_width == width else out[..., :value_width], lse


@torch.library.custom_op("serrate::row_attention_cpu", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, table: Tensor, mask: list[int], scale: float) -> tuple[Tensor, Tensor]:
    """Return the output `(T, H, D)` and the log-sum-exp `(T, H)`, both in the order of the queries.

    mask: see `groups.limits_of`.
    """
    groups = Groups(table)
    results = [_attend(query, key, value, known, scale) for (query,), (key, value), known in zip(
        groups.queries.dense(q), groups.keys.dense(k, v), _masks(groups.shapes, mask, q.dtype), strict=True)]
    out, lse = _outputs(q, v)
    return (groups.queries.gather(out, [out for out, _ in results]),
            groups.queries.gather(lse, [lse for _, lse in results]))


@torch.library.custom_op("serrate::row_attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(grad: Tensor, saved: list[Tensor], table: Tensor, mask: list[int],
              scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of `q`, `k` and `v`; `saved` holds these, the output and the log-sum-exp."""
    q, k, v, out, lse = saved
    groups = Groups(table)
    results = [_gradients(*both, scale) for both in zip(
        groups.queries.dense(grad, q, out, lse), groups.keys.dense(k, v), _masks(groups.shapes, mask, q.dtype),
        strict=True)]
    dq, dk, dv = (side.gather(torch.empty(x.shape, dtype=x.dtype), [result[at] for result in results])
                  for at, (side, x) in enumerate(((groups.queries, q), (groups.keys, k), (groups.keys, v))))
    return dq, dk, dv


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: tuple[bool, Tensor | None], scale: float) -> tuple[Tensor, Tensor]:
    """One group: `q` `(n, H, m, D)`, `k`, `v` `(n, H, l, D)` → `(n, H, m, D)` and `(n, H, m)`."""
    causal, hidden = mask
    if q.shape[2] == 0 or k.shape[2] == 0:  # the kernel divides by the number of keys
        return torch.zeros_like(q), q.new_full(q.shape[:3], -math.inf, dtype=wide(q))
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = kernel(q, k, v, 0.0, causal, attn_mask=hidden, scale=scale)
    if hidden is not None:  # to the kernel the log-sum-exp of no key is 0
        lse = lse.masked_fill(hidden.isneginf().all(-1), -math.inf)
    return out, lse


def _gradients(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...], mask: tuple[bool, Tensor | None],
               scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """One group: the gradients of `q` `(n, H, m, D)` and of `k` and `v` `(n, H, l, D)`."""
    (grad, q, out, lse), (k, v), (causal, hidden) = ours, theirs, mask
    if q.shape[2] == 0 or k.shape[2] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    if hidden is not None:
        lse = lse.masked_fill(lse.isneginf(), 0.0)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return kernel(grad, q, k, v, out, lse, 0.0, causal, attn_mask=hidden, scale=scale)


def _masks(shapes: list[tuple[int, ...]], numbers: list[int],
           dtype: torch.dtype) -> Iterator[tuple[bool, Tensor | None]]:
    """Yield for each group whether the kernel's own causal mask serves it, or else what to add to its scores.

    shapes: queries, keys, context and targets of each row; to add: `(queries, keys)`, None where all is seen.
    """
    mask = limited(numbers)
    plain = mask.plain
    for queries, keys, *counts in shapes:
        if plain and not counts and (queries == keys or not mask.causal):
            yield mask.causal, None
            continue
        visible = seen(mask, queries, keys, *counts)
        yield False, None if visible.all() else \
            torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -math.inf)


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:2], v.shape[2])), q.new_empty(q.shape[:2], dtype=wide(q))


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, table: Tensor, mask: list[int], scale: float) -> tuple[Tensor, Tensor]:
    return _outputs(q, v)


@_backward.register_fake
def _(grad: Tensor, saved: list[Tensor], table: Tensor, mask: list[int],
      scale: float) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in saved[:3])
    return dq, dk, dv


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, table, ctx.mask, ctx.scale = inputs
    ctx.save_for_backward(table, q, k, v, *output)
    ctx.set_materialize_grads(False)


def _autograd(ctx, grad: Tensor | None, grad_lse: Tensor | None):
    if grad is None and grad_lse is None:
        return None, None, None, None, None, None
    table, q, k, v, out, lse = ctx.saved_tensors
    width = q.shape[2]
    grad = torch.zeros_like(out) if grad is None else grad
    if grad_lse is not None:
        # the gradient of a score is p · (grad · v - grad · out + grad_lse): one more column of ones in v, of grad_lse
        # in grad and of zeros in out makes it so
        grad = torch.cat([grad, grad_lse[..., None].to(grad.dtype)], -1)
        q, k, out, v = pad(q, (0, 1)), pad(k, (0, 1)), pad(out, (0, 1)), pad(v, (0, 1), value=1.0)
    grads = _backward(grad, [q, k, v, out, lse], table, ctx.mask, ctx.scale)
    return *(grads if grad_lse is None else (x[..., :width] for x in grads)), None, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
