"""The custom operators of an implementation, each the gradient of others.

Products, sums by them, differences, squares and paddings are a family that is closed under differentiation, so
gradients of gradients are computed too; only that of the softmax ends there.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..direct import Operator
from .api import Rows


class Operators:
    """The operators of one implementation under the names of `reference`, registered as `serrate::block_<…>_<suffix>`.

    Args:
        suffix: the name of the implementation.
        compute: by name, what each of them does, with offsets and blocks `(B + 1,)` in place of `Rows`: `products`,
            `matmul`, `softmax`, `differences`, `multiply`, `to_padded` and `from_padded` as in `reference`, and
            `offsets(offsets)`,
            `both_matmuls(a, y, x, offsets, blocks)`: the two results of `matmul`, with y and, transposed, with x,
            `softmax_backward(out, grad, offsets, blocks, over_queries)`: the gradient `(P, H)` of scores,
            `both_multiplies(a, b, square, offsets, blocks)`: `multiply` of a and the square, `totals` of a and b,
            `sums(a, offsets, blocks, events)`: of `(P, H)` those over keys and those over queries, `(T, H)` each,
            `totals(a, b, offsets, blocks, side)`: for `(P, H)` each the sum over rows and heads, `(side, side)`.
        device_types: on which devices; None: all.
    """

    def __init__(self, suffix: str, compute: Mapping[str, Callable[..., Any]], device_types: str | None = None):
        made = {
            name: Operator(f"serrate::block_{name}_{suffix}", function, device_types)
            for name, function in compute.items()}
        for name, each in made.items():
            each.register_fake(_RESULTS[name])
            if name in _KEPT:
                each.register_autograd(_differentiated(_GRADIENTS[name], made), setup_context=_KEPT[name])
        self._made = made

    def offsets(self, offsets: Tensor) -> Tensor:
        """Return `(B + 1,)` int64; see `api.block_offsets`."""
        return self._made["offsets"](offsets)

    def products(self, x: Tensor, y: Tensor, rows: Rows, pairs: int) -> Tensor:
        """Return `(P, H)` of `(T, H, D)` each; see `api.block_products`."""
        return self._made["products"](x, y, *rows, pairs)

    def matmul(self, a: Tensor, y: Tensor, rows: Rows, transposed: bool) -> Tensor:
        """Return `(T, H, D)` of `(P, H)` and `(T, H, D)`; see `api.block_matmul`."""
        return self._made["matmul"](a, y, *rows, transposed)

    def softmax(self, a: Tensor, rows: Rows, over_queries: bool) -> Tensor:
        """Return `(P, H)` of `(P, H)`; see `api.block_softmax`."""
        return self._made["softmax"](a, *rows, over_queries)

    def differences(self, x: Tensor, y: Tensor, rows: Rows, pairs: int) -> Tensor:
        """Return `(P, H)` of `(T, H)` each; see `api.block_differences`."""
        return self._made["differences"](x, y, *rows, pairs)

    def multiply(self, a: Tensor, square: Tensor, rows: Rows) -> Tensor:
        """Return `(P, H)` of `(P, H)` and `(N, N)`; see `api.block_multiply`."""
        return self._made["multiply"](a, square, *rows)

    def to_padded(self, a: Tensor, rows: Rows, length: int, fill: float) -> Tensor:
        """Return `(B, N, N, H)` of `(P, H)`; see `api.to_padded_blocks`."""
        return self._made["to_padded"](a, *rows, length, fill)

    def from_padded(self, padded: Tensor, rows: Rows, pairs: int) -> Tensor:
        """Return `(P, H)` of `(B, N, N, H)`; see `api.from_padded_blocks`."""
        return self._made["from_padded"](padded, *rows, pairs)


_RESULTS: dict[str, Callable[..., Any]] = {
    "offsets": lambda offsets: offsets.new_empty(offsets.shape, dtype=torch.int64),
    "products": lambda x, y, offsets, blocks, pairs: x.new_empty((pairs, x.shape[1])),
    "matmul": lambda a, y, offsets, blocks, transposed: y.new_empty(y.shape),
    "both_matmuls": lambda a, y, x, offsets, blocks: [y.new_empty(y.shape), x.new_empty(x.shape)],
    "sums": lambda a, offsets, blocks, events: [a.new_empty((events, a.shape[1])) for _ in range(2)],
    "softmax": lambda a, offsets, blocks, over_queries: a.new_empty(a.shape),
    "softmax_backward": lambda out, grad, offsets, blocks, over_queries: out.new_empty(out.shape),
    "differences": lambda x, y, offsets, blocks, pairs: x.new_empty((pairs, x.shape[1])),
    "multiply": lambda a, square, offsets, blocks: a.new_empty(a.shape),
    "totals": lambda a, b, offsets, blocks, side: a.new_empty((side, side)),
    "both_multiplies": lambda a, b, square, offsets, blocks: [a.new_empty(a.shape), a.new_empty(square.shape)],
    "to_padded": lambda a, offsets, blocks, length, fill: a.new_empty((offsets.shape[0] - 1, length, length,
                                                                        a.shape[1])),
    "from_padded": lambda padded, offsets, blocks, pairs: padded.new_empty((pairs, padded.shape[3])),
}


# --- what is kept for the backward pass: of two factors each for the gradient of the other ---


def _keep_factors(ctx: Any, inputs: tuple, output: Tensor) -> None:
    a, b, offsets, blocks, *_ = inputs
    ctx.sizes = a.shape[0], b.shape[0]
    needs = ctx.needs_input_grad
    ctx.save_for_backward(a if needs[1] else None, b if needs[0] else None, offsets, blocks)


def _keep_matmul(ctx: Any, inputs: tuple, output: Tensor) -> None:
    _keep_factors(ctx, inputs, output)
    ctx.transposed = inputs[4]


def _keep_softmax(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(output, *inputs[1:3])
    ctx.over_queries = inputs[3]


def _keep_rows(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Keep offsets, and what a gradient's size follows from: events or pairs and heads, or rows and N of a padding."""
    ctx.save_for_backward(*[x for x in inputs if isinstance(x, Tensor)][-2:])
    ctx.sizes = inputs[0].shape[:2]


_KEPT = {"products": _keep_factors, "matmul": _keep_matmul, "softmax": _keep_softmax, "differences": _keep_rows,
         "multiply": _keep_factors, "totals": _keep_factors, "to_padded": _keep_rows, "from_padded": _keep_rows}


# --- gradients, of what asks for one ---


def _of_products(ctx: Any, grad: Tensor, made: dict[str, Any]) -> tuple:
    x, y, *rows = ctx.saved_tensors
    if x is not None and y is not None and not torch.is_grad_enabled():  # at once, but without a graph
        return *made["both_matmuls"](grad, y, x, *rows), None, None, None
    return (None if y is None else made["matmul"](grad, y, *rows, False),
            None if x is None else made["matmul"](grad, x, *rows, True), None, None, None)


def _of_matmul(ctx: Any, grad: Tensor, made: dict[str, Any]) -> tuple:
    a, y, *rows = ctx.saved_tensors
    d_a = None
    if y is not None:
        queries, keys = (y, grad) if ctx.transposed else (grad, y)
        d_a = made["products"](queries, keys, *rows, ctx.sizes[0])
    return d_a, None if a is None else made["matmul"](a, grad, *rows, not ctx.transposed), None, None, None


def _of_softmax(ctx: Any, grad: Tensor, made: dict[str, Any]) -> tuple:
    out, *rows = ctx.saved_tensors
    return made["softmax_backward"](out, grad, *rows, ctx.over_queries), None, None, None


def _of_differences(ctx: Any, grad: Tensor, made: dict[str, Any]) -> tuple:
    rows, (of_x, of_y, *_) = ctx.saved_tensors, ctx.needs_input_grad
    if not torch.is_grad_enabled():  # both at once, but without a graph
        over_keys, over_queries = made["sums"](grad, *rows, ctx.sizes[0])
        return over_keys if of_x else None, -over_queries if of_y else None, None, None, None
    ones = grad.new_ones((*ctx.sizes, 1))  # the sum over keys, and over queries, is a product with these
    return (made["matmul"](grad, ones, *rows, False).squeeze(2) if of_x else None,
            -made["matmul"](grad, ones, *rows, True).squeeze(2) if of_y else None, None, None, None)


def _of_multiply(ctx: Any, grad: Tensor, made: dict[str, Any]) -> tuple:
    a, square, *rows = ctx.saved_tensors
    if a is not None and square is not None and not torch.is_grad_enabled():  # at once, but without a graph
        return *made["both_multiplies"](grad, a, square, *rows), None, None
    return (None if square is None else made["multiply"](grad, square, *rows),
            None if a is None else made["totals"](grad, a, *rows, ctx.sizes[1]), None, None)


def _of_totals(ctx: Any, grad: Tensor, made: dict[str, Any]) -> tuple:
    a, b, *rows = ctx.saved_tensors
    return *(None if other is None else made["multiply"](other, grad, *rows) for other in (b, a)), None, None, None


def _of_to_padded(ctx: Any, grad: Tensor, made: dict[str, Any]) -> tuple:
    return made["from_padded"](grad, *ctx.saved_tensors, ctx.sizes[0]), None, None, None, None


def _of_from_padded(ctx: Any, grad: Tensor, made: dict[str, Any]) -> tuple:
    return made["to_padded"](grad, *ctx.saved_tensors, ctx.sizes[1], 0.0), None, None, None


_GRADIENTS = {"products": _of_products, "matmul": _of_matmul, "softmax": _of_softmax, "differences": _of_differences,
              "multiply": _of_multiply, "totals": _of_totals, "to_padded": _of_to_padded,
              "from_padded": _of_from_padded}


def _differentiated(gradient: Callable[..., tuple], made: dict[str, Any]) -> Callable[..., tuple]:
    return lambda ctx, grad: gradient(ctx, grad, made)
