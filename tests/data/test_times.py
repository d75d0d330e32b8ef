"""Times become seconds by the size of the integers, and each prediction is asked for when the next event happened."""

from datetime import UTC, date, datetime

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.data.times import asked_times, read_seconds, seconds, ticks_per_second
from serrate.errors import InvalidArgument
from serrate.jagged import JaggedTensor


@pytest.mark.parametrize(("time", "ticks"), [
    (0, 1), (86_400, 1), (893_286_638, 1), (99_999_999_999, 1),  # 1998 as MovieLens has it; the year 5138
    (-893_286_638, 1), (1_700_000_000_000, 10**3), (-1_700_000_000_000, 10**3),
    (1_700_000_000_000_000, 10**6), (1_700_000_000_000_000_000, 10**9), (2**63 - 1, 10**9), (-(2**63), 10**9),
])
def test_the_unit_is_told_by_the_size(time, ticks):
    assert ticks_per_second(time) == ticks


def test_seconds_are_rounded_down_and_differences_of_them_fit():
    assert seconds(torch.tensor([-1500, -1, 0, 999, 1000, 1999]), 1000).tolist() == [-2, -1, 0, 0, 1, 1]
    far = seconds(torch.tensor([-(2**63), 2**63 - 1]), 1)
    assert int(far[1]) - int(far[0]) == int(far[1] - far[0])  # no wrap-around


@given(st.lists(st.lists(st.integers(0, 99), max_size=4), max_size=5))
def test_what_is_asked_after_an_event_is_asked_at_the_next(rows):
    rows = [sorted(row) for row in rows]
    newest = torch.arange(len(rows)) + 1000
    time = JaggedTensor.from_lengths(torch.tensor([time for row in rows for time in row], dtype=torch.int64),
                                     torch.tensor([len(row) for row in rows], dtype=torch.int64))
    asked = asked_times(time, newest)
    assert asked.tolist() == [[*row[1:], 1000 + number][: len(row)] for number, row in enumerate(rows)]
    assert time.tolist() == rows


NOON = datetime(1998, 4, 22, 12, tzinfo=UTC)  # 893,246,400 s after 1970 began


@pytest.mark.parametrize("times", [
    [893_246_400], [893_246_400.9], [893_246_400_000], [893_246_400_999_999], np.array([893_246_400]), [NOON],
    [datetime(1998, 4, 22, 12)], [pd.Timestamp(NOON)], np.array(["1998-04-22T12:00:00"], dtype="datetime64[ns]"),
    pa.array([893_246_400_000], pa.timestamp("ms")), pa.array([893_246_400], pa.uint32()),
], ids=str)
def test_times_are_read_as_those_of_a_log(times):
    found = read_seconds("times", times)
    assert found.dtype == torch.int64
    assert found.tolist() == [893_246_400]


def test_other_times_that_are_read():
    assert read_seconds("times", [date(1998, 4, 22), date(1970, 1, 1)]).tolist() == [893_203_200, 0]
    assert read_seconds("times", []).tolist() == []
    assert read_seconds("times", [-1.5, 0.5]).tolist() == [-2, 0]
    assert read_seconds("times", [-5, 0, 5]).tolist() == [-5, 0, 5]


@pytest.mark.parametrize(("times", "got"), [
    ([1_700_000_000, 1_700_000_060_000], r"1700000000 \(seconds\) and 1700000060000 \(milliseconds\)"),
    ([-1_700_000_000_000_000_000, 5, 1_700_000_000_000_000], r"5 \(seconds\) and -17\d+ \(nanoseconds\)"),
    ([1_700_000_000_000_000, 1_700_000_000_000], r"17\d+ \(milliseconds\) and 17\d+ \(microseconds\)"),
    ([-(2**63), 0], r"0 \(seconds\) and -9223372036854775808 \(nanoseconds\)"),
])
def test_times_of_several_units_are_refused(times, got):
    for order in (times, times[::-1]):
        with pytest.raises(InvalidArgument, match=rf"^times: expected whole numbers in one unit, .*, got {got}$"):
            read_seconds("times", order)


@pytest.mark.parametrize("times", [[1, None], [float("nan")], [float("inf")], [1e300], [2**63], ["noon"], [True],
                                   [1, "noon"], [[1]], 5, [NOON, None]], ids=str)
def test_times_that_are_none_are_refused(times):
    with pytest.raises(InvalidArgument, match=r"^times: expected "):
        read_seconds("times", times)
