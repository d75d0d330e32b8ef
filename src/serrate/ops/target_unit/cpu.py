"""The target unit's first layer on the CPU: what depends on events or on targets alone is multiplied once for each.

Only the product of both is made for every pair: a quarter of the features, and of the work. More is not worth it: one
large product of torch's is faster than many small ones, and memory is cheap here.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from .api import Call, Reading
from .reference import pairs


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def target_unit(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None, reading: Reading) -> Tensor:
    """Let each target meet its events; see `api.target_unit`. Half precision is computed in float32."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q_wide, k_wide = q.to(wide), k.to(wide)
    target, event, difference, product = weight.to(wide).T.chunk(4, 1)
    targets, events = pairs(reading)
    of_targets, of_events = linear(q_wide, target + difference), linear(k_wide, event - difference)
    out = linear(q_wide[targets] * k_wide[events], product, None if bias is None else bias.to(wide))
    return (out + of_events[events] + of_targets[targets]).to(q.dtype)
