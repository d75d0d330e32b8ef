import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serrate.data import synthesize, synthetic
from serrate.errors import InvalidArgument


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    one, two, other = (synthesize(tmp_path / name, 5000, seed=seed).read_bytes()
                       for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert one == two
    assert one != other


def test_the_log_has_exactly_the_events_in_order_of_time(tmp_path):
    log = pq.read_table(synthesize(tmp_path / "log.parquet", 20_000, users=300)).to_pandas()
    assert list(log.columns) == ["user", "item", "time"]
    assert len(log) == 20_000
    assert log["time"].is_monotonic_increasing
    lengths = log.groupby("user").size()
    assert sorted(lengths.index) == list(range(1, 301))
    assert lengths.min() >= 3
    assert lengths.max() > 5 * lengths.mean()  # a long tail
    assert log["item"].between(1, 2000).all()
    assert log.duplicated(["user", "time"]).mean() < 0.01


def test_many_small_blocks_are_one_log(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_BLOCK", 1000)
    path = synthesize(tmp_path / "log.parquet", 20_000)
    log = pq.read_table(path)
    assert pq.ParquetFile(path).num_row_groups >= 20
    assert pa.compute.min_max(log["time"]).as_py()["min"] == log["time"][0].as_py()
    assert (np.diff(log["time"].to_numpy()) >= 0).all()
    assert log.num_rows == 20_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.parquet"]


def test_the_signal_is_the_promised_one(tmp_path):
    log = pq.read_table(synthesize(tmp_path / "log.parquet", 100_000)).to_pandas()
    log = log.sort_values(["user", "time"], kind="stable")
    cluster = (log["item"] - 1) // 40
    same = log["user"].eq(log["user"].shift())
    moved = ((cluster - cluster.shift()) % 50)[same]
    # .7 after .8 that is no noise: .56, and a little by chance
    assert (moved == 1).mean() == pytest.approx(0.57, abs=0.03)
    # a type takes 5 of the 40 items of a cluster, and 4 of 5 events are of its type
    frequent = log[log["user"] == log["user"].value_counts().index[0]]
    assert frequent["item"].value_counts().head(250).sum() > 0.8 * len(frequent)


def test_titles_name_cluster_and_item(tmp_path):
    synthesize(tmp_path / "log.parquet", 100, clusters=3, items_per_cluster=5, titles=tmp_path / "items.parquet")
    titles = pq.read_table(tmp_path / "items.parquet")
    assert titles["id"].to_pylist() == list(range(1, 16))
    assert titles["title"][12].as_py() == "cluster 02 · item 02"


@pytest.mark.parametrize(("arguments", "line"), [
    ({"events": 2}, "events: expected at least 3, got 2"),
    ({"events": 29, "users": 10}, "events: expected at least 30, got 29"),
    ({"events": 30, "users": 0}, "users: expected at least 1, got 0"),
    ({"events": 30, "clusters": 1}, "clusters: expected at least 2"),
    ({"events": 30, "items_per_cluster": 4}, "items_per_cluster: expected at least 5"),
    ({"events": 30, "seed": -1}, "seed: expected at least 0"),
])
def test_numbers_out_of_range_are_refused(tmp_path, arguments, line):
    with pytest.raises(InvalidArgument, match=line):
        synthesize(tmp_path / "log.parquet", **arguments)
    assert list(tmp_path.iterdir()) == []
