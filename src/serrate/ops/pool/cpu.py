"""Pooling and softmax on the CPU: sums of chunks of rows, then of these sums and so on, by torch's bags of embeddings.

A bag adds one event after the other at the speed of memory; small chunks keep the rounding of long rows near that of
torch's own sums. README.md has the measurements.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...jagged import offsets_from_lengths
from ..direct import operator
from .api import Call
from .autograd import like_kept, register_pool, register_softmax

_CHUNK = 8  # events added one after the other


def unusable(call: Call) -> str | None:
    """Serve CPU tensors."""
    return None if call.device.type == "cpu" else f"needs a CPU tensor, got {call.device.type}"


def pool(x: Tensor, offsets: Tensor, weights: Tensor | None, how: str, softmax: bool) -> Tensor:
    """Pool events `(T, H, D)` with weights `(T, H)`; see `api.pool`. Half precision is computed in float32."""
    return _pool(x, offsets, weights, how, softmax)[0]


def softmax(x: Tensor, offsets: Tensor) -> Tensor:
    """Softmax of logits `(T, W)` over the events of each row; see `api.softmax`."""
    return _softmax(x, offsets)


def row_index(offsets: Tensor, events: int) -> Tensor:
    """Return the row of each event, `(T,)` int64, for offsets `(B + 1,)`."""
    return torch.repeat_interleave(torch.arange(offsets.shape[0] - 1), offsets.diff(), output_size=events)


def row_sums(x: Tensor, offsets: Tensor) -> Tensor:
    """Return the sums of events `(T, *)` over each row, `(B, *)` in float32, or float64 for float64."""
    rows, offsets = offsets.shape[0] - 1, offsets.long()
    sums = _wide(x).reshape(x.shape[0], x.shape[1:].numel())
    while rows and int(offsets.diff().max()) > _CHUNK:
        chunks = offsets_from_lengths((offsets.diff() + _CHUNK - 1) // _CHUNK)  # each row has so many
        row = row_index(chunks, int(chunks[-1]))
        first = offsets[row] + (torch.arange(row.shape[0]) - chunks[row]) * _CHUNK
        sums, offsets = _bags(sums, torch.cat([first, offsets[-1:]])), chunks
    return _bags(sums, offsets).reshape(rows, *x.shape[1:])


def _bags(x: Tensor, offsets: Tensor) -> Tensor:
    return F.embedding_bag(torch.arange(x.shape[0]), x, offsets, mode="sum", include_last_offset=True)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _largest(x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest of events `(T, W)` in each row, 0 in an empty one, and the first event that has it."""
    if not x.shape[0]:
        return x.new_zeros(offsets.shape[0] - 1, x.shape[1]), offsets.new_zeros(offsets.shape[0] - 1, x.shape[1])
    bags = torch.arange(x.shape[0]), offsets.long(), False, 2  # 2: the largest, which NaN after the first never is
    best, event = torch.embedding_bag(x, *bags, include_last_offset=True)[::3]
    missing = x.isnan()
    if bool(missing.any()):
        found, first = torch.embedding_bag(missing.to(x.dtype), *bags, include_last_offset=True)[::3]
        best, event = best.masked_fill(found > 0, torch.nan), torch.where(found > 0, first, event)
    return best, event.long()


def _exponents(x: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return `exp(x - m)` of events `(T, W)`, the `m` of each row `(B, W)`, its largest where finite, and the sums."""
    wide = _wide(x)
    largest = torch.nan_to_num(_largest(wide, offsets)[0], nan=0.0, posinf=0.0, neginf=0.0)
    raised = (wide - largest[row_index(offsets, x.shape[0])]).exp_()
    return raised, largest, row_sums(raised, offsets)


def _over(sums: Tensor) -> Tensor:
    """Return 1 over sums of exponents, 0 where nothing was added."""
    return sums.reciprocal().masked_fill_(sums == 0, 0.0)


@operator("serrate::pool_cpu", device_types="cpu")
def _pool(x: Tensor, offsets: Tensor, weights: Tensor | None, how: str, softmax: bool) -> tuple[Tensor, Tensor]:
    rows = offsets.shape[0] - 1
    kept = like_kept(x, weights, rows, how, softmax)
    if softmax and weights is not None:
        raised, kept[..., -2], sums = _exponents(weights, offsets)
        kept[..., -1] = sums
        out = kept[..., :-2] = row_sums(_wide(x) * raised[..., None], offsets) * _over(sums)[..., None]
    elif weights is not None:
        out = row_sums(_wide(x) * _wide(weights)[..., None], offsets)
    elif how == "max":
        best, event = _largest(x.flatten(1), offsets)
        out = best.reshape(kept.shape)
        kept.copy_(event.reshape(kept.shape) - offsets[:-1, None, None])
    elif how == "logsumexp":
        _, largest, sums = _exponents(x.flatten(1), offsets)
        kept[0], kept[1] = largest.reshape(kept[0].shape), sums.reshape(kept[1].shape)
        out = kept[0] + kept[1].log()
    else:
        out = row_sums(x, offsets)
        if how == "mean":
            out /= offsets.diff().clamp(min=1)[:, None, None]
    return out.to(x.dtype), kept


@operator("serrate::pool_cpu_backward", device_types="cpu")
def _pool_backward(grad: Tensor, offsets: Tensor, x: Tensor | None, weights: Tensor | None, kept: Tensor,
                   how: str, softmax: bool, events: int) -> list[Tensor]:
    """Return the gradient of x, and that of the weights where there are some."""
    row = row_index(offsets, events)
    wide = _wide(grad)
    if weights is not None and x is not None:
        each = wide[row]
        d_weights = (each * x).sum(-1)
        scale = _wide(weights)
        if softmax:
            scale = (scale - kept[..., -2][row]).exp_() * _over(kept[..., -1])[row]
            d_weights = scale * (d_weights - (wide * kept[..., :-2]).sum(-1)[row])
        return [(each * scale[..., None]).to(grad.dtype), d_weights.to(weights.dtype)]
    if how == "max":
        d_x = grad.new_zeros(events, *grad.shape[1:])
        filled = offsets.diff() > 0
        d_x.scatter_(0, (kept + offsets[:-1, None, None])[filled].long(), grad[filled])
        return [d_x]
    if how == "logsumexp" and x is not None:
        share = wide * _over(kept[1])
        return [((_wide(x) - kept[0][row]).exp_() * share[row]).to(grad.dtype).contiguous()]
    if how == "mean":
        wide = wide / offsets.diff().clamp(min=1)[:, None, None]
    return [wide.to(grad.dtype)[row]]


@operator("serrate::softmax_cpu", device_types="cpu")
def _softmax(x: Tensor, offsets: Tensor) -> Tensor:
    raised, _, sums = _exponents(x, offsets)
    return raised.mul_(_over(sums)[row_index(offsets, x.shape[0])]).to(x.dtype).contiguous()


@operator("serrate::softmax_cpu_backward", device_types="cpu")
def _softmax_backward(grad: Tensor, y: Tensor, offsets: Tensor) -> Tensor:
    along = _wide(grad) * y
    return along.sub_(row_sums(along, offsets)[row_index(offsets, y.shape[0])] * y).to(y.dtype).contiguous()


register_pool(_pool, _pool_backward)
register_softmax(_softmax, _softmax_backward)
