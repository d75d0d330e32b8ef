"""What the operators of every implementation share: the shapes of their results, and that each is the other's gradient.

`dense(x, y, bias, offsets)` takes `(T, H, D)`, `(B, H, D, F)` and `(B, H, F)` or None, and gives `(T, H, F)`.
`jagged(x, y, offsets, sums)` takes `(T, H, D)` and `(T, H, F)`, and gives a list of the products `(B, H, D, F)` and, if
asked for, the sums of y over each row `(B, H, F)`. Then

    of dense:   dx = dense(g, yᵀ),     dy, dbias = jagged(x, g, sums)
    of jagged:  dx = dense(y, gᵀ),     dy = dense(x, g, bias = gradient of the sums)

So gradients of gradients come for nothing. Where nobody asks for these, `dense_backward(x, y, g, offsets, sums)` may
give the gradients of dense at once: a list of dx, dy and, if asked for, dbias.
"""

from typing import Any

import torch
from torch import Tensor


def register(dense: Any, jagged: Any, dense_backward: Any = None) -> None:
    """Let two custom operators of these signatures be each other's gradient; both of dense in one, if there is such."""
    dense.register_fake(_dense_result)
    jagged.register_fake(_jagged_results)
    if dense_backward is not None:
        dense_backward.register_fake(lambda x, y, grad, offsets, sums: [
            x.new_empty(x.shape), *_jagged_results(x, grad, offsets, sums)])

    def of_dense(ctx: Any, grad: Tensor) -> tuple:
        x, y, offsets = ctx.saved_tensors
        of_x, of_y, of_bias = ctx.needs_input_grad[:3]
        if dense_backward is not None and of_x and of_y and not torch.is_grad_enabled():
            return *(*dense_backward(x, y, grad, offsets, of_bias), None)[:3], None
        d_x = dense(grad, y.mT, None, offsets) if of_x else None
        d_y, d_bias = (*jagged(x, grad, offsets, of_bias), None)[:2] if of_y or of_bias else (None, None)
        return d_x, d_y, d_bias, None

    def of_jagged(ctx: Any, grads: list[Tensor]) -> tuple:
        x, y, offsets = ctx.saved_tensors
        of_x, of_y = ctx.needs_input_grad[:2]
        product, sums = (*grads, None)[:2]
        assert product is not None
        d_x = dense(y, product.mT, None, offsets) if of_x else None
        d_y = dense(x, product, sums, offsets) if of_y else None
        return d_x, d_y, None, None

    dense.register_autograd(of_dense, setup_context=_keep_dense)
    jagged.register_autograd(of_jagged, setup_context=_keep_jagged)


def _dense_result(x: Tensor, y: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:2], y.shape[3])


def _jagged_results(x: Tensor, y: Tensor, offsets: Tensor, sums: bool) -> list[Tensor]:
    rows, heads, width = offsets.shape[0] - 1, x.shape[1], y.shape[2]
    product = x.new_empty(rows, heads, x.shape[2], width)
    return [product, x.new_empty(rows, heads, width)] if sums else [product]


def _keep_dense(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, y, _, offsets = inputs
    ctx.save_for_backward(x, y, offsets)


def _keep_jagged(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
    x, y, offsets, _ = inputs
    ctx.save_for_backward(x, y, offsets)
