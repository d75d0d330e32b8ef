"""From values of a column, text or numbers, to ids and floats a model reads, the same in training and when serving.

Ids count from 1; 0 stands for what is unknown: a value that was not there when the ids were made, null or empty text.
Numbers are float32, and NaN stands for what is none.
"""

from typing import Annotated, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pydantic import Field
from torch import Tensor

from ..config import Config
from ..errors import InvalidData, shorten
from ..jagged import JaggedTensor, offsets_from_lengths
from .config import ColumnName


class _Column(Config):
    """What all columns have."""

    name: ColumnName = Field(description="how the model calls it")
    column: ColumnName | None = Field(default=None, description="the column that holds it; by default as its name")
    unknown: Literal["fallback", "refuse"] = Field(default="fallback", description="id 0 or NaN, or an error")

    @property
    def source(self) -> str:
        """The column that holds it."""
        return self.column or self.name


class _Ids(_Column):
    """What columns of ids have."""

    size: int | None = Field(default=None, ge=2, description="the values are ids already, 1 … size - 1; by default "
                                                             "they are counted as they are found, in ascending order")


class CategoricalColumn(_Ids):
    """One of several values, text or a number: a gender, a brand, an action."""

    kind: Literal["categorical"] = "categorical"


class MultiColumn(_Ids):
    """Any number of values: lists, or a text in which a separator stands between them, such as genres."""

    kind: Literal["multi"] = "multi"
    separator: str = Field(default="|", min_length=1)


class DenseColumn(_Column):
    """A number. Null, infinity and a text that is no number are unknown, for which the model has a fallback."""

    kind: Literal["dense"] = "dense"


_NUMBER = r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"

Column = Annotated[CategoricalColumn | MultiColumn | DenseColumn, Field(discriminator="kind")]


class Encoder:
    """Encodes the values of a column.

    Args:
        column: what kind of column it is.
        known: its distinct values, whose ids are their places from 1; None of dense columns and of those with a `size`.
    """

    def __init__(self, column: Column, known: pa.Array | None):
        self.column = column
        self.known = known

    @classmethod
    def fitted(cls, column: Column, values: Any) -> Self:
        """Make one from the values of a column that are known, an Arrow array.

        Raises:
            InvalidData: a type that the column cannot have, or a dense column without a number.
        """
        if isinstance(column, DenseColumn):
            if len(values) and np.isnan(_numbers(column, values)).all():
                raise InvalidData(f"feature {column.name!r}: expected numbers, got none in {len(values)} values")
            return cls(column, None)
        if column.size is not None:
            return cls(column, None)
        plain = _split(column, values)[0] if isinstance(column, MultiColumn) else _plain(column, values)
        known = plain.unique().drop_null()
        if pa.types.is_string(known.type):
            known = known.filter(_compute("not_equal", known, ""))
        return cls(column, known.take(_compute("array_sort_indices", known)))

    @property
    def size(self) -> int | None:
        """Rows of its embedding table, that of the unknown counted; None of a dense column."""
        if isinstance(self.column, DenseColumn):
            return None
        return self.column.size or len(self._known) + 1

    @property
    def _known(self) -> pa.Array:
        assert self.known is not None, "fitted() knows the values of a column without a size"
        return self.known

    def encode(self, values: Any) -> Tensor | JaggedTensor:
        """Return what a model reads of `values`, an Arrow array `(M,)`.

        Ids `(M,)` int64; of several values a `JaggedTensor` of `M` rows, int64; of numbers `(M,)` float32.

        Raises:
            InvalidData: values of a type that the column cannot have; one that is unknown, where those are refused.
        """
        if isinstance(self.column, DenseColumn):
            found = _numbers(self.column, values)
            self._refuse(np.isnan(found), values)
            return torch.from_numpy(found)
        if isinstance(self.column, MultiColumn):
            flat, lengths = _split(self.column, values)
            ids = torch.from_numpy(self._ids(flat))
            longest = int(lengths.max()) if len(lengths) else 0
            return JaggedTensor.trusted(ids, offsets_from_lengths(torch.from_numpy(lengths)), longest)
        return torch.from_numpy(self._ids(_plain(self.column, values)))

    def _ids(self, values: pa.Array) -> np.ndarray:
        if self.known is None:
            found = _whole(self.column, values)
            ids = np.where((found > 0) & (found < (self.size or 0)), found, 0)
        else:
            ids = places_of(values, self.known) + 1
        self._refuse(ids == 0, values)
        return ids

    def _refuse(self, unknown: np.ndarray, values: Any) -> None:
        """Raise for the first of `values` that is unknown, where those are refused."""
        if self.column.unknown == "refuse" and unknown.any():
            wrong = np.flatnonzero(unknown)
            raise InvalidData(f"feature {self.column.name!r}: {len(wrong)} of {len(values)} values are unknown, the "
                              f"first {shorten(repr(values[int(wrong[0])].as_py()))}")


def places_of(values: pa.Array, known: pa.Array) -> np.ndarray:
    """Return where each of `values` `(M,)` stands in `known`, int64, -1 for one that does not.

    Where one of the two is text and the other is not, numbers count as they are written: `12` is `"12"`.
    """
    if pa.types.is_null(values.type) or pa.types.is_null(known.type):
        return np.full(len(values), -1, dtype=np.int64)
    if values.type != known.type:
        kind = pa.string() if pa.types.is_string(values.type) or pa.types.is_string(known.type) else pa.float64()
        values, known = values.cast(kind), known.cast(kind)
    found = pc.call_function("index_in", [values], pc.SetLookupOptions(value_set=known, skip_nulls=True))
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _plain(column: Column, values: Any) -> pa.Array:
    """Return values as text, int64 or float64; what is a kind of these becomes it."""
    found = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    kind = found.type.value_type if pa.types.is_dictionary(found.type) else found.type
    if pa.types.is_null(kind):
        return found
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        plain = pa.int64()
    elif pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        plain = pa.float64()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        plain = pa.string()
    else:
        raise InvalidData(f"feature {column.name!r}: expected text or numbers, got {kind}")
    try:
        return found.cast(kind).cast(plain)
    except pa.ArrowException as error:
        raise InvalidData(f"feature {column.name!r}: {error}") from None


def _split(column: MultiColumn, values: Any) -> tuple[pa.Array, np.ndarray]:
    """Return all values of all rows end to end and how many each row has `(M,)` int64, without nulls and empty ones."""
    found = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if not (pa.types.is_list(found.type) or pa.types.is_large_list(found.type)):
        text = _plain(column, found).cast(pa.string())
        found = pc.call_function("split_pattern", [text], pc.SplitPatternOptions(pattern=column.separator))
    counts = _compute("list_value_length", found).fill_null(0).to_numpy(zero_copy_only=False)
    flat = _plain(column, found.flatten())
    kept = flat.is_valid()
    if pa.types.is_string(flat.type):
        flat = _compute("utf8_trim_whitespace", flat)
        kept = _compute("not_equal", flat, "").fill_null(False)
    rows = np.repeat(np.arange(len(counts)), counts)[kept.to_numpy(zero_copy_only=False)]
    return flat.filter(kept), np.bincount(rows, minlength=len(counts)).astype(np.int64)


def _whole(column: Column, values: pa.Array) -> np.ndarray:
    """Return `values` as integers `(M,)`, 0 for null."""
    if pa.types.is_null(values.type):
        return np.zeros(len(values), dtype=np.int64)
    if not pa.types.is_integer(values.type):
        raise InvalidData(f"feature {column.name!r}: expected integers, as its size is given, got {values.type}")
    return values.fill_null(0).to_numpy(zero_copy_only=False)


def _numbers(column: Column, values: Any) -> np.ndarray:
    """Return `values` as numbers `(M,)` float32, NaN for what is no finite number."""
    plain = _plain(column, values)
    if pa.types.is_string(plain.type):
        text = _compute("utf8_trim_whitespace", plain)
        number = pc.call_function("match_substring_regex", [text], pc.MatchSubstringOptions(pattern=_NUMBER))
        plain = _compute("if_else", number, text, pa.scalar(None, pa.string()))
    found = plain.cast(pa.float64()).fill_null(float("nan")).to_numpy(zero_copy_only=False)
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    return np.where(np.isfinite(single), single, np.float32("nan"))


def _compute(function: str, *arguments: Any) -> Any:
    """Call a function of Arrow by its name, as type checkers know only so many of its module."""
    return pc.call_function(function, list(arguments))
