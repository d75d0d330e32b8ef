"""Rows of tables on CUDA: read as torch does, gradients in Triton, whose kernels are imported at the first call."""

from typing import Any

import torch
from torch import Tensor

from ...direct import no_kernel, on_device_of, operator
from .. import reference
from ..api import Call


def unusable(call: Call) -> str | None:
    """Serve CUDA tensors in single and half precision where Triton is installed."""
    return no_kernel(call.device, call.dtype)


def lookup(table: Tensor, rows: Tensor, offsets: Tensor | None, how: str) -> Tensor:
    """Read rows of a table; see `api.lookup`."""
    return _lookup(table, rows, offsets, how)


@operator("serrate::lookup_triton")
def _lookup(table: Tensor, rows: Tensor, offsets: Tensor | None, how: str) -> Tensor:
    return reference.lookup(table, rows, offsets, how)


@_lookup.register_fake
def _(table: Tensor, rows: Tensor, offsets: Tensor | None, how: str) -> Tensor:
    shape = rows.shape if how == "each" else rows.shape[:1] if offsets is None else (offsets.shape[0] - 1,)
    return table.new_empty(*shape, table.shape[1])


@operator("serrate::lookup_triton_backward")
def _backward(grad: Tensor, rows: Tensor, offsets: Tensor | None, how: str, size: int, dtype: torch.dtype) -> Tensor:
    from . import kernels

    flat, bags, group = rows.reshape(-1), None, 1
    if how == "sum" and offsets is None:
        group = rows.shape[1]
    elif offsets is not None:
        bags = torch.searchsorted(offsets, torch.arange(len(flat), device=rows.device), right=True, out_int32=True) - 1
        if how == "mean":
            grad = grad / offsets.diff().clamp(min=1)[:, None]
    out = grad.new_zeros(size, grad.shape[-1], dtype=dtype)
    with on_device_of(grad):
        kernels.launch_backward(grad.contiguous(), flat, bags, group, out)
    return out


@_backward.register_fake
def _(grad: Tensor, rows: Tensor, offsets: Tensor | None, how: str, size: int, dtype: torch.dtype) -> Tensor:
    return grad.new_empty(size, grad.shape[-1], dtype=dtype)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    table, rows, offsets, ctx.how = inputs
    ctx.size, ctx.dtype = table.shape[0], table.dtype
    ctx.save_for_backward(rows, offsets)


def _gradients(ctx: Any, grad: Tensor) -> tuple:
    rows, offsets = ctx.saved_tensors
    return _backward(grad, rows, offsets, ctx.how, ctx.size, ctx.dtype), None, None, None


_lookup.register_autograd(_gradients, setup_context=_keep)
