import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from serrate.data import ColumnMapping, DataConfig, Histories, prepare
from serrate.errors import InvalidArgument, InvalidData


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A prepared folder of two users: items 11, 10, 11 and 10."""
    path = tmp_path_factory.mktemp("prepared") / "data"
    log = pa.table({"user": [5, 5, 5, 7], "item": [11, 10, 11, 10], "time": [1, 2, 3, 4]})
    prepare(log, DataConfig(columns=ColumnMapping(time="time")), path)
    return path


def test_the_arrays_are_what_was_prepared(folder):
    histories = Histories.open(folder)
    assert (len(histories), histories.num_users, histories.num_items, histories.num_events) == (2, 2, 2, 4)
    assert histories.offsets.tolist() == [0, 3, 4]
    assert histories.lengths.tolist() == [3, 1]
    assert histories.longest == 3
    assert histories.field("item").tolist() == [[1, 0, 1], [0]]  # 10 and 11 twice each: the tie goes by raw id
    assert histories.field("item").values.data_ptr() == histories.fields["item"].data_ptr()
    assert repr(histories) == "Histories(2 users, 2 items, 4 events: item, time)"


def test_what_is_changed_in_memory_does_not_reach_the_file(folder):
    Histories.open(folder).fields["item"][0] = 99
    assert Histories.open(folder).fields["item"].tolist() == [1, 0, 1, 0]


def test_a_field_that_is_not_there_names_those_that_are(folder):
    with pytest.raises(InvalidArgument, match=r"one of item, time \(did you mean 'time'\?\), got 'times'"):
        Histories.open(folder).field("times")


def edit(change):
    """A damage to `dataset.json`."""

    def damage(path):
        description = json.loads((path / "dataset.json").read_text())
        change(description)
        (path / "dataset.json").write_text(json.dumps(description))

    return damage


DAMAGES = {
    "missing array": (lambda path: (path / "item.npy").unlink(), "part item.npy is missing"),
    "missing ids": (lambda path: (path / "users.parquet").unlink(), "part users.parquet is missing"),
    "no description": (lambda path: (path / "dataset.json").unlink(), "not a prepared data set"),
    "half a description": (lambda path: (path / "dataset.json").write_text('{"a'), "dataset.json: damaged, not JSON"),
    "another description": (lambda path: (path / "dataset.json").write_text("[]"),
                            "expected data set format 1, got None"),
    "another version": (edit(lambda description: description.update(format_version=2)), "format 1, got 2"),
    "no sizes": (edit(lambda description: description.pop("num_users")), "dataset.json is not complete"),
    "no item": (edit(lambda description: description.update(fields={})), "names no field 'item'"),
    "another size": (edit(lambda description: description.update(num_events=5)), "rows that end at event 5, got 4"),
    "more users": (edit(lambda description: description.update(num_users=3)), r"expected \(4,\) int64, got \(3,\)"),
    "short array": (lambda path: (path / "time.npy").write_bytes((path / "time.npy").read_bytes()[:-8]),
                    "time.npy: damaged"),
    "empty array": (lambda path: (path / "time.npy").write_bytes(b""), "time.npy: damaged"),
    "another type": (lambda path: np.save(path / "item.npy", np.zeros(4)),
                     r"expected \(4,\) int32, got \(4,\) float64"),
    "a pickle": (lambda path: np.save(path / "item.npy", np.array([{}] * 4)), "item.npy: damaged"),
    "falling offsets": (lambda path: np.save(path / "offsets.npy", np.array([0, 5, 4])), "rows that end at event 4"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_is_one_line(folder, tmp_path, case):
    damage, line = DAMAGES[case]
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(InvalidData, match=line) as raised:
        Histories.open(copy)
    assert str(copy) in str(raised.value)


def test_what_is_no_folder_is_one_line(folder, tmp_path):
    with pytest.raises(InvalidData, match="expected the folder of a prepared data set, got nothing there"):
        Histories.open(tmp_path / "nowhere")
    with pytest.raises(InvalidData, match="expected the folder of a prepared data set, got a file"):
        Histories.open(folder / "item.npy")


def test_ids_of_another_number_are_refused_when_they_are_read(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copy(folder / "users.parquet", tmp_path / "copy" / "items.parquet")
    edit(lambda description: description.update(num_items=3))(tmp_path / "copy")
    with pytest.raises(InvalidData, match=r"items\.parquet: expected 3 ids, got 2"):
        _ = Histories.open(tmp_path / "copy").items
