"""Broadcast on the CPU: what belongs to events is gathered, and their gradients are summed as in pooling."""

import torch
from torch import Tensor

from ...jagged import offsets_from_lengths
from ..direct import operator
from ..pool.cpu import row_index, row_sums
from .api import Call, require_positions
from .autograd import like_other, register


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def broadcast(x: Tensor, y: Tensor, offsets: Tensor, along: str, product: bool) -> Tensor:
    """Add to events `(T, W)` what belongs to rows or positions, or multiply; see `api.add`."""
    return _broadcast(x, y, offsets, along, product)


def _cells(offsets: Tensor, events: int, along: str, positions: int) -> Tensor:
    """Return where each event finds its own in a flattened `y`, `(T,)` int64."""
    row = row_index(offsets, events)
    if along == "rows":
        return row
    position = torch.arange(events) - offsets[row]
    return position if along == "positions" else row * positions + position


@operator("serrate::broadcast_cpu", device_types="cpu")
def _broadcast(x: Tensor, y: Tensor, offsets: Tensor, along: str, product: bool) -> Tensor:
    require_positions(offsets, along, y.shape[-2])
    own = y.reshape(-1, y.shape[-1])[_cells(offsets, x.shape[0], along, y.shape[-2])]
    return (x * own if product else x + own).contiguous()


@operator("serrate::broadcast_cpu_reduced", device_types="cpu")
def _reduced(grad: Tensor, x: Tensor | None, offsets: Tensor, along: str, positions: int,
             dtype: torch.dtype) -> Tensor:
    wide = grad.to(torch.promote_types(grad.dtype, torch.float32))
    parts = wide if x is None else wide * x
    if along == "rows":
        return row_sums(parts, offsets).to(dtype)
    cells = _cells(offsets, grad.shape[0], along, positions)
    if along == "both":
        out = like_other(grad, offsets, along, positions, dtype).zero_()
        out.view(-1, grad.shape[1])[cells] = parts.to(dtype)
        return out
    counts = torch.bincount(cells, minlength=positions)  # how many rows have each position
    return row_sums(parts[cells.argsort(stable=True)], offsets_from_lengths(counts)).to(dtype)


register(_broadcast, _reduced)
