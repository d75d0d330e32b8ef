"""Encoders by hand, over every type a column may come in, and what they refuse or fall back on."""

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.data import CategoricalColumn, DenseColumn, Encoder, MultiColumn
from serrate.errors import InvalidData


def encoder(column, values):
    """An encoder fitted on values."""
    return Encoder.fitted(column, pa.array(values))


GENDER = CategoricalColumn(name="gender")
GENRES = MultiColumn(name="genres")
YEAR = DenseColumn(name="year")


def test_ids_count_the_values_in_ascending_order():
    found = encoder(GENDER, ["M", "F", None, "", "M", "X"])
    assert (found.known.to_pylist(), found.size) == (["F", "M", "X"], 4)
    ids = found.encode(pa.array(["X", "F", "M", "?", None, ""]))
    assert (ids.tolist(), ids.dtype) == ([3, 1, 2, 0, 0, 0], torch.int64)


@pytest.mark.parametrize(("known", "values", "ids"), [
    ([10, 2, 7], [7, 2, 10, 3], [2, 1, 3, 0]),
    ([10, 2, 7], ["7", "2", "10", "07"], [2, 1, 3, 0]),  # as they are written
    (["7", "10"], [7, 10, 1], [2, 1, 0]),  # text goes by its letters
    ([1.5, 0.5], [0.5, 1.5, 2.5], [1, 2, 0]),
    ([1, 2], [2.0, 1.5], [2, 0]),
    ([True, False], [False, True], [1, 2]),
    ([Decimal("1.5")], [1.5], [1]),
    ([None, None], ["a", None], [0, 0]),
    (["a"], [None, None], [0, 0]),
    ([], ["a"], [0]),
])
def test_values_of_all_types(known, values, ids):
    assert encoder(GENDER, known).encode(pa.array(values)).tolist() == ids


def test_arrow_has_many_types_of_text_and_chunks():
    found = encoder(GENDER, ["a", "b"])
    assert found.encode(pa.array(["b", "c"], type=pa.large_string())).tolist() == [2, 0]
    assert found.encode(pa.array(["b", "a", "b"]).dictionary_encode()).tolist() == [2, 1, 2]
    assert found.encode(pa.chunked_array([["b"], [], ["a", None]])).tolist() == [2, 1, 0]
    assert found.encode(pa.array([], type=pa.string())).tolist() == []


@pytest.mark.parametrize("values", [
    ["b|a", "", None, " a | zebra ||b"],
    [["b", "a"], [], None, ["a", "zebra", None, "", "b"]],
])
def test_several_values_are_rows(values):
    found = encoder(GENRES, ["a|b"])
    made = found.encode(pa.array(values))
    assert (made.values.tolist(), made.offsets.tolist(), made.longest) == ([2, 1, 1, 0, 2], [0, 2, 2, 2, 5], 3)
    assert found.size == 3


@given(st.lists(st.one_of(st.none(), st.lists(st.sampled_from(["a", "b", "?", ""]), max_size=4)), max_size=6))
def test_rows_of_several_values_are_those_of_a_loop(rows):
    made = encoder(GENRES, ["a", "b"]).encode(pa.array(rows, type=pa.list_(pa.string())))
    expected = [[{"a": 1, "b": 2}.get(value, 0) for value in row or [] if value] for row in rows]
    assert [row.tolist() for row in made] == expected


def test_numbers():
    found = encoder(YEAR, ["1995", "V"])
    made = found.encode(pa.array(["1995", " 2.5e1 ", "-.5", "V", "", None, "1e999", "nan", "0x10"]))
    assert made.dtype == torch.float32
    assert made[:3].tolist() == [1995, 25, -0.5]
    assert made[3:].isnan().all()
    assert found.encode(pa.array([3, None])).tolist()[0] == 3
    assert found.encode(pa.array([np.inf, np.nan, 1e300, 2.0])).isnan().tolist() == [True, True, True, False]
    assert found.encode(pa.array([None, None])).isnan().all()
    assert found.size is None


def test_ids_that_come_as_they_are():
    column = CategoricalColumn(name="ad", size=5)
    found = Encoder.fitted(column, pa.array([1, 2]))
    assert (found.size, found.known) == (5, None)
    assert found.encode(pa.array([1, 4, 5, 0, -1, None])).tolist() == [1, 4, 0, 0, 0, 0]
    with pytest.raises(InvalidData, match="feature 'ad': expected integers, as its size is given, got string"):
        found.encode(pa.array(["1"]))
    many = Encoder.fitted(MultiColumn(name="ads", size=5), pa.array([[1]]))
    assert many.encode(pa.array([[4, 9], []])).values.tolist() == [4, 0]


@pytest.mark.parametrize(("column", "known", "values", "line"), [
    (GENDER, ["M"], ["M", "F", "?"], "feature 'gender': 2 of 3 values are unknown, the first 'F'"),
    (GENDER, ["M"], ["M", None], "feature 'gender': 1 of 2 values are unknown, the first None"),
    (CategoricalColumn(name="ad", size=5), [1], [1, 5], "feature 'ad': 1 of 2 values are unknown, the first 5"),
    (GENRES, ["a|b"], ["a|c", "b"], "feature 'genres': 1 of 3 values are unknown, the first 'c'"),
    (YEAR, [1], ["1995", "V"], "feature 'year': 1 of 2 values are unknown, the first 'V'"),
    (YEAR, [1], [1.0, float("nan")], "feature 'year': 1 of 2 values are unknown, the first nan"),
])
def test_what_is_unknown_is_refused_where_that_is_asked_for(column, known, values, line):
    strict = encoder(column.model_copy(update={"unknown": "refuse"}), known)
    with pytest.raises(InvalidData, match=line):
        strict.encode(pa.array(values))
    encoder(column, known).encode(pa.array(values))


@pytest.mark.parametrize("values", [[b"a"], [{"a": 1}]])
def test_types_that_no_column_has_are_refused(values):
    with pytest.raises(InvalidData, match="feature 'gender': expected text or numbers, got"):
        encoder(GENDER, values)


def test_a_dense_column_without_a_number_is_no_dense_column():
    with pytest.raises(InvalidData, match="feature 'year': expected numbers, got none in 2 values"):
        encoder(YEAR, ["Comedy", "Drama"])
