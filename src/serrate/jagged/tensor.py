"""`JaggedTensor`: rows of unequal length kept as values + offsets, never padded."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self, overload

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..errors import InvalidArgument

_OFFSET_DTYPES = (torch.int32, torch.int64)
INT32_MAX = torch.iinfo(torch.int32).max


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class JaggedTensor:
    """`B` rows of unequal length: row `b` is `values[offsets[b]:offsets[b + 1]]`.

    Immutable. Built through `JaggedTensor(values, offsets)` it is checked; inside the library, where the
    parts are known to fit, `JaggedTensor.trusted` skips the checks. On an accelerator the *contents* of
    `offsets` are not checked, because reading them would wait for the device; `check()` does that on request.

    Attributes:
        values: `(T, *)` any dtype, the rows end to end.
        offsets: `(B + 1,)` int32 or int64, on the device of `values`; starts at 0, non-decreasing, ends at `T`.
        longest: length of the longest row (`N`), or None when it is not known on the host. From a caller,
            or after an edit on an accelerator, it is a bound: no row is longer.

    Raises:
        InvalidArgument: values without a first axis; offsets of a wrong shape, dtype, device or content.
    """

    values: Tensor
    offsets: Tensor
    longest: int | None = None

    def __post_init__(self) -> None:
        """Check the parts against each other; see the class."""
        values, offsets = self.values, self.offsets
        _require_values(values)
        _require_tensor("offsets", offsets)
        if offsets.dim() != 1 or offsets.shape[0] < 1:
            raise InvalidArgument("offsets", "shape (B + 1,)", tuple(offsets.shape))
        if offsets.dtype not in _OFFSET_DTYPES:
            raise InvalidArgument("offsets", "dtype int32 or int64", offsets.dtype)
        if offsets.device != values.device:
            raise InvalidArgument("offsets", f"a tensor on {values.device}, as values", offsets.device)
        if readable(offsets):
            self.check()

    @classmethod
    def trusted(cls, values: Tensor, offsets: Tensor, longest: int | None = None) -> Self:
        """Build without checks, for callers that made `offsets` themselves."""
        made = object.__new__(cls)
        object.__setattr__(made, "values", values)
        object.__setattr__(made, "offsets", offsets)
        object.__setattr__(made, "longest", longest)
        return made

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Tensor) -> Self:
        """Build from `values` `(T, *)` and `lengths` `(B,)` int32 or int64, checked."""
        _require_values(values)
        _require_tensor("lengths", lengths)
        if lengths.dim() != 1 or lengths.dtype not in _OFFSET_DTYPES:
            got = f"{tuple(lengths.shape)} {lengths.dtype}"
            raise InvalidArgument("lengths", "shape (B,), dtype int32 or int64", got)
        if readable(lengths):
            if lengths.numel() and int(lengths.min()) < 0:
                raise InvalidArgument("lengths", "entries of at least 0", int(lengths.min()))
            if int(lengths.sum()) != values.shape[0]:
                raise InvalidArgument("lengths", f"a sum of T = {values.shape[0]}", int(lengths.sum()))
        return cls(values, offsets_from_lengths(lengths if values.shape[0] <= INT32_MAX else lengths.long()))

    def check(self) -> None:
        """Check the contents of `offsets` (waits for the device if there is one); raise `InvalidArgument`.

        Afterwards `longest` is known.
        """
        offsets = self.offsets.cpu()
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0:
            raise InvalidArgument("offsets", "a first entry of 0", first)
        falls = offsets[1:] < offsets[:-1]  # compared, not subtracted: a difference can overflow
        if bool(falls.any()):
            row = int(falls.nonzero()[0])
            raise InvalidArgument("offsets", "non-decreasing entries", offsets[row : row + 2].tolist())
        if last != self.values.shape[0]:
            raise InvalidArgument("offsets", f"a last entry of T = {self.values.shape[0]}", last)
        longest = longest_row(offsets)
        if self.longest is None:
            object.__setattr__(self, "longest", longest)
        elif longest is not None and self.longest < longest:
            raise InvalidArgument("longest", f"at least {longest}, the longest row", self.longest)

    @property
    def lengths(self) -> Tensor:
        """`(B,)` the length of each row, in the dtype of `offsets`."""
        return self.offsets.diff()

    @property
    def device(self) -> torch.device:
        """The device of both parts."""
        return self.values.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the values."""
        return self.values.dtype

    @property
    def num_events(self) -> int:
        """`T`, the events of all rows together."""
        return self.values.shape[0]

    def __len__(self) -> int:
        return self.offsets.shape[0] - 1

    @overload
    def __getitem__(self, rows: int) -> Tensor: ...
    @overload
    def __getitem__(self, rows: slice) -> "JaggedTensor": ...
    def __getitem__(self, rows: int | slice) -> "Tensor | JaggedTensor":
        """Return row `rows` as `(length, *)`, or the rows of a slice as a `JaggedTensor`.

        Reads offsets on the host, so it waits for the device if there is one.
        """
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            if step != 1:
                raise InvalidArgument("rows", "step 1 (gather_rows takes any order)", f"step {step}")
            stop = max(start, stop)
            offsets = self.offsets[start : stop + 1]
            first, last = int(offsets[0]), int(offsets[-1])
            offsets = offsets - first if first else offsets
            return JaggedTensor.trusted(self.values[first:last], offsets, longest_row(offsets, self.longest))
        row = rows + len(self) if rows < 0 else rows
        if not 0 <= row < len(self):
            raise IndexError(f"row {rows} of a JaggedTensor of {len(self)} rows")
        return self.values[int(self.offsets[row]) : int(self.offsets[row + 1])]

    def __iter__(self) -> Iterator[Tensor]:
        """Yield each row as `(length, *)`."""
        return iter(self.values.split(self.lengths.tolist()))

    def with_values(self, values: Tensor) -> "JaggedTensor":
        """Return the same rows over other `values` `(T, *)`, on the same device; offsets are shared."""
        if values.shape[:1] != self.values.shape[:1]:
            raise InvalidArgument("values", f"shape ({self.num_events}, ...)", tuple(values.shape))
        if values.device != self.device:
            raise InvalidArgument("values", f"a tensor on {self.device}", values.device)
        return JaggedTensor.trusted(values, self.offsets, self.longest)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None,
           non_blocking: bool = False) -> "JaggedTensor":
        """Return on `device` with values of `dtype`; offsets keep their dtype. Shares what stays."""
        values = self.values.to(device=device, dtype=dtype, non_blocking=non_blocking)
        offsets = self.offsets.to(device=device, non_blocking=non_blocking)
        return JaggedTensor.trusted(values, offsets, self.longest)

    def pin_memory(self) -> "JaggedTensor":
        """Return a copy in page-locked host memory, for asynchronous moves to a GPU."""
        return JaggedTensor.trusted(self.values.pin_memory(), self.offsets.pin_memory(), self.longest)

    def detach(self) -> "JaggedTensor":
        """Return the same rows without gradient history."""
        return JaggedTensor.trusted(self.values.detach(), self.offsets, self.longest)

    def row_index(self) -> Tensor:
        """`(T,)` int64: the row each event belongs to. No host synchronisation."""
        rows = torch.arange(self.offsets.shape[0] - 1, device=self.device)
        return torch.repeat_interleave(rows, self.lengths, output_size=self.num_events)

    def tolist(self) -> list[list]:
        """Return the rows as nested Python lists."""
        return [row.tolist() for row in self]

    def __repr__(self) -> str:
        shape = "".join(f", {size}" for size in self.values.shape[1:])
        longest = "?" if self.longest is None else self.longest
        head = (f"JaggedTensor({len(self)} rows, {self.num_events} events, longest {longest}; "
                f"values (T{shape}) {str(self.dtype).removeprefix('torch.')} on {self.device})")
        if self.device.type != "cpu" or self.values.dim() > 1 or type(self.values) is not Tensor:
            return head  # printing contents would wait for the device, or fill the screen
        rows = [_short(row.tolist()) for row in self[:6]]
        return "\n".join([head, *(f"  {row}" for row in rows), *(["  …"] if len(self) > 6 else [])])


def offsets_from_lengths(lengths: Tensor) -> Tensor:
    """`(B + 1,)` offsets of rows of `lengths` `(B,)`, same dtype and device. No host synchronisation."""
    zero = torch.zeros(1, dtype=lengths.dtype, device=lengths.device)
    return torch.cat([zero, lengths.cumsum(0, dtype=lengths.dtype)])


def readable(offsets: Tensor) -> bool:
    """Whether the contents of `offsets` can be read here and now without waiting for a device."""
    return type(offsets) is Tensor and offsets.device.type == "cpu" and not torch.compiler.is_compiling()


def longest_row(offsets: Tensor, bound: int | None = None) -> int | None:
    """Return the length of the longest row of `offsets` `(B + 1,)`, or `bound` if they are not `readable`."""
    if not readable(offsets):
        return bound
    return int(offsets.diff().max()) if offsets.shape[0] > 1 else 0


def _require_tensor(argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise InvalidArgument(argument, "a tensor", type(value).__name__)


def _require_values(values: object) -> None:
    _require_tensor("values", values)
    if isinstance(values, Tensor) and values.dim() < 1:
        raise InvalidArgument("values", "shape (T, ...)", tuple(values.shape))


def _short(row: list, most: int = 8) -> str:
    shown = ", ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in row[:most])
    return f"[{shown}{', …' if len(row) > most else ''}]" + (f"  ({len(row)})" if len(row) > most else "")


def named_parts(names: Iterable[str], parts: Iterable[Any]) -> tuple[list[tuple[Any, Any]], None]:
    """Return what pytree's `flatten_with_keys_fn` gives: each part with the name of its attribute."""
    return list(zip(map(pytree.GetAttrKey, names), parts, strict=True)), None


pytree.register_pytree_node(  # so that a JaggedTensor goes whole through torch.export and tree_map
    JaggedTensor, lambda jagged: ([jagged.values, jagged.offsets], None),
    lambda parts, _: JaggedTensor.trusted(*parts),  # unchecked: the parts may be anything that tree_map made
    flatten_with_keys_fn=lambda jagged: named_parts(("values", "offsets"), (jagged.values, jagged.offsets)),
    serialized_type_name="serrate.JaggedTensor",
)
