"""Batches of samples by hand, against a loop, and on the real logs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.data import (
    Entities,
    Features,
    FeaturesConfig,
    RankingData,
    SamplesConfig,
    TokenBatches,
    Vocabulary,
    make_samples,
    prepare,
    samples_batch,
    select,
)
from serrate.data.config import ColumnMapping, DataConfig
from serrate.errors import InvalidArgument


def bare(histories, **conditions):
    """Ranking data without side tables."""
    config = FeaturesConfig(histories=conditions)
    entities = [Entities(Vocabulary(list(range(size))), {}) for size in (histories.num_items, histories.num_users)]
    return RankingData(histories, Features(config, {}, *entities), select(histories, config.histories))


def rows(jagged):
    return [row.tolist() for row in jagged]


@pytest.fixture(scope="module")
def data(prepared):
    """Two users; ann's second and third events are at the same time. Items 3, 1, 2 and 4 are dense 0, 1, 2, 3."""
    log = [("ann", 3, 10, 5, 1), ("ann", 1, 20, 4, 2), ("ann", 2, 20, 1, 1), ("ann", 3, 30, 5, 3),
           ("bob", 4, 15, 2, 1), ("bob", 3, 40, 4, 2), ("bob", 1, 50, 3, 1)]
    histories = prepared(log, ("user", "item", "time", "rating", "slot"),
                         columns={"time": "time", "features": ("rating", "slot")})
    config = FeaturesConfig.parse({
        "histories": {"all": None, "liked": "rating >= 4"}, "shown": ["place"],
        "events": [{"kind": "categorical", "name": "action", "column": "rating"},
                   {"kind": "categorical", "name": "place", "column": "slot"}]})
    return RankingData.read(histories, config)


@pytest.fixture(scope="module")
def train(data):
    """What is liked, up to time 40."""
    return make_samples(data.histories, SamplesConfig(labels={"like": "rating >= 4"}, validation_from=40,
                                                      test_from=50)).train


def test_by_hand(data, train):
    batch = samples_batch(data, train, [0, 1], {"all": None, "liked": 1})
    # ann at time 20 (two candidates, after one event), and at time 30 (one, after three)
    assert batch.owner.tolist() == [0, 0, 1]
    assert batch.candidates["item"].tolist() == [2, 3, 1]
    assert batch.candidates["place"].tolist() == [2, 1, 3]
    assert set(batch.candidates) == {"item", "place"}
    assert batch.labels["like"].tolist() == [1, 0, 1]
    assert batch.context["user"].tolist() == [1, 1]
    assert batch.context["asked"].tolist() == [20, 30]
    assert rows(batch.histories["all"]["item"]) == [[1], [1, 2, 3]]
    assert rows(batch.histories["all"]["action"]) == [[5], [5, 4, 1]]
    assert rows(batch.histories["all"]["time"]) == [[10], [10, 20, 20]]
    assert rows(batch.histories["liked"]["item"]) == [[1], [2]]
    assert dict(batch.pairs) == {"all": 1 + 1 + 3, "liked": 3}
    assert data.state_lengths(train, {"all": None, "liked": 1}).tolist() == [1 + 1 + 2, 3 + 1 + 1]
    assert data.state_lengths(train, {"all": 2}).tolist() == [1 + 2, 2 + 1]


def test_states_come_in_the_order_asked_for(data, train):
    batch = samples_batch(data, train, torch.tensor([1, 0]), {"liked": None})
    assert batch.owner.tolist() == [0, 1, 1]
    assert batch.candidates["item"].tolist() == [1, 2, 3]
    assert rows(batch.histories["liked"]["item"]) == [[1, 2], [1]]
    empty = samples_batch(data, train, np.array([], dtype=np.int64), {"liked": None})
    assert (len(empty), empty.num_states, empty.histories["liked"].num_events) == (0, 0, 0)


def test_a_history_that_there_is_not(data, train):
    with pytest.raises(InvalidArgument, match=r"histories among all, liked \(did you mean 'liked'\?\), got 'likes'"):
        samples_batch(data, train, [0], {"likes": None})
    with pytest.raises(InvalidArgument, match="histories among all, liked"):
        data.state_lengths(train, {"seen": None})


@given(st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5)), min_size=1, max_size=6), min_size=1,
                max_size=4), st.integers(1, 4), st.integers(0, 100))
def test_every_sample_reads_what_a_loop_reads(histories_of, users, most, seed):
    users = [sorted(user) for user in [*users, [(time, 5) for time in range(6)]]]
    ratings, times = [[value for _, value in user] for user in users], [[time for time, _ in user] for user in users]
    data = bare(histories_of([list(range(len(user))) for user in users], rating=ratings, time=times),
                all=None, liked="rating >= 4")
    train = make_samples(data.histories, SamplesConfig(labels={"r": "rating"}, min_history=0, validation_from=4,
                                                       test_from=5)).train
    limits = {"all": None, "liked": most}
    seen = []
    batches = TokenBatches(data.state_lengths(train, limits), 10, seed)
    for _, index in batches.epoch(0):
        batch = samples_batch(data, train, index, limits)
        for m, state in enumerate(batch.owner.tolist()):
            row, now = int(batch.context["user"][state]) - 1, int(batch.context["asked"][state])
            before = [(item + 1, value) for item, (time, value) in enumerate(users[row]) if time < now]
            assert rows(batch.histories["all"]["item"])[state] == [item for item, _ in before]
            assert rows(batch.histories["liked"]["item"])[state] == [item for item, value in before
                                                                     if value >= 4][-most:]
            item = int(batch.candidates["item"][m]) - 1
            assert users[row][item] == (now, float(batch.labels["r"][m]))
            seen.append((row, item))
        events = sum(history.num_events for history in batch.histories.values()) + len(batch)
        assert events == data.state_lengths(train, limits)[index].sum()
    assert sorted(seen) == [(row, at) for row, user in enumerate(users)
                            for at, (time, _) in enumerate(user) if time < 4]


def test_statistics_are_those_of_the_samples_given(prepared, tmp_path):
    log = [("ann", 3, 1, 2.0), ("ann", 1, 2, 4.0), ("bob", 1, 3, 6.0), ("bob", 3, 4, 9.0), ("bob", 2, 5, 99.0)]
    histories = prepared(log, ("user", "item", "time", "seconds"), columns={"time": "time", "features": ("seconds",)})
    (tmp_path / "items.csv").write_text("id,price,year\n3,10,\n1,20,\n2,999,2000\n")
    (tmp_path / "users.csv").write_text("id,age\nann,30\n")
    data = RankingData.read(histories, FeaturesConfig.parse({
        "events": [{"kind": "dense", "name": "seconds"}], "shown": ["seconds"],
        "items": {"path": str(tmp_path / "items.csv"), "key": "id", "columns": [
            {"kind": "dense", "name": "price"}, {"kind": "dense", "name": "year"}]},
        "users": {"path": str(tmp_path / "users.csv"), "key": "id", "columns": [{"kind": "dense", "name": "age"}]}}))
    config = SamplesConfig(labels={"y": "1"}, min_history=0, validation_from=4, test_from=5)
    train = make_samples(histories, config).train
    # three samples: ann takes 3 and 1, bob takes 1; the test knows of a price of 999 and 99 seconds
    assert data.dense_statistics(train) == {
        "price": (pytest.approx(50 / 3), pytest.approx(np.std([10, 20, 20]))), "year": (0, 1),
        "seconds": (4, pytest.approx(np.std([2, 4, 6]))), "age": (30, 1)}
    logged = data.dense_statistics(train, {"seconds"})["seconds"]
    assert logged == pytest.approx((np.log1p([2, 4, 6]).mean(), np.log1p([2, 4, 6]).std()))


def test_movielens_100k_whole(real_logs):
    columns = ColumnMapping(user="user_id", item="item_id", time="timestamp", features=("rating",))
    histories = prepare(real_logs / "ml-100k/events.parquet", DataConfig(columns=columns))
    data = RankingData.read(histories, FeaturesConfig.parse({
        "histories": {"all": None, "liked": "rating >= 4"},
        "events": [{"kind": "categorical", "name": "action", "column": "rating"}],
        "items": {"path": "items.parquet", "key": "item_id", "columns": [
            {"kind": "multi", "name": "genres", "column": "class", "separator": " "},
            {"kind": "categorical", "name": "genre_set", "column": "class"},
            {"kind": "dense", "name": "year", "column": "release_year"}]},
        "users": {"path": "users.parquet", "key": "user_id", "columns": [
            {"kind": "categorical", "name": name} for name in ("age", "gender", "occupation")]}}))
    assert data.features.sizes | {"genre_set": 0, "age": 0} == {
        "item": 1683, "user": 944, "action": 6, "genres": 20, "genre_set": 0, "age": 0, "gender": 3, "occupation": 22}
    test = make_samples(histories, SamplesConfig(labels={"like": "rating >= 4"})).test
    limits = {"all": 50, "liked": 20}
    count = 0
    for _, index in TokenBatches(data.state_lengths(test, limits), 50_000, 0).epoch(0):
        batch = samples_batch(data, test, index, limits)
        count += len(batch)
        newest = [int(row[-1]) for row in batch.histories["all"]["time"]]
        assert (torch.tensor(newest) < batch.context["asked"]).all()  # nothing of the same moment
        assert batch.histories["liked"]["action"].values.min() >= 4  # ratings are their own ids here
    assert count == len(test)
