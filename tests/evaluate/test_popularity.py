"""Popularity, and all baselines on a real log."""

import os
from pathlib import Path

import pytest
import torch

from serrate.data import DataConfig, SplitConfig, history_batch, prepare, split
from serrate.evaluate import EvaluateConfig, ItemKNN, Markov, Popularity, evaluate


def test_counts_training_events_only(make_histories, make_examples):
    histories = make_histories([[0, 1, 2, 2], [1, 1, 2]], 4)
    baseline = Popularity().fit(histories, make_examples((0, 2, 2), (1, 2, 2)))
    scores = baseline.score(history_batch(histories, make_examples((0, 2, 3), (1, 0, 1)), torch.arange(2), None))
    assert scores.tolist() == [[1, 3, 0, 0]] * 2
    assert scores.dtype == torch.float32
    assert baseline.num_items == 4


@pytest.mark.parametrize("baseline", [Popularity(), ItemKNN(), Markov()])
def test_nothing_to_learn_from_and_nobody_to_score(baseline, make_histories, make_examples):
    histories = make_histories([[0]], 3)
    baseline.fit(histories, make_examples())
    assert baseline.score(history_batch(histories, make_examples((0, 1, 1)), torch.arange(1), None)).tolist() == [
        [0, 0, 0]]
    nobody = history_batch(histories, make_examples(), torch.arange(0), None)
    assert baseline.score(nobody).shape == (0, 3)


def test_on_a_real_log():
    if "SERRATE_DATA" not in os.environ:
        pytest.skip("needs the ML-1M log; SERRATE_DATA is not set")
    source = Path(os.environ["SERRATE_DATA"]) / "ml-1m" / "events.parquet"
    columns = {"user": "user_id", "item": "item_id", "position": "position"}
    histories = prepare(source, DataConfig.parse({"columns": columns}))
    parts = split(histories, SplitConfig())
    reached = {}
    for baseline in (Popularity(), ItemKNN(), Markov()):
        found = evaluate(baseline.fit(histories, parts.train), histories, parts.test, EvaluateConfig())
        reached[baseline.name] = found.values()["hr@10"]
    assert 0.03 < reached["popularity"] < 0.05 < reached["item-knn"] < 0.09
    assert 0.17 < reached["markov"] < 0.22
