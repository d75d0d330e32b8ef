import errno
import json
from collections import Counter, defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.data import ColumnMapping, DataConfig, Histories, ItemTable, prepare
from serrate.data import prepare as prepare_function
from serrate.data.prepare import write_arrays
from serrate.errors import InvalidArgument, InvalidData, NotWritable

BY_TIME = DataConfig(columns=ColumnMapping(time="time"))


def oracle(rows, repeats="keep", min_user=1, min_item=1):
    """Histories as {user: [item]}, the slow way: sort by (time, place), drop repeats, drop the rare until none is."""
    histories = defaultdict(list)
    for user, item, _ in sorted(rows, key=lambda row: row[2]):  # sorted() is stable
        histories[user].append(item)
    for user, items in histories.items():
        if repeats == "first":
            histories[user] = list(dict.fromkeys(items))
        if repeats == "last":
            histories[user] = list(dict.fromkeys(items[::-1]))[::-1]
        if repeats == "collapse":
            histories[user] = [item for place, item in enumerate(items) if place == 0 or items[place - 1] != item]
    while True:
        counts = Counter(item for items in histories.values() for item in items)
        kept = {user: [item for item in items if counts[item] >= min_item] for user, items in histories.items()}
        kept = {user: items for user, items in kept.items() if items and len(items) >= min_user}
        if kept == histories:
            return dict(sorted(kept.items()))
        histories = kept


ROWS = st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 4), st.integers(-2, 4)), min_size=1, max_size=30)


@settings(max_examples=20)
@given(rows=ROWS, as_text=st.booleans())
def test_histories_are_those_of_the_oracle_and_items_go_by_frequency(prepared, raw_rows, rows, as_text):
    if as_text:
        rows = [(f"u{user + 3}", f"i{item}", time) for user, item, time in rows]
    histories = prepared(rows)
    assert raw_rows(histories) == oracle(rows)
    counts = Counter(item for _, item, _ in rows)
    by_frequency = sorted(counts, key=lambda item: (-counts[item], item))
    assert histories.items.decode(range(histories.num_items)) == by_frequency
    assert histories.items.counts is not None
    assert histories.items.counts.tolist() == [counts[item] for item in by_frequency]
    times = histories.field("time").tolist()
    assert times == [sorted(time for user, _, time in rows if user == row) for row in oracle(rows)]


@settings(max_examples=25)
@given(rows=ROWS, repeats=st.sampled_from(["keep", "first", "last", "collapse"]), least=st.tuples(
    st.integers(1, 3), st.integers(1, 3)))
def test_repeats_and_minimum_counts_are_those_of_the_oracle(prepared, raw_rows, rows, repeats, least):
    min_user, min_item = least
    policy = {"repeats": repeats, "min_user_events": min_user, "min_item_events": min_item}
    expected = oracle(rows, repeats, min_user, min_item)
    if expected:
        assert raw_rows(prepared(rows, **policy)) == expected
    else:
        with pytest.raises(InvalidData, match="no event is left under min_user_events"):
            prepared(rows, **policy)


def test_minimum_counts_are_repeated_until_both_hold(prepared, raw_rows):
    # item 9 is rare; without it user 3 is; without user 3 item 8 is; users 1 and 2 with items 5 and 6 stay
    rows = [(1, 5, 0), (1, 6, 1), (2, 5, 0), (2, 6, 1), (2, 8, 2), (3, 8, 0), (3, 9, 1)]
    histories = prepared(rows, min_user_events=2, min_item_events=2)
    assert raw_rows(histories) == {1: [5, 6], 2: [5, 6]}
    assert histories.summary()["events_dropped"] == 3


def test_ties_in_time_keep_the_order_of_the_log(prepared, raw_rows):
    rows = [(1, item, 7) for item in (3, 1, 2, 9, 8)]
    assert raw_rows(prepared(rows)) == {1: [3, 1, 2, 9, 8]}


def test_position_orders_and_is_not_kept(prepared, raw_rows):
    histories = prepared([(1, 10, 2), (1, 11, 0), (1, 12, 1)], columns={"position": "time"})
    assert raw_rows(histories) == {1: [11, 12, 10]}
    assert not histories.has_time
    assert list(histories.fields) == ["item"]


def test_without_an_order_the_file_counts(prepared, raw_rows):
    assert raw_rows(prepared([(1, 10, 2), (1, 11, 0)], columns={})) == {1: [10, 11]}


@pytest.mark.parametrize(("kind", "value", "expected", "unit"), [
    (pa.int32(), 5, 5, "integer"),
    (pa.float64(), 1.5, 1_500_000, "microseconds"),
    (pa.decimal128(5, 2), 1.5, 1_500_000, "microseconds"),
    (pa.date32(), 1, 86_400_000_000, "microseconds"),
    (pa.timestamp("s"), 1, 1_000_000, "microseconds"),
    (pa.timestamp("ms", tz="Europe/Paris"), 1, 1_000, "microseconds"),
    (pa.timestamp("ns"), 1_400, 1, "microseconds"),
])
def test_times_have_one_unit(kind, value, expected, unit):
    time = pa.array([value]).cast(pa.int64() if pa.types.is_temporal(kind) else kind)
    time = time.cast(pa.int32()).cast(kind) if pa.types.is_date(kind) else time.cast(kind)
    histories = prepare(pa.table({"user": [1], "item": [1], "time": time}), BY_TIME)
    assert histories.fields["time"].tolist() == [expected]
    assert histories.time_unit == unit


def test_weights_and_features_follow_their_events(prepared):
    rows = [(1, 10, 2, 0.5, 7, True), (1, 11, 0, 0.0, 8, False), (2, 10, 1, 2.0, 9, True)]
    histories = prepared(rows, names=("user", "item", "time", "w", "shop", "sale"),
                         columns={"time": "time", "weight": "w", "features": ("shop", "sale", )})
    assert histories.field("weight").tolist() == [[0.0, 0.5], [2.0]]
    assert histories.field("shop").tolist() == [[8, 7], [9]]
    assert histories.field("sale").tolist() == [[0, 1], [1]]
    assert [str(histories.fields[name].dtype) for name in ("weight", "shop")] == ["torch.float32", "torch.int64"]


def test_a_filter_is_a_condition_over_all_columns(prepared, raw_rows):
    rows = [(1, 10, 0, 4), (1, 11, 1, 3), (1, 12, 2, 5)]
    histories = prepared(rows, names=("user", "item", "time", "rating"), filter="rating >= 4 AND item <> 99")
    assert raw_rows(histories) == {1: [10, 12]}
    assert histories.summary()["events_filtered_out"] == 1


def test_the_folder_is_written_whole_and_opens_again(tmp_path, log_of):
    out = tmp_path / "deep" / "data"
    made = prepare(log_of([("b", "x", 1), ("a", "y", 2)]), BY_TIME, out)
    assert made.path == out
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json", "item.npy", "items.parquet", "offsets.npy", "time.npy", "users.parquet"]
    assert [path.name for path in out.parent.iterdir()] == ["data"]  # nothing spilled is left
    again = Histories.open(out)
    assert again.summary() == made.summary()
    assert again.users.decode([0, 1]) == ["a", "b"]
    assert again.config == BY_TIME.plain()
    assert np.load(out / "item.npy").dtype == np.int32


def test_without_out_the_folder_lives_as_long_as_the_histories(log_of):
    histories = prepare(log_of([(1, 1, 1)]), BY_TIME)
    folder = histories.path
    assert folder.is_dir()
    del histories
    assert not folder.exists()


def test_the_same_log_gives_the_same_bytes_with_any_number_of_threads(tmp_path):
    rng = np.random.default_rng(0)
    log = pa.table({name: rng.integers(0, 50, 5000) for name in ("user", "item", "time")})
    for threads in (1, 2):
        prepare(log, BY_TIME.model_copy(update={"threads": threads}), tmp_path / str(threads))
    for name in ("offsets.npy", "item.npy", "time.npy"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_an_existing_folder_is_not_overwritten(tmp_path, log_of):
    (tmp_path / "precious").write_text("mine")
    with pytest.raises(InvalidArgument, match="out: expected a path that does not exist or an empty folder"):
        prepare(log_of([(1, 1, 1)]), BY_TIME, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_log_that_is_refused_leaves_nothing(tmp_path, log_of):
    with pytest.raises(InvalidData):
        prepare(log_of([(None, 1, 1)]), BY_TIME, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_out_under_a_file_cannot_be_written(tmp_path, log_of):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotWritable, match=r"file/out: cannot be written \(.*\)$"):
        prepare(log_of([(1, 1, 1)]), BY_TIME, tmp_path / "file" / "out")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EIO])
def test_a_disk_that_refuses_to_be_written_is_one_line(tmp_path, log_of, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, "the disk says no")

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", refuse)
    with pytest.raises(NotWritable, match=r"out: cannot be written \(the disk says no\)$"):
        prepare(log_of([(1, 1, 1)]), BY_TIME, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_changes_while_it_is_read_is_refused(tmp_path):
    batch = pa.record_batch({"item": [1, 2]})
    with pytest.raises(InvalidData, match="expected 3 events, got 2"):
        write_arrays([batch], [tmp_path / "item.npy"], ["int32"], 3)


def test_a_memory_limit_that_is_too_small_is_one_line(tmp_path):
    rng = np.random.default_rng(0)
    log = pa.table({name: rng.integers(0, 200_000, 400_000) for name in ("user", "item", "time")})
    with pytest.raises(InvalidData, match="memory_limit: too small to prepare table"):
        prepare(log, BY_TIME.model_copy(update={"memory_limit": "5MB"}), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_in_memory_is_sorted_on_disk(tmp_path):
    rng = np.random.default_rng(0)
    log = pa.table({name: rng.integers(0, 3000, 2_000_000) for name in ("user", "item", "time")})
    pq.write_table(log, tmp_path / "log.parquet")
    small = prepare(tmp_path / "log.parquet", BY_TIME.model_copy(update={"memory_limit": "60MB", "threads": 1}))
    large = prepare(tmp_path / "log.parquet", BY_TIME)
    assert (small.fields["item"] == large.fields["item"]).all()


def test_statistics_are_plain_and_say_what_was_dropped(prepared):
    summary = prepared([(1, 10, 0), (1, 11, 1), (2, 10, 5), (1, 10, 3)], repeats="first").summary()
    assert json.loads(json.dumps(summary)) == summary
    expected = {"num_users": 2, "num_items": 2, "num_events": 3, "events_read": 4, "events_filtered_out": 0,
                "events_dropped": 1, "mean_length": 1.5, "median_length": 1.5, "longest": 2, "time_unit": "integer"}
    assert {name: summary[name] for name in expected} == expected


def test_movielens_1m(real_logs):
    columns = ColumnMapping(user="user_id", item="item_id", position="position")
    titles = ItemTable(path=str(real_logs / "ml-1m/items.parquet"), key="item_id", title="title")
    histories = prepare_function(real_logs / "ml-1m/events.parquet", DataConfig(columns=columns, items=titles))
    assert (histories.num_users, histories.num_items, histories.num_events) == (6040, 3706, 1_000_209)
    assert histories.items.titles is not None
    assert histories.items.titles[0] == "American Beauty (1999)"  # the film with the most ratings
    log = pq.read_table(real_logs / "ml-1m/events.parquet").sort_by([("user_id", "ascending"),
                                                                     ("position", "ascending")])
    assert histories.items.decode(histories.fields["item"].numpy()) == log["item_id"].to_pylist()


def test_amazon_beauty_by_asin(real_logs):
    columns = ColumnMapping(user="user_id", item="item_id", position="position")
    table = ItemTable(path=str(real_logs / "amazon-beauty/items.parquet"), key="item_id", id="asin", title="title")
    histories = prepare_function(real_logs / "amazon-beauty/events.parquet", DataConfig(columns=columns, items=table))
    assert (histories.num_users, histories.num_items, histories.num_events) == (22_332, 12_086, 198_215)
    assert histories.items.kind == "string"
    assert histories.items.encode(["7806397051"]) >= 0


def test_an_item_table_is_found_beside_the_log(tmp_path):
    pq.write_table(pa.table({"user": [1, 1], "item": [7, 8]}), tmp_path / "log.parquet")
    pq.write_table(pa.table({"id": [7, 8], "name": ["seven", "eight"]}), tmp_path / "names.parquet")
    config = DataConfig.parse({"items": {"path": "names.parquet", "key": "id", "title": "name"}})

    histories = prepare(tmp_path / "log.parquet", config, tmp_path / "out")

    assert histories.items.titles == ["seven", "eight"]
    assert histories.config["items"]["path"] == str(tmp_path / "names.parquet")
