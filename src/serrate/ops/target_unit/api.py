"""The contract of the target unit's first layer: shapes, numerics, errors and the choice of an implementation."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ...jagged import offsets_from_lengths
from ...jagged.tensor import readable
from .. import select


class Call(NamedTuple):
    """What an implementation is asked for: enough to say whether it can serve."""

    device: torch.device
    dtype: torch.dtype


class Reading(NamedTuple):
    """Which events targets read: target m those of row `rows[m]` of `offsets`, or of row m where that is None.

    offsets: `(B + 1,)` of the histories; rows: `(M,)`; ends: `(M + 1,)` offsets of what targets read, one after the
    other, `offsets` itself without rows; all int32 or int64. num_events: how many they read together, T'.
    """

    offsets: Tensor
    rows: Tensor | None
    ends: Tensor
    num_events: int


def target_unit(
    q: Tensor,
    k: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    offsets: Tensor,
    *,
    rows: Tensor | None = None,
    num_events: int | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Let each target meet each event of its history: `[q, k, q - k, q · k] @ weight + bias`, without these features.

    Row `b` of the histories is `[offsets[b], offsets[b + 1])`. Target `m` reads row `m`, or row `rows[m]`: many targets
    may read one history, which is not copied. Sums are float32 (float64 for float64 inputs) whatever the dtype.

    Args:
        q: `(M, D)` targets; float64, float32, bfloat16 or float16; any strides.
        k: `(T, D)` events; dtype and device of `q`; any strides.
        weight: `(4 D, F)`: of the target, of the event, of their difference and of their product; as `q`, any strides.
        bias: `(F,)`, as `q`; None: none.
        offsets: `(B + 1,)` int32 or int64, starts at 0, non-decreasing, ends at `T`; its contents are not read here.
        rows: `(M,)` int32 or int64, in any order, each from 0 to `B - 1`; None: M is B, and target `m` reads row `m`.
        num_events: how many events the targets read together; on a CPU it may be None, and is read from `rows`.
        implementation: a name from `implementations("target_unit")`, or None for the automatic choice.

    Returns:
        `(T', F)` of the dtype of `q`: for each target in turn its events; without `rows` T' is T. Differentiable in
        `q`, `k`, `weight` and `bias`; the gradient of an event is the sum over the targets that read it.

    Raises:
        InvalidArgument: shapes, dtypes, devices or numbers that do not fit.
        NotUsable: the implementation asked for cannot serve this call.

    Source: Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018 (arXiv 1706.06978); the
    features are those of the authors' code.
    """
    _check(q, k, weight, bias)
    _check_offsets(offsets, q, rows)
    reading = _reading(offsets.contiguous(), rows, num_events, k.shape[0])
    call = Call(q.device, q.dtype)
    return select.choose("target_unit", call, implementation).implementation.compute(q, k, weight, bias, reading)


def _check(q: Tensor, k: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if q.dim() != 2 or q.shape[1] < 1:
        raise InvalidArgument("q", "shape (M, D) with D >= 1", tuple(q.shape))
    if not q.dtype.is_floating_point:
        raise InvalidArgument("q", "a floating-point dtype", q.dtype)
    if k.dim() != 2 or k.shape[1] != q.shape[1]:
        raise InvalidArgument("k", f"shape (T, {q.shape[1]})", tuple(k.shape))
    if weight.dim() != 2 or weight.shape[0] != 4 * q.shape[1] or weight.shape[1] < 1:
        raise InvalidArgument("weight", f"shape ({4 * q.shape[1]}, F) with F >= 1", tuple(weight.shape))
    if bias is not None and bias.shape != weight.shape[1:]:
        raise InvalidArgument("bias", f"shape ({weight.shape[1]},)", tuple(bias.shape))
    for name, tensor in (("k", k), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != q.dtype:
            raise InvalidArgument(name, f"{q.dtype}, as q", tensor.dtype)
        if tensor is not None and tensor.device != q.device:
            raise InvalidArgument(name, f"a tensor on {q.device}, as q", tensor.device)


def _check_offsets(offsets: Tensor, q: Tensor, rows: Tensor | None) -> None:
    if offsets.dim() != 1 or offsets.shape[0] < 1 or offsets.dtype not in (torch.int32, torch.int64):
        got = f"{tuple(offsets.shape)} {offsets.dtype}"
        raise InvalidArgument("offsets", "shape (B + 1,), dtype int32 or int64", got)
    if offsets.device != q.device:
        raise InvalidArgument("offsets", f"a tensor on {q.device}, as q", offsets.device)
    if rows is None:
        if q.shape[0] != offsets.shape[0] - 1:
            raise InvalidArgument("q", f"{offsets.shape[0] - 1} targets, as offsets has rows, or rows", q.shape[0])
        return
    if rows.shape != q.shape[:1] or rows.dtype not in (torch.int32, torch.int64):
        got = f"{tuple(rows.shape)} {rows.dtype}"
        raise InvalidArgument("rows", f"shape ({q.shape[0]},), dtype int32 or int64", got)
    if rows.device != q.device:
        raise InvalidArgument("rows", f"a tensor on {q.device}, as q", rows.device)


def _reading(offsets: Tensor, rows: Tensor | None, num_events: int | None, events: int) -> Reading:
    if rows is None:
        if num_events not in (None, events):
            raise InvalidArgument("num_events", f"{events}, or None, without rows", num_events)
        return Reading(offsets, None, offsets, events)
    lengths = offsets.diff()[rows]
    ends = offsets_from_lengths(lengths.long())
    if readable(offsets):
        read = int(ends[-1])
        if num_events not in (None, read):
            raise InvalidArgument("num_events", f"{read}, the events that the targets read", num_events)
        num_events = read
    if num_events is None:
        raise InvalidArgument("num_events", "a number, as rows cannot be read here without waiting", None)
    return Reading(offsets, rows, ends, num_events)
