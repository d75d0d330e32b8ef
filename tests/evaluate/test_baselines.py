"""What holds for every baseline, and their figures on a real log."""

import os
from pathlib import Path

import pytest
import torch

from serrate.data import DataConfig, SplitConfig, history_batch, prepare, split
from serrate.errors import NotUsable
from serrate.evaluate import BASELINES, EvaluateConfig, Markov, evaluate_baselines


@pytest.mark.parametrize("name", BASELINES)
def test_nothing_to_learn_from_and_nobody_to_score(name, make_histories, make_examples):
    histories = make_histories([[0]], 3)
    baseline = BASELINES[name]().fit(histories, make_examples())
    assert baseline.num_items == 3
    one, nobody = (history_batch(histories, examples, torch.arange(len(examples)), None)
                   for examples in (make_examples((0, 1, 1)), make_examples()))
    assert baseline.score(one).tolist() == [[0, 0, 0]]
    assert baseline.score(nobody).shape == (0, 3)


def test_one_that_cannot_serve_is_left_out_with_its_reason(make_histories, make_examples, monkeypatch):
    def refuse(self, histories, examples):
        raise NotUsable("too large")

    monkeypatch.setattr(Markov, "fit", refuse)
    histories = make_histories([[0, 1]], 2)
    found, refusals = evaluate_baselines(histories, make_examples((0, 1, 1)), make_examples((0, 1, 2)),
                                         EvaluateConfig())
    assert len(found) == len(BASELINES) - 1
    assert refusals == ["too large"]


def test_on_a_real_log():
    if "SERRATE_DATA" not in os.environ:
        pytest.skip("needs the ML-1M log; SERRATE_DATA is not set")
    source = Path(os.environ["SERRATE_DATA"]) / "ml-1m" / "events.parquet"
    columns = {"user": "user_id", "item": "item_id", "position": "position"}
    histories = prepare(source, DataConfig.parse({"columns": columns}))
    parts = split(histories, SplitConfig())
    found, refusals = evaluate_baselines(histories, parts.train, parts.test, EvaluateConfig())
    popularity, item_knn, markov = (evaluation.values()["hr@10"] for evaluation in found.values())
    assert refusals == []
    assert 0.03 < popularity < 0.05 < item_knn < 0.09
    assert 0.17 < markov < 0.22
