"""What the operators of every implementation share: the shapes of their results, and which of them is a gradient."""

from typing import Any

import torch
from torch import Tensor


def like_other(x: Tensor, offsets: Tensor, along: str, positions: int, dtype: torch.dtype) -> Tensor:
    """Return an empty tensor `(B, W)`, `(N, W)` or `(B, N, W)` beside events `(T, W)`."""
    rows = offsets.shape[0] - 1
    lead = {"rows": (rows,), "positions": (positions,), "both": (rows, positions)}[along]
    return x.new_empty((*lead, x.shape[1]), dtype=dtype)


def register(forward: Any, reduced: Any, gradients: Any = None) -> None:
    """Let `reduced` be the gradient of the second argument of `forward`, two custom operators.

    `forward(x, y, offsets, along, product)` gives `(T, W)`; `reduced(grad, x, offsets, along, positions, dtype)` the
    sum of a gradient `(T, W)`, times `x` where there is one, over all events that meet the same of `y`, as
    `like_other` has it; `gradients(grad, x, y, offsets, along, dtype)`, where an implementation has it, the gradient of
    the first factor of a product and that sum, `(T, W)` and as `like_other` has it, at once.
    """
    forward.register_fake(lambda x, y, offsets, along, product: x.new_empty(x.shape))
    reduced.register_fake(lambda grad, x, offsets, along, positions, dtype: like_other(grad, offsets, along, positions,
                                                                                       dtype))

    if gradients:
        gradients.register_fake(lambda grad, x, y, offsets, along, dtype: [
            x.new_empty(x.shape), like_other(grad, offsets, along, y.shape[-2], dtype)])

    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        x, y, offsets, ctx.along, ctx.product = inputs
        ctx.positions, ctx.columns = 0 if ctx.along == "rows" else y.shape[-2], y.shape[-1]
        ctx.save_for_backward(offsets, *((x, y) if ctx.product else (None, None)))

    def differentiated(ctx: Any, grad: Tensor) -> tuple:
        offsets, x, y = ctx.saved_tensors
        d_x = d_y = None
        of_x, of_y = ctx.needs_input_grad[:2]
        alone = ctx.columns == 1 != grad.shape[1]  # rounded once, after the columns are added up
        dtype = torch.promote_types(grad.dtype, torch.float32) if alone else grad.dtype
        if of_x and of_y and gradients and ctx.product and not torch.is_grad_enabled():  # at once, without a graph
            d_x, d_y = gradients(grad, x, y, offsets, ctx.along, dtype)
        else:
            if of_x:
                d_x = forward(grad, y, offsets, ctx.along, True) if ctx.product else grad
            if of_y:
                d_y = reduced(grad, x, offsets, ctx.along, ctx.positions, dtype)
        if d_y is not None and alone:
            d_y = d_y.sum(-1, keepdim=True).to(grad.dtype)
        return d_x, d_y, None, None, None

    forward.register_autograd(differentiated, setup_context=setup_context)
