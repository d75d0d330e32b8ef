"""Attention on CUDA in Triton: custom operators, whose kernels are imported at the first call.

The axes of events are cut into tiles by a kernel (`plan.py`), so that the host waits for nothing and the grid follows
from the numbers of events and rows alone. Gradients are written once, by the program they belong to: no atomics, those
of tables of bias apart, which are sums of whole numbers (`weigh.py`).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...direct import INTERPRETED, on_device_of, unit_stride, watched
from ..api import Call, Rows, Settings
from .problem import Problem, from_arguments, is_pointwise, make_problem

if TYPE_CHECKING:
    from .plan import Plan

_INSTALLED = find_spec("triton") is not None
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LN_2 = 0.6931471805599453


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision, widths up to 256, where Triton is installed."""
    if call.device.type != "cuda" and not INTERPRETED:
        return f"needs a CUDA device, got {call.device.type}"
    if INTERPRETED and call.dtype == torch.bfloat16:
        return "needs float32 or float16 under Triton's interpreter, whose products of bfloat16 are wrong"
    if call.dtype not in _DTYPES:
        return f"needs float32, bfloat16 or float16, got {call.dtype}"
    if not 1 <= call.value_width <= 256 or call.width > 256:
        return f"needs widths from 1 to 256, got {call.width} and {call.value_width}"
    return None if _INSTALLED else "needs the package triton"


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """Attend within each row; see `api.attention`. Float32 products are IEEE unless torch is told to use TF32."""
    problem = make_problem(rows, settings)
    if watched(q, k, v, *problem.tables):
        out, logsumexp = _forward(q, k, v, *problem.as_arguments())
    elif not torch.is_grad_enabled():
        out, logsumexp, _ = _compute(q, k, v, problem)
    else:
        out, logsumexp = _Direct.apply(q, k, v, problem, *problem.tables)  # pyright: ignore[reportGeneralTypeIssues]
    return out, (logsumexp.T * _LN_2).reshape(q.shape[:-1]) if settings.with_lse else None


def _compute(q: Tensor, k: Tensor, v: Tensor, problem: Problem) -> tuple[Tensor, Tensor, "Plan"]:
    """Return the output, the log-sum-exp `(H, T)` in base 2 (of pointwise weights `(H, 0)`), the plan of the tiles."""
    from . import forward, short
    from .plan import Plan

    out, logsumexp = _outputs(q, v, problem.pointwise)
    plan = Plan(problem, q, k, v)
    if out.numel():
        inputs, results = (unit_stride(q), unit_stride(k), unit_stride(v)), (out, logsumexp)
        chosen = short if plan.tiling.short else forward
        if plan.tiling.hopper[0]:
            from .hopper import forward as chosen
        with on_device_of(q):
            chosen.launch(inputs, problem, plan, results)
    return out, logsumexp, plan


def _compute_gradients(grads: tuple[Tensor | None, Tensor | None], saved: Sequence[Tensor], problem: Problem,
                       plan: "Plan", of_tables: bool) -> list[Tensor]:
    """Return the gradients of q, k and v, contiguous, and where asked those of the tables.

    Saved are q, k and v, the output (empty of pointwise weights) and the log-sum-exp.
    """
    q, k, v, *results = saved
    gradients = _gradients(q, k, v)
    if not q.numel() or not k.numel():
        return [each.zero_() for each in (*gradients, *(_like(problem.tables) if of_tables else ()))]
    grad, grad_lse = grads
    grad = torch.zeros_like(results[0]) if grad is None else grad.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    inputs = (unit_stride(q), unit_stride(k), unit_stride(v))
    with on_device_of(q):
        return [*gradients, *_launch_backward((grad, grad_lse), inputs, problem, plan, results, gradients, of_tables)]


def _launch_backward(grads: tuple[Tensor, Tensor | None], inputs: Sequence[Tensor], problem: Problem, plan: "Plan",
                     results: Sequence[Tensor], gradients: Sequence[Tensor], of_tables: bool) -> list[Tensor]:
    """Fill the gradients of q, k and v by the kernels that the plan has chosen; return those of the tables."""
    from . import backward, few, short
    from .plan import describable
    from .relative import Tables, bounds

    arguments = (grads, inputs, problem)
    if plan.tiling.short:
        short.launch_backward(*arguments, plan, results, gradients)
    elif plan.tiling.few:
        few.launch(*arguments, plan.tiling.few, results, gradients)
    elif plan.tiling.hopper[1] and describable(grads[0]):
        if inputs[0].shape[2] > 64:
            from .hopper import backward as on_hopper
        else:
            from .hopper import backward_64 as on_hopper

        on_hopper.launch(*arguments, plan, results, gradients)
    elif of_tables:
        tables = Tables(problem, bounds(grads, inputs, problem), inputs[0].dtype == torch.float32)
        backward.launch(*arguments, plan, results, gradients, tables.sums)
        return tables.gradients()
    else:
        backward.launch(*arguments, plan, results, gradients)
    return []


def _outputs(q: Tensor, v: Tensor, pointwise: bool) -> tuple[Tensor, Tensor]:
    queries = q.shape[0] if q.dim() == 3 else q.shape[0] * q.shape[1]
    sums = (q.shape[-2], 0 if pointwise else queries)
    return q.new_empty((*q.shape[:-1], v.shape[2])), q.new_empty(sums, dtype=torch.float32)


def _gradients(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _like(tables: Sequence[Tensor]) -> list[Tensor]:
    return [table.new_empty(table.shape) for table in tables]


@torch.library.custom_op("serrate::jagged_attention_triton", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], index: list[Tensor], numbers: list[int],
             factors: list[float]) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp of `_compute`; the plan, no tensor, is made again for the gradients."""
    out, logsumexp, _ = _compute(q, k, v, from_arguments(tables, index, numbers, factors))
    return out, logsumexp


@torch.library.custom_op("serrate::jagged_attention_triton_backward", mutates_args=())
def _backward(grads: list[Tensor | None], saved: list[Tensor], tables: list[Tensor], index: list[Tensor],
              numbers: list[int], factors: list[float], of_tables: bool) -> list[Tensor]:
    from .plan import Plan

    problem = from_arguments(tables, index, numbers, factors)
    return _compute_gradients((grads[0], grads[1]), saved, problem, Plan(problem, *saved[:3]), of_tables)


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], index: list[Tensor], numbers: list[int],
      factors: list[float]) -> tuple[Tensor, Tensor]:
    return _outputs(q, v, is_pointwise(numbers))


@_backward.register_fake
def _(grads: list[Tensor | None], saved: list[Tensor], tables: list[Tensor], index: list[Tensor], numbers: list[int],
      factors: list[float], of_tables: bool) -> list[Tensor]:
    return [*_gradients(*saved[:3]), *(_like(tables) if of_tables else ())]


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
        out, logsumexp, ctx.plan = _compute(q, k, v, problem)
        # offsets, counts, seed and times are saved too, so that torch refuses a backward pass after a change in place
        ctx.save_for_backward(q, k, v, _kept(out, problem.pointwise), logsumexp, *tables, *problem.as_arguments()[1])
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
            gradients = _compute_gradients((grads[0], grads[1]), saved, ctx.problem, ctx.plan, of_tables)
        return *gradients[:3], None, *(gradients[3:] or none)
