"""The oracle: torch's own layers, one after another. Any device, any dtype, any width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .api import Call


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def norm_linear(x: Tensor, weights: tuple[Tensor, ...], eps: float, dtype: torch.dtype) -> Tensor:
    """Norm and linear layer; see `api.norm_linear`."""
    normed = _norm(x, weights[0], weights[1], eps)
    return normed.to(dtype) if len(weights) == 2 else _linear(normed, weights[2], weights[3], dtype)


def feed_forward(x: Tensor, attended: Tensor, weights: tuple[Tensor, ...], eps: float) -> Tensor:
    """Projection, residual, norm, two layers, residual; see `api.feed_forward`."""
    out_weight, out_bias, scale, shift, weight, bias, last_weight, last_bias = weights
    dtype = attended.dtype
    x = x + _linear(attended, out_weight, out_bias, dtype)
    hidden = F.gelu(_linear(_norm(x, scale, shift, eps), weight, bias, dtype))
    return x + _linear(hidden, last_weight, last_bias, dtype)


def _norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    return F.layer_norm(x.to(wide), x.shape[-1:], scale.to(wide), shift.to(wide), eps)


def _linear(x: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
