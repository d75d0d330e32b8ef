"""What the operators of every implementation share: the shapes of their results, and what is kept for gradients."""

from typing import Any

import torch
from torch import Tensor


def like_kept(x: Tensor, weights: Tensor | None, rows: int, how: str, softmax: bool) -> Tensor:
    """Return an empty tensor for what a backward pass needs of `x` `(T, H, D)` besides inputs and result.

    Of a maximum, the place of it within its row, `(B, H, D)` int32. Of a log-sum-exp, its largest exponent and the sum
    of the others relative to that, `(2, B, H, D)`; of a softmax of weights the result before it is rounded, and behind
    its columns these two, `(B, H, D + 2)`; in float32, float64 for float64. Of the rest nothing, `(0,)`.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    if softmax:
        return x.new_empty((rows, x.shape[1], x.shape[2] + 2), dtype=wide)
    if weights is None and how == "logsumexp":
        return x.new_empty((2, rows, *x.shape[1:]), dtype=wide)
    if weights is None and how == "max":
        return x.new_empty((rows, *x.shape[1:]), dtype=torch.int32)
    return x.new_empty(0, dtype=wide)


def register_pool(forward: Any, backward: Any) -> None:
    """Let `backward` be the gradient of `forward`, two custom operators.

    `forward(x, offsets, weights, how, softmax)` gives the result `(B, H, D)` and what `like_kept` describes;
    `backward(grad, offsets, x, weights, kept, how, softmax, events)` the gradient of `x` `(T, H, D)` and, where there
    are weights, theirs. It is given `x` only where it needs that.
    """
    forward.register_fake(_pooled)
    backward.register_fake(_pool_gradients)

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, offsets, weights, ctx.how, ctx.softmax = inputs
        kept = output[1]
        ctx.events = x.shape[0]
        needed = weights is not None or ctx.how == "logsumexp"
        ctx.save_for_backward(offsets, x if needed else None, weights, kept)
        ctx.mark_non_differentiable(kept)
        ctx.set_materialize_grads(False)

    def differentiated(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple:
        if grad is None:
            return None, None, None, None, None
        d_x, *d_weights = backward(grad, *ctx.saved_tensors, ctx.how, ctx.softmax, ctx.events)
        return d_x, None, *(d_weights or [None]), None, None

    forward.register_autograd(differentiated, setup_context=setup_context)


def register_softmax(forward: Any, backward: Any) -> None:
    """Let `backward(grad, y, offsets)` be the gradient of `forward(x, offsets)`, two custom operators on `(T, W)`."""
    forward.register_fake(lambda x, offsets: x.new_empty(x.shape))
    backward.register_fake(lambda grad, y, offsets: y.new_empty(y.shape))

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(output, inputs[1])

    forward.register_autograd(lambda ctx, grad: (backward(grad, *ctx.saved_tensors), None),
                              setup_context=setup_context)


def _pooled(x: Tensor, offsets: Tensor, weights: Tensor | None, how: str, softmax: bool) -> tuple[Tensor, Tensor]:
    rows = offsets.shape[0] - 1
    return x.new_empty((rows, *x.shape[1:])), like_kept(x, weights, rows, how, softmax)


def _pool_gradients(grad: Tensor, offsets: Tensor, x: Tensor | None, weights: Tensor | None, kept: Tensor,
                    how: str, softmax: bool, events: int) -> list[Tensor]:
    d_x = grad.new_empty((events, *grad.shape[1:]))
    return [d_x] if weights is None else [d_x, weights.new_empty(weights.shape)]
