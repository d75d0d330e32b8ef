import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serrate.data import Vocabulary
from serrate.errors import InvalidArgument, InvalidData

INTEGERS = st.integers(-(2**63), 2**63 - 1)
IDS = st.one_of(st.lists(INTEGERS, unique=True, max_size=20), st.lists(st.text(), unique=True, max_size=20))


@given(ids=IDS)
def test_ids_come_back_from_their_place(ids):
    vocabulary = Vocabulary(ids)
    assert len(vocabulary) == len(ids)
    assert vocabulary.encode(ids).tolist() == list(range(len(ids)))
    assert vocabulary.decode(range(len(ids))) == ids


def test_unknown_ids_are_minus_one():
    assert Vocabulary([7, 5]).encode([5, 6, None, 5.0, True, "x", 2**70]).tolist() == [1, -1, -1, -1, -1, -1, -1]
    assert Vocabulary(["b", "a"]).encode(["a", "A", None, 1.5]).tolist() == [1, -1, -1, -1]


def test_an_id_may_be_spelled_the_other_way():
    assert Vocabulary([7, 5]).encode(["5", "05", "7"]).tolist() == [1, -1, 0]
    assert Vocabulary(["7", "5"]).encode([5, 7]).tolist() == [1, 0]


@pytest.mark.parametrize("ids", [np.array([5, 9]), pa.array([5, 9]), (5, 9), iter([5, 9]), np.array(["5", "9"])])
def test_arrays_of_any_kind_are_encoded(ids):
    encoded = Vocabulary([5, 6]).encode(ids)
    assert encoded.tolist() == [0, -1]
    assert encoded.dtype == np.int64


def test_an_empty_vocabulary_knows_nothing():
    assert Vocabulary([]).encode([1]).tolist() == [-1]
    assert Vocabulary([1]).encode([]).tolist() == []
    assert Vocabulary([]).decode([]) == []


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint32(), pa.string(), pa.large_string(), pa.string_view()])
def test_kinds(kind):
    vocabulary = Vocabulary(pa.array(["1", "2"]).cast(kind))
    assert vocabulary.kind == ("integer" if pa.types.is_integer(kind) else "string")
    assert repr(vocabulary) == f"Vocabulary(2 {vocabulary.kind} ids)"


@pytest.mark.parametrize(("ids", "line"), [
    ([1, "1"], "ids: expected integers"),
    ([1, 1], "ids: expected each id once"),
    ([1, None], "ids: expected no null"),
    ([1.5], "ids: expected integers or strings"),
    ([2**64], "ids: expected integers"),
    (pa.array([2**63], pa.uint64()), "ids: expected integers"),
])
def test_ids_that_cannot_be_are_refused(ids, line):
    with pytest.raises(InvalidArgument, match=line):
        Vocabulary(ids)


def test_parts_have_one_entry_an_id():
    with pytest.raises(InvalidArgument, match="titles: expected 2 entries, one an id, got 1"):
        Vocabulary([1, 2], titles=["a"])
    with pytest.raises(InvalidArgument, match="dense: expected ids of 0 … 1, got 2"):
        Vocabulary([1, 2]).decode([0, 2])


@pytest.mark.parametrize("ids", [[3, 1], ["x", ""]])
def test_saved_and_loaded(tmp_path, ids):
    Vocabulary(ids, counts=[5, 2], titles=["A", None]).save(tmp_path / "items.parquet")
    loaded = Vocabulary.load(tmp_path / "items.parquet")
    assert loaded.decode([0, 1]) == ids
    assert loaded.titles == ["A", None]
    assert loaded.counts is not None
    assert loaded.counts.tolist() == [5, 2]
    Vocabulary(ids).save(tmp_path / "plain.parquet")
    assert pq.read_schema(tmp_path / "plain.parquet").names == ["id"]


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "items.parquet"
    with pytest.raises(InvalidData, match="cannot read the ids"):
        Vocabulary.load(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(InvalidData, match="cannot read the ids"):
        Vocabulary.load(path)
    pq.write_table(pa.table({"key": [1]}), path)
    with pytest.raises(InvalidData, match="expected a column 'id', got key"):
        Vocabulary.load(path)
    pq.write_table(pa.table({"id": [1, 1]}), path)
    with pytest.raises(InvalidData, match="each id once"):
        Vocabulary.load(path)


def fnv(text: str) -> int:
    """The published FNV-1a of 64 bits, its halves folded together, without the sign bit."""
    value = 14695981039346656037
    for byte in text.encode():
        value = (value ^ byte) * 1099511628211 % 2**64
    return (value ^ (value >> 32)) % 2**63


def test_keys_are_those_of_the_raw_ids_in_any_vocabulary():
    texts = ["", "a", "foobar", "Zoë", "a much longer one than the others", "b"]
    vocabulary = Vocabulary(texts)
    assert vocabulary.keys().tolist() == [fnv(text) for text in texts]
    assert Vocabulary(["b", "foobar"]).keys().tolist() == [fnv("b"), fnv("foobar")]
    assert Vocabulary(pa.array(["x", *texts]).slice(1)).keys().tolist() == vocabulary.keys().tolist()
    assert Vocabulary([]).keys().tolist() == Vocabulary(pa.array([], pa.string())).keys().tolist() == []
    assert Vocabulary([""]).keys().tolist() == [fnv("")]


def test_keys_of_integers_are_themselves_without_their_sign():
    keys = Vocabulary([7, 0, 2**63 - 1, -1, -(2**63)]).keys()
    assert keys.dtype == np.int64
    assert keys.tolist() == [7, 0, 2**63 - 1, 2**63 - 1, 0]
