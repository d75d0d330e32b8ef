"""The oracle: the features, written out and multiplied. Any device, any dtype."""

import torch
from torch import Tensor

from .api import Call, Reading


def unusable(call: Call) -> str | None:
    """Serve every call."""
    return None


def target_unit(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None, reading: Reading) -> Tensor:
    """Multiply the features of targets and events; see `api.target_unit`. Half precision is computed in float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    targets, events = pairs(reading)
    q_of, k_of = q.to(wide)[targets], k.to(wide)[events]
    out = torch.cat([q_of, k_of, q_of - k_of, q_of * k_of], 1) @ weight.to(wide)
    return (out if bias is None else out + bias.to(wide)).to(q.dtype)


def pairs(reading: Reading) -> tuple[Tensor, Tensor]:
    """Return for each event that is read, one target after the other, the target and the event, `(T',)` int64 each."""
    every = torch.arange(reading.ends.shape[0] - 1, device=reading.ends.device)
    targets = torch.repeat_interleave(every, reading.ends.diff(), output_size=reading.num_events)
    place = torch.arange(reading.num_events, device=reading.ends.device)
    if reading.rows is None:
        return targets, place
    return targets, place + (reading.offsets[:-1][reading.rows] - reading.ends[:-1])[targets]
