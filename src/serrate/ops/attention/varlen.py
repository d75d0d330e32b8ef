"""Torch's own variable-length flash kernel (FlashAttention-2) behind our contract: CUDA, half precision."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .api import Call, Rows, Settings

_WIDEST, _STEP = 256, 8  # what the kernel takes: widths up to 256 that are multiples of 8


def unusable(call: Call) -> str | None:
    """Serve half precision on CUDA, head widths up to 256."""
    if call.device.type != "cuda":
        return f"needs a CUDA device, got {call.device.type}"
    if call.dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, got {call.dtype}"
    widest = max(call.width, call.value_width)
    return f"needs a head width up to {_WIDEST}, got {widest}" if widest > _WIDEST else call.beyond_plain()


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, settings: Settings) -> tuple[Tensor, None]:
    """Attend within each row; see `api.attention`. Other widths are filled up with zeros, which add nothing."""
    from torch.nn.attention.varlen import varlen_attn  # here, because it loads the compiler: two seconds

    if q.shape[0] == 0:  # the kernel refuses a batch without events
        return v + 0 * (q.sum() + k.sum()), None  # empty, and part of the graph of all three
    width = max(q.shape[2], v.shape[2])
    width += -width % _STEP
    query, key, value = (pad(x, (0, width - x.shape[2])).contiguous() for x in (q, k, v))
    offsets, longest = rows.keys.to(torch.int32), rows.longest[0]
    window = (-1, 0) if settings.mask.causal else (-1, -1)
    out = varlen_attn(query, key, value, offsets, offsets, longest, longest, scale=settings.scale, window_size=window)
    assert isinstance(out, Tensor)  # a tuple only when auxiliary results are asked for
    return out[..., : v.shape[2]], None
