"""The passes of a call, forward and backward: which kernels serve it, and what is made for them."""

from collections.abc import Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from ...direct import on_device_of, unit_stride
from ...launch import recalled
from . import backward, few, forward, short, short_biased
from .plan import Plan, Tiles, describable
from .problem import Problem
from .sums import Tables
from .tile import precision


def compute(q: Tensor, k: Tensor, v: Tensor, problem: Problem, results: tuple[Tensor, Tensor]) -> Tiles:
    """Fill the results, the output and the log-sum-exp `(H, T)` in base 2; return the tiles of the plan."""
    return recalled(problem.memory, ("forward", precision(q.dtype)), (q, k, v, *problem.tensors, *results),
                    partial(_launch_forward, q, k, v, problem, results))


def _launch_forward(q: Tensor, k: Tensor, v: Tensor, problem: Problem, results: tuple[Tensor, Tensor]) -> Tiles:
    """Fill the results by the kernel that the plan chooses."""
    plan = Plan(problem, q, k, v)
    if results[0].numel():
        inputs = (unit_stride(q), unit_stride(k), unit_stride(v))
        chosen = short if plan.tiling.short else forward
        if plan.tiling.hopper[0]:
            from .hopper import biased
            from .hopper import forward as unbiased

            chosen = biased if problem.biased else unbiased
        with on_device_of(q):
            chosen.launch(inputs, problem, plan, results)
    return plan.tiles


def compute_gradients(grads: tuple[Tensor | None, Tensor | None], saved: Sequence[Tensor], problem: Problem,
                      tiles: Tiles, gradients: Sequence[Tensor], of_tables: bool) -> list[Tensor]:
    """Fill the gradients of q, k and v; return, where asked, those of the tables.

    Saved are q, k and v, the output (empty of pointwise weights) and the log-sum-exp; tiles are those that there are.
    """
    q, k, v, out, _ = saved
    if not q.numel() or not k.numel():
        for each in gradients:
            each.zero_()
        return [torch.zeros_like(table) for table in problem.tables] if of_tables else []
    grad, grad_lse = grads
    grad = torch.zeros_like(out) if grad is None else grad.contiguous()
    # pointwise weights have an empty log-sum-exp, of which a traced graph has a gradient nevertheless
    grad_lse = None if problem.pointwise or grad_lse is None else grad_lse.contiguous()
    given = (*saved, *problem.tensors, *gradients, *tiles.values(), grad, *(() if grad_lse is None else (grad_lse,)))
    strides = q.stride(), k.stride(), v.stride()  # which hooks of autograd may have changed
    name = ("backward", grad_lse is None, of_tables, precision(q.dtype), strides, *tiles)
    return list(recalled(problem.memory, name, given, partial(
        _launch_backward, (grad, grad_lse), saved, problem, tiles, gradients, of_tables)).values())


def _launch_backward(grads: tuple[Tensor, Tensor | None], saved: Sequence[Tensor], problem: Problem, tiles: Tiles,
                     gradients: Sequence[Tensor], of_tables: bool) -> dict[Hashable, Tensor]:
    """Fill the gradients of q, k and v by the kernels that the plan chooses; return those of the tables."""
    q, k, v, *results = saved
    plan, inputs = Plan(problem, q, k, v, tiles), (unit_stride(q), unit_stride(k), unit_stride(v))
    arguments = (grads, inputs, problem)
    with on_device_of(q):
        tables = Tables(*arguments) if of_tables else None
        sums = None if tables is None else tables.sums
        if plan.tiling.short and problem.biased:
            short_biased.launch(*arguments, plan, results, gradients, sums)
        elif plan.tiling.short:
            short.launch_backward(*arguments, plan, results, gradients)
        elif plan.tiling.few:
            few.launch(*arguments, plan.tiling.few, results, gradients)
        elif plan.tiling.hopper[1] and describable(grads[0], *inputs):
            if problem.biased:
                from .hopper import biased

                biased.launch_backward(*arguments, plan, gradients, sums)
            else:
                if q.shape[2] > 64:
                    from .hopper import backward as on_hopper
                else:
                    from .hopper import backward_64 as on_hopper

                on_hopper.launch(*arguments, plan, results, gradients)
        else:
            backward.launch(*arguments, plan, results, gradients, sums)
        return {} if tables is None else dict(enumerate(tables.gradients()))
