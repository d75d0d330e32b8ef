import json

import torch

from serrate.evaluate import EvaluateConfig, Markov, Popularity, comparisons, evaluate, table


def test_rows_are_plain_values(make_histories, make_examples, table_scorer):
    histories = make_histories([[0, 1, 2], [1, 2, 0], [2, 0, 1]], 3)
    train, test = make_examples((0, 2, 2), (1, 2, 2), (2, 2, 2)), make_examples((0, 2, 3), (1, 2, 3), (2, 2, 3))
    config = EvaluateConfig(cutoffs=(1,), exclude_seen=False, resamples=20)
    scorers = {"oracle": table_scorer(torch.eye(3).roll(-1, 1)), "popularity": Popularity().fit(histories, train),
               "markov": Markov().fit(histories, train)}
    evaluations = {name: evaluate(scorer, histories, test, config) for name, scorer in scorers.items()}
    rows = table(evaluations, "validation")
    assert json.loads(json.dumps(rows)) == rows
    assert [(row["model"], row["split"]) for row in rows] == [
        ("oracle", "validation"), ("popularity", "validation"), ("markov", "validation")]
    assert rows[0]["metrics"]["hr@1"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert rows[1]["metrics"]["hr@1"]["value"] == 0, "all items are equally popular: ties count against it"
    differences = comparisons(evaluations, "oracle", ["hr@1", "mrr"])
    assert differences[0] == {"model": "oracle", "baseline": "popularity", "metric": "hr@1",
                              "value": 1.0, "low": 1.0, "high": 1.0}
    assert [(row["baseline"], row["metric"]) for row in differences] == [
        ("popularity", "hr@1"), ("popularity", "mrr"), ("markov", "hr@1"), ("markov", "mrr")]
