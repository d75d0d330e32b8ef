"""Ages: positions counted from the newest event."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.nn import ages
from serrate.testing import JaggedCase, jagged_tensors


def test_the_newest_event_of_each_row_has_age_zero():
    jagged = JaggedCase("", (3, 0, 1, 2)).make()
    assert ages(jagged).tolist() == [2, 1, 0, 0, 1, 0]
    assert ages(jagged).dtype == torch.int64


@given(jagged_tensors(inner=((), (2,))), st.integers(0, 3))
def test_ages_are_those_of_each_row_alone(jagged, cut):
    assert ages(jagged).tolist() == [age for row in jagged for age in reversed(range(len(row)))]
    newest = [row[cut:] for row in jagged]  # cutting old events off leaves the others' ages alone
    kept = [age for row in newest for age in reversed(range(len(row)))]
    assert kept == [age for row in jagged for age in reversed(range(max(0, len(row) - cut)))]
