"""Foreign formats to jagged tensors and back, without copying where the format allows.

A result may share memory with its source, also read-only memory: a `JaggedTensor` is not to be written to.
What `from_…` takes is checked; `to_…` functions that leave torch detach, and copy to the CPU what is elsewhere.
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from .batch import EventBatch
from .edit import concatenate_rows, sized_offsets, split_rows, take_events
from .tensor import JaggedTensor, offsets_from_lengths, readable

# ── Python lists ──────────────────────────────────────────────────────────────────────────────────────────


def from_lists(rows: Sequence[Sequence], dtype: torch.dtype | None = None) -> JaggedTensor:
    """Return rows given as lists of numbers (or of equally nested lists), or as tensors `(length, *)`.

    Args:
        rows: `B` rows. Tensors keep device and gradient; empty ones do not take part in the choice of a dtype.
        dtype: of the values; by default what `torch.tensor` chooses, so float32 where there is no event at all.

    Raises:
        InvalidArgument: a row that is no list, or events that are no numbers of one shape.
    """
    if len(rows) and all(isinstance(row, Tensor) for row in rows):
        return _from_tensors(rows, dtype)
    for i, row in enumerate(rows):
        if not isinstance(row, Sequence) or isinstance(row, (str, bytes)):
            raise InvalidArgument(f"rows[{i}]", "a list", type(row).__name__)
    try:
        values = torch.tensor(list(chain.from_iterable(rows)), dtype=dtype)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise InvalidArgument("rows", "numbers of one shape", error) from None
    return JaggedTensor(values, offsets_from_lengths(torch.tensor([len(row) for row in rows], dtype=torch.int64)))


def to_lists(x: JaggedTensor) -> list[list]:
    """Return the rows as nested Python lists."""
    return x.tolist()


def _from_tensors(rows: Sequence[Any], dtype: torch.dtype | None) -> JaggedTensor:
    for i, row in enumerate(rows):
        if row.dim() < 1:
            raise InvalidArgument(f"rows[{i}]", "shape (length, ...)", tuple(row.shape))
    filled = [row for row in rows if row.shape[0]] or [rows[0]]
    for row in filled:
        if row.shape[1:] != filled[0].shape[1:] or row.device != filled[0].device:
            expected = f"events {tuple(filled[0].shape[1:])} on {filled[0].device} in every row"
            raise InvalidArgument("rows", expected, f"{tuple(row.shape[1:])} on {row.device}")
    values = torch.cat(filled).to(dtype=dtype)
    offsets = offsets_from_lengths(torch.tensor([row.shape[0] for row in rows], dtype=torch.int64))
    return JaggedTensor(values, offsets.to(values.device), max(row.shape[0] for row in rows))


# ── padded ────────────────────────────────────────────────────────────────────────────────────────────────


def from_padded(values: Tensor, lengths: Tensor, *, side: str = "right",
                num_events: int | None = None) -> JaggedTensor:
    """Return the events of a padded tensor; a view where there is no padding.

    Args:
        values: `(B, N, *)`.
        lengths: `(B,)` int32 or int64, each in 0 … N (unchecked on an accelerator); the dtype of the offsets.
        side: where the padding is, "right" or "left" of the events.
        num_events: the sum of the lengths, if known; then nothing waits for an accelerator.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit, a length beyond N, another side.
    """
    _require_padded(values)
    _require_side(side)
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int32, torch.int64):
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise InvalidArgument("lengths", "an int32 or int64 tensor", got)
    if lengths.shape != values.shape[:1] or lengths.device != values.device:
        got = f"{tuple(lengths.shape)} on {lengths.device}"
        raise InvalidArgument("lengths", f"shape ({values.shape[0]},) on {values.device}", got)
    longest = values.shape[1]
    if readable(lengths) and lengths.numel() and not 0 <= int(lengths.min()) <= int(lengths.max()) <= longest:
        raise InvalidArgument("lengths", f"0 … N = {longest}", int(lengths[(lengths < 0) | (lengths > longest)][0]))
    offsets, total = sized_offsets(lengths, num_events)
    flat = values.flatten(0, 1)
    if total < flat.shape[0]:
        flat = flat[_padded_positions(offsets, longest, side, total)]
    return JaggedTensor(flat, offsets, None if readable(offsets) else longest)


def to_padded(x: JaggedTensor, fill: float = 0, *, side: str = "right",
              length: int | None = None) -> tuple[Tensor, Tensor]:
    """Return `(padded (B, N, *), lengths (B,))`; `padded` is a view where no row is shorter than N.

    Args:
        x: the rows.
        fill: what the padding holds.
        side: where the padding goes, "right" or "left" of the events.
        length: N; by default `x.longest`, for which an accelerator is waited for where it is not known.

    Raises:
        InvalidArgument: a row longer than `length`, another side.
    """
    _require_side(side)
    rows = x.offsets.shape[0] - 1
    longest = x.longest
    if longest is None:
        longest = int(x.lengths.max()) if rows else 0
    if length is not None and length < longest:
        raise InvalidArgument("length", f"at least {longest}, the longest row (newest and oldest cut)", length)
    longest = longest if length is None else length
    if x.num_events == rows * longest:
        return x.values.unflatten(0, (rows, longest)), x.lengths
    padding = x.values.new_full((rows * longest, *x.values.shape[1:]), fill)
    positions = _padded_positions(x.offsets, longest, side, x.num_events)
    return padding.index_copy(0, positions, x.values).unflatten(0, (rows, longest)), x.lengths


def from_masked(values: Tensor, mask: Tensor, *, num_events: int | None = None) -> JaggedTensor:
    """Return the events that `mask` marks, in their order; a view where it marks all.

    Padding may be on either side, and the mask may have holes. Note that some torch modules take the opposite
    mask, true at the padding.

    Args:
        values: `(B, N, *)`.
        mask: `(B, N)` boolean or integer; true or not 0 at an event.
        num_events: how many are marked, if known; then nothing waits for an accelerator.

    Raises:
        InvalidArgument: shapes, dtypes or devices that do not fit; a wrong `num_events`.
    """
    _require_padded(values)
    if not isinstance(mask, Tensor) or mask.is_floating_point() or mask.is_complex():
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise InvalidArgument("mask", "a boolean or integer tensor", got)
    if mask.shape != values.shape[:2] or mask.device != values.device:
        got = f"{tuple(mask.shape)} on {mask.device}"
        raise InvalidArgument("mask", f"shape {tuple(values.shape[:2])} on {values.device}", got)
    marked = mask != 0
    offsets, total = sized_offsets(marked.sum(1), num_events)
    flat = values.flatten(0, 1)
    if total < flat.shape[0]:
        flat = flat[torch.nonzero_static(marked.flatten(), size=total).squeeze(1)]
    return JaggedTensor(flat, offsets, None if readable(offsets) else values.shape[1])


def to_masked(x: JaggedTensor, fill: float = 0, *, side: str = "right",
              length: int | None = None) -> tuple[Tensor, Tensor]:
    """Return `(padded (B, N, *), mask (B, N) bool)`, the mask true at events; otherwise as `to_padded`."""
    padded, lengths = to_padded(x, fill, side=side, length=length)
    column = torch.arange(padded.shape[1], device=x.device)
    if side == "left":
        column = column.flip(0)
    return padded, column < lengths.unsqueeze(1)


def _padded_positions(offsets: Tensor, longest: int, side: str, num_events: int) -> Tensor:
    """`(T,)` int64: where each event is among the `B * longest` cells of the padded tensor."""
    begins, ends = offsets[:-1], offsets[1:]
    cells = torch.arange(1 if side == "left" else 0, offsets.shape[0] - (side == "right"), device=offsets.device)
    shift = cells * longest - (ends if side == "left" else begins)
    shift = torch.repeat_interleave(shift, ends - begins, output_size=num_events)
    return shift + torch.arange(num_events, device=offsets.device)


def _require_padded(values: object) -> None:
    if not isinstance(values, Tensor) or values.dim() < 2:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise InvalidArgument("values", "a tensor (B, N, ...)", got)


def _require_side(side: str) -> None:
    if side not in ("left", "right"):
        raise InvalidArgument("side", "'left' or 'right'", repr(side))


# ── Arrow ─────────────────────────────────────────────────────────────────────────────────────────────────


def from_arrow(array: Any) -> JaggedTensor:
    """Return the rows of an Arrow list array; shares its memory, booleans and several chunks excepted.

    Args:
        array: an array or chunked array (or what exports one, such as a polars series) of type list (int32
            offsets), large_list (int64 offsets) or fixed_size_list; slices too. Its events are booleans, numbers,
            times (as the integers that Arrow stores) or fixed-size lists of these (an inner axis).
            A null row is an empty row; a null event is an error.

    Raises:
        InvalidArgument: another type, or a null among the events.
    """
    import pyarrow as pa  # here, because `import serrate.jagged` must not load it

    if isinstance(array, pa.ChunkedArray):
        chunks = array.chunks or [pa.array([], array.type)]
        return concatenate_rows([from_arrow(chunk) for chunk in chunks])
    if not isinstance(array, pa.Array):
        if hasattr(array, "__arrow_c_stream__"):
            return from_arrow(pa.chunked_array(array))
        if hasattr(array, "__arrow_c_array__"):
            return from_arrow(pa.array(array))
        raise InvalidArgument("array", "an Arrow list array", type(array).__name__)
    listed = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
    if not listed and not pa.types.is_fixed_size_list(array.type):
        raise InvalidArgument("array", "an Arrow list array", array.type)
    offsets = offsets_from_lengths(_arrow_lengths(array))
    if listed:
        within = torch.from_dlpack(array.offsets)
        first, last = int(within[0]), int(within[-1])
        if last - first == int(offsets[-1]):  # else null rows hide events
            offsets = within if first == 0 else within - first
            return JaggedTensor(_arrow_values(array.values.slice(first, last - first)), offsets)
    return JaggedTensor(_arrow_values(array.flatten()), offsets)  # flatten leaves out what null rows hide


def to_arrow(x: JaggedTensor) -> Any:
    """Return a pyarrow list array (large_list for int64 offsets); shares memory where values are contiguous.

    Inner axes become fixed-size lists; booleans are copied into bits.

    Raises:
        InvalidArgument: a dtype that Arrow lacks (bfloat16, complex), or an inner axis of size 0.
    """
    import pyarrow as pa

    if 0 in x.values.shape[1:]:
        raise InvalidArgument("values", "inner axes of at least 1", tuple(x.values.shape))
    values, offsets = to_numpy(x)
    try:
        events = pa.array(values.reshape(-1))
    except pa.ArrowNotImplementedError:
        raise InvalidArgument("values", "a dtype that Arrow has", x.dtype) from None
    for size in reversed(values.shape[1:]):
        events = pa.FixedSizeListArray.from_arrays(events, size)
    kind = pa.ListArray if x.offsets.dtype == torch.int32 else pa.LargeListArray
    return kind.from_arrays(pa.array(offsets), events)


def _arrow_lengths(array: Any) -> Tensor:
    import pyarrow.compute as pc

    return torch.from_dlpack(pc.fill_null(pc.call_function("list_value_length", [array]), 0))


def _arrow_values(events: Any) -> Tensor:
    import pyarrow as pa

    if events.null_count:
        raise InvalidArgument("array", "no null among the events (a null row is an empty row)", events.null_count)
    kind = events.type
    if pa.types.is_fixed_size_list(kind):
        return _arrow_values(events.flatten()).unflatten(0, (len(events), kind.list_size))
    if pa.types.is_boolean(kind):
        return torch.from_numpy(events.to_numpy(zero_copy_only=False))
    if pa.types.is_temporal(kind) and kind.bit_width in (32, 64):
        events = events.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise InvalidArgument("array", "events that are booleans, numbers or times", kind)
    return torch.from_dlpack(events)


# ── NumPy ─────────────────────────────────────────────────────────────────────────────────────────────────


def from_numpy(values: Any, offsets: np.ndarray | None = None) -> JaggedTensor:
    """Return the rows of NumPy arrays; with `offsets` it shares their memory, also of a read-only memory map.

    Args:
        values: `(T, *)` with `offsets`; without, `B` arrays `(length, *)` in an object array or a list, which are
            copied end to end. Empty ones do not take part in the choice of a dtype.
        offsets: `(B + 1,)` int32 or int64.

    Raises:
        InvalidArgument: a dtype that torch lacks, arrays that do not fit together, malformed offsets.
    """
    if offsets is not None:
        return JaggedTensor(_tensor("values", values), _tensor("offsets", offsets))
    if isinstance(values, np.ndarray) and values.dtype != object:
        raise InvalidArgument("values", "an object array of rows where there are no offsets", values.dtype)
    rows = [np.asarray(row) for row in values]
    lengths = torch.tensor([len(row) if row.ndim else -1 for row in rows], dtype=torch.int64)
    if bool((lengths < 0).any()):
        raise InvalidArgument(f"values[{int(lengths.argmin())}]", "an array (length, ...)", "a scalar")
    filled = [row for row in rows if len(row)] or rows[:1] or [np.empty(0, np.float32)]
    try:
        flat = np.concatenate(filled)
    except ValueError as error:
        raise InvalidArgument("values", "arrays of one inner shape", error) from None
    return JaggedTensor(_tensor("values", flat), offsets_from_lengths(lengths))


def to_numpy(x: JaggedTensor) -> tuple[np.ndarray, np.ndarray]:
    """Return `(values, offsets)` that share the memory of `x` where it is on the CPU.

    Raises:
        InvalidArgument: a dtype that NumPy lacks (bfloat16).
    """
    try:
        return x.values.detach().cpu().numpy(), x.offsets.cpu().numpy()
    except TypeError:
        raise InvalidArgument("values", "a dtype that NumPy has", x.dtype) from None


def _tensor(argument: str, array: Any) -> Tensor:
    if not isinstance(array, np.ndarray):
        raise InvalidArgument(argument, "a NumPy array", type(array).__name__)
    if any(stride < 0 for stride in array.strides):  # torch has none
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor will it be written
        try:
            return torch.from_numpy(array)
        except (TypeError, ValueError):
            raise InvalidArgument(argument, "a dtype that torch has", array.dtype) from None


# ── torch.nested and TorchRec ─────────────────────────────────────────────────────────────────────────────


def from_nested(nested: Tensor) -> JaggedTensor:
    """Return the rows of a nested tensor `(B, j, *)` of layout `torch.jagged`; shares its memory and gradient.

    One with holes (as `torch.nested.narrow` makes) is copied without them.

    Raises:
        InvalidArgument: another tensor, or one whose ragged axis is not the second.
    """
    if not isinstance(nested, Tensor) or not nested.is_nested or nested.layout != torch.jagged:
        got = f"layout {nested.layout}" if isinstance(nested, Tensor) else type(nested).__name__
        raise InvalidArgument("nested", "a nested tensor of layout torch.jagged", got)
    # no public name tells the ragged axis where torch.compile traces: sizes all look like integers there
    if nested._ragged_idx != 1:  # type: ignore[attr-defined]
        raise InvalidArgument("nested", "shape (B, ragged, ...)", tuple(nested.shape))
    # NestedTensor gives `lengths`, but the type of a tensor does not say so
    values, offsets, lengths = nested.values(), nested.offsets(), nested.lengths()  # type: ignore[attr-defined]
    if lengths is None:
        return JaggedTensor(values, offsets)
    return take_events(JaggedTensor.trusted(values, offsets), offsets[:-1], lengths)


def to_nested(x: JaggedTensor) -> Tensor:
    """Return a nested tensor `(B, j, *)` of layout `torch.jagged`; shares memory and gradient."""
    return torch.nested.nested_tensor_from_jagged(x.values, x.offsets, max_seqlen=x.longest)


def from_keyed(keyed: Any, *, weights: bool = False) -> dict[str, JaggedTensor]:
    """Return the features of a TorchRec `KeyedJaggedTensor`, as views; waits for the device if there is one.

    Features of the same rows make an `EventBatch(from_keyed(keyed))`.

    Args:
        keyed: what has `keys()`, `values()`, `offsets()` or `lengths()`, and `stride()` (or `stride_per_key()`).
        weights: whether to return the features' weights, `keyed.weights()`, in place of their values.

    Raises:
        InvalidArgument: offsets that do not fit keys and stride.
    """
    keys = list(keyed.keys())
    strides = list(keyed.stride_per_key()) if hasattr(keyed, "stride_per_key") else [keyed.stride()] * len(keys)
    values = keyed.weights() if weights else keyed.values()
    offsets = keyed.offsets() if hasattr(keyed, "offsets") else offsets_from_lengths(keyed.lengths())
    if sum(strides) != offsets.shape[0] - 1:
        raise InvalidArgument("keyed", f"{sum(strides)} rows for {len(keys)} keys", offsets.shape[0] - 1)
    return dict(zip(keys, split_rows(JaggedTensor(values, offsets), strides), strict=True))


def to_keyed(fields: Mapping[str, JaggedTensor] | EventBatch) -> dict[str, Any]:
    """Return `keys`, `values`, `lengths` for TorchRec: `KeyedJaggedTensor(**to_keyed(fields))`.

    Args:
        fields: name → rows, at least one; all of `B` rows, with values of one dtype and inner shape.

    Raises:
        InvalidArgument: no fields, or fields that do not fit together.
    """
    fields = fields.events if isinstance(fields, EventBatch) else fields
    rows = {name: len(field) for name, field in fields.items()}
    if len(set(rows.values())) > 1:
        raise InvalidArgument("fields", "the same number of rows in each", rows)
    stacked = concatenate_rows(list(fields.values()))
    return {"keys": list(fields), "values": stacked.values, "lengths": stacked.lengths}
