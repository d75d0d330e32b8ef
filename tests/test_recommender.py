"""The whole library as one estimator."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import serrate
from serrate import Recommender
from serrate.data import DataConfig, prepare
from serrate.errors import InvalidArgument, InvalidConfig, InvalidData, InvalidRun
from serrate.train import RunConfig

CONFIG = {
    "data": {"columns": {"time": "time"}},
    "model": {"kind": "transformer", "width": 8, "feedforward": 8, "blocks": 1, "max_length": 8},
    "train": {"epochs": 2},
    "evaluate": {"resamples": 20},
}
HISTORIES = [["i3", "i4"], [], ["i7", "nothing"], ["i0"] * 12]


@pytest.fixture(scope="module")
def frame():
    """25 users with 3 to 9 events over 15 items, as a pandas frame."""
    rng = np.random.default_rng(0)
    rows = [(f"u{user}", f"i{(start + step) % 15}", step)
            for user in range(25) for start in [int(rng.integers(15))] for step in range(int(rng.integers(3, 10)))]
    return pd.DataFrame(rows, columns=["user", "item", "time"])


@pytest.fixture(scope="module")
def fitted(frame):
    """Fitted on the frame; not to be changed."""
    return Recommender(CONFIG).fit(frame)


@pytest.mark.parametrize("form", ["polars", "arrow", "csv", "parquet", "text of a path", "prepared", "histories"])
def test_every_form_of_a_log_gives_the_same(form, frame, fitted, tmp_path):
    prepared = DataConfig.parse(CONFIG["data"])
    frame.to_csv(tmp_path / "log.csv", index=False)
    frame.to_parquet(tmp_path / "log.parquet")
    log = {"polars": lambda: pl.from_pandas(frame), "arrow": lambda: pa.Table.from_pandas(frame),
           "csv": lambda: tmp_path / "log.csv", "parquet": lambda: tmp_path / "log.parquet",
           "text of a path": lambda: str(tmp_path / "log.csv"),
           "prepared": lambda: prepare(frame, prepared, tmp_path / "prepared").path,
           "histories": lambda: prepare(frame, prepared)}[form]()
    assert Recommender(CONFIG).fit(log).recommend(HISTORIES) == fitted.recommend(HISTORIES)


def test_recommendations_are_raw_ids_of_items_not_seen(fitted, frame):
    answers = fitted.recommend(HISTORIES, k=4)
    assert [len(answer.ids) for answer in answers] == [4] * 4
    assert {item for answer in answers for item in answer.ids} <= set(frame["item"])
    assert not {"i3", "i4"} & set(answers[0].ids)
    assert answers[2].unknown == ["nothing"]
    assert set(fitted.recommend([["i3"]], allow=["i3", "i5"], exclude_seen=False)[0].ids) == {"i3", "i5"}
    assert "i4" not in fitted.recommend([["i3"]], k=15, deny=["i4"])[0].ids


def test_metrics_are_those_of_the_test_split(fitted):
    rows = {row["model"]: row for row in fitted.metrics["rows"] if row["split"] == "test"}
    assert set(rows) == {"transformer", "popularity", "item-kNN", "Markov"}
    assert 0 <= rows["transformer"]["metrics"]["hr@10"]["value"] <= 1
    assert fitted.metrics["examples"]["test"] == 25


def test_a_saved_run_answers_the_same(fitted, tmp_path):
    fitted.save(tmp_path / "runs" / "first")
    loaded = Recommender.from_pretrained(tmp_path / "runs" / "first")
    assert loaded.recommend(HISTORIES) == fitted.recommend(HISTORIES)
    assert loaded.metrics == fitted.metrics
    assert loaded.config == fitted.config
    loaded.save(tmp_path / "second")
    assert Recommender.from_pretrained(str(tmp_path / "second")).recommend(HISTORIES) == fitted.recommend(HISTORIES)
    assert sorted(path.name for path in (tmp_path / "second").iterdir()) == [
        "config.json", "data", "items.parquet", "log.jsonl", "metrics.json", "model.safetensors", "report.html"]


def test_save_replaces_nothing(fitted, tmp_path):
    (tmp_path / "taken").mkdir()
    fitted.save(tmp_path / "taken")  # empty: fine
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InvalidArgument, match="not empty"):
        fitted.save(tmp_path / "taken")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgument, match="a file"):
        fitted.save(tmp_path / "file")
    (tmp_path / "file").unlink()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_fit_into_a_folder_is_a_run_like_any_other(frame, fitted, tmp_path):
    again = Recommender(CONFIG).fit(frame, tmp_path / "run")
    assert again.recommend(HISTORIES) == fitted.recommend(HISTORIES)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["dataset"]["path"] == str(tmp_path / "run" / "data")
    with pytest.raises(InvalidArgument, match=r"^out: .* saved run"):
        Recommender(CONFIG).fit(frame, tmp_path / "run")


def test_a_log_of_no_use_leaves_nothing(frame, tmp_path):
    for log, out in ((frame[:2], tmp_path / "run"), (frame.rename(columns={"item": "items"}), tmp_path / "run")):
        with pytest.raises(InvalidData):
            Recommender(CONFIG).fit(log, out)
        assert not list(tmp_path.iterdir())
    (tmp_path / "run").mkdir()
    with pytest.raises(InvalidData):
        Recommender(CONFIG).fit(frame[:2], tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())
    assert Recommender(CONFIG).fit(frame, tmp_path / "run").recommend([[]])


def test_a_fit_that_fails_leaves_the_one_before(frame, tmp_path):
    recommender = Recommender(CONFIG).fit(frame)
    before = recommender.recommend(HISTORIES)
    with pytest.raises(InvalidData):
        recommender.fit(frame[:2])
    assert recommender.recommend(HISTORIES) == before
    recommender.save(tmp_path / "run")


@pytest.mark.parametrize("use", [
    lambda it, _: it.recommend([[1]]), lambda it, _: it.metrics, lambda it, folder: it.save(folder / "run")])
def test_not_fitted_is_said(use, tmp_path):
    with pytest.raises(InvalidArgument, match=r"expected a fitted one \(fit or from_pretrained\), got one not fitted"):
        use(Recommender(), tmp_path)


def test_configurations():
    assert Recommender().config == RunConfig()
    assert Recommender(RunConfig(seed=3)).config.seed == 3
    with pytest.raises(InvalidConfig, match=r"unknown key 'model.widht' \(did you mean 'width'\?\)"):
        Recommender({"model": {"kind": "transformer", "widht": 3}})
    with pytest.raises(InvalidConfig, match=r"train\.epochs: .* got 0"):
        Recommender({"train": {"epochs": 0}})


def test_not_a_log_and_not_a_run(tmp_path):
    with pytest.raises(InvalidArgument, match=r"expected a path, or a table"):
        Recommender().fit(5)
    with pytest.raises(InvalidData, match="no such file"):
        Recommender().fit(tmp_path / "no.csv")
    with pytest.raises(InvalidRun, match="nothing there"):
        Recommender.from_pretrained(tmp_path / "no")


# --- the package itself ---


def test_names_load_at_their_first_use():
    code = ("import sys, serrate; light = not {'torch', 'numpy', 'duckdb'} & set(sys.modules); "
            "serrate.JaggedTensor, serrate.EventBatch, serrate.SerrateError; "
            "still = not {'duckdb', 'pyarrow', 'pydantic'} & set(sys.modules); "
            "serrate.Recommender; print(light, still, 'duckdb' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_names_of_the_package():
    assert {"Recommender", "JaggedTensor", "EventBatch", "SerrateError", "__version__"} <= set(dir(serrate))
    with pytest.raises(AttributeError, match="no attribute 'Recomender'"):
        _ = serrate.Recomender
