"""A whole file of users: held to what `recommend` gives each of them."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serrate.data import DataConfig, prepare
from serrate.errors import InvalidArgument, InvalidData
from serrate.serve import batch as batch_module
from serrate.serve import recommend_file

HISTORIES = {"ann": [101, 102, 103], "bob": [120], "cy": [105, 999, 106, 105], "dee": [998]}


@pytest.fixture
def served(tmp_path):
    """A function: predictor, source, … → what was done, and the rows written."""

    def serve(predictor, source, **options):
        done = recommend_file(predictor, source, tmp_path / "out.parquet", **options)
        return done, pq.read_table(tmp_path / "out.parquet").to_pylist()

    return serve


def expected(predictor, histories, **options):
    """The rows that `histories` {user: raw ids} should give."""
    answers = predictor.recommend(histories.values(), **options)
    return [{"user": user, "items": answer.ids, "scores": pytest.approx(answer.scores, abs=1e-5),
             "unknown": len(answer.unknown)} for user, answer in zip(histories, answers, strict=True)]


def write_lists(path, histories=HISTORIES, user="user", **columns):
    pq.write_table(pa.table({user: list(histories), "history": list(histories.values()), **columns}), path)
    return path


def write_log(path, histories=HISTORIES, names=("user", "item", "time")):
    """Single events, newest first, so that the times matter."""
    rows = [(user, item, time) for user, items in histories.items() for time, item in enumerate(items)][::-1]
    frame = pd.DataFrame(rows, columns=list(names))
    frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path)
    return path


@pytest.fixture
def predictor(predictor_of):
    """Items 100 … 129; the training log had the columns user, item, time."""
    return predictor_of(list(range(100, 130)), columns={"time": "time"})


@pytest.mark.parametrize("options", [{}, {"k": 3}, {"k": 40, "exclude_seen": False}], ids=str)
def test_lists_and_logs_alike(options, predictor, served, tmp_path):
    rows = expected(predictor, HISTORIES, **options)
    for source in (write_lists(tmp_path / "lists.parquet"), write_log(tmp_path / "log.parquet"),
                   write_log(tmp_path / "log.csv")):
        done, found = served(predictor, source, **options)
        assert (done.users, done.events, done.unknown) == (4, 9, 2)
        assert found == rows


def test_a_prepared_data_set(predictor, served, tmp_path):
    source = prepare(str(write_log(tmp_path / "log.csv")), DataConfig.parse({"columns": {"time": "time"}}),
                     tmp_path / "prepared").path
    assert served(predictor, source)[1] == expected(predictor, HISTORIES)


def test_other_column_names(predictor, served, tmp_path):
    config = DataConfig.parse({"columns": {"user": "who", "item": "what", "time": "when"}})
    source = write_log(tmp_path / "log.csv", names=("who", "what", "when"))
    assert served(predictor, source, config=config)[1] == expected(predictor, HISTORIES)
    lists = write_lists(tmp_path / "lists.parquet", user="who", extra=[[1.5]] * 4)
    assert served(predictor, lists, config=config)[1] == expected(predictor, HISTORIES)
    with pytest.raises(InvalidData, match="no column 'user'"):
        served(predictor, source)


def test_users_are_known_by_the_user_column_and_not_by_a_row_number(acquainted, served, tmp_path):
    rows = {7: [101, 102], 5: [103], 2: [101, 102]}

    def scores(answers):
        return [pytest.approx(answer.scores, abs=1e-5) for answer in answers]

    known, unknown = (acquainted.recommend(rows.values(), users=users) for users in (rows, None))
    assert [one == other for one, other in zip(known, unknown, strict=True)] == [False, True, False]
    _, found = served(acquainted, write_lists(tmp_path / "lists.parquet", rows))
    assert [row["scores"] for row in found] == scores(known)
    pq.write_table(pa.table({"history": list(rows.values())}), tmp_path / "nobody.parquet")
    _, found = served(acquainted, tmp_path / "nobody.parquet")  # its rows 0, 1, 2 are not the users 0, 1, 2
    assert [row["scores"] for row in found] == scores(unknown)


def test_without_a_user_column_the_row_number_counts(predictor, served, tmp_path, monkeypatch):
    monkeypatch.setattr(batch_module, "_ROWS_AT_A_TIME", 2)
    pq.write_table(pa.table({"history": [[101], [102], [103]]}), tmp_path / "lists.parquet")
    assert [row["user"] for row in served(predictor, tmp_path / "lists.parquet")[1]] == [0, 1, 2]


def test_a_folder_of_lists(predictor, served, tmp_path):
    (tmp_path / "lists").mkdir()
    users = list(HISTORIES.items())
    write_lists(tmp_path / "lists" / "1.parquet", dict(users[:3]))
    write_lists(tmp_path / "lists" / "2.parquet", dict(users[3:]))
    assert served(predictor, tmp_path / "lists")[1] == expected(predictor, HISTORIES)
    pq.write_table(pa.table({"user": ["eve"], "history": [101]}), tmp_path / "lists" / "3.parquet")
    with pytest.raises(InvalidData, match=r"3\.parquet: expected lists of item ids in column 'history', got int64"):
        served(predictor, tmp_path / "lists")


@pytest.mark.parametrize("kind", [pa.list_(pa.int64()), pa.large_list(pa.int32()), pa.list_(pa.string())], ids=str)
def test_null_and_empty_histories_get_the_most_frequent(kind, predictor, served, tmp_path):
    text = pa.types.is_string(kind.value_type)
    rows = [None, [], [None], [101, None]]
    rows = [row and [str(item) if text and item else item for item in row] for row in rows]
    pq.write_table(pa.table({"user": [1, 2, 3, None], "history": pa.array(rows, kind)}), tmp_path / "lists.parquet")
    done, found = served(predictor, tmp_path / "lists.parquet", k=2)
    assert (done.users, done.events, done.unknown) == (4, 3, 2)
    assert [row["items"] for row in found[:3]] == [[100, 101]] * 3
    assert found[3]["items"] == predictor.recommend([[101]], k=2)[0].ids
    assert [row["user"] for row in found] == [1, 2, 3, None]


def test_slices_and_dictionaries(predictor, served, tmp_path):
    lists = pa.array([[1], [101, 102], [103], [2]]).slice(1, 2)
    users = pa.array(["x", "y"]).dictionary_encode()
    pq.write_table(pa.table({"user": users, "history": lists}), tmp_path / "a.parquet")
    assert [row["items"] for row in served(predictor, tmp_path / "a.parquet", k=4)[1]] == [
        answer.ids for answer in predictor.recommend([[101, 102], [103]], k=4)]
    coded = pa.ListArray.from_arrays([0, 2, 3], pa.array(["101", "102", "103"]).dictionary_encode())
    pq.write_table(pa.table({"history": coded}), tmp_path / "b.parquet")
    assert [row["items"] for row in served(predictor, tmp_path / "b.parquet", k=4)[1]] == [
        answer.ids for answer in predictor.recommend([[101, 102], [103]], k=4)]


def test_nobody(predictor, served, tmp_path):
    empty = {"user": pa.array([], pa.string()), "history": pa.array([], pa.list_(pa.int64()))}
    pq.write_table(pa.table(empty), tmp_path / "lists.parquet")
    done, rows = served(predictor, tmp_path / "lists.parquet")
    assert (done.users, done.events, done.unknown) == (0, 0, 0)
    assert rows == []
    written = pq.read_schema(tmp_path / "out.parquet")
    assert written.names == ["user", "items", "scores", "unknown"]
    assert [str(kind) for kind in written.types] == [
        "string", "list<element: int64>", "list<element: float>", "int64"]


def test_it_streams(predictor, served, tmp_path, monkeypatch):
    """One group of rows is read, answered and written at a time, in order."""
    sizes = []
    dense = predictor.recommend_dense

    def counted(rows, *arguments, **options):
        sizes.append(len(rows))
        return dense(rows, *arguments, **options)

    monkeypatch.setattr(predictor, "recommend_dense", counted)
    rows = np.random.default_rng(0).integers(100, 130, (10_000, 3)).tolist()
    pq.write_table(pa.table({"user": range(10_000), "history": rows}), tmp_path / "lists.parquet")
    served(predictor, tmp_path / "lists.parquet", k=2)
    assert sizes == [4096, 4096, 1808]
    written = pq.read_metadata(tmp_path / "out.parquet")
    assert [written.row_group(group).num_rows for group in range(written.num_row_groups)] == sizes
    assert pq.read_table(tmp_path / "out.parquet")["user"].to_pylist() == list(range(10_000))


def test_groups_do_not_show(predictor, served, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    histories = {f"user {n:02d}": rng.integers(95, 130, rng.integers(1, 9)).tolist() for n in range(30)}
    sources = [write_lists(tmp_path / "lists.parquet", histories), write_log(tmp_path / "log.parquet", histories)]
    monkeypatch.setattr(batch_module, "_ROWS_AT_A_TIME", 7)
    for source in sources:
        assert served(predictor, source, k=5)[1] == expected(predictor, histories, k=5)


def test_ties_are_the_same_in_every_group(predictor, served, tmp_path, monkeypatch):
    with torch.no_grad():
        predictor.model.items.weight.zero_()  # all items score 0
    pq.write_table(pa.table({"history": [[129]] * 10}), tmp_path / "lists.parquet")
    monkeypatch.setattr(batch_module, "_ROWS_AT_A_TIME", 3)
    assert all(row["items"] == [100, 101, 102] for row in served(predictor, tmp_path / "lists.parquet", k=3)[1])


def test_strings_stay_strings(predictor_of, served, tmp_path):
    named = predictor_of(["B01", "007", "12"])
    pq.write_table(pa.table({"history": [["B01", "007", "7"]]}), tmp_path / "lists.parquet")
    (row,) = served(named, tmp_path / "lists.parquet")[1]
    assert (row["items"], row["unknown"]) == (["12"], 1)
    (tmp_path / "log.csv").write_text("user,item\n1,12\n1,7\n")  # looks like integers, means the same
    (row,) = served(named, tmp_path / "log.csv")[1]
    assert (set(row["items"]), row["unknown"]) == ({"B01", "007"}, 1)


def test_what_training_left_out_of_the_log_is_left_out_here(predictor_of, served, tmp_path):
    """The same filter and repeats; weights, features and minimum counts are matters of training."""
    trained = predictor_of([1, 2, 3, 4], columns={"time": "time", "weight": "w", "features": ["f"]},
                           filter="rating >= 4", repeats="collapse", min_user_events=3, min_item_events=3)
    (tmp_path / "log.csv").write_text("user,item,time,rating\n1,1,1,5\n1,1,2,5\n1,2,3,1\n")
    done, (row,) = served(trained, tmp_path / "log.csv")
    assert done.events == 1
    assert row["items"] == trained.recommend([[1]])[0].ids


# --- items that the training log named by the key of an item table ---


@pytest.fixture
def table(tmp_path):
    """Key → id; no item for key 6, and two rows for a key that training never met."""
    path = tmp_path / "items.csv"
    path.write_text("key,asin,title\n1,B1,One\n2,B2,Two\n3,B3,Three\n5,B5,Five\n9,B9,Nine\n9,B8,Nine\n")
    return path


@pytest.fixture
def by_key(predictor_of, table):
    """Trained on items B1 B2 B3, in a log that had their keys."""
    return predictor_of(["B1", "B2", "B3"], items={"path": str(table), "key": "key", "id": "asin", "title": "title"})


def test_a_log_of_keys_or_of_ids(by_key, served, tmp_path):
    for items in (["1", "2"], ["B1", "B2"]):
        (tmp_path / "log.csv").write_text("user,item\n" + "".join(f"7,{item}\n" for item in items))
        done, (row,) = served(by_key, tmp_path / "log.csv")
        assert done.unknown == 0
        assert row["items"] == ["B3"]
    pq.write_table(pa.table({"user": [7, 7], "item": pa.array([1, 2], pa.int16())}), tmp_path / "log.parquet")
    assert served(by_key, tmp_path / "log.parquet")[1][0]["items"] == ["B3"]


def test_new_items_in_a_log_of_keys_are_unknown(by_key, served, tmp_path):
    (tmp_path / "log.csv").write_text("user,item\n7,1\n7,5\n7,6\n7,9\n8,6\n")  # 5 is new to the model, 6 to the table
    done, rows = served(by_key, tmp_path / "log.csv", k=1)
    assert (done.events, done.unknown) == (5, 4)
    assert [row["unknown"] for row in rows] == [3, 1]
    assert rows[1]["items"] == ["B1"]  # the most frequent


def test_a_new_key_is_not_taken_for_an_id(predictor_of, served, tmp_path):
    (tmp_path / "items.csv").write_text("key,id\n1,20\n2,10\n3,30\n")
    numbers = predictor_of([10, 20, 30], items={"path": str(tmp_path / "items.csv"), "key": "key", "id": "id"})
    (tmp_path / "log.csv").write_text("user,item\n7,1\n7,30\n")  # a key, so that 30 would be a key too
    (row,) = served(numbers, tmp_path / "log.csv")[1]
    assert row["unknown"] == 1
    assert set(row["items"]) == {10, 30}
    (tmp_path / "log.csv").write_text("user,item\n7,20\n7,30\n")  # no key at all: ids
    (row,) = served(numbers, tmp_path / "log.csv")[1]
    assert row == row | {"unknown": 0, "items": [10]}


def test_lists_hold_raw_ids(by_key, served, tmp_path):
    pq.write_table(pa.table({"history": [["B1", "B3"], ["1"]]}), tmp_path / "lists.parquet")
    rows = served(by_key, tmp_path / "lists.parquet")[1]
    assert [row["unknown"] for row in rows] == [0, 1]
    assert rows[0]["items"] == ["B2"]


def test_a_table_of_titles_alone_is_not_needed(predictor_of, served, tmp_path):
    titled = predictor_of([1, 2], items={"path": str(tmp_path / "gone.csv"), "key": "id", "title": "title"})
    (tmp_path / "log.csv").write_text("user,item\n7,1\n")
    assert served(titled, tmp_path / "log.csv")[1][0]["items"] == [2]


def test_an_item_table_that_has_moved(by_key, served, tmp_path, table):
    table.rename(tmp_path / "moved.csv")
    (tmp_path / "keys.csv").write_text("user,item\n7,1\n")
    (tmp_path / "ids.csv").write_text("user,item\n7,B1\n")
    with pytest.raises(InvalidData, match=r"item table of the training log: .*items\.csv: no such file .* items\.path"):
        served(by_key, tmp_path / "keys.csv")
    assert not (tmp_path / "out.parquet").exists()
    plain = by_key.data_config.plain()
    moved = DataConfig.parse(plain | {"items": plain["items"] | {"path": str(tmp_path / "moved.csv")}})
    assert served(by_key, tmp_path / "keys.csv", config=moved)[1][0]["unknown"] == 0
    without = DataConfig.parse(plain | {"items": None})
    assert served(by_key, tmp_path / "ids.csv", config=without)[1][0]["unknown"] == 0
    other = DataConfig.parse(plain | {"items": plain["items"] | {"path": str(tmp_path / "moved.csv"), "key": "keys"}})
    with pytest.raises(InvalidData, match=r"no column 'keys' \(items\.key\).*did you mean 'key'"):
        served(by_key, tmp_path / "keys.csv", config=other)


# --- refusals ---


def test_the_source_is_not_overwritten(predictor, tmp_path):
    lists = write_lists(tmp_path / "lists.parquet")
    (tmp_path / "link.parquet").symlink_to(lists)
    before = lists.read_bytes()
    with pytest.raises(InvalidArgument, match=r"^out: expected another file"):
        recommend_file(predictor, lists, tmp_path / "link.parquet")
    assert lists.read_bytes() == before


def test_an_older_answer_stays_when_the_new_one_fails(predictor, served, tmp_path):
    served(predictor, write_lists(tmp_path / "lists.parquet"))
    before = (tmp_path / "out.parquet").read_bytes()
    (tmp_path / "bad.parquet").write_bytes((tmp_path / "lists.parquet").read_bytes()[:-9])
    for source, options in ((tmp_path / "bad.parquet", {}), (tmp_path / "lists.parquet", {"k": 0})):
        with pytest.raises((InvalidData, InvalidArgument)):
            served(predictor, source, **options)
    assert (tmp_path / "out.parquet").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "bad.parquet", "lists.parquet", "out.parquet"]
