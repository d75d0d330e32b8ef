"""The oracle: one row at a time. Slow; any device, any dtype."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import Call, require_positions


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def broadcast(x: Tensor, y: Tensor, offsets: Tensor, along: str, product: bool) -> Tensor:
    """Add to events `(T, W)` what belongs to rows or positions, or multiply; see `api.add`.

    Half precision is computed in float32, so waits for the device. `y` is `(B, W)`, `(N, W)` or `(B, N, W)`, or has one
    column.
    """
    if x.is_cpu:  # elsewhere `y` counts as 0 past its last position
        require_positions(offsets, along, y.shape[-2])
    wide = torch.promote_types(x.dtype, torch.float32)
    x_wide, y_wide = x.to(wide), y.to(wide)
    pairs = [(x_wide[:0], y_wide.reshape(-1, y.shape[-1]).sum(0))]  # without rows the graph reaches both all the same
    for row, own in enumerate(x_wide.split(offsets.diff().tolist()) if offsets.shape[0] > 1 else ()):
        of_row = y_wide if along == "positions" else y_wide[row]
        pairs.append((own, of_row if along == "rows" else _first(of_row, own.shape[0])))
    return torch.cat([own * other if product else own + other for own, other in pairs]).to(x.dtype)


def _first(cells: Tensor, count: int) -> Tensor:
    """Return the first so many cells of a row `(N, W)`, 0 past the last."""
    return F.pad(cells[:count], (0, 0, 0, max(0, count - cells.shape[0])))
