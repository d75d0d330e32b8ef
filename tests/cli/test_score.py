"""A ranking run on the command line: an ads log, a recipe, scores of requests, a report."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serrate.cli.main import main
from serrate.data import data_of
from serrate.run_folder import RunFolder

SMALL = ["model.width=8", "model.top=[8]", "model.bottom=[8]", "evaluate.resamples=20", "train.device=cpu",
         "train.learning_rate=0.01", "train.warmup_steps=2", "samples.validation_from=0.6", "samples.test_from=0.8"]


@pytest.fixture(scope="module")
def ads(tmp_path_factory):
    """A log of 4,000 ads, three of whose hundreds are clicked."""
    folder = tmp_path_factory.mktemp("ads") / "ads"
    assert main(["data", "synthesize", "--out", str(folder), "--kind", "ads", "--events", "4000"]) == 0
    return folder


@pytest.fixture(scope="module")
def ranked(ads, tmp_path_factory):
    """A run of the production recipe, made small; not to be changed."""
    run = tmp_path_factory.mktemp("ranked") / "run"
    assert main(["train", "ranking-production", *SMALL, "--data", str(ads / "events.parquet"), "--out", str(run)]) == 0
    return run


@pytest.fixture
def requests(ads, tmp_path):
    """The last ten impressions of the log, as they are asked for."""
    log = pq.read_table(ads / "events.parquet")
    rows = log.slice(len(log) - 10).select(["user", "item", "slot", "time"]).rename_columns(
        ["user", "item", "slot", "asked"])
    pq.write_table(rows, tmp_path / "requests.parquet")
    return tmp_path / "requests.parquet"


def test_requests_are_scored_in_their_order(serrate, ranked, requests, tmp_path):
    outcome = serrate("score", ranked, requests, "--out", tmp_path / "scores.parquet")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"10 requests → {tmp_path / 'scores.parquet'}\n"
    found, asked = pq.read_table(tmp_path / "scores.parquet"), pq.read_table(requests)
    assert found.column_names == ["user", "item", "asked", "click"]
    assert found["item"].equals(asked["item"])
    assert all(0 < probability < 1 for probability in found["click"].to_pylist())


def test_the_run_says_how_good_it_is(ranked):
    metrics, page = RunFolder(ranked).read_metrics(), RunFolder(ranked).report_path.read_text()
    assert [row["model"] for row in metrics["rows"]][:4] == ["ranking", "base rate", "item rate", "user + item"]
    assert "user + item" in page


def test_a_run_is_measured_again_as_it_was(serrate, ranked):
    outcome = serrate("evaluate", ranked, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    again, before = json.loads(outcome.out), RunFolder(ranked).read_metrics()
    assert again["examples"]["test"] == before["examples"]["test"]
    assert again["rows"] == [row for row in before["rows"] if row["split"] == "test"]
    outcome = serrate("evaluate", ranked, "--split", "validation", "--no-baselines", "--set", "evaluate.resamples=5")
    assert outcome.code == 0
    assert "validation split" in outcome.out
    assert "base rate" not in outcome.out


def test_a_run_is_not_measured_on_other_data(refused, ranked, trained):
    refused("evaluate", ranked, "--data", data_of(trained).path, words=["items are not those"])


def test_what_is_wrong_with_requests_is_one_line(refused, ranked, requests, tmp_path):
    rows = pq.read_table(requests)
    pq.write_table(rows.drop_columns(["slot"]), tmp_path / "short.parquet")
    refused("score", ranked, tmp_path / "short.parquet", "--out", tmp_path / "out.parquet",
            words=["expected a column 'slot', got user, item, asked"])
    pq.write_table(rows.append_column("shown.item", pa.array([[1]] * 10)), tmp_path / "told.parquet")
    refused("score", ranked, tmp_path / "told.parquet", "--out", tmp_path / "out.parquet",
            words=["expected a column 'shown.action'"])
    refused("score", ranked, tmp_path / "nowhere.parquet", "--out", tmp_path / "out.parquet",
            words=["nowhere.parquet: cannot be read as Parquet"])


def test_each_kind_of_run_has_commands_of_its_own(refused, ranked, trained, requests, tmp_path):
    refused("score", trained, requests, "--out", tmp_path / "out.parquet", words=["use serrate recommend"])
    refused("recommend", ranked, "--history", "1,2", words=["use serrate score"])
