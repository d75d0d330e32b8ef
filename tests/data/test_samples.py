"""Samples against a loop over events, by hand, and on the real logs."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serrate.data import ColumnMapping, DataConfig, NegativesConfig, Samples, SamplesConfig, make_samples, prepare
from serrate.errors import InvalidArgument, InvalidData

PARTS = ("train", "validation", "test")


def told(samples: Samples) -> list[tuple]:
    """Samples as (row, end, item, labels)."""
    states = samples.owner
    return [(int(samples.rows[state]), int(samples.ends[state]), int(item), *(values[m] for values in labels))
            for labels in [list(samples.labels.values())] for m, (state, item) in enumerate(zip(states, samples.items,
                                                                                                strict=True))]


def test_by_hand_with_times(histories_of):
    # user 0 rates twice at time 2: neither of the two knows of the other
    histories = histories_of([[7, 8, 9, 6], [5, 4]], time=[[1, 2, 2, 9], [3, 8]], rating=[[5, 4, 1, 5], [2, 3]])
    config = SamplesConfig(labels={"like": "rating >= 4"}, validation_from=3, test_from=9)
    parts = make_samples(histories, config)
    assert told(parts.train) == [(0, 1, 8, 1), (0, 1, 9, 0)]
    assert (parts.train.rows.tolist(), parts.train.offsets.tolist()) == ([0], [0, 2])
    assert parts.train.places.tolist() == [1, 2]
    assert told(parts.validation) == [(1, 1, 4, 0)]
    assert told(parts.test) == [(0, 3, 6, 1)]
    assert parts.by == "time"
    assert parts.warnings == (
        "2 of 6 events have too few events before them and are no samples; they are in the histories of later ones.",)


def test_by_hand_without_times(histories_of):
    histories = histories_of([[7, 8, 9, 6], [5, 4, 3]], rating=[[5, 4, 1, 5], [2, 3, 4]])
    parts = make_samples(histories, SamplesConfig(labels={"r": "rating"}, min_history=0, validation_from=0.5,
                                                  test_from=0.75))
    # 4 events: 2, 1, 1; 3 events: ⌊1.5⌋ = 1 trains, up to ⌊2.25⌋ = 2 validates
    assert told(parts.train) == [(0, 0, 7, 5), (0, 1, 8, 4), (1, 0, 5, 2)]
    assert told(parts.validation) == [(0, 2, 9, 1), (1, 1, 4, 3)]
    assert told(parts.test) == [(0, 3, 6, 5), (1, 2, 3, 4)]
    assert parts.by == "position"
    assert parts.warnings == (
        "Samples of a log without times are split by position within each user: training events of other users may "
        "have happened after test events.",)


@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=7), min_size=1, max_size=5),
       st.integers(0, 3), st.booleans())
def test_every_sample_is_that_of_a_loop(histories_of, users, least, timed):
    users = [sorted(user) for user in [*users, [(t, True) for t in range(10)]]]
    times = [[time for time, _ in user] for user in users]
    liked = [[int(yes) for _, yes in user] for user in users]
    histories = histories_of(times, liked=liked, **({"time": times} if timed else {}))
    config = SamplesConfig(labels={"y": "liked"}, min_history=least, **(
        {"validation_from": 5, "test_from": 8} if timed else {"validation_from": 0.5, "test_from": 0.8}))
    expected = [[], [], []]
    for row, user in enumerate(users):
        for place, (time, yes) in enumerate(user):
            end = sum(other < time for other, _ in user) if timed else place
            cuts = (5, 8) if timed else (len(user) * Fraction(1, 2) // 1, len(user) * Fraction(4, 5) // 1)
            if end >= least:
                expected[sum((time if timed else place) >= cut for cut in cuts)].append((row, end, time, int(yes)))
    parts = make_samples(histories, config)
    for name, wanted in zip(PARTS, expected, strict=True):
        samples = getattr(parts, name)
        assert told(samples) == wanted
        pairs = list(zip(samples.rows.tolist(), samples.ends.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs) == samples.num_states  # each state once
        assert np.array_equal(samples.users, [row for row, *_ in wanted])


def test_negatives_stand_beside_their_positive(histories_of):
    histories = histories_of([[0, 1, 2, 3, 4], [9, 8, 7, 6, 5]])
    parts = make_samples(histories, SamplesConfig(negatives=NegativesConfig(count=2), validation_from=0.6))
    assert parts.train.offsets.tolist() == [0, 3, 6, 9, 12]  # two states a user, of three items each
    assert parts.train.labels["positive"].tolist() == [1, 0, 0] * 4
    assert parts.train.items[::3].tolist() == [1, 2, 8, 7]
    assert all(5 <= item <= 9 for item in parts.train.items[[1, 2, 4, 5]])
    assert parts.train.places.tolist() == [place for place in (1, 2, 6, 7) for _ in range(3)]


def test_popularity_counts_training_events_alone(histories_of):
    # item 1 is popular in the test, which nobody drawing for the training may know
    rows = [[3, 4, 1, 1, 1, 1, 1, 1]] * 20 + [[5, 5, 6, 7, 7, 7, 7, 7]] * 30
    config = {"negatives": NegativesConfig(by="popularity", count=20), "validation_from": 0.25, "test_from": 0.5}
    parts = make_samples(histories_of(rows), SamplesConfig(min_history=1, **config))  # the first event counts as well
    of_others = parts.train.items[(parts.train.users >= 20) & (parts.train.labels["positive"] == 0)]
    counts = np.bincount(of_others, minlength=8)  # free: 0 … 4; 20 training events each of 3 and 4, none of the others
    assert counts / counts.sum() == pytest.approx(np.array([1, 1, 1, 21, 21, 0, 0, 0]) / 45, abs=0.05)


def test_states_are_selected_with_their_samples(histories_of):
    histories = histories_of([[0, 1, 2, 3], [4]], time=[[1, 2, 2, 3], [9]], rating=[[1, 2, 3, 4], [5]])
    config = SamplesConfig(labels={"r": "rating"}, min_history=0, validation_from=4, test_from=9)
    with pytest.raises(InvalidData, match=r"leaves no validation sample; move validation_from \(4.*\) or test_from"):
        make_samples(histories, config)
    train = make_samples(histories, config.model_copy(update={"validation_from": 3})).train
    assert told(train) == [(0, 0, 0, 1), (0, 1, 1, 2), (0, 1, 2, 3)]
    assert told(train.select([1, 0])) == [(0, 1, 1, 2), (0, 1, 2, 3), (0, 0, 0, 1)]
    assert told(train.select(np.array([False, True]))) == [(0, 1, 1, 2), (0, 1, 2, 3)]
    assert told(train.select([])) == []
    assert train.base_rate("r") == 2


@pytest.mark.parametrize(("fields", "changes", "error", "line"), [
    ({}, {"validation_from": 5}, InvalidArgument, "validation_from: expected a share of each user's events, between"),
    ({}, {"test_from": "2020-01-01"}, InvalidArgument, "test_from: expected a share of each user's events"),
    ({}, {"validation_from": 0.9, "test_from": 0.9}, InvalidArgument, r"validation_from: expected less than test_from"),
    ({"time": [[1, 2, 3]]}, {"validation_from": 3, "test_from": 2}, InvalidArgument, "less than test_from .2., got 3"),
    ({}, {"labels": {"y": "liked"}}, InvalidData, "y: cannot apply 'liked' to rating"),
    ({}, {"min_history": 3}, InvalidData, "leaves no training sample"),
])
def test_what_cannot_be_sampled_is_refused(histories_of, fields, changes, error, line):
    histories = histories_of([[0, 1, 2]], rating=[[1, 2, 3]], **fields)
    config = {"labels": {"y": "rating"}, "validation_from": 0.4, "test_from": 0.7, **changes}
    with pytest.raises(error, match=line):
        make_samples(histories, SamplesConfig(**config))


@pytest.mark.parametrize("values", [
    {}, {"labels": {"a": "b"}, "negatives": {}}, {"labels": {"a": "b"}, "test_from": "x"}])
def test_configurations_that_say_nothing_or_too_much(values):
    with pytest.raises(ValidationError):
        SamplesConfig(**values)


def test_clicks_of_movielens_100k(real_logs):
    columns = ColumnMapping(user="user_id", item="item_id", time="timestamp", features=("rating",))
    histories = prepare(real_logs / "ml-100k/events.parquet", DataConfig(columns=columns))
    parts = make_samples(histories, SamplesConfig(labels={"like": "rating >= 4"}))
    assert [len(getattr(parts, name)) for name in PARTS] == [78_322, 9_715, 9_828]
    times, offsets = histories.fields["time"].numpy(), histories.offsets.numpy()
    newest = [times[samples.places].max() for samples in (parts.train, parts.validation)]
    oldest = [times[samples.places].min() for samples in (parts.validation, parts.test)]
    assert newest[0] < oldest[0]
    assert newest[1] < oldest[1]
    last = times[offsets[parts.test.rows] + parts.test.ends - 1]  # of each history
    assert (last[parts.test.owner] < times[parts.test.places]).all()
    ratings = histories.fields["rating"].numpy()[parts.test.places]
    assert np.array_equal(parts.test.labels["like"], (ratings >= 4).astype(np.float32))


def test_negatives_of_beauty(real_logs):
    columns = ColumnMapping(user="user_id", item="item_id", position="position")
    histories = prepare(real_logs / "amazon-beauty/events.parquet", DataConfig(columns=columns))
    parts = make_samples(histories, SamplesConfig(negatives=NegativesConfig()))
    own = set(zip(np.repeat(np.arange(histories.num_users), histories.lengths.numpy()).tolist(),
                  histories.fields["item"].tolist(), strict=True))
    for name in PARTS:
        samples = getattr(parts, name)
        pairs = list(zip(samples.users.tolist(), samples.items.tolist(), strict=True))
        assert [pair in own for pair in pairs] == [label == 1 for label in samples.labels["positive"].tolist()]
        assert samples.base_rate("positive") == 0.5
    assert sum(len(getattr(parts, name)) for name in PARTS) == 2 * (198_215 - 22_332)


def test_clicks_of_movielens_1m(real_logs):
    columns = ColumnMapping(user="user_id", item="item_id", position="position", features=("rating",))
    histories = prepare(real_logs / "ml-1m/events.parquet", DataConfig(columns=columns))
    parts = make_samples(histories, SamplesConfig(labels={"like": "rating >= 4"}))
    assert sum(len(getattr(parts, name)) for name in PARTS) == 1_000_209 - 6_040  # all but the first of each user
    assert parts.by == "position"
    assert np.array_equal(np.unique(parts.test.rows), np.arange(6040))
