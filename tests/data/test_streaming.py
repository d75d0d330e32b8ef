"""The stream of records: its order, its growing catalogue, and the laws it says it follows."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serrate.data import streaming, synthesize_stream
from serrate.data.streaming import released
from serrate.errors import InvalidArgument


def items_of(path, length: int = 128) -> np.ndarray:
    return pq.read_table(path)["item"].to_numpy().reshape(-1, length)


def categories_of(path) -> np.ndarray:
    """The category of each id; that of 0, which is no item, is -1."""
    titles = pq.read_table(path)["title"].to_pylist()
    return np.array([-1, *(int(title[9:11]) for title in titles)])


def test_rows_stand_in_order_of_time(tmp_path):
    log = pq.read_table(synthesize_stream(tmp_path / "log.parquet", 300, length=16))
    assert log.schema == pa.schema([("user", pa.int32()), ("item", pa.int32()), ("time", pa.int64())])
    assert log["user"].to_numpy().tolist() == np.repeat(np.arange(1, 301), 16).tolist()
    assert log["time"].to_numpy().tolist() == list(range(300 * 16))


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    one, two, other, items = (
        synthesize_stream(tmp_path / name, 200, seed=seed, again=again).read_bytes()
        for name, seed, again in (("a", 1, "category"), ("b", 1, "category"), ("c", 2, "category"), ("d", 1, "item")))
    assert one == two
    assert len({one, other, items}) == 3


def test_many_small_blocks_are_one_stream(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_BLOCK", 64)
    path = synthesize_stream(tmp_path / "log.parquet", 200, length=8)
    assert pq.ParquetFile(path).num_row_groups == 4
    assert pq.read_table(path)["time"].to_numpy().tolist() == list(range(1600))
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.parquet"]


def test_the_catalogue_grows_along_a_line():
    # (0.4 + 0.6 · 0.5) · 20,000 = 14,000 at the middle of the stream
    assert released(np.array([0.0, 0.5, 1.0]), 20_000).tolist() == [8000, 14_000, 20_000]


@pytest.mark.parametrize("again", ["category", "item"])
def test_no_item_comes_before_it_is_out_and_all_that_are_out_come(tmp_path, again):
    items = items_of(synthesize_stream(tmp_path / "log.parquet", 4000, items=500, categories=10, again=again))
    assert items.min() == 1
    out = released(np.arange(4000) / 4000, 500)
    assert (items.max(1) <= out).all()
    assert len(np.unique(items[:400])) > 200  # 200 are there from the start
    assert len(np.unique(items)) == out[-1] == 499  # the last would come out after the last record
    newest = items > (out - 20)[:, None]
    assert newest.mean() == pytest.approx((20 / out).mean(), rel=0.15)  # a new one is as likely as any other


@pytest.mark.parametrize("again", ["category", "item"])
def test_a_record_has_up_to_five_categories(tmp_path, again):
    path = synthesize_stream(tmp_path / "log.parquet", 2000, titles=tmp_path / "items.parquet", again=again)
    category = categories_of(tmp_path / "items.parquet")
    counts = np.array([len(np.unique(row)) for row in category[items_of(path)]])
    assert counts.min() == 1
    assert counts.max() == 5
    assert np.bincount(counts)[1] / 2000 == pytest.approx(0.2, abs=0.04)  # one in five has one alone
    assert set(category[1:].tolist()) == set(range(100))
    assert np.bincount(category[1:]).std() == pytest.approx(200**0.5, rel=0.25)  # any category, but for the first ids
    assert sorted(category[1:101].tolist()) == list(range(100))


def test_the_richer_gets_richer(tmp_path, monkeypatch):
    # alpha = 1: at the second event the first is taken again with probability 1/2, and else of five tastes, which
    # meet it with probability Σ E[taste²]. With 1 … 5 categories of an even Dirichlet law that is Σ 2 / (n + 1) / 5.
    monkeypatch.setattr(streaming, "_CONCENTRATION", (1.0, 1.0))
    path = synthesize_stream(tmp_path / "log.parquet", 20_000, length=2, titles=tmp_path / "items.parquet")
    first, second = categories_of(tmp_path / "items.parquet")[items_of(path, 2)].T
    by_taste = np.mean([2 / (n + 1) for n in range(1, 6)])
    assert (first == second).mean() == pytest.approx(0.5 + 0.5 * by_taste, abs=0.015)


def test_items_come_again_where_they_are_what_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "_CONCENTRATION", (3.0, 3.0))
    items = {again: items_of(synthesize_stream(tmp_path / again, 20_000, length=4, again=again), 4)
             for again in ("category", "item")}

    def repeated(made: np.ndarray) -> float:
        return (made[:, :3] == made[:, 3:]).any(1).mean()

    assert repeated(items["item"]) == pytest.approx(3 / 6, abs=0.015)  # 3 earlier events against alpha = 3
    assert repeated(items["category"]) < 0.03


@pytest.mark.parametrize(("arguments", "line"), [
    ({"records": 0}, "records: expected at least 1, got 0"),
    ({"length": 0}, "length: expected at least 1, got 0"),
    ({"categories": 4}, "categories: expected at least 5, got 4"),
    ({"items": 249}, "items: expected at least 250, got 249"),
    ({"seed": -1}, "seed: expected at least 0, got -1"),
    ({"again": "user"}, "again: expected category or item, got 'user'"),
])
def test_arguments_out_of_range_are_refused(tmp_path, arguments, line):
    with pytest.raises(InvalidArgument, match=line):
        synthesize_stream(tmp_path / "log.parquet", **{"records": 10, **arguments})
    assert list(tmp_path.iterdir()) == []
