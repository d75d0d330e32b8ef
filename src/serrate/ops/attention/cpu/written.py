"""Weights written out, a tile at a time: pointwise ones, and a softmax with a bias or dropout.

Memory does not grow with the squares of rows. The backward pass saves the inputs only and computes weights again.
"""

import math

import torch
from torch import Tensor

from ..api import Settings
from .groups import Groups, wide
from .problem import arguments_of, from_arguments
from .tile import tiles


def attention(q: Tensor, k: Tensor, v: Tensor, table: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp of packed queries, -inf where that is not asked for.

    table: see `groups.tabulated`.
    """
    return _forward(q, k, v, *arguments_of(table, settings))


@torch.library.custom_op("serrate::written_attention_cpu", mutates_args=(), device_types="cpu")
def _forward(q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], index: list[Tensor], numbers: list[int],
             factors: list[float]) -> tuple[Tensor, Tensor]:
    """Return the output `(T, H, Dv)` and the log-sum-exp `(T, H)`; see `problem.from_arguments`."""
    problem = from_arguments(tables, index, numbers, factors)
    groups = Groups(problem.table)
    asked, happened = problem.marks(len(q), len(k))
    out, lse = _outputs(q, v)
    out.zero_()
    lse.fill_(-math.inf)
    for shape, ours, theirs, (row_out, row_lse) in zip(
            groups.shapes, groups.queries.dense(q, asked), groups.keys.dense(k, v, happened),
            groups.queries.views(out, lse), strict=True):
        for tile in tiles(problem, shape, ours, theirs):
            row_out[tile.rows, :, tile.block.queries] = tile.output()
            if problem.with_lse:
                row_lse[tile.rows, :, tile.block.queries] = tile.scores.logsumexp(-1)
    return groups.queries.restore(out), groups.queries.restore(lse)


@torch.library.custom_op("serrate::written_attention_cpu_backward", mutates_args=(), device_types="cpu")
def _backward(grads: list[Tensor | None], saved: list[Tensor], tables: list[Tensor], index: list[Tensor],
              numbers: list[int], factors: list[float]) -> list[Tensor]:
    """Return the gradients of `q`, `k` and `v`, which are saved, and of the tables of bias."""
    q, k, v = saved
    grad, grad_lse = grads
    problem = from_arguments(tables, index, numbers, factors)
    groups = Groups(problem.table)
    asked, happened = problem.marks(len(q), len(k))
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide(x)) for x in saved)
    sums = [torch.zeros(table.shape, dtype=torch.float64) for table in tables]  # over all tiles
    incoming = [q.new_zeros((*q.shape[:2], v.shape[2])) if grad is None else grad]
    incoming += [grad_lse] if grad_lse is not None else []
    for shape, ours, theirs, given, (row_dq,), (row_dk, row_dv) in zip(
            groups.shapes, groups.queries.dense(q, asked), groups.keys.dense(k, v, happened),
            groups.queries.dense(*incoming), groups.queries.views(dq), groups.keys.views(dk, dv), strict=True):
        for tile in tiles(problem, shape, ours, theirs):
            queries, keys = ((tile.rows, slice(None), part) for part in (tile.block.queries, tile.block.keys))
            of_q, of_k, of_v, of_scores = tile.gradients(*(x[queries] for x in given))
            row_dq[queries] = of_q
            row_dk[keys] += of_k
            row_dv[keys] += of_v
            for total, part in zip(sums, tile.table_gradients(of_scores), strict=True):
                total += part
    gradients = ((groups.queries, dq), (groups.keys, dk), (groups.keys, dv))
    return [*(side.restore(x).to(q.dtype) for side, x in gradients),
            *(total.to(table.dtype) for total, table in zip(sums, tables, strict=True))]


def _outputs(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return q.new_empty((*q.shape[:2], v.shape[2])), q.new_empty(q.shape[:2], dtype=wide(q))


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], index: list[Tensor], numbers: list[int],
      factors: list[float]) -> tuple[Tensor, Tensor]:
    return _outputs(q, v)


@_backward.register_fake
def _(grads: list[Tensor | None], saved: list[Tensor], tables: list[Tensor], index: list[Tensor],
      numbers: list[int], factors: list[float]) -> list[Tensor]:
    return [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (*saved, *tables)]


def _setup_context(ctx, inputs, output) -> None:
    q, k, v, tables, index, ctx.numbers, ctx.factors = inputs
    ctx.tables = len(tables)
    ctx.save_for_backward(q, k, v, *tables, *index)
    ctx.set_materialize_grads(False)


def _autograd(ctx, *grads: Tensor | None):
    saved, others = ctx.saved_tensors[:3], ctx.saved_tensors[3:]
    tables, index = list(others[:ctx.tables]), list(others[ctx.tables:])
    if grads[0] is None and grads[1] is None:
        return None, None, None, [None] * len(tables), [None] * len(index), None, None
    dq, dk, dv, *of_tables = _backward(list(grads), list(saved), tables, index, ctx.numbers, ctx.factors)
    return dq, dk, dv, of_tables, [None] * len(index), None, None


_forward.register_autograd(_autograd, setup_context=_setup_context)
