"""The oracle: the formula, step by step. Any device, any dtype, any width."""

import torch
from torch import Tensor

from ..dropout import kept
from .api import Call, Settings


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def norm_gate(x: Tensor, gate: Tensor | None, settings: Settings) -> Tensor:
    """Normalise, gate and drop; see `api.norm_gate`. Half precision is computed in float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (settings.groups, -1))
    centred = wide - wide.mean(-1, keepdim=True)
    variance = centred.square().mean(-1, keepdim=True)
    out = (centred / (variance + settings.eps).sqrt()).flatten(1)
    if gate is not None:
        out = out * gate.to(out.dtype)
    if settings.seed is not None:
        out = out * stays(settings.seed, settings.dropout, x.shape[0], x.shape[1]) / (1 - settings.dropout)
    return out.to(settings.dtype)


def stays(seed: Tensor, rate: float, events: int, width: int, first: int = 0) -> Tensor:
    """Return which results of the events from `first` on stay, `(events, width)` bool.

    An event stands where a query of attention does and its columns where keys do: one draw for both operations.
    """
    places = torch.arange(first, first + events, device=seed.device)
    return kept(seed, rate, 1, places, torch.arange(width, device=seed.device))[0]
