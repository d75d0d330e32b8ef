import math
from datetime import date, time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serrate.data import ColumnMapping, DataConfig, prepare
from serrate.errors import InvalidData

THERE = "there are 'user', 'item', 'time', 'rating'"
GOOD = {"user": [1, 1, 2], "item": [10, 11, 10], "time": [3, 4, 5], "rating": [1.0, 2.0, 3.0]}


def refused(log, columns, **config):
    """The one line with which a log is refused."""
    with pytest.raises(InvalidData) as raised:
        prepare(pa.table(log), DataConfig(columns=ColumnMapping(**columns), **config))
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize(("columns", "line"), [
    ({"user": "usr"}, f"table: no column 'usr' (user); {THERE} (did you mean 'user'?)"),
    ({"item": "ITEM"}, f"table: no column 'ITEM' (item); {THERE} (did you mean 'item'?)"),
    ({"time": "when"}, f"table: no column 'when' (time); {THERE}"),
    ({"features": ("rating", "shop")}, f"table: no column 'shop' (features); {THERE}"),
])
def test_a_missing_column_names_the_close_one_and_what_is_there(columns, line):
    assert refused(GOOD, columns) == line


NAN, INFINITY = math.nan, math.inf
VALUES = {
    "null user": ("user", "user", [1, None, None], "column 'user' (user) holds 2 nulls, the first in row 2"),
    "null item": ("item", "item", [None, 1, 2], "column 'item' (item) holds 1 nulls, the first in row 1"),
    "null text item": ("item", "item", ["a", "b", None], "column 'item' (item) holds 1 nulls, the first in row 3"),
    "null time": ("time", "time", [1, None, 3], "column 'time' (time) holds 1 nulls, the first in row 2"),
    "all null": ("user", "user", pa.nulls(3), "column 'user' (user): expected integers or strings, got \"NULL\""),
    "NaN time": ("time", "time", [1.0, 2.0, NAN],
                 "column 'time' (time) holds 1 NaN or infinite values, the first in row 3"),
    "infinite time": ("time", "time", [INFINITY, 2.0, -INFINITY],
                      "column 'time' (time) holds 2 NaN or infinite values, the first in row 1"),
    "huge seconds": ("time", "time", [1.0, 1e13, 2.0],
                     "column 'time' (time) holds 1 seconds beyond ±9e+12, the first in row 2"),
    "NaN position": ("position", "time", [1.0, NAN, 2.0],
                     "column 'time' (position) holds 1 NaN or infinite values, the first in row 2"),
    "text time": ("time", "time", ["1", "2", "x"],
                  "column 'time' (time): expected integers, seconds, dates or timestamps, got VARCHAR"),
    "time of day": ("time", "time", [time(1), time(2), time(3)],
                    "column 'time' (time): expected integers, seconds, dates or timestamps, got TIME"),
    "date as position": ("position", "time", [date(2020, 1, 1)] * 3,
                         "column 'time' (position): expected numbers, got DATE"),
    "fractional user": ("user", "user", [1.0, 2.0, 3.0],
                        "column 'user' (user): expected integers or strings, got DOUBLE"),
    "true or false": ("item", "item", [True, False, True],
                      "column 'item' (item): expected integers or strings, got BOOLEAN"),
    "list": ("item", "item", [[1], [2], []], "column 'item' (item): expected integers or strings, got BIGINT[]"),
    "bytes": ("item", "item", [b"a", b"b", b"c"], "column 'item' (item): expected integers or strings, got BLOB"),
    "huge id": ("user", "user", pa.array([1, 2**63, 3], pa.uint64()),
                "column 'user' (user) holds 1 integers beyond 64 bits, the first in row 2"),
    "null weight": ("weight", "rating", [1.0, None, 1.0], "column 'rating' (weight) holds 1 nulls, the first in row 2"),
    "negative weight": ("weight", "rating", [1.0, 1.0, -1.0],
                        "column 'rating' (weight) holds 1 negative weights, the first in row 3"),
    "text weight": ("weight", "rating", ["a", "b", "c"], "column 'rating' (weight): expected numbers, got VARCHAR"),
    "NaN weight": ("weight", "rating", [NAN, 1.0, 1.0],
                   "column 'rating' (weight) holds 1 NaN or infinite values, the first in row 1"),
}


@pytest.mark.parametrize("case", VALUES)
def test_values_that_cannot_be_used_are_counted_and_placed(case):
    role, column, values, line = VALUES[case]
    mapping = {"time": "time"} if role not in ("time", "position") else {}
    assert refused({**GOOD, column: values}, {**mapping, role: column}) == f"table: {line}"


def test_the_row_of_a_null_is_told_in_its_file(tmp_path):
    pq.write_table(pa.table(GOOD), tmp_path / "a.parquet")
    pq.write_table(pa.table({**GOOD, "item": [1, 2, None]}), tmp_path / "b.parquet")
    with pytest.raises(InvalidData, match=r"holds 1 nulls, the first in row 3 of b\.parquet"):
        prepare(tmp_path, DataConfig())


def test_what_a_filter_leaves_out_need_not_be_right(prepared, raw_rows):
    rows = [(1, 10, 1), (None, 11, 2), (1, None, 3), (1, 12, 4)]
    assert raw_rows(prepared(rows, filter="user IS NOT NULL AND item IS NOT NULL")) == {1: [10, 12]}


@pytest.mark.parametrize(("condition", "line"), [
    ("ratng >= 4", "filter: cannot apply 'ratng >= 4' (Referenced column \"ratng\" not found in FROM clause!)"),
    ("rating >=", "filter: cannot apply 'rating >=' (syntax error at or near \">=\")"),
    ("1 = 1); DROP VIEW log; --", "filter: cannot apply '1 = 1); DROP VIEW log; --' (syntax error at or near \")\")"),
    ("1 = 1; DROP VIEW log", "filter: cannot apply '1 = 1; DROP VIEW log' ("),
    ("true, true", "filter: cannot apply 'true, true' ("),
    ("", "filter: cannot apply '' ("),
    ("'high'", "filter: cannot apply \"'high'\" ("),
    ("rating > 99", "filter: no event of 3 satisfies 'rating > 99'"),
])
def test_a_filter_is_one_condition_and_nothing_else(condition, line):
    assert refused(GOOD, {"time": "time"}, filter=condition).startswith(line)


def test_an_empty_log_is_refused():
    empty = {name: pa.array([], pa.int64()) for name in GOOD}
    assert refused(empty, {"time": "time"}) == "table: the log holds no events"
    assert refused({}, {}) == "table: no column 'user' (user); there are none"


def test_ids_at_the_edge_of_64_bits_and_odd_names(raw_rows):
    log = pa.table({'us"er': [2**63 - 1, -(2**63)], "it'em; --": ["", "é\n"]})
    histories = prepare(log, DataConfig(columns=ColumnMapping(user='us"er', item="it'em; --")))
    assert raw_rows(histories) == {-(2**63): ["é\n"], 2**63 - 1: [""]}


def test_one_user_and_one_item_are_a_log(prepared, raw_rows):
    assert raw_rows(prepared([("a", "x", 0)] * 3)) == {"a": ["x", "x", "x"]}
