"""Attention on CUDA in Triton: custom operators, whose kernels are imported at the first call.

The axes of events are cut into tiles by a kernel (`plan.py`), so that the host waits for nothing and the grid follows
from the numbers of events and rows alone. Gradients are written once, by the program they belong to: no atomics, those
of tables of bias apart, which are sums of whole numbers (`relative.py`).
"""

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...direct import INTERPRETED, no_kernel, watched
from ..api import Call, Rows, Settings
from .problem import Problem, from_arguments, is_pointwise, make_problem

if TYPE_CHECKING:
    from .plan import Tiles

_LN_2 = 0.6931471805599453


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision, widths up to 256, where Triton is installed."""
    if (reason := no_kernel(call.device, call.dtype)) is not None:
        return reason
    if INTERPRETED and call.dtype == torch.bfloat16:
        return "needs float32 or float16 under Triton's interpreter, whose products of bfloat16 are wrong"
    if not 1 <= call.value_width <= 256 or call.width > 256:
        return f"needs widths from 1 to 256, got {call.width} and {call.value_width}"
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """Attend within each row; see `api.attention`. Float32 products are IEEE unless torch is told to use TF32."""
    problem = make_problem(rows, settings)
    tables = problem.tables
    if settings.memory is None and watched(q, k, v, *tables):
        out, logsumexp = _forward(q, k, v, *problem.as_arguments())
    elif torch.is_grad_enabled() and True in [x.requires_grad for x in (q, k, v, *tables)]:
        out, logsumexp = _Direct.apply(q, k, v, problem, *tables)  # pyright: ignore[reportGeneralTypeIssues]
    else:
        out, logsumexp, _ = _compute(q, k, v, problem)
    return out, (logsumexp.T * _LN_2).reshape(q.shape[:-1]) if settings.with_lse else None


@cache
def _passes() -> ModuleType:
    """Return the module of the kernels' launches, which loads Triton; an import of its own takes a call 1 µs."""
    from . import passes

    return passes


def _compute(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor, "Tiles"]:
    """Return the output, the log-sum-exp `(H, T)` in base 2 (of pointwise weights `(H, 0)`), the tiles of the plan."""
    out, logsumexp = _outputs(q, v, problem.pointwise)
    return out, logsumexp, _passes().compute(q, k, v, problem, (out, logsumexp))


def _compute_gradients(grads: tuple[Tensor | None, Tensor | None], saved: Sequence[Tensor], problem: Problem,
                       tiles: "Tiles", of_tables: bool) -> list[Tensor]:
    """Return the gradients of q, k and v, contiguous, and where asked those of the tables; see `passes`."""
    gradients = [_like(x) for x in saved[:3]]
    return gradients + _passes().compute_gradients(grads, saved, problem, tiles, gradients, of_tables)


def _outputs(q: Tensor, v: Tensor, pointwise: bool) -> tuple[Tensor, Tensor]:
    *shape, heads, width = q.shape
    out = _like(q) if width == v.shape[2] else q.new_empty((*shape, heads, v.shape[2]))
    return out, q.new_empty((heads, 0 if pointwise else math.prod(shape)), dtype=torch.float32)


def _like(x: Tensor) -> Tensor:
    """Return an empty tensor, contiguous; `new_empty` takes twice as long."""
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("serrate::jagged_attention_triton", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], index: list[Tensor], numbers: list[int],
             factors: list[float]) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp of `_compute`; the tiles are made again for the gradients."""
    out, logsumexp, _ = _compute(q, k, v, from_arguments(tables, index, numbers, factors))
    return out, logsumexp


@torch.library.custom_op("serrate::jagged_attention_triton_backward", mutates_args=())
def _backward(grads: list[Tensor | None], saved: list[Tensor], tables: list[Tensor], index: list[Tensor],
              numbers: list[int], factors: list[float], of_tables: bool) -> list[Tensor]:
    problem = from_arguments(tables, index, numbers, factors)
    return _compute_gradients((grads[0], grads[1]), saved, problem, {}, of_tables)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], index: list[Tensor], numbers: list[int],
      factors: list[float]) -> tuple[Tensor, Tensor]:
    return _outputs(q, v, is_pointwise(numbers))


@_backward.register_fake
def _(grads: list[Tensor | None], saved: list[Tensor], tables: list[Tensor], index: list[Tensor], numbers: list[int],
      factors: list[float], of_tables: bool) -> list[Tensor]:
    return [_like(x) for x in (*saved[:3], *(tables if of_tables else ()))]


def _kept(out: Tensor, pointwise: bool) -> Tensor:
    """Return what the backward pass needs of the output: nothing where weights are pointwise."""
    return out.new_empty(0) if pointwise else out


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, tables, index, ctx.numbers, ctx.factors = inputs
    out, logsumexp = output
    ctx.tables = len(tables)
    ctx.save_for_backward(q, k, v, _kept(out, is_pointwise(ctx.numbers)), logsumexp, *tables, *index)
    ctx.set_materialize_grads(False)


def _autograd(ctx, *grads: Tensor | None):
    saved, others = ctx.saved_tensors[:5], ctx.saved_tensors[5:]
    tables, index = others[:ctx.tables], others[ctx.tables:]
    none = [None] * len(index)
    if grads[0] is None and grads[1] is None:
        return None, None, None, [None] * len(tables), none, None, None
    wanted = ctx.needs_input_grad[3]
    of_tables = any(wanted) if isinstance(wanted, Sequence) else bool(wanted)
    gradients = _backward(list(grads), list(saved), list(tables), list(index), ctx.numbers, ctx.factors, of_tables)
    return *gradients[:3], gradients[3:] or [None] * len(tables), none, None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)


class _Direct(torch.autograd.Function):
    """The same two computations without torch's dispatcher in between, which takes half of a small call's time."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, problem: Problem, *tables: Tensor) -> tuple[Tensor, Tensor]:
        out, logsumexp, ctx.tiles = _compute(q, k, v, problem)
        # offsets, counts, seed and times are saved too, so that torch refuses a backward pass after a change in place
        ctx.save_for_backward(q, k, v, _kept(out, problem.pointwise), logsumexp, *tables, *problem.index)
        ctx.set_materialize_grads(False)
        ctx.problem = problem
        return out, logsumexp

    @staticmethod
    def backward(ctx, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors[:5]
        none = [None] * len(ctx.problem.tables)
        if grads[0] is None and grads[1] is None:
            return None, None, None, None, *none
        of_tables = any(ctx.needs_input_grad[4:])
        if torch.is_grad_enabled():  # a graph of the gradients is wanted: the operator refuses to be differentiated
            gradients = _backward(list(grads), list(saved), *ctx.problem.as_arguments(), of_tables)
        else:
            gradients = _compute_gradients((grads[0], grads[1]), saved, ctx.problem, ctx.tiles, of_tables)
        return *gradients[:3], None, *(gradients[3:] or none)
