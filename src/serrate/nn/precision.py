"""What autocast makes of products."""

import torch
from torch import Tensor


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which `x` `(*,)` is multiplied: its own, under autocast on its device that of autocast."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
