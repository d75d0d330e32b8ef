import gzip
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serrate.data import ColumnMapping, DataConfig, prepare
from serrate.data.sources import Source
from serrate.errors import InvalidArgument, InvalidData

COLUMNS = ColumnMapping(time="time")
EXPECTED = {1: [11, 10], 2: [12]}
FRAME = {"user": [1, 2, 1], "item": [10, 12, 11], "time": [5, 1, 3]}


@pytest.fixture
def read(raw_rows):
    """A function: prepare a source with column `time` and give back {raw user: [raw items]}."""

    def run(source, **config):
        return raw_rows(prepare(source, DataConfig(columns=COLUMNS, **config)))

    return run


@pytest.fixture
def write(tmp_path):
    """A function: write a file of the given name and text (or bytes) and return its path."""

    def make(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return make


CSV = "user,item,time,note\n1,10,5,a\n2,12,1,b\n1,11,3,c\n"
TEXTS = {
    "log.csv": CSV,
    "log.CSV": CSV,
    "semicolons.csv": CSV.replace(",", ";").replace("\n", "\r\n"),
    "log.tsv": CSV.replace(",", "\t"),
    "mark.csv": "\ufeff" + CSV,
    "quotes.csv": 'user,item,time,note\n1,10,5,"a, ""b"""\n2,12,1,\n1,11,3,c\n',
    "log.csv.gz": gzip.compress(CSV.encode()),
    "log.inter": "user:token\titem:token\trating:float\ttime:token\n1\t10\t5\t05\n2\t12\t1\t01\n1\t11\t3\t03\n",
    "ratings.dat": "1::10::4::5\n2::12::3.5::1\n1::11::4::3\n",
    "u.data": "1\t10\t4\t5\n2\t12\t3\t1\n1\t11\t4\t3\n",
    "log.jsonl": '{"user": 1, "item": 10, "time": 5}\n{"user": 2, "item": 12, "time": 1}\n'
                 '{"user": 1, "item": 11, "time": 3, "more": {"a": [1]}}\n',
}


@pytest.mark.parametrize("name", [name for name in TEXTS if name != "log.inter"])
def test_text_formats_are_known_by_name(read, write, name):
    assert read(write(name, TEXTS[name])) == EXPECTED


def test_a_format_that_is_named_wins(read, write):
    assert read(write("log.txt", CSV), format="csv") == EXPECTED
    assert read(write("votes", TEXTS["ratings.dat"]), format="movielens") == EXPECTED


def test_recbole_types_leave_the_names_and_make_seconds(write, raw_rows):
    log = write("a.inter", "user_id:token\titem_id:token\ttimestamp:float\n7\tx\t978300760\n7\ty\t978300759.5\n")
    columns = ColumnMapping(user="user_id", item="item_id", time="timestamp")
    histories = prepare(log, DataConfig(columns=columns))
    assert raw_rows(histories) == {7: ["y", "x"]}
    assert histories.fields["time"].tolist() == [978300759_500000, 978300760_000000]


def test_ids_of_text_are_integers_only_if_all_are_written_so(read, write):
    assert read(write("a.csv", "user,item,time\n1,7,1\n")) == {1: [7]}
    assert read(write("b.csv", "user,item,time\n1,007,1\n1,8,2\n")) == {1: ["007", "8"]}
    assert read(write("c.csv", "user,item,time\n1,7,1\nx,8,2\n")) == {"1": [7], "x": [8]}
    assert read(write("d.csv", f"user,item,time\n1,{2**63},1\n")) == {1: [str(2**63)]}


def test_parquet_file_folder_glob_and_partitions(read, tmp_path):
    for user in (1, 2):  # the partition is a column of its own
        folder = tmp_path / "parts" / f"user={user}"
        folder.mkdir(parents=True)
        chosen = [index for index, value in enumerate(FRAME["user"]) if value == user]
        part = {name: [FRAME[name][index] for index in chosen] for name in ("item", "time")}
        pq.write_table(pa.table(part), folder / "part.parquet")
    (tmp_path / "parts" / "_SUCCESS").write_text("")
    pq.write_table(pa.table(FRAME), tmp_path / "log [1] 'a'.parquet")
    assert read(tmp_path / "log [1] 'a'.parquet") == EXPECTED
    assert read(str(tmp_path / "parts")) == EXPECTED
    assert read(f"{tmp_path}/parts/*/*.parquet") == EXPECTED
    assert read(f"{tmp_path}/parts/**/*.parquet") == EXPECTED


def test_ties_over_files_keep_the_order_of_files_and_rows(read, tmp_path):
    for name, items in (("b", [3, 1]), ("a", [9, 2])):
        pq.write_table(pa.table({"user": [1, 1], "item": items, "time": [0, 0]}), tmp_path / f"{name}.parquet")
    assert read(tmp_path) == {1: [9, 2, 3, 1]}


def test_tables_in_memory(read):
    arrow = pa.table(FRAME)
    categories = pa.table({"user": pa.array(FRAME["user"]), "item": pa.array(["a", "b", "a"]).dictionary_encode(),
                           "time": pa.array(FRAME["time"])})
    frame = pd.DataFrame(FRAME)
    frame["odd"] = [1, "one", None]  # not used, so it may be what it likes
    assert read(arrow) == EXPECTED
    assert read(arrow.to_batches()[0]) == EXPECTED
    assert read(pa.RecordBatchReader.from_batches(arrow.schema, arrow.to_batches(max_chunksize=1))) == EXPECTED
    assert read(frame) == EXPECTED
    assert read(pl.DataFrame(FRAME)) == EXPECTED
    assert read(categories) == {1: ["a", "a"], 2: ["b"]}


def test_a_small_file_read_by_several_threads_keeps_its_order(read, write):
    rows = "".join(f"1,{item},0\n" for item in range(50_000))
    assert read(write("long.csv", "user,item,time\n" + rows), threads=2) == {1: list(range(50_000))}


PARQUET_MAGIC_ONLY = b"PAR1" + bytes(100)
REFUSED = {
    "missing file": ("nothing.csv", None, "nothing.csv: no such file or folder"),
    "missing glob": ("*.csv", None, r"\*.csv: no file matches"),
    "empty file": ("log.csv", "", "log.csv: the file is empty"),
    "empty parquet": ("log.parquet", "", "log.parquet: the file is empty"),
    "header only": ("log.csv", "user,item,time\n", "log.csv: the log holds no events"),
    "no header": ("log.csv", "1,10,5\n2,12,1\n", "there are '1', '10', '5', which looks like data: is the header line"),
    "truncated parquet": ("log.parquet", PARQUET_MAGIC_ONLY, "log.parquet: No magic bytes found at end of file"),
    "not utf-8": ("log.csv", b"user,item,time\n1,\xe9\xff,3\n", "CSV Error on Line: 2: Invalid unicode"),
    "not a log": ("log.csv", b"\x89PNG\r\n\x1a\n\x00\xff", "expected UTF-8 text, got other bytes in the first line"),
    "zip as gzip": ("log.csv.gz", b"PK\x03\x04" + bytes(50), "log.csv.gz: cannot be read"),
    "picture": ("log.png", b"\x89PNG", "log.png: not a known kind of log by its name"),
    "uneven lines": ("log.csv", "user,item,time\n1,2,3\n4,5\n", "log.csv: .*line"),
    "late text": ("log.csv", "user,item,time\n" + "1,2,3\n" * 30_000 + "1,2,x\n",
                  "CSV Error on Line: 30002: Error when converting column \"time\""),
    "not recbole": ("log.inter", "user\titem\n1\t2\n", "expected a header of name:type columns between tabs"),
    "not movielens": ("movies.dat", "1::Toy Story (1995)::Comedy\n", "expected lines of user, item, rating, time"),
    "movielens with text": ("u.data", "1\t10\tgood\t5\n", "u.data: CSV Error on Line: 1"),
    "not json": ("log.jsonl", "user,item\n1,2\n", "log.jsonl: .*"),
    "file of the wrong format": ("log.parquet", CSV, "log.parquet: No magic bytes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_that_cannot_be_read_are_one_line(read, write, tmp_path, case):
    name, content, message = REFUSED[case]
    path = tmp_path / name if content is None else write(name, content)
    with pytest.raises(InvalidData, match=message) as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_a_damaged_page_of_parquet_is_one_line(read, tmp_path):
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({name: list(range(5000)) for name in FRAME}), path, compression="gzip")
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=r"log.parquet: ") as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_folders_without_a_log_or_of_two_formats(read, write, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidData, match="empty: the folder holds no log"):
        read(tmp_path / "empty")
    write("mixed/a.csv", CSV)
    write("mixed/b.jsonl", TEXTS["log.jsonl"])
    with pytest.raises(InvalidData, match="expected files of one format, got csv, json"):
        read(tmp_path / "mixed")


def test_files_of_different_columns_or_types(read, write, tmp_path):
    write("csv/a.csv", CSV)
    write("csv/b.csv", "user,time,item,note\n1,2,3,d\n")
    with pytest.raises(InvalidData, match=r"b.csv: expected the columns of a.csv, user, item, time, note"):
        read(tmp_path / "csv")
    (tmp_path / "parquet").mkdir()
    pq.write_table(pa.table(FRAME), tmp_path / "parquet" / "a.parquet")
    pq.write_table(pa.table({**FRAME, "item": ["a", "b", "c"]}), tmp_path / "parquet" / "b.parquet")
    with pytest.raises(InvalidData, match=r"column 'item' has several types in its files: INT64, String"):
        read(tmp_path / "parquet")
    pq.write_table(pa.table({"user": [1]}), tmp_path / "parquet" / "b.parquet")
    with pytest.raises(InvalidData, match=r"b.parquet.*column \"item\""):
        read(tmp_path / "parquet")


@pytest.mark.parametrize(("code", "reason"), [(13, "Permission denied"), (5, "Input/output error")])
def test_an_unreadable_file_is_one_line(read, write, monkeypatch, code, reason):
    path = write("log.csv", CSV)

    def refuse(*_, **__):
        raise OSError(code, reason)

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InvalidData, match=rf"log.csv: cannot be read \({reason}\)"):
        read(path)


def test_ids_of_two_types_in_one_column_are_refused(read):
    for ids in ([1, "1", 2], ["1", 1, 2]):
        with pytest.raises(InvalidData, match=r"table: a column holds values of more than one type .*column item"):
            read(pd.DataFrame({**FRAME, "item": pd.Series(ids, dtype=object)}))


@pytest.mark.parametrize("source", [None, 3, [(1, 2)], FRAME, pl.DataFrame(FRAME).lazy()])
def test_what_is_no_table_is_refused(read, source):
    with pytest.raises(InvalidArgument, match="source: expected a path, or a table of pyarrow, pandas or polars"):
        read(source)


def test_a_row_is_placed_in_its_file():
    files = (Path("a.parquet"), Path("b.parquet"))
    assert Source("log", {}, files).place((1 << 40) + 4) == "row 5 of b.parquet"
    assert Source("log", {}, files).place(4) == "row 5 of a.parquet"
    assert Source("log", {}, files[:1]).place(4) == "row 5"
