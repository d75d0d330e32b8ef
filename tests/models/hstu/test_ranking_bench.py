"""The benchmark of ranking: every event is learnt once, the test asks what one pass would say, a log becomes rows."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from serrate.data import Examples, SplitConfig, history_batch, prepare, split
from serrate.models import HSTURanker, HSTURankingConfig


@pytest.fixture
def ranking(monkeypatch):
    """The module of the benchmark."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    yield importlib.import_module("ranking")
    sys.modules.pop("ranking", None)


def log(users: int = 40, each: int = 8) -> pa.Table:
    """Ratings of 1 or 5: items of an even number are liked, but for one rating in ten."""
    rng = np.random.default_rng(0)
    items, noise = rng.integers(12, size=users * each), rng.random(users * each) < 0.1
    return pa.table({"user_id": np.repeat(np.arange(users), each), "item_id": items,
                     "rating": np.where((items % 2 == 0) ^ noise, 5, 1), "timestamp": 60 * np.arange(users * each)})


@pytest.fixture
def histories(ranking):
    return prepare(log(), ranking.data_config())


def test_windows_hold_every_event_once(ranking):
    ends = np.array([7, 0, 3, 6])
    found = ranking.windows(Examples(np.array([2, 3, 5, 8]), ends, ends), 3)
    events = [(row, end - 1 - age) for row, end in zip(found.rows, found.ends, strict=True)
              for age in range(min(3, end))]
    assert sorted(events) == [(row, event) for row, n in ((2, 7), (5, 3), (8, 6)) for event in range(n)]


@pytest.mark.parametrize("time", [True, False])
def test_the_test_asks_what_one_pass_over_the_history_says(ranking, histories, time):
    torch.manual_seed(0)
    model = HSTURanker(HSTURankingConfig.parse({**ranking.MODEL, "max_length": 5, "time": time}), histories.num_items)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    test = split(histories, SplitConfig()).test
    found = ranking.scores_of(model, histories)(test)
    whole = history_batch(histories, Examples(test.rows, test.truth_ends, test.truth_ends), np.arange(len(test)), 5)
    predicted = model.predict(whole)
    torch.testing.assert_close(found, predicted.values[predicted.offsets[1:] - 1, 0])
    assert torch.equal(ranking.liked(histories, test), (whole["rating"].values[whole.offsets[1:] - 1] >= 4).float())


def test_the_regression_finds_what_is_liked(ranking, histories):
    test = split(histories, SplitConfig()).test
    scores, truth = ranking.best_regression(histories)(test), ranking.liked(histories, test)
    assert ((scores > 0.5) == (truth > 0.5)).float().mean() > 0.8


def test_from_a_log_to_rows(ranking, tmp_path, monkeypatch, capsys):
    pq.write_table(log(), tmp_path / "events.parquet")
    monkeypatch.setattr(sys, "argv", [
        "ranking.py", str(tmp_path / "events.parquet"), "--name", "made", "--seeds", "0", "1", "--device", "cpu",
        "--set", "train.epochs=4", "train.tokens_per_batch=64", "train.learning_rate=0.01", "model.width=16",
        "model.dropout=0", "--ledger", str(tmp_path / "rows.json")])
    ranking.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    value = {(row["implementation"], row["metric"], row["seed"]): row["value"] for row in rows}
    assert value["HSTU", "auc", 0] > 0.8
    assert value["user + item", "ne", 0] < 1
    own, other = (value["HSTU", "log_loss", 0] + value["HSTU", "log_loss", 1]) / 2, value["user + item", "log_loss", 0]
    assert value["HSTU − user + item, 2 seeds", "log_loss", 0] == pytest.approx(own - other, abs=2e-5)
    assert {row["unit"] for row in rows} == {"share", "ratio", "nats", "s", "difference"}
    assert "epoch 4: loss" in capsys.readouterr().out
