"""A saved index comes back bit by bit, or says in one line why it cannot."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from serrate.errors import InvalidArgument, InvalidData
from serrate.index import KINDS, ExactIndex, HIndexer, load_index
from serrate.index.storage import fingerprint

from .made import exact, mixture, whole

HERE = [kind for kind in KINDS if kind != "faiss" or importlib.util.find_spec("faiss")]
EVERYTHING = {"h-indexer": {"keep": 50}, "faiss": {"factory": "Flat"}}


@pytest.fixture
def saved(tmp_path):
    """A similarity, the sides of queries, an index with a removed item, and where it is saved."""
    similarity, queries, items = mixture()
    index = HIndexer.build(similarity, items, torch.arange(300) * 3, {"keep": 20, "sample_rank": 30})
    index.remove(torch.tensor([30]))
    index.save(tmp_path / "index")
    return similarity, queries, index, tmp_path / "index"


@pytest.mark.parametrize("kind", HERE)
def test_what_comes_back_is_bit_equal(tmp_path, kind, monkeypatch):
    monkeypatch.setattr("serrate.index.storage.SHARD_BYTES", 10_000)  # several shards
    similarity, queries, items = mixture()
    items = {"components": items["components"].half(), "gate": items["gate"].half()}
    index = KINDS[kind].build(similarity, items, torch.arange(300).flip(0), EVERYTHING.get(kind, {}))
    index.save(tmp_path / "index")
    assert len(list((tmp_path / "index").glob("*.safetensors"))) > 1
    loaded = load_index(tmp_path / "index", similarity)
    assert (type(loaded), loaded.config, len(loaded)) == (type(index), index.config, 300)
    before, after = index._corpus.compacted().segments[0], loaded._corpus.compacted().segments[0]
    assert before.ids.tolist() == after.ids.tolist()
    for had, has in ((before.sides, after.sides), (before.derived, after.derived)):
        assert set(had) == set(has)
        assert all(had[name].dtype == has[name].dtype and torch.equal(had[name], has[name]) for name in had)
    torch.testing.assert_close(loaded.search(queries, 5).scores, index.search(queries, 5).scores)


def test_one_shard_answers_with_the_same_bits(saved):
    similarity, queries, index, path = saved
    index.compact()
    one, other = index.search(queries, 7), HIndexer.load(path, similarity).search(queries, 7)
    assert torch.equal(one.scores, other.scores)
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.candidates, other.candidates)


def test_a_loaded_index_is_changed_and_saved_over_itself(saved):
    similarity, queries, _, path = saved
    loaded = load_index(path, similarity)
    with torch.no_grad():
        loaded.add(torch.tensor([30]), similarity.items(torch.randn(1, 16)))
    loaded.remove(torch.tensor([0]))
    with pytest.raises(InvalidArgument, match="not empty"):
        loaded.save(path)
    loaded.save(path, replace=True)
    again = load_index(path, similarity)
    assert again.ids.tolist() == [*range(3, 900, 3)]
    assert torch.equal(again.search(queries, 9).ids, loaded.search(queries, 9).ids)


def test_an_index_of_no_items_comes_back_and_takes_items(tmp_path):
    similarity, sides = exact("mixture")
    index = ExactIndex.build(similarity, sides(0, 2))
    index.remove(torch.arange(2))
    index.save(tmp_path / "index")
    loaded = load_index(tmp_path / "index", similarity)
    assert len(loaded) == 0
    loaded.add(torch.tensor([4]), sides(0, 1))
    assert loaded.search(sides(0, 1), 1).ids.tolist() == [[4]]


def change(head, **values):
    head.write_text(json.dumps(json.loads(head.read_text()) | values))


def cut(path):
    file = path / "items-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def spoil(path):
    file = path / "items-00000.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)


@pytest.mark.parametrize(("harm", "words"), [
    (cut, "items-00000.safetensors has .* bytes, not"),
    (spoil, "items-00000.safetensors: "),
    (lambda path: (path / "items-00000.safetensors").unlink(), "No such file"),
    (lambda path: (path / "index.json").unlink(), "is not a saved index"),
    (lambda path: (path / "index.json").write_text("{"), "index.json cannot be read"),
    (lambda path: (path / "index.json").write_text("[]"), "index.json cannot be read"),
    (lambda path: change(path / "index.json", format_version=2), "format version 2, .* a newer Serrate is needed"),
    (lambda path: change(path / "index.json", kind="tree"), "it is of kind 'tree', this Serrate knows exact, "),
    (lambda path: change(path / "index.json", config={"kept": 3}), "unknown key 'kept'"),
    (lambda path: change(path / "index.json", shards=[{"file": "x"}]), "lacks what it must say"),
    (lambda path: change(path / "index.json", shards=[]), "names no shards"),
])
def test_a_damaged_index_is_told_in_one_line(saved, harm, words):
    similarity, _, _, path = saved
    harm(path)
    with pytest.raises(InvalidData, match=f"^index: .*{words}") as error:
        load_index(path, similarity)
    assert "\n" not in str(error.value)


def test_other_weights_another_temperature_and_another_kind_are_told(saved):
    similarity, _, _, path = saved
    with pytest.raises(InvalidData, match="it is of kind 'h-indexer', not 'exact'"):
        ExactIndex.load(path, similarity)
    with pytest.raises(InvalidData, match="is of another model"):
        load_index(path, exact("dot")[0])
    with torch.no_grad():
        next(similarity.parameters())[0] += 1
    with pytest.raises(InvalidData, match="is of another model"):
        load_index(path, similarity)


def test_the_fingerprint_is_that_of_the_whole_model_where_one_is_named():
    similarity, _ = exact("dot")
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert fingerprint(similarity, one) == fingerprint(similarity, one)
    assert len({fingerprint(similarity, one), fingerprint(similarity, other), fingerprint(similarity)}) == 3


def test_a_kill_while_saving_leaves_the_old_index(saved):
    similarity, queries, index, path = saved
    expected = index.search(queries, 5).ids
    program = (
        "import os, signal, torch\n"
        "from serrate.index import ExactIndex, storage\n"
        "from serrate.nn.similarity import DotProduct\n"
        "storage.SHARD_BYTES, kept = 1_000, storage.save_file\n"
        "def save(tensors, place):\n"
        "    kept(tensors, place)\n"
        "    if place.name == 'items-00003.safetensors':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "storage.save_file = save\n"
        "items = {'vector': torch.ones(1_000, 8)}\n"
        f"ExactIndex.build(DotProduct(), items).save({str(path)!r}, replace=True)\n")
    done = subprocess.run([sys.executable, "-c", program], env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert torch.equal(load_index(path, similarity).search(queries, 5).ids, expected)


def test_on_the_cpu_items_stay_in_their_file(tmp_path):
    similarity, _ = exact("dot")
    ExactIndex.build(similarity, {"vector": whole(0, 100_000, 64)}).save(tmp_path / "index")
    loaded = load_index(tmp_path / "index", similarity)
    assert str(tmp_path / "index" / "items-00000.safetensors") in Path("/proc/self/maps").read_text()
    assert len(loaded) == 100_000
