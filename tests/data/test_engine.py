import duckdb
import pyarrow as pa
import pytest

from serrate.data.engine import family, first_row, literal, number, open_engine, quoted, reading, reason
from serrate.errors import InvalidData, NotWritable


def test_the_engine_obeys_its_limits_and_leaves_no_file(tmp_path):
    with open_engine(tmp_path, "123MB", 1) as engine:
        settings = dict(engine.sql("SELECT name, value FROM duckdb_settings()").fetchall())
        assert settings["threads"] == "1"
        assert settings["temp_directory"].startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_python_variables_cannot_be_reached(tmp_path):
    secret = pa.table({"a": [1]})
    with open_engine(tmp_path, "123MB", 1) as engine, pytest.raises(duckdb.CatalogException, match="secret"):
        engine.sql("FROM secret").fetchall()
    assert secret.num_rows == 1


def test_names_and_texts_are_quoted(tmp_path):
    odd = 'a"b\'c; DROP TABLE x --'
    with open_engine(tmp_path, "123MB", 1) as engine:
        assert engine.sql(f"SELECT {literal(odd)} AS {quoted(odd)}").columns == [odd]
        assert first_row(engine, f"SELECT {literal(odd)}") == (odd,)
        assert first_row(engine, "SELECT 1 WHERE false") is None
        assert number(engine, "SELECT 40 + 2") == 42


def test_a_type_has_a_family():
    assert family("DECIMAL(5,2)") == "DECIMAL"
    assert family("ENUM('a', 'b')") == "ENUM"
    assert family("TIMESTAMP WITH TIME ZONE") == "TIMESTAMP WITH TIME ZONE"


@pytest.mark.parametrize(("message", "line"), [
    ("Binder Error: no such column\nCandidates: a", "no such column"),
    ("Invalid Input Error: CSV Error on Line: 7\nOriginal Line: 1,x\nCould not convert\nmore",
     "CSV Error on Line: 7: Could not convert"),
    ("plain", "plain"),
    ("", "Error"),
])
def test_a_message_of_the_engine_is_one_line(message, line):
    assert reason(duckdb.Error(message)) == line


@pytest.mark.parametrize(("raised", "expected", "line"), [
    ((duckdb.IOException, "IO Error: Could not write: No space left on device"), NotWritable, "out: no space left"),
    ((duckdb.OutOfMemoryException, "Out of Memory Error: x\nThis limit was set by the 'max_temp_directory_size'"),
     NotWritable, "out: no space left on the disk to sort log"),
    ((duckdb.OutOfMemoryException, "Out of Memory Error: x"), InvalidData, "memory_limit: too small to prepare log"),
    ((duckdb.IOException, "IO Error: Could not read file"), InvalidData, "log: Could not read file"),
    ((pa.ArrowInvalid, "odd"), InvalidData, "log: odd"),
])
def test_what_is_raised_while_reading_is_told_in_one_line(raised, expected, line):
    kind, message = raised
    with pytest.raises(expected, match=line), reading("log"):
        raise kind(message)
