"""Jagged products on the CPU: rows of one length are multiplied together, by torch's batched product."""

import torch
from torch import Tensor

from ..attention.cpu.groups import Groups, wide
from ..direct import operator
from .api import Call
from .autograd import register


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def jagged_dense_bmm(x: Tensor, y: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    """Multiply by the matrix of the row; see `api`. Half precision is computed in float32."""
    return _dense(x, y, bias, offsets)


def jagged_jagged_bmm(x: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    """Multiply row by row; see `api`. Half precision is computed in float32."""
    return _jagged(x, y, offsets, False)[0]


@operator("serrate::jagged_dense_bmm_cpu", device_types="cpu")
def _dense(x: Tensor, y: Tensor, bias: Tensor | None, offsets: Tensor) -> Tensor:
    groups = Groups(offsets[None])
    parts = []
    for (events,), rows in zip(groups.queries.dense(x), groups.of_rows, strict=True):
        matrices, wide_events = y[rows].to(wide(y)), events.to(wide(x))
        if bias is None:
            parts.append((wide_events @ matrices).to(x.dtype))
        else:
            flat = wide_events.flatten(0, 1), matrices.flatten(0, 1)
            added = bias[rows].to(wide(x)).flatten(0, 1)[:, None]
            parts.append(torch.baddbmm(added, *flat).unflatten(0, events.shape[:2]).to(x.dtype))
    return groups.queries.gather(x.new_empty(*x.shape[:2], y.shape[3]), parts)


@operator("serrate::jagged_jagged_bmm_cpu", device_types="cpu")
def _jagged(x: Tensor, y: Tensor, offsets: Tensor, sums: bool) -> list[Tensor]:
    """Return the products and, if asked for, the sums of `y` over each row."""
    groups = Groups(offsets[None])
    shape = (offsets.shape[0] - 1, x.shape[1], y.shape[2])
    results = [x.new_empty(*shape[:2], x.shape[2], shape[2])] + [x.new_empty(shape)] * sums
    for (left, right), rows in zip(groups.queries.dense(x, y), groups.of_rows, strict=True):
        right = right.to(wide(y))
        results[0][rows] = (left.to(wide(x)).mT @ right).to(x.dtype)
        if sums:
            results[1][rows] = right.sum(2).to(x.dtype)
    return results


register(_dense, _jagged)
