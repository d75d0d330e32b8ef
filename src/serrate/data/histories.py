"""`Histories`: a prepared log, one flat memory-mapped array a field, one row a user.

A prepared data set is a folder:

    dataset.json    format version, the `DataConfig`, fields, statistics
    offsets.npy     (num_users + 1,) int64; row = user in raw-id order
    item.npy        (num_events,) int32 dense item ids; a row's events are in time order
    time.npy        (num_events,) int64, when the log has times
    weight.npy, feature_<i>.npy    further fields of (num_events,)
    items.parquet   raw ids of items in dense order: id, count, title
    users.parquet   raw ids of users in row order: id, count
"""

import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument, InvalidData, suggest
from ..jagged import JaggedTensor
from .times import ticks_per_second
from .vocabulary import Vocabulary

FORMAT_VERSION = 1


def is_prepared(path: str | Path) -> bool:
    """Return whether there is a prepared data set at a path."""
    return (Path(path) / "dataset.json").exists()


class Histories:
    """The histories of all users, opened from a prepared folder; arrays stay on disk until they are touched.

    Attributes:
        path: the folder.
        offsets: `(num_users + 1,)` int64.
        fields: name → `(num_events,)` tensor over the memory map: `item` int32; `time` int64 when the log has
            times; `weight` float32; features int64 or float32. Treat them as read-only.
    """

    def __init__(self, path: Path, offsets: Tensor, fields: dict[str, Tensor], description: dict[str, Any]):
        self.path = path
        self.offsets = offsets
        self.fields = fields
        self._description = description
        self._holder: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a prepared folder.

        Raises:
            InvalidData: no such folder, not a prepared data set, another format version, a part that is
                missing or whose size or type disagrees with `dataset.json`.
        """
        path = Path(path)
        description = _read_description(path)
        try:
            users, events = int(description["num_users"]), int(description["num_events"])
            parts = description["fields"].items()
            declared = {name: (str(part["file"]), str(part["dtype"])) for name, part in parts}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise InvalidData(f"{path}: dataset.json is not complete; prepare the data set again") from None
        offsets = _open_array(path / "offsets.npy", users + 1, "int64")
        first, last = int(offsets[0]), int(offsets[-1])
        if first != 0 or last != events or bool((offsets.diff() < 0).any()):
            raise InvalidData(f"{path / 'offsets.npy'}: expected rows that end at event {events}, got {last}")
        fields = {name: _open_array(path / file, events, dtype) for name, (file, dtype) in declared.items()}
        if "item" not in fields:
            raise InvalidData(f"{path}: dataset.json names no field 'item'")
        for part in ("items.parquet", "users.parquet"):
            if not (path / part).is_file():
                raise InvalidData(f"{path}: part {part} is missing; prepare the data set again")
        return cls(path, offsets, fields, description)

    def keep(self, folder: "tempfile.TemporaryDirectory[str]") -> None:
        """Hold a temporary folder for as long as these histories live."""
        self._holder = folder

    @property
    def num_users(self) -> int:
        """Number of rows; every user has at least one event."""
        return self.offsets.shape[0] - 1

    @property
    def num_items(self) -> int:
        """Number of dense item ids."""
        return int(self._description["num_items"])

    @property
    def num_events(self) -> int:
        """Events of all users together."""
        return int(self.offsets[-1])

    @property
    def has_time(self) -> bool:
        """Whether the log has times (an order by position or by file has none)."""
        return "time" in self.fields

    @property
    def time_unit(self) -> str | None:
        """`"microseconds"` since 1970 (UTC), `"integer"`: integers as they came, None: no times."""
        return self._description.get("time_unit")

    @cached_property
    def ticks_per_second(self) -> int:
        """How many units of `time` make a second; of integers as they came it is told by their size.

        10⁶ of microseconds; by the median of the users' newest times, of integers of 1e11 and more 10³, 10⁶ or 10⁹.
        """
        if not self.has_time or self.time_unit == "microseconds" or not self.num_users:
            return 10**6 if self.time_unit == "microseconds" else 1
        return ticks_per_second(int(self.fields["time"][self.offsets[1:] - 1].median()))

    @cached_property
    def items(self) -> Vocabulary:
        """Raw ids of the items in dense order (most frequent first, ties by raw id), counts and titles."""
        return self._vocabulary("items.parquet", self.num_items)

    @cached_property
    def users(self) -> Vocabulary:
        """Raw ids of the users in row order; read at the first use."""
        return self._vocabulary("users.parquet", self.num_users)

    def _vocabulary(self, part: str, size: int) -> Vocabulary:
        found = Vocabulary.load(self.path / part)
        if len(found) != size:
            raise InvalidData(f"{self.path / part}: expected {size} ids, got {len(found)}")
        return found

    def field(self, name: str) -> JaggedTensor:
        """Return field `name` as a `JaggedTensor` of `num_users` rows that shares the memory map."""
        if name not in self.fields:
            known = ", ".join(self.fields)
            raise InvalidArgument("field", f"one of {known}{suggest(name, self.fields)}", repr(name))
        return JaggedTensor.trusted(self.fields[name], self.offsets, self.longest)

    @cached_property
    def longest(self) -> int:
        """Events of the longest history."""
        return int(self.offsets.diff().max()) if self.num_users else 0

    @property
    def lengths(self) -> Tensor:
        """`(num_users,)` int64, the events of each user."""
        return self.offsets.diff()

    @property
    def config(self) -> dict[str, Any]:
        """The `DataConfig` that made this data set, as plain values."""
        return dict(self._description["config"])

    def summary(self) -> dict[str, Any]:
        """Return the statistics as plain values: sizes, history lengths, what was dropped, time span."""
        return {name: value for name, value in self._description.items() if name not in ("config", "fields")}

    def __len__(self) -> int:
        return self.num_users

    def __repr__(self) -> str:
        return (f"Histories({self.num_users} users, {self.num_items} items, {self.num_events} events: "
                f"{', '.join(self.fields)})")


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise InvalidData(f"{path}: expected the folder of a prepared data set, got {_what(path)}")
    try:
        description = json.loads((path / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidData(f"{path}: not a prepared data set (dataset.json is missing)") from None
    except OSError as error:
        raise InvalidData(f"{path / 'dataset.json'}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise InvalidData(f"{path / 'dataset.json'}: damaged, not JSON; prepare the data set again") from None
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise InvalidData(f"{path}: expected data set format {FORMAT_VERSION}, got {version}; prepare again")
    return description


def _open_array(path: Path, size: int, dtype: str) -> Tensor:
    """Map `(size,)` of `dtype` without reading it; copy-on-write, so that nothing reaches the file."""
    if size == 0:  # nothing can be mapped
        return torch.from_numpy(np.empty(0, dtype=dtype))
    try:
        array = np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        raise InvalidData(f"{path.parent}: part {path.name} is missing; prepare the data set again") from None
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or "shorter than it says, or not an array"
        raise InvalidData(f"{path}: damaged ({reason}); prepare the data set again") from None
    if array.shape != (size,) or str(array.dtype) != dtype:
        got = f"{array.shape} {array.dtype}"
        raise InvalidData(f"{path}: expected ({size},) {dtype}, got {got}; prepare the data set again")
    return torch.from_numpy(array)


def _what(path: Path) -> str:
    return "a file" if path.exists() else "nothing there"
