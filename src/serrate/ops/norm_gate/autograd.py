"""What the operators of every implementation share: the shapes of their results, and which of them is a gradient."""

from typing import Any

import torch
from torch import Tensor


def register(forward: Any, backward: Any) -> None:
    """Let `backward` be the gradient of `forward`, two custom operators.

    `forward(x, gate, seed, groups, eps, dropout, dtype)` gives a result, `backward(grad, x, gate, seed, groups, eps,
    dropout)` the gradient of `x` `(T, E)` and, where there is one, of `gate`.
    """
    forward.register_fake(_result)
    backward.register_fake(_gradients)

    def differentiated(ctx: Any, grad: Tensor) -> tuple:
        d_x, *d_gate = backward(grad, *ctx.saved_tensors, *ctx.numbers)
        return d_x, *(d_gate or [None]), None, None, None, None, None

    forward.register_autograd(differentiated, setup_context=_setup_context)


def _result(x: Tensor, gate: Tensor | None, seed: Tensor | None, groups: int, eps: float, dropout: float,
            dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _gradients(grad: Tensor, x: Tensor, gate: Tensor | None, seed: Tensor | None, groups: int, eps: float,
               dropout: float) -> list[Tensor]:
    return [each.new_empty(each.shape) for each in (x, gate) if each is not None]


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, gate, seed, *ctx.numbers, _ = inputs
    ctx.save_for_backward(x, gate, seed)
