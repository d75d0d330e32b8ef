"""Selections against counting by hand, and expressions that are refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.data import select
from serrate.data.selection import event_values
from serrate.errors import InvalidData


@pytest.fixture(scope="module")
def rated(histories_of):
    """Three users, one of whom likes nothing."""
    return histories_of([[0, 1, 2], [3, 4], [5]], rating=[[5, 1, 4], [1, 2], [5]])


def test_by_hand(rated):
    found = select(rated, {"all": None, "liked": "rating >= 4"})
    rows, ends = torch.tensor([0, 0, 0, 1, 2]), torch.tensor([0, 1, 3, 2, 1])
    firsts, counts = found["liked"].before(rows, ends)
    assert (firsts.tolist(), counts.tolist()) == ([0, 0, 0, 2, 2], [0, 1, 2, 0, 1])
    assert found["liked"].at(torch.arange(3)).tolist() == [0, 2, 5]
    firsts, counts = found["all"].before(rows, ends)
    assert (firsts.tolist(), counts.tolist()) == ([0, 0, 0, 3, 5], ends.tolist())
    assert found["all"].at(torch.tensor([4, 1])).tolist() == [4, 1]


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=6), min_size=1, max_size=5))
def test_every_state_finds_what_a_loop_finds(histories_of, ratings):
    if max(map(max, ratings)) < 4:
        return
    histories = histories_of(ratings, rating=ratings)
    liked = select(histories, {"liked": "rating >= 4"})["liked"]
    states = [(row, end) for row, values in enumerate(ratings) for end in range(len(values) + 1)]
    firsts, counts = liked.before(*torch.tensor(states).T)
    for (row, end), first, count in zip(states, firsts.tolist(), counts.tolist(), strict=True):
        start = int(histories.offsets[row])
        expected = [start + at for at, value in enumerate(ratings[row][:end]) if value >= 4]
        assert liked.at(torch.arange(first, first + count)).tolist() == expected


def test_expressions_of_events(rated):
    found = event_values(rated, {"like": "rating >= 4", "rating": "rating", "none": "nullif(rating, 5)"})
    assert {name: values.tolist() for name, values in found.items()} == {
        "like": [1, 0, 1, 0, 0, 1], "rating": [5, 1, 4, 1, 2, 5], "none": [0, 1, 4, 1, 2, 0]}
    assert all(values.dtype == np.float32 for values in found.values())
    assert event_values(rated, {}) == {}


@pytest.mark.parametrize(("text", "line"), [
    ("ratin >= 4", r"like: cannot apply 'ratin >= 4' to rating \(Referenced column .ratin. not found"),
    ("rating >=", "like: cannot apply 'rating >=' to rating"),
    ("rating); DROP TABLE x; (1", "like: cannot apply"),
    ("'yes'", "like: expected an expression that gives each event a finite number, or yes or no, got \"'yes'\""),
    ("sum(rating)", r"like: expected an expression that gives each event a finite number.*got 'sum\(rating\)'"),
    ("1 / (rating - 5)", "like: expected an expression that gives each event a finite number"),
])
def test_expressions_that_are_refused(rated, text, line):
    with pytest.raises(InvalidData, match=line):
        event_values(rated, {"like": text})


def test_a_history_that_nobody_has_is_refused(rated):
    with pytest.raises(InvalidData, match="history 'great': no event of 6 satisfies 'rating > 5'"):
        select(rated, {"great": "rating > 5"})


def test_a_log_without_fields_says_so(histories_of):
    with pytest.raises(InvalidData, match="liked: cannot apply 'rating > 5' to no field"):
        select(histories_of([[0, 1]]), {"liked": "rating > 5"})
