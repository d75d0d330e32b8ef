"""Side tables by hand: what is known of items, users and events, saved and opened again, and what is refused."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serrate.data import Features, FeaturesConfig
from serrate.errors import InvalidConfig, InvalidData
from serrate.jagged import JaggedTensor

ROWS = [("ann", 30, 1, 5), ("ann", 10, 2, 1), ("bob", 30, 3, 4)]
NAMES = ("user", "item", "time", "rating")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Side tables: item 10 has no row, item 99 no event, bob no row."""
    path = tmp_path_factory.mktemp("tables")
    pq.write_table(pa.table({"id": [99, 30], "genres": ["noir", "comedy|drama"], "brand": ["x", None],
                             "price": ["1.5", "free"]}), path / "items.parquet")
    (path / "users.csv").write_text("name,age\nann,33\ncid,44\n")
    return path


@pytest.fixture(scope="module")
def log(prepared):
    """Users ann and bob, items 30 (dense 0, for it has two events) and 10."""
    return prepared(ROWS, NAMES, columns={"time": "time", "features": ("rating",)})


def config(folder, **changes):
    """Columns of every kind."""
    return FeaturesConfig.parse({
        "histories": {"all": None, "liked": "rating >= 4"},
        "events": [{"kind": "categorical", "name": "action", "column": "rating"}],
        "items": {"path": str(folder / "items.parquet"), "key": "id", "columns": [
            {"kind": "multi", "name": "genres"}, {"kind": "categorical", "name": "brand"},
            {"kind": "dense", "name": "price"}]},
        "users": {"path": str(folder / "users.csv"), "key": "name",
                  "columns": [{"kind": "categorical", "name": "age"}]},
        **changes})


def lists(values):
    """Rows of a column, NaN as None."""
    if isinstance(values, JaggedTensor):
        return [row.tolist() for row in values]
    return [None if value != value else value for value in values.tolist()]


def test_by_hand(log, folder):
    features = Features.read(log, config(folder))
    assert features.sizes == {"item": 3, "user": 3, "action": 4, "genres": 4, "brand": 2, "age": 3}
    # rows: unknown, item 30, item 10; genres are comedy, drama, noir
    assert {name: lists(values) for name, values in features.items.columns.items()} == {
        "genres": [[], [1, 2], []], "brand": [0, 0, 0], "price": [None, None, None]}
    assert {name: lists(values) for name, values in features.users.columns.items()} == {"age": [0, 1, 0]}
    assert features.items.ids([10, 30, 99, "30"]).tolist() == [2, 1, 0, 1]
    assert features.users.ids(["bob", "ann", "cid"]).tolist() == [2, 1, 0]
    assert lists(features.items.of(torch.tensor([1, 0, 1]))["genres"]) == [[1, 2], [], [1, 2]]
    assert set(features.items.of(torch.tensor([1]), {"brand"})) == {"brand"}
    events = features.event_fields(log.fields, torch.tensor([2, 0, 1]))
    assert events["action"].tolist() == [2, 3, 1]  # ratings 1, 4, 5
    assert features.event_fields(log.fields, torch.tensor([0]), ()) == {}


def test_a_request_may_tell_of_what_no_table_knew(log, folder):
    features = Features.read(log, config(folder))
    table = pa.table({"genres": ["noir|drama", "opera"], "brand": ["x", "y"], "price": [None, "3"]})
    made = features.encode("items", table)
    assert {name: lists(values) for name, values in made.items()} == {
        "genres": [[3, 2], [0]], "brand": [1, 0], "price": [None, 3]}
    assert features.encode("events", pa.table({"rating": [5, 3]}))["action"].tolist() == [3, 0]
    assert features.encode("users", pa.table({"age": ["44"]}))["age"].tolist() == [2]
    with pytest.raises(InvalidData, match=r"requests: no column 'brand' .items.; there are genres, brnd .did you"):
        features.encode("items", table.select(["genres"]).append_column("brnd", table["brand"]), "requests")


def test_saved_and_opened_again(log, folder, tmp_path):
    features = Features.read(log, config(folder))
    features.save(tmp_path / "features")
    features.save(tmp_path / "features")  # in its own place
    again = Features.open(tmp_path / "features")
    assert again.config == features.config
    assert again.sizes == features.sizes
    for one, other in ((features.items, again.items), (features.users, again.users)):
        assert other.vocabulary.decode(range(2)) == one.vocabulary.decode(range(2))
        assert {name: lists(values) for name, values in other.columns.items()} == {
            name: lists(values) for name, values in one.columns.items()}
        assert [values.dtype for values in other.columns.values() if isinstance(values, torch.Tensor)] == [
            values.dtype for values in one.columns.values() if isinstance(values, torch.Tensor)]
    table = pa.table({"genres": ["noir"], "brand": ["x"], "price": ["1"]})
    assert lists(again.encode("items", table)["genres"]) == [[3]]


@pytest.mark.parametrize("damage", [
    lambda path: (path / "features.json").unlink(),
    lambda path: (path / "features.json").write_text("{"),
    lambda path: (path / "features.json").write_text("[]"),
    lambda path: (path / "features.json").write_text(
        json.dumps(json.loads((path / "features.json").read_text()) | {"format_version": 2})),
    lambda path: (path / "items.parquet").unlink(),
    lambda path: (path / "users.parquet").write_bytes(b"PAR1"),
    lambda path: pq.write_table(pq.read_table(path / "users.parquet").select(["column_age"]), path / "users.parquet"),
])
def test_a_damaged_folder_is_one_line(log, folder, tmp_path, damage):
    Features.read(log, config(folder)).save(tmp_path / "features")
    damage(tmp_path / "features")
    with pytest.raises(InvalidData, match="features"):
        Features.open(tmp_path / "features")


def side(folder, columns, key="id", file="items.parquet"):
    """A side table of items."""
    return {"items": {"path": str(folder / file), "key": key, "columns": columns}}


@pytest.mark.parametrize(("changes", "line"), [
    (lambda f: side(f, [{"kind": "dense", "name": "prize"}]),
     r"no column 'prize' \(items.columns\); there are .* \(did you mean 'price'\?\)"),
    (lambda f: side(f, [{"kind": "dense", "name": "price"}], key="item"), r"no column 'item' \(items.key\)"),
    (lambda f: side(f, [{"kind": "dense", "name": "price"}], file="none.parquet"), "no such file or folder"),
    (lambda f: side(f, [{"kind": "dense", "name": "genres"}]), "feature 'genres': expected numbers, got none in 2"),
    (lambda f: side(f, [{"kind": "categorical", "name": "brand", "unknown": "refuse"}]),
     "feature 'brand': 2 of 2 values are unknown, the first None"),
    (lambda f: {"events": [{"kind": "categorical", "name": "action", "column": "ratings"}]},
     r"events: the log has no field 'ratings'; there are .*did you mean 'rating'"),
])
def test_what_the_tables_lack_is_one_line(log, folder, changes, line):
    with pytest.raises(InvalidData, match=line):
        Features.read(log, config(folder, **changes(folder)))


def test_a_key_that_comes_twice_is_refused(log, folder, tmp_path):
    pq.write_table(pa.table({"id": [30, 10, 30], "brand": ["x", "y", "z"]}), tmp_path / "items.parquet")
    with pytest.raises(InvalidData, match="expected one row for each of the items, got several for key 30"):
        Features.read(log, config(tmp_path, **side(tmp_path, [{"kind": "categorical", "name": "brand"}]), users=None))


@pytest.mark.parametrize(("changes", "line"), [
    ({"events": [{"kind": "categorical", "name": "item"}]}, "'item' is the name of a field of its own"),
    ({"events": [{"kind": "multi", "name": "rating"}]}, "'rating' is multi, and a field of the log holds one number"),
    ({"events": [{"kind": "dense", "name": "age"}]}, "two columns are called 'age'"),
    ({"shown": ["slot"]}, "shown: 'slot' is not among events"),
    ({"events": [{"kind": "categorial", "name": "a"}]}, "categorial"),
])
def test_configurations_that_do_not_fit(folder, changes, line):
    with pytest.raises(InvalidConfig, match=line):
        config(folder, **changes)


def test_a_table_beside_the_log_is_found(folder, tmp_path, log_of):
    from serrate.data import ColumnMapping, DataConfig, prepare
    pq.write_table(log_of(ROWS, NAMES), tmp_path / "events.parquet")
    pq.write_table(pa.table({"id": [30], "brand": ["x"]}), tmp_path / "items.parquet")
    histories = prepare(tmp_path / "events.parquet", DataConfig(columns=ColumnMapping(time="time")))
    changes = {"histories": {"all": None}, "events": (), "users": None,
               "items": {"path": "items.parquet", "key": "id", "columns": [{"kind": "categorical", "name": "brand"}]}}
    assert Features.read(histories, config(folder, **changes)).items.columns["brand"].tolist() == [0, 1, 0]
