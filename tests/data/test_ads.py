"""The log of ads: its tables, its lengths, and the law that its probabilities say it follows."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from serrate.data import (
    ColumnMapping,
    DataConfig,
    FeaturesConfig,
    RankingData,
    SamplesConfig,
    ads,
    make_samples,
    prepare,
    samples_batch,
    synthesize_ads,
)
from serrate.errors import InvalidArgument


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """12,000 requests of 4 ads, of 200 users."""
    return synthesize_ads(tmp_path_factory.mktemp("ads"), 12_000, 200, items=500, categories=20, seed=3)


@pytest.fixture(scope="module")
def log(folder):
    return pq.read_table(folder / "events.parquet").to_pandas()


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    made = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        synthesize_ads(tmp_path / name, 500, items=100, categories=10, seed=seed)
        made[name] = {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
    assert made["a"] == made["b"]
    assert all(made["a"][file] != made["c"][file] for file in ("events.parquet", "items.parquet", "users.parquet"))


def test_requests_stand_by_user_in_order_of_time(log):
    assert list(log.columns) == ["user", "item", "time", "action", "slot", "probability"]
    assert len(log) == 48_000
    assert log["user"].is_monotonic_increasing
    requests = log.groupby(["user", "time"], sort=False)["slot"].agg(list)
    assert set(map(tuple, requests)) == {(0, 1, 2, 3)}  # no two of a user at one time
    assert len(requests) == 12_000
    assert (log.groupby("user")["time"].diff().dropna() >= 0).all()
    lengths = requests.groupby("user").size()
    assert lengths.min() >= 3
    assert lengths.max() > 5 * lengths.mean()  # a long tail


def test_popularity_is_long_tailed(log):
    counts = log["item"].value_counts()
    assert log["item"].between(1, 500).all()
    assert counts.iloc[:25].sum() > 0.4 * len(log)
    assert counts.idxmax() <= 20


def test_the_probabilities_are_those_of_the_law(log):
    market = ads._Market(500, 20, 200, 3)
    logit = np.log(log["probability"] / (1 - log["probability"]))
    clicks, expected = {}, []
    for (user, _), request in log.groupby(["user", "time"], sort=False):
        counted = clicks.setdefault(user, {})
        parts = [(item - 1, (item - 1) % 20, slot, action)
                 for item, slot, action in zip(request["item"], request["slot"], request["action"], strict=True)]
        expected += [-3 + market.quality[item] + market.affinity[market.segment[user - 1], category]
                     + 0.6 * np.log1p(min(counted.get(category, 0), 15)) - 0.3 * slot
                     for item, category, slot, _ in parts]
        for _, category, _, action in parts:  # after the request
            counted[category] = counted.get(category, 0) + (action > 0)
    assert np.abs(logit - np.array(expected)).max() < 1e-4
    assert max(max(counted.values()) for counted in clicks.values()) > 15  # so that the bound was met


def test_clicks_come_as_often_as_they_say(log):
    clicked = log["action"] > 0
    assert clicked.mean() == pytest.approx(log["probability"].mean(), abs=0.005)
    likely = log["probability"] > 0.3
    assert clicked[likely].mean() == pytest.approx(log["probability"][likely].mean(), abs=0.03)
    assert 0.2 < (log["action"] == 2).sum() / clicked.sum() < 0.4


def test_tables_hold_every_id_once(folder, log):
    items, users = (pq.read_table(folder / f"{name}.parquet").to_pandas() for name in ("items", "users"))
    assert items["id"].tolist() == list(range(1, 501))
    assert (items["category"] == [f"category {(item - 1) % 20:03d}" for item in items["id"]]).all()
    assert items["title"][30] == "category 010 · ad 000031"
    assert (items["price"] > 0).all()
    assert set(items["tags"].str.count(r"\|")) == {0, 1, 2}
    assert users["id"].tolist() == sorted(log["user"].unique())
    assert users["segment"].nunique() == 16
    assert 0 < users["age"].isna().mean() < 0.15


def test_many_small_blocks_are_one_log(tmp_path, monkeypatch):
    monkeypatch.setattr(ads, "_REQUESTS", 100)
    log = pq.ParquetFile(synthesize_ads(tmp_path, 2000, items=100, categories=10) / "events.parquet")
    assert log.num_row_groups > 10
    assert log.metadata.num_rows == 8000
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["events.parquet", "items.parquet", "users.parquet"]


def test_three_histories_and_one_state_a_request(folder):
    columns = ColumnMapping(time="time", features=("action", "slot", "probability"))
    histories = prepare(folder / "events.parquet", DataConfig(columns=columns))
    data = RankingData.read(histories, FeaturesConfig.parse({
        "histories": {"seen": None, "clicked": "action >= 1", "bought": "action = 2"}, "shown": ["slot"],
        "events": [{"kind": "categorical", "name": "action"}, {"kind": "categorical", "name": "slot"}],
        "items": {"path": "items.parquet", "key": "id", "columns": [
            {"kind": "categorical", "name": "category"}, {"kind": "categorical", "name": "advertiser", "size": 26},
            {"kind": "dense", "name": "price"}, {"kind": "multi", "name": "tags"}]},
        "users": {"path": "users.parquet", "key": "id", "columns": [
            {"kind": "categorical", "name": "segment"}, {"kind": "dense", "name": "age"}]}}))
    train = make_samples(histories, SamplesConfig(labels={"click": "action >= 1", "best": "probability"})).train
    assert len(train) == 4 * train.num_states
    batch = samples_batch(data, train, np.arange(50), {"seen": 100, "clicked": None, "bought": None})
    assert batch.candidates["slot"].tolist() == [1, 2, 3, 4] * 50
    assert (batch.histories["clicked"]["action"].values >= 2).all()
    lengths = [int(batch.histories[name].lengths.sum()) for name in ("seen", "clicked", "bought")]
    assert lengths == sorted(lengths, reverse=True)
    known = torch.tensor([int(item) % 20 for item in histories.items.decode(batch.candidates["item"] - 1)])
    assert len(set(zip(known.tolist(), batch.candidates["category"].tolist(), strict=True))) == len(known.unique())


@pytest.mark.parametrize(("arguments", "line"), [
    ({"requests": 29}, "requests: expected at least 30, got 29"),
    ({"users": 0}, "users: expected at least 1, got 0"),
    ({"shown": 0}, "shown: expected at least 1, got 0"),
    ({"shown": 101}, "shown: expected at most 100, got 101"),
    ({"categories": 7}, "categories: expected at least 8, got 7"),
    ({"items": 199}, "items: expected at least 200, got 199"),
    ({"seed": -1}, "seed: expected at least 0, got -1"),
])
def test_arguments_out_of_range_are_refused(tmp_path, arguments, line):
    with pytest.raises(InvalidArgument, match=line):
        synthesize_ads(tmp_path, **{"requests": 100, "users": 10, **arguments})
    assert list(tmp_path.iterdir()) == []
