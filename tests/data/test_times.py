"""Times become seconds by the size of the integers, and each prediction is asked for when the next event happened."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.data.times import asked_times, seconds, ticks_per_second
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
