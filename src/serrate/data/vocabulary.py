"""Raw ids (integers or strings) ↔ dense ids `0 … len - 1`."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..errors import InvalidArgument, InvalidData
from ..files import write_aside


class Vocabulary:
    """The raw ids in dense order, with the count of events of each and its title where they are known.

    Args:
        ids: raw ids in dense order, all integers or all strings, none twice (a list, NumPy or Arrow array).
        counts: events of each id, or None.
        titles: a title or None for each id, or None when there are no titles.

    Raises:
        InvalidArgument: ids of two types, an id twice, or parts of different lengths.
    """

    def __init__(self, ids: Any, counts: Any = None, titles: Any = None):
        self._ids = _raw_array(ids)
        if len(self._ids.unique()) != len(self._ids):
            raise InvalidArgument("ids", "each id once", "an id twice")
        self._titles = None if titles is None else _array(titles, pa.string(), "titles")
        self.counts: np.ndarray | None = None if counts is None else np.asarray(counts, dtype=np.int64)
        for name, part in (("counts", self.counts), ("titles", self._titles)):
            if part is not None and len(part) != len(self._ids):
                raise InvalidArgument(name, f"{len(self._ids)} entries, one an id", len(part))

    @property
    def kind(self) -> str:
        """`"integer"` or `"string"`, the type of the raw ids."""
        return "integer" if pa.types.is_integer(self._ids.type) else "string"

    @cached_property
    def titles(self) -> list[str | None] | None:
        """Titles in dense order, None for an id without one; None when the log came without titles."""
        return None if self._titles is None else self._titles.to_pylist()

    def __len__(self) -> int:
        return len(self._ids)

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} {self.kind} ids)"

    def encode(self, ids: Iterable[Any]) -> np.ndarray:
        """Return the dense ids `(n,)` int64 of raw `ids`, -1 for an unknown one.

        Integer ids may also be spelled as text and the other way round (`12` and `"12"`), as they come from
        JSON or a command line; any other value is unknown.
        """
        wanted = _wanted(ids, self._ids.type)
        found = pc.call_function("index_in", [wanted], pc.SetLookupOptions(value_set=self._ids))
        return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)

    def decode(self, dense: Any) -> list[Any]:
        """Return the raw ids of dense ids `(n,)`; raise `InvalidArgument` for one out of range."""
        rows = np.asarray(dense, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            wrong = int(rows[(rows < 0) | (rows >= len(self))][0])
            raise InvalidArgument("dense", f"ids of 0 … {len(self) - 1}", wrong)
        return self._ids.take(pa.array(rows)).to_pylist()

    def keys(self) -> np.ndarray:
        """Return a number for each id, `(n,)` int64, 0 or more, that depends on the raw id alone: the same in any log.

        Of an integer the lower 63 bits, so that ids counted from somewhere have keys that are; of text a hash of its
        UTF-8 bytes (64-bit FNV-1a, its upper half folded into the lower).
        """
        integer = pa.types.is_integer(self._ids.type)
        numbers = self._ids.to_numpy().astype(np.uint64) if integer else _text_hashes(self._ids)
        return (numbers & np.uint64(2**63 - 1)).astype(np.int64)

    def save(self, path: Path | str) -> None:
        """Write a Parquet file with column `id`, and `count` and `title` where they are known."""
        columns: dict[str, Any] = {"id": self._ids}
        if self.counts is not None:
            columns["count"] = self.counts
        if self._titles is not None:
            columns["title"] = self._titles
        with write_aside(Path(path)) as partial:
            pq.write_table(pa.table(columns), partial)

    @classmethod
    def load(cls, path: Path | str) -> "Vocabulary":
        """Read what `save` wrote; raise `InvalidData` for a missing or damaged file, or one without `id`."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowException) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
            raise InvalidData(f"{path}: cannot read the ids ({reason})") from None
        if "id" not in table.column_names:
            got = ", ".join(table.column_names) or "none"
            raise InvalidData(f"{path}: expected a column 'id', got {got}")
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        counts = columns["count"].to_numpy() if "count" in columns else None
        try:
            return cls(columns["id"], counts, columns.get("title"))
        except InvalidArgument as error:
            raise InvalidData(f"{path}: {error}") from None


def _raw_array(ids: Any) -> pa.Array:
    found = _array(ids, None, "ids")
    if len(found) == 0 and pa.types.is_null(found.type):
        return found.cast(pa.int64())
    if found.null_count:
        raise InvalidArgument("ids", "no null", f"{found.null_count} nulls")
    if pa.types.is_integer(found.type):
        return _array(found, pa.int64(), "ids")
    if found.type in (pa.string(), pa.large_string(), pa.string_view()):
        return found.cast(pa.large_string())
    raise InvalidArgument("ids", "integers or strings", str(found.type))


def _array(values: Any, kind: pa.DataType | None, argument: str) -> pa.Array:
    try:
        found = pa.array(values) if not isinstance(values, (pa.Array, pa.ChunkedArray)) else values
        found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
        return found if kind is None else found.cast(kind)
    except (pa.ArrowException, OverflowError):
        expected = "integers (64 bit) or strings, of one type" if argument == "ids" else str(kind)
        raise InvalidArgument(argument, expected, "other values") from None


def _text_hashes(texts: pa.Array) -> np.ndarray:
    """Return the hashes `(n,)` uint64 of large strings, one byte of all of them at a time."""
    _, offsets, data = texts.buffers()
    starts = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    content = np.frombuffer(data or b"", np.uint8)
    hashes = np.full(len(texts), 0xCBF29CE484222325, np.uint64)
    at, longer = 0, np.flatnonzero(np.diff(starts) > 0)
    while len(longer):
        hashes[longer] = (hashes[longer] ^ content[starts[longer] + at]) * np.uint64(0x100000001B3)
        at += 1
        longer = longer[starts[longer + 1] - starts[longer] > at]
    return hashes ^ (hashes >> np.uint64(32))


def _wanted(ids: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(ids, np.ndarray):
        values = ids.tolist()
    else:
        values = ids.to_pylist() if isinstance(ids, (pa.Array, pa.ChunkedArray)) else list(ids)
    integer = pa.types.is_integer(kind)
    return pa.array([_as_integer(value) if integer else _as_text(value) for value in values], type=kind)


def _as_integer(value: Any) -> int | None:
    if isinstance(value, str):
        try:
            number = int(value)
        except ValueError:
            return None
        return number if str(number) == value and -(2**63) <= number < 2**63 else None
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return int(value) if whole and -(2**63) <= value < 2**63 else None


def _as_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return str(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else None
