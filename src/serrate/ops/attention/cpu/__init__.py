"""Attention on the CPU: rows of one shape run together, nothing padded.

A plain softmax goes through torch's flash kernel (`flash.py`). Weights that this does not know, pointwise ones, those
with a bias and dropped ones, are written out a tile at a time (`written.py`).
"""

from torch import Tensor

from ...direct import refuse_tangents
from ..api import Call, Rows, Settings
from . import flash, written
from .groups import tabulated


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def attention(q: Tensor, k: Tensor, v: Tensor, rows: Rows, settings: Settings) -> tuple[Tensor, Tensor | None]:
    """Attend within each row; see `api.attention`. Shared heads of keys are repeated, dense queries packed."""
    bias = settings.bias
    refuse_tangents("attention", q, k, v, *((bias.position, bias.time) if bias is not None else ()))
    queries, offsets = rows.pack(q)
    heads = q.shape[-2]
    if k.shape[1] != heads:
        k, v = (x.repeat_interleave(heads // k.shape[1], 1) for x in (k, v))
    plain = not settings.weights.pointwise and bias is None and settings.seed is None
    compute = flash.attention if plain else written.attention
    out, lse = compute(queries, k, v, tabulated(offsets, rows.keys, settings.mask), settings)
    if q.dim() == 4:
        out, lse = out.unflatten(0, q.shape[:2]), lse.unflatten(0, q.shape[:2]) if settings.with_lse else lse
    return out, lse if settings.with_lse else None
