import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serrate.data import ColumnMapping, DataConfig, Examples, SplitConfig, prepare, split
from serrate.errors import InvalidArgument, InvalidData

LEAVE_OUT = SplitConfig(kind="leave-last-two-out")


def temporal(validation_from, test_from, target="each"):
    """A temporal split config."""
    return SplitConfig(kind="temporal", validation_from=validation_from, test_from=test_from, target=target)


def told(examples):
    """Examples as (row, end, truth end)."""
    return list(zip(examples.rows.tolist(), examples.ends.tolist(), examples.truth_ends.tolist(), strict=True))


def test_leave_last_two_out_by_hand(histories_of):
    parts = split(histories_of([[1, 2, 3, 4], [5], [6, 7], [8, 9, 1]]), LEAVE_OUT)
    assert told(parts.train) == [(0, 2, 2), (1, 1, 1), (2, 2, 2), (3, 1, 1)]
    assert told(parts.validation) == [(0, 2, 3), (3, 1, 2)]
    assert told(parts.test) == [(0, 3, 4), (3, 2, 3)]
    assert parts.warnings == (
        "Leave-last-two-out on a log without times: whether training events of other users happened after the test "
        "targets cannot be checked.",
        "2 of 4 users have fewer than 3 events: they train and are not evaluated.")


def test_leave_last_two_out_says_how_much_it_leaks(histories_of):
    # newest training events: 10, 50, 20; so for row 1 the newest of others is 20, for rows 0 and 2 it is 50
    histories = histories_of([[1] * 3] * 3, time=[[10, 11, 12], [50, 51, 52], [20, 60, 70]])
    assert split(histories, LEAVE_OUT).warnings == (
        "Leave-last-two-out leaks the future: 1 of 3 test targets (33.3%) happened before the newest training event "
        "of other users; a temporal split does not.",)
    calm = histories_of([[1] * 3] * 2, time=[[1, 8, 9], [2, 8, 9]])
    assert split(calm, LEAVE_OUT).warnings == ()
    alone = histories_of([[1] * 3], time=[[1, 2, 3]])
    assert split(alone, LEAVE_OUT).warnings == ()


def held_out(validation_from, test_from):
    """A split by users."""
    return SplitConfig(kind="held-out-users", validation_from=validation_from, test_from=test_from)


def test_held_out_users_by_hand(histories_of):
    # 8 users: 4 train, 2 validate, 2 test; one event alone predicts nothing
    rows = [[1, 2], [3], [4, 5, 6], [7], [1], [2, 3], [4, 5, 6], [7, 1]]
    parts = split(histories_of(rows), held_out(0.5, 0.75))
    assert told(parts.train) == [(0, 2, 2), (1, 1, 1), (2, 3, 3), (3, 1, 1)]
    assert told(parts.validation) == [(5, 1, 2)]
    assert told(parts.test) == [(6, 2, 3), (7, 1, 2)]
    assert parts.warnings == (
        "A split by users on a log without times: whether training events of other users happened after the test "
        "targets cannot be checked.",)


def test_held_out_users_say_how_much_they_leak(histories_of):
    rows, times = [[1, 2]] * 5, [[1, 9], [5, 8], [4, 7], [1, 3], [2, 10]]
    assert split(histories_of(rows, time=times), held_out(0.4, 0.6)).warnings == (
        "A split by users leaks the future: 1 of 2 test targets (50.0%) happened before the newest training event of "
        "other users; a temporal split does not.",)
    in_order = [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert split(histories_of(rows[:4], time=in_order), held_out(0.5, 0.75)).warnings == ()


@pytest.mark.parametrize(("shares", "error", "line"), [
    ((0, 0.5), InvalidArgument, "validation_from: expected a share of the users, between 0 and 1, got 0"),
    ((0.5, "2024-01-01"), InvalidArgument, "test_from: expected a share of the users, between 0 and 1, got '2024"),
    ((0.8, 0.4), InvalidArgument, r"validation_from: expected a share up to test_from \(0.4\), got 0.8"),
    ((0.1, 0.5), InvalidData, r"split: held-out users leave no training example; move validation_from \(0.1\)"),
    ((0.5, 0.6), InvalidData, r"split: held-out users leave no validation example"),
    ((0.5, 0.9), InvalidData, r"split: held-out users leave no test example"),
])
def test_held_out_users_need_three_sides(histories_of, shares, error, line):
    with pytest.raises(error, match=line):
        split(histories_of([[1, 2], [3, 4], [5, 6], [7]]), held_out(*shares))


TIMES = [[1, 2, 5, 6, 8, 9], [5, 8], [8, 9], [1], [7]]  # windows: before 5, 5 up to 7, from 8


@pytest.mark.parametrize(("target", "validation", "test"), [
    ("each", [(0, 2, 3), (0, 3, 4)], [(0, 4, 5), (0, 5, 6), (1, 1, 2), (2, 1, 2)]),
    ("first", [(0, 2, 3)], [(0, 4, 5), (1, 1, 2), (2, 1, 2)]),
    ("all", [(0, 2, 4)], [(0, 4, 6), (1, 1, 2)]),
])
def test_temporal_by_hand(histories_of, target, validation, test):
    parts = split(histories_of([[0] * len(row) for row in TIMES], time=TIMES), temporal(5, 8, target))
    assert told(parts.train) == [(0, 2, 2), (3, 1, 1)]
    assert told(parts.validation) == validation
    assert told(parts.test) == test
    lost = "2 of 5" if target == "all" else "1 of 5"
    users = "1 of 3" if target == "all" else "0 of 3"
    assert parts.warnings == (
        "Temporal split, validation: 2 of 4 events have no earlier event of their user to be predicted from and are "
        "not predicted; 2 of 3 users are dropped for it.",
        f"Temporal split, test: {lost} events have no earlier event of their user to be predicted from and are not "
        f"predicted; {users} users are dropped for it.")


@given(rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6).map(sorted), min_size=1, max_size=6),
       cuts=st.lists(st.integers(1, 9), min_size=2, max_size=2, unique=True).map(sorted))
def test_no_temporal_example_sees_its_future_and_every_event_is_used_once(histories_of, rows, cuts):
    histories = histories_of([[0] * len(row) for row in rows], time=rows)
    try:
        parts = split(histories, temporal(*cuts))
    except InvalidData:
        return
    for examples, first, last in ((parts.validation, *cuts), (parts.test, cuts[1], 10)):
        expected = [(row, end, end + 1) for row, times in enumerate(rows) for end, time in enumerate(times)
                    if end > 0 and first <= time < last]
        assert told(examples) == expected
    assert told(parts.train) == [(row, end, end) for row, times in enumerate(rows)
                                 if (end := sum(time < cuts[0] for time in times))]


def test_a_quantile_is_of_all_events(histories_of):
    times = [list(range(0, 10)), list(range(10, 20))]
    parts = split(histories_of([[0] * 10] * 2, time=times), temporal(0.25, 0.75))
    assert told(parts.train) == [(0, 5, 5)]
    assert len(parts.validation) == 9  # events 5 … 14, without the first of row 1
    assert len(parts.test) == 5


def test_dates_cut_logs_of_microseconds(log_of):
    rows = [(1, 1, float(day * 86_400)) for day in range(4)]
    histories = prepare(log_of(rows), DataConfig(columns=ColumnMapping(time="time")))
    parts = split(histories, temporal("1970-01-02", "1970-01-03T00:00:00+00:00"))
    assert (told(parts.train), told(parts.validation)) == ([(0, 1, 1)], [(0, 1, 2)])
    assert told(parts.test) == [(0, 2, 3), (0, 3, 4)]


@pytest.mark.parametrize(("config", "error", "line"), [
    (temporal(5, 5), InvalidArgument, r"validation_from: expected a time before test_from \(5\), got 5"),
    (temporal("2020-01-01", 5), InvalidArgument, "validation_from: expected a number, as the times of this log are"),
    (temporal(-5, 4), InvalidData, "leaves no training example"),
    (temporal(100, 200), InvalidData, "leaves no validation example"),
    (temporal(2, 200), InvalidData, "leaves no test example"),
])
def test_cuts_that_leave_a_side_empty_are_refused(histories_of, config, error, line):
    with pytest.raises(error, match=line):
        split(histories_of([[0] * 3], time=[[1, 2, 3]]), config)


def test_logs_that_cannot_be_split_are_refused(histories_of):
    with pytest.raises(InvalidData, match="a temporal split needs times"):
        split(histories_of([[0, 1, 2]]), temporal(0.8, 0.9))
    with pytest.raises(InvalidData, match="needs a user with 3 events or more"):
        split(histories_of([[0, 1], [1]]), LEAVE_OUT)


def test_examples_are_selected_by_place_or_mask():
    examples = Examples(np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([4, 5, 6]))
    assert told(examples.select([2, 0])) == [(2, 5, 6), (0, 3, 4)]
    assert told(examples.select(np.array([False, True, False]))) == [(1, 4, 5)]
    assert len(examples.select(slice(0, 2))) == 2
