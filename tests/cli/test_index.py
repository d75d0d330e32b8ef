"""An index on the command line: built, searched and measured as a person would, and what is told when it cannot be."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from serrate.index import KINDS

MOL = ["model.similarity.kind=mol", "model.similarity.query_components=2", "model.similarity.item_components=2",
       "model.similarity.component_width=8", "model.similarity.gate_hidden=8", "model.similarity.query_hidden=8",
       "loss.kind=sampled-softmax"]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory, small, log):
    """A run of a mixture of logits, trained on `log`; not to be changed."""
    from serrate.cli.main import main

    run = tmp_path_factory.mktemp("mixture") / "run"
    assert main(["train", "default", *small, *MOL, "--data", str(log), "--out", str(run)]) == 0
    return run


@pytest.fixture
def index(serrate, trained, tmp_path):
    """An exact index over the items of `trained`."""
    assert serrate("index", "build", trained, "--out", tmp_path / "index").code == 0
    return tmp_path / "index"


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"faiss"}))
def test_every_kind_recommends_as_the_run_does(serrate, mixture, tmp_path, kind):
    changes = ["--set", "each=20"] if kind == "component" else []  # of 20 items nothing is left out
    built = serrate("index", "build", mixture, "--kind", kind, *changes, "--out", tmp_path / "index")
    assert (built.code, built.out) == (0, "")
    assert built.err.startswith("20 items, ")
    for history in ("101,102", "", "999"):
        asked = ["--history", history, "-k", 7]
        plain = serrate("recommend", mixture, *asked)
        assert plain.code == 0
        assert serrate("recommend", mixture, *asked, "--index", tmp_path / "index") == plain
        assert serrate("index", "search", tmp_path / "index", mixture, *asked) == plain


def test_a_log_is_answered_through_the_index_alike(serrate, trained, index, log, tmp_path):
    answers = []
    for name, option in (("plain", []), ("indexed", ["--index", index])):
        out = tmp_path / f"{name}.parquet"
        assert serrate("recommend", trained, "--histories", log, "--out", out, *option).code == 0
        answers.append(pq.read_table(out))
    assert answers[0]["items"].to_pylist() == answers[1]["items"].to_pylist()
    assert answers[0].num_rows == 30


def test_a_model_of_time_is_searched_with_times(serrate, timed, tmp_path):
    assert serrate("index", "build", timed, "--out", tmp_path / "index").code == 0
    asked = ["--history", "101@3600,102@7200.0, @7200", "-k", 3]
    found = serrate("index", "search", tmp_path / "index", timed, *asked)
    assert found == serrate("recommend", timed, *asked)
    assert found.code == 0


def test_measured_figures_are_shown_kept_and_drawn(serrate, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    for kind, changes in (("exact", []), ("component", ["--set", "each=3"])):
        assert serrate("index", "build", run, "--kind", kind, *changes, "--out", tmp_path / kind).code == 0
        shown = serrate("index", "bench", tmp_path / kind, run, "-k", 5, "--users", 9, "--seconds", 0, "--json",
                        tmp_path / "figures.json")
        assert shown.code == 0
        assert ("100.00%" in shown.out) == (kind == "exact")
        rows = json.loads((tmp_path / "figures.json").read_text())
        assert [row["batch"] for row in rows] == [1, 8, 9]
        assert all(row["kind"] == kind and row["milliseconds"] > 0 for row in rows)
        assert rows[0]["recall"] == 1 if kind == "exact" else rows[0]["recall"] < 1
    again = serrate("index", "bench", tmp_path / "exact", run, "-k", 5, "--users", 8, "--seconds", 0)
    assert again.code == 0
    kept = json.loads((run / "index.json").read_text())["rows"]
    assert sorted((row["index"], row["batch"]) for row in kept) == [
        *(("component", batch) for batch in (1, 8, 9)), *(("exact", batch) for batch in (1, 8, 9))]
    assert "Recall and milliseconds" in (run / "report.html").read_text()


def cut(index):
    file = index / "items-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(("harm", "word"), [
    (cut, "bytes, not"),
    (lambda index: (index / "index.json").unlink(), "is not a saved index"),
    (lambda index: (index / "index.json").write_text("no"), "index.json cannot be read"),
])
@pytest.mark.parametrize("command", [["index", "search"], ["recommend"]], ids=" ".join)
def test_a_damaged_index_is_told(refused, trained, index, command, harm, word):
    harm(index)
    places = [index, trained] if command[0] == "index" else [trained, "--index", index]
    refused(*command, *places, "--history", "101", words=[word])


def test_an_index_of_another_model_is_told(refused, timed, index):
    refused("index", "search", index, timed, "--history", "101@1", words=["is of another model"])


@pytest.mark.parametrize(("options", "words"), [
    (["--kind", "exat"], ["kind: expected one of exact, ", "did you mean 'exact'?"]),
    (["--kind", "component", "--set", "eech=3"], ["unknown key 'eech' (did you mean 'each'?)"]),
    (["--kind", "h-indexer", "--set", "keep=0"], ["keep"]),
    (["--kind", "exact", "--set", "each=3"], ["unknown key 'each'"]),
])
def test_wrong_settings_are_told_and_nothing_is_written(refused, trained, tmp_path, options, words):
    refused("index", "build", trained, "--out", tmp_path / "index", *options, words=words)


def test_a_place_that_is_taken_is_told(refused, trained, index):
    refused("index", "build", trained, "--out", index, words=["not empty"])


def test_k_is_at_least_one_and_at_most_what_there_is(refused, serrate, trained, index):
    for k in (0, -3):
        refused("index", "search", index, trained, "--history", "101", "-k", k, words=["k: expected a whole number"])
    shown = serrate("index", "search", index, trained, "--history", "101", "-k", 10**6, "--no-exclude-seen")
    assert len(shown.out.splitlines()) == 20
