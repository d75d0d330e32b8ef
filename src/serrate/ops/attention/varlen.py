"""Torch's own variable-length flash kernel (FlashAttention-2) behind our contract: CUDA, half precision."""

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from .api import Call, Mask


def unusable(call: Call) -> str | None:
    """Serve half precision on CUDA, head widths that are multiples of 8 up to 256."""
    if call.device.type != "cuda":
        return f"needs a CUDA device, got {call.device.type}"
    if call.dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, got {call.dtype}"
    if call.width != call.value_width:
        return f"needs values as wide as keys, got {call.value_width} and {call.width}"
    if call.width % 8 or call.width > 256:
        return f"needs a head width that is a multiple of 8 up to 256, got {call.width}"
    return None


def attention(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, mask: Mask, scale: float, longest: int) -> Tensor:
    """Attend within each row; see `api.attention`."""
    if q.shape[0] == 0:  # the kernel refuses a batch without events
        return (q + k + v).to(q.dtype)
    offsets = offsets.to(torch.int32)
    window = (-1, 0) if mask.causal else (-1, -1)
    q, k, v = (x.contiguous() for x in (q, k, v))
    out = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=scale, window_size=window)
    assert isinstance(out, Tensor)  # a tuple only when auxiliary results are asked for
    return out
