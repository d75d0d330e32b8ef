import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serrate.data import ItemTable
from serrate.errors import InvalidData

ROWS = [(1, 7, 0), (1, 8, 1), (2, 8, 2)]
TABLE = {"key": [7, 8, 9], "asin": ["B7", "A8", "C9"], "title": ["Seven", None, "Nine"]}


@pytest.fixture
def table(tmp_path):
    """A function: write a side table, return an `ItemTable` over it."""

    def make(columns, **fields):
        path = tmp_path / "items.parquet"
        pq.write_table(pa.table(columns), path)
        return ItemTable(path=str(path), **{"key": "key", **fields})

    return make


def test_titles_are_kept_and_missing_ones_are_null(prepared, table):
    items = prepared(ROWS, items=table({"key": [7, 9], "title": ["Seven", "Nine"]}, title="title")).items
    assert items.decode([0, 1]) == [8, 7]
    assert items.titles == [None, "Seven"]


def test_the_id_of_the_table_replaces_that_of_the_log(prepared, table, raw_rows):
    histories = prepared(ROWS, items=table(TABLE, id="asin", title="title"))
    assert raw_rows(histories) == {1: ["B7", "A8"], 2: ["A8"]}
    assert histories.items.titles == [None, "Seven"]


def test_ties_in_frequency_go_by_the_new_id(prepared, table):
    items = prepared([(1, 7, 0), (1, 8, 1)], items=table(TABLE, id="asin")).items
    assert items.decode([0, 1]) == ["A8", "B7"]
    assert items.titles is None


def test_keys_match_across_types(prepared, table, raw_rows):
    text_keys = {**TABLE, "key": ["7", "8", "nine"]}
    assert raw_rows(prepared(ROWS, items=table(text_keys, id="asin"))) == {1: ["B7", "A8"], 2: ["A8"]}
    text_log = [(user, str(item), time) for user, item, time in ROWS]
    assert raw_rows(prepared(text_log, items=table(TABLE, id="asin"))) == {1: ["B7", "A8"], 2: ["A8"]}


def test_items_without_an_event_are_items_when_asked_for(prepared, table, raw_rows):
    histories = prepared(ROWS, items=table(TABLE, id="asin", title="title", unseen=True))
    assert histories.num_items == 3
    assert histories.items.decode(range(3)) == ["A8", "B7", "C9"]  # by frequency: 2, 1 and no event
    assert histories.items.counts.tolist() == [2, 1, 0]
    assert histories.items.titles == [None, "Seven", "Nine"]
    assert raw_rows(histories) == {1: ["B7", "A8"], 2: ["A8"]}
    assert prepared(ROWS, items=table(TABLE, title="title", unseen=True)).items.decode(range(3)) == [8, 7, 9]
    odd = table({"key": ["7", "8", "nine", None]}, unseen=True)  # neither could be an item of this log
    assert prepared(ROWS, items=odd).items.decode(range(2)) == [8, 7]
    assert prepared(ROWS, items=odd).num_items == 2


def test_a_csv_table_serves_too(prepared, tmp_path):
    (tmp_path / "items.csv").write_text("item,title\n7,Seven\n8,\n")
    table = ItemTable(path=str(tmp_path / "items.csv"), key="item", title="title")
    assert prepared(ROWS, items=table).items.titles == [None, "Seven"]


@pytest.mark.parametrize(("columns", "fields", "line"), [
    ({"key": [7], "asin": ["B7"]}, {"id": "asin"}, "1 of the 2 items of the log have no id there, the first is 8"),
    ({**TABLE, "asin": ["B7", None, "C"]}, {"id": "asin"}, "1 of the 2 items of the log have no id there"),
    ({**TABLE, "asin": ["B7", "B7", "C"]}, {"id": "asin"}, "id 'B7' stands for 2 items of the log"),
    ({**TABLE, "key": [7, 7, 8]}, {"title": "title"}, "expected one row an item, got 2 for key 7"),
    ({"key": [7, 8, 9, 9]}, {"unseen": True}, "expected one row an item, got 2 for key 9"),
    ({**TABLE, "asin": ["B7", "A8", None]}, {"id": "asin", "unseen": True}, "1 of the 3 items .* have no id there"),
    (TABLE, {"title": "name"}, r"no column 'name' \(items.title\); there are 'key', 'asin', 'title'"),
    (TABLE, {"key": "item"}, r"no column 'item' \(items.key\)"),
    ({**TABLE, "asin": [1.5, 2.5, 3.5]}, {"id": "asin"}, r"column 'asin' \(items.id\): expected integers or strings"),
])
def test_a_table_that_does_not_fit_is_one_line(prepared, table, columns, fields, line):
    with pytest.raises(InvalidData, match=rf"items\.parquet: {line}"):
        prepared(ROWS, items=table(columns, **fields))


def test_a_missing_table_is_one_line(prepared):
    with pytest.raises(InvalidData, match=r"nowhere\.parquet: no such file or folder"):
        prepared(ROWS, items=ItemTable(path="nowhere.parquet", key="key"))
