"""A ranking run: the same loop, exact resume, metrics beside the rates it has to beat, what is wrong in one line."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serrate.data import Features, Histories, prepare
from serrate.distributed import World
from serrate.errors import InvalidConfig, InvalidData
from serrate.models import RankingModel
from serrate.train import RankingRunConfig, RunConfig, next_item_run, parse_run, read_run_config, resume, train
from serrate.train.lengths import padding_avoided
from serrate.train.loop import Trainer

CLASSES = 4
CONFIG = {
    "seed": 1,
    "data": {"columns": {"time": "time", "features": ["rating"]}, "threads": 1},
    "features": {
        "histories": {"all": None, "liked": "rating >= 4"},
        "events": [{"kind": "categorical", "name": "stars", "column": "rating"}],
        "items": {"path": "items.parquet", "key": "item", "columns": [
            {"kind": "categorical", "name": "kind"}, {"kind": "multi", "name": "tags"},
            {"kind": "dense", "name": "price"}]}},
    "samples": {"labels": {"rating": "rating"}},
    "model": {
        "kind": "ranking", "width": 8, "bottom": [8], "top": [16], "cross_layers": 1, "dropout": 0.1,
        "features": [{"kind": "categorical", "name": "item"}, {"kind": "categorical", "name": "kind"},
                     {"kind": "multi", "name": "tags"}, {"kind": "dense", "name": "price", "transform": "log1p"}],
        "histories": [
            {"name": "all", "fields": [{"name": "item"}, {"name": "kind"}, {"name": "stars"}], "age": True,
             "max_length": 10, "reads": [{"kind": "target"}, {"kind": "pooling"}]},
            {"name": "liked", "fields": [{"name": "kind"}], "max_length": 6, "reads": [{"kind": "pooling"}]}],
        "tasks": [{"kind": "binary", "name": "like", "field": "rating", "threshold": 4}]},
    "train": {"epochs": 4, "tokens_per_batch": 1024, "learning_rate": 0.02, "warmup_steps": 2, "log_every": 1,
              "device": "cpu", "checkpoint_seconds": 1e9},
    "evaluate": {"resamples": 20},
}


def changed(**parts) -> dict:
    return {**CONFIG, **{name: {**CONFIG.get(name, {}), **values} for name, values in parts.items()}}


@pytest.fixture(scope="module")
def ratings(tmp_path_factory) -> Histories:
    """60 users who like the items of one class of four, 30 items, 1,500 ratings."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("ratings")
    users, items = rng.integers(0, 60, 1500), rng.integers(0, 30, 1500)
    likes = (users % CLASSES == items % CLASSES) ^ (rng.random(1500) < 0.1)
    pq.write_table(pa.table({"user": users, "item": items, "time": np.arange(1500),
                             "rating": np.where(likes, rng.integers(4, 6, 1500), rng.integers(1, 4, 1500))}),
                   folder / "events.parquet")
    every = range(30)
    pq.write_table(pa.table({"item": list(every), "kind": [f"class {item % CLASSES}" for item in every],
                             "tags": [[f"tag {item % 3}", f"tag {item % 7}"] for item in every],
                             "price": [None if item == 3 else float(item) for item in every]}),
                   folder / "items.parquet")
    return prepare(folder / "events.parquet", RankingRunConfig.parse(CONFIG).data, folder / "data")


@pytest.fixture(scope="module")
def run(ratings, tmp_path_factory):
    longer = changed(train={"epochs": 10, "tokens_per_batch": 512}, model={"dropout": 0.0})
    return train(RankingRunConfig.parse(longer), ratings, tmp_path_factory.mktemp("runs") / "run")


def test_it_learns_what_no_rate_knows(run):
    metrics = run.read_metrics()
    values = {row["model"]: row["metrics"] for row in metrics["rows"] if row["split"] == "test"}
    assert list(values) == ["ranking", "base rate", "item rate", "user + item"]
    # classes match for a quarter of all pairs, and who is of which class is in the history alone
    assert values["ranking"]["auc"]["value"] > max(0.7, values["user + item"]["auc"]["value"] + 0.1)
    assert values["base rate"]["auc"]["value"] == 0.5
    assert set(values["ranking"]) == {"auc", "grouped_auc", "log_loss", "ne", "ne_training", "calibration"}
    better = {row["metric"]: row for row in metrics["comparisons"] if row["baseline"] == "base rate"}
    assert better["auc"]["low"] > 0
    assert better["log_loss"]["value"] < 0
    [curve] = metrics["calibration"]
    assert sum(each["count"] for each in curve["bins"]) == metrics["examples"]["test"]
    assert metrics["split_by"] == "time"


def test_the_least_log_loss_chooses_the_epoch(run):
    log = [json.loads(line) for line in run.log_path.read_text().splitlines()]
    losses = [record["metrics"]["log_loss"] for record in log if record["event"] == "validation"]
    assert run.read_metrics()["best_epoch"] == 1 + losses.index(min(losses))
    assert run.read_metrics()["monitor"] == {"metric": "log_loss", "value": min(losses)}


def test_numbers_are_read_as_training_measured_them(run, ratings):
    features = {each["name"]: each for each in run.read_config()["model"]["features"]}
    trainer = Trainer(RankingRunConfig.parse(CONFIG), ratings, run.path / "again", World())
    data, train = trainer.objective.data, trainer.objective.parts.train
    prices = data.features.items.columns["price"][torch.from_numpy(train.items) + 1].log1p()
    known = prices[prices.isfinite()].double()
    assert len(known) < len(prices)
    assert features["price"]["centre"] == pytest.approx(known.mean().item())
    assert features["price"]["spread"] == pytest.approx(known.std(correction=0).item())
    given = changed(model={"features": [{"kind": "categorical", "name": "item"},
                                        {"kind": "dense", "name": "price", "centre": 2.5}]})
    dense = Trainer(RankingRunConfig.parse(given), ratings, run.path / "again", World()).config.model.features[1]
    assert dense.centre == 2.5  # what is given stays
    assert dense.spread not in (None, 1.0)


def test_what_is_saved_is_what_was_tested(run, ratings):
    config = read_run_config(run.read_config())
    assert isinstance(config, RankingRunConfig)
    features = Features.open(run.features_path)
    assert RankingModel(config.model, features.sizes)(_batch(config, ratings, run)).shape[1] == 1
    with pytest.raises(InvalidConfig, match=r"model\.kind: expected a model of the next item, got 'ranking'"):
        next_item_run(config)


def _batch(config, ratings, run):
    objective = Trainer(config, ratings, run.path / "again", World()).objective
    return objective.batch(0, np.arange(3))


class Stopped(Exception):  # noqa: N818
    pass


def test_a_run_stopped_anywhere_resumes_to_the_same_result(ratings, tmp_path, files):
    config = RankingRunConfig.parse(changed(train={"checkpoint_seconds": 0, "epochs": 2, "log_every": 3}))
    records = []
    train(config, ratings, tmp_path / "whole", listeners=[records.append])
    for at in (2, len(records) // 2, len(records) - 1):
        left = iter(range(at))

        def stop(record, left=left):
            if next(left, None) is None:
                raise Stopped

        with pytest.raises(Stopped):
            train(config, ratings, tmp_path / f"{at}", listeners=[stop])
        resume(tmp_path / f"{at}")
        assert files(tmp_path / f"{at}") == files(tmp_path / "whole")


def test_several_tasks_are_measured_by_their_names(ratings, tmp_path):
    tasks = [*CONFIG["model"]["tasks"], {"kind": "binary", "name": "love", "field": "rating", "threshold": 5},
             {"kind": "regression", "name": "stars", "field": "rating", "centre": 3}]
    config = RankingRunConfig.parse(changed(
        model={"tasks": tasks}, train={"epochs": 1, "monitor": "love.auc"}, evaluate={"baselines": False}))
    metrics = train(config, ratings, tmp_path / "run").read_metrics()
    assert {"like.auc", "love.auc", "love.ne"} <= set(metrics["rows"][0]["metrics"])
    assert [each["task"] for each in metrics["calibration"]] == ["like", "love"]
    assert metrics["base_rates"]["love"]["test"] < metrics["base_rates"]["like"]["test"]


def test_a_validation_measures_so_many_states_and_the_same_ones(ratings, tmp_path):
    some = Trainer(RankingRunConfig.parse(changed(train={"validation_examples": 7})), ratings, tmp_path, World())
    samples, again = some.objective.validation_samples(), some.objective.validation_samples()
    assert samples.num_states == 7
    assert np.array_equal(samples.places, again.places)


def test_a_metric_that_validation_cannot_measure_is_one_line(tmp_path):
    # of every user all is liked or nothing, so that no user has an AUC
    users = np.arange(200) % 10
    log = pa.table({"user": users, "item": np.arange(200) % 7, "time": np.arange(200), "rating": 1 + 4 * (users % 2)})
    config = parse_run(changed(features={"items": None}, train={"monitor": "grouped_auc"}, model={
        "features": [{"kind": "categorical", "name": "item"}],
        "histories": [{"name": "all", "fields": [{"name": "item"}]}]}))
    with pytest.raises(InvalidData, match=r"grouped_auc is not defined of the validation samples: .* such as auc"):
        train(config, prepare(log, config.data, tmp_path / "data"), tmp_path / "run")


def test_padding_is_counted_in_each_history_on_its_own(ratings, tmp_path):
    batches = Trainer(RankingRunConfig.parse(CONFIG), ratings, tmp_path, World()).objective.batches
    one = type(batches)(np.array([2, 2]), 10, seed=0)
    assert padding_avoided(one, (np.array([1, 3]), np.array([2, 2]))) == pytest.approx(1 - 8 / 10)


def test_a_model_of_time_needs_a_log_with_times(tmp_path):
    log = pa.table({"user": [1, 1, 2, 2], "item": [0, 1, 0, 1], "rating": [1, 5, 5, 1]})
    config = parse_run(changed(data={"columns": {"features": ["rating"]}}, features={"items": None}, model={
        "features": [{"kind": "categorical", "name": "item"}],
        "histories": [{"name": "all", "fields": [{"name": "item"}], "age": True}]}))
    with pytest.raises(InvalidData) as caught:
        train(config, prepare(log, config.data, tmp_path / "data"), tmp_path / "run")
    assert str(caught.value) == ("data: history 'all' of the model reads the time of each event, and this log has none "
                                 "(columns.time)")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("parts", "message"), [
    ({"samples": {"labels": {"like": "rating >= 4"}}},
     "config: the field of task 'like' is 'rating', which is not among the labels of samples: like"),
    ({"features": {"histories": {"all": None, "liked ones": "rating >= 4"}}},
     "config: a history of the model is 'liked', which is not among the histories of features: all, liked ones "
     "(did you mean 'liked ones'?)"),
    ({"model": {"features": [{"kind": "categorical", "name": "item"}, {"kind": "categorical", "name": "kinds"}]}},
     "config: what the model reads is 'kinds', which is not among the categorical features of candidates: item, kind "
     "(did you mean 'kind'?)"),
    ({"model": {"features": [{"kind": "categorical", "name": "item"},
                             {"kind": "dense", "name": "price", "of": "context"}]}},
     "config: what the model reads is 'price', which is not among the dense features of context: none"),
    ({"train": {"monitor": "ndcg@10"}}, "config: train.monitor must be one of auc, grouped_auc, log_loss, ne, "
                                        "ne_training"),
    ({"model": {"tasks": [{"kind": "regression", "name": "stars", "field": "rating"}]}},
     "config: model.tasks: expected a binary task at least, which is what is measured"),
    ({"split": {}}, "config: unknown key 'split'"),
])  # fmt: skip
def test_what_does_not_fit_together_is_one_line(parts, message):
    with pytest.raises(InvalidConfig) as caught:
        parse_run(changed(**parts))
    assert str(caught.value).startswith(message)


def test_the_kind_of_the_model_tells_the_kind_of_the_run():
    config = parse_run(CONFIG)
    assert isinstance(config, RankingRunConfig)
    assert parse_run(config.plain()) == config
    assert isinstance(parse_run({"model": {"kind": "hstu"}}), RunConfig)
    assert isinstance(parse_run({}), RunConfig)
