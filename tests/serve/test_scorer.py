"""Scores of requests: as in training, in the order of the requests, and what is wrong in one line."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from serrate.data import DataConfig, FeaturesConfig, RankingData, SamplesConfig, make_samples, prepare, samples_batch
from serrate.errors import InvalidArgument, InvalidData, InvalidRun
from serrate.models import RankingConfig, RankingModel
from serrate.run_folder import RunFolder
from serrate.serve import Predictor, Scorer, score_file

DATA = DataConfig.parse({"columns": {"user": "visitor", "item": "sku", "time": "at", "features": ["stars", "slot"]}})
MODEL = RankingConfig.parse({
    "width": 8, "bottom": [4], "top": [8], "cross_layers": 1,
    "features": [{"kind": "categorical", "name": "item"}, {"kind": "multi", "name": "tags"},
                 {"kind": "dense", "name": "price", "centre": 2, "spread": 3}, {"kind": "categorical", "name": "place"},
                 {"kind": "categorical", "name": "city", "of": "context"}],
    "histories": [
        {"name": "all", "fields": [{"name": "item"}, {"name": "stars"}], "age": True, "max_length": 3,
         "reads": [{"kind": "target"}]},
        {"name": "liked", "fields": [{"name": "item"}], "max_length": 2, "reads": [{"kind": "pooling"}]}],
    "tasks": [{"kind": "binary", "name": "like", "field": "like"},
              {"kind": "regression", "name": "rating", "field": "like", "centre": 3}]})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with random weights, and the batches' view of its log: folder, data."""
    folder, rng = tmp_path_factory.mktemp("log"), np.random.default_rng(0)
    events = 80
    pq.write_table(pa.table({
        "visitor": [f"u{number}" for number in rng.integers(0, 6, events)], "sku": rng.integers(10, 20, events),
        "at": 1000 * (np.arange(events) // 8), "stars": rng.integers(1, 6, events),
        "slot": rng.integers(0, 3, events)}),
        folder / "events.parquet")
    pq.write_table(pa.table({"sku": list(range(10, 20)), "price": [None, *map(float, range(9))],
                             "tags": [f"a|b{sku % 3}" for sku in range(10)]}), folder / "items.parquet")
    pq.write_table(pa.table({"visitor": [f"u{number}" for number in range(6)], "city": list("abcabc")}),
                   folder / "users.parquet")
    features = FeaturesConfig.parse({
        "histories": {"all": None, "liked": "stars >= 4"}, "shown": ["place"],
        "events": [{"kind": "categorical", "name": "stars"},
                   {"kind": "categorical", "name": "place", "column": "slot", "unknown": "refuse"}],
        "items": {"path": str(folder / "items.parquet"), "key": "sku", "columns": [
            {"kind": "multi", "name": "tags"}, {"kind": "dense", "name": "price"}]},
        "users": {"path": str(folder / "users.parquet"), "key": "visitor",
                  "columns": [{"kind": "categorical", "name": "city"}]}})
    run = RunFolder(folder / "run")
    data = RankingData.read(prepare(folder / "events.parquet", DATA, run.path / "data"), features)
    torch.manual_seed(0)
    model = RankingModel(MODEL, data.features.sizes)
    with torch.no_grad():  # far from zero, so that scores differ
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    run.write_config({"model": MODEL.plain(), "data": DATA.plain()})
    data.features.save(run.features_path)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, run.model_path)
    return run.path, data


@pytest.fixture
def scorer(made):
    return Scorer.open(made[0], device="cpu")


@pytest.fixture
def samples(made):
    """Every event that has one before it; the samples of all three parts are those of the first, then the others."""
    return make_samples(made[1].histories, SamplesConfig(labels={"like": "stars >= 4"})).train


@pytest.fixture
def expected(made, samples, scorer):
    batch = samples_batch(made[1], samples, np.arange(samples.num_states), {"all": 3, "liked": 2})
    with torch.inference_mode():
        return scorer.model.predict(batch)


@pytest.fixture
def requests(made, samples):
    """What a caller would ask who stood where each sample stands."""
    log = made[1].histories
    return pa.table({"visitor": log.users.decode(samples.users), "sku": log.items.decode(samples.items),
                     "slot": log.fields["slot"][torch.from_numpy(samples.places)].numpy(),
                     "asked": log.fields["time"][torch.from_numpy(samples.places)].numpy()})


def told(log, samples):
    """The same requests, whose histories come with them."""
    lists = {name: [] for name in ("all.sku", "all.stars", "all.at", "liked.sku")}
    for user, end in zip(samples.users, np.repeat(samples.ends, np.diff(samples.offsets)), strict=True):
        first = int(log.offsets[user])
        places = torch.arange(first, first + end)
        liked = places[log.fields["stars"][places] >= 4]
        lists["all.sku"].append(log.items.decode(log.fields["item"][places].numpy()))
        lists["liked.sku"].append(log.items.decode(log.fields["item"][liked].numpy()))
        lists["all.stars"].append(log.fields["stars"][places].tolist())
        lists["all.at"].append(log.fields["time"][places].tolist())
    return lists


def test_users_are_scored_as_in_training(scorer, requests, expected):
    found = scorer.score(requests)
    assert len(found) > 40
    assert found[:, 0].std() > 0.05
    torch.testing.assert_close(found, expected)


def test_order_is_kept_and_does_not_matter(scorer, requests, expected):
    shuffled = torch.randperm(len(expected))
    torch.testing.assert_close(scorer.score(requests.take(pa.array(shuffled.numpy()))), expected[shuffled])
    torch.testing.assert_close(scorer.score(requests.slice(7, 1)), expected[7:8])


def test_histories_that_come_with_a_request(made, scorer, samples, requests, expected):
    inline = requests
    for name, values in told(made[1].histories, samples).items():
        inline = inline.append_column(name, pa.array(values))
    torch.testing.assert_close(scorer.score(inline), expected)
    # rows of one request share the histories of the first
    [pair] = [(a, b) for a, b in zip(samples.offsets, samples.offsets[1:], strict=False) if b - a == 2][:1]
    both = inline.slice(pair[0], 2).append_column("request", pa.array(["r", "r"]))
    torch.testing.assert_close(scorer.score(both), expected[pair[0] : pair[1]])


def test_what_a_request_tells_of_item_and_user_goes_before_the_tables(scorer, requests, expected):
    same = requests.append_column("city", pa.array([list("abcabc")[int(user[1])] for user in
                                                    requests["visitor"].to_pylist()]))
    torch.testing.assert_close(scorer.score(same), expected)
    other = requests.append_column("city", pa.array(["a"] * len(requests)))
    price = requests.append_column("price", pa.array([100.0] * len(requests)))
    for changed in (other, price):
        assert not torch.allclose(scorer.score(changed), expected)


def test_the_unknown_is_read_as_features_say(scorer):
    rows = pa.table({"visitor": ["u0", "nobody", None], "sku": [999, 11, 12], "slot": [1, 1, 1], "asked": [5000] * 3})
    found = scorer.score(rows)
    assert found.isfinite().all()
    # an unknown user has no history, and is asked when nothing was before: at any time the same
    later = rows.set_column(3, "asked", pa.array([9000] * 3))
    torch.testing.assert_close(scorer.score(later)[1:], found[1:])
    # an unknown item that is told of is not as one of which nothing is known
    known = rows.append_column("price", pa.array([7.0, None, None]))
    assert not torch.allclose(scorer.score(known)[0], found[0])


def test_a_file_in_blocks_is_as_a_table(scorer, requests, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("serrate.serve.scores._ROWS_AT_A_TIME", 7)
    pq.write_table(requests, tmp_path / "requests.parquet")
    assert score_file(scorer, tmp_path / "requests.parquet", tmp_path / "scores.parquet") == len(requests)
    found = pq.read_table(tmp_path / "scores.parquet")
    assert found.column_names == ["visitor", "sku", "asked", "like", "rating"]
    assert found["sku"].equals(requests["sku"])
    torch.testing.assert_close(torch.tensor(found["like"].to_numpy()), expected[:, 0])
    pq.write_table(requests.slice(0, 0), tmp_path / "none.parquet")
    assert score_file(scorer, tmp_path / "none.parquet", tmp_path / "empty.parquet") == 0
    assert pq.read_table(tmp_path / "empty.parquet").column_names == found.column_names


@pytest.mark.parametrize(("change", "message"), [
    (lambda rows: rows.rename_columns(["visitor", "skus", "slot", "asked"]),
     "requests: expected a column 'sku', got visitor, skus, slot, asked (did you mean 'skus'?)"),
    (lambda rows: rows.drop_columns(["visitor"]),
     "requests: expected a column 'visitor', or columns of histories, such as 'all.sku', got sku, slot, asked"),
    (lambda rows: rows.drop_columns(["slot"]), "requests: expected a column 'slot', got visitor, sku, asked"),
    (lambda rows: rows.append_column("all.sku", pa.array([[11]] * len(rows))),
     "requests: expected a column 'all.stars', got visitor, sku, slot, asked, all.sku (did you mean 'all.sku'?)"),
    (lambda rows: rows.set_column(2, "slot", pa.array([9] * len(rows))), "feature 'place': "),
    (lambda rows: rows.set_column(3, "asked", pa.array(["x"] * len(rows))), "requests: asked: expected whole numbers"),
    (lambda rows: rows.slice(0, 2).append_column("all.sku", pa.array([[11], [11, 12]]))
     .append_column("all.stars", pa.array([[1], [1]])).append_column("all.at", pa.array([[1], [1, 2]])),
     "requests: expected as many values in 'all.at' as in 'all.stars', got 2 and 1 in row 2"),
    (lambda rows: rows.append_column("all.stars", pa.array([1] * len(rows))),
     "requests: expected lists in column 'all.stars', got int64"),
])  # fmt: skip
def test_what_is_wrong_is_one_line(scorer, requests, change, message):
    with pytest.raises(InvalidData) as caught:
        scorer.score(change(requests))
    assert str(caught.value).startswith(message)


def test_files_that_cannot_be(scorer, tmp_path):
    (tmp_path / "no.parquet").write_text("no")
    for source, message in ((tmp_path / "no.parquet", "cannot be read as Parquet"),
                            (tmp_path / "not there.parquet", "cannot be read as Parquet")):
        with pytest.raises(InvalidData, match=message):
            score_file(scorer, source, tmp_path / "out.parquet")
    with pytest.raises(InvalidArgument, match="out: expected another file than the requests"):
        score_file(scorer, tmp_path / "no.parquet", tmp_path / "no.parquet")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no.parquet"]


def test_each_kind_of_run_names_the_command_of_the_other(made, run_of):
    with pytest.raises(InvalidRun, match="has a ranking model, which scores what is shown: use serrate score"):
        Predictor.open(made[0])
    with pytest.raises(InvalidRun, match=r"has a model of the next item \(transformer\), which recommends"):
        Scorer.open(run_of([1, 2, 3]))


def test_a_run_without_its_features_is_refused(made, tmp_path):
    run, other = RunFolder(made[0]), RunFolder(tmp_path / "run")
    other.write_config(run.read_config())
    other.model_path.write_bytes(run.model_path.read_bytes())
    with pytest.raises(InvalidRun, match="not a folder of features"):
        Scorer.open(other.path)
