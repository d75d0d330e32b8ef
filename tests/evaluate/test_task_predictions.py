"""Several tasks in one list of metrics."""

import pytest
import torch

from serrate.errors import InvalidArgument
from serrate.evaluate import Predictions, TaskPredictions, comparisons, table

USERS = torch.tensor([0, 0, 1, 1, 2, 2])


def predictions(seed: int, truth: list[int]) -> Predictions:
    drawn = torch.rand(6, generator=torch.Generator().manual_seed(seed))
    return Predictions(drawn, torch.tensor(truth), USERS, resamples=20)


CLICK, BUY = [1, 0, 1, 0, 0, 1], [0, 0, 1, 0, 1, 1]


def test_one_task_is_called_plainly_and_several_by_name():
    click, buy = predictions(0, CLICK), predictions(1, BUY)
    assert TaskPredictions({"click": click}).values() == click.values()
    both = TaskPredictions({"click": click, "buy": buy})
    assert both.values()["buy.auc"] == buy.values()["auc"]
    assert both.metrics()["click.log_loss"] == click.metrics()["log_loss"]
    assert list(both.values()) == [f"click.{name}" for name in click.values()] + [f"buy.{name}" for name in
                                                                                  buy.values()]


def test_differences_are_those_of_the_task():
    click, other = predictions(0, CLICK), predictions(2, CLICK)
    buy, same = predictions(1, BUY), predictions(1, BUY)
    one, two = TaskPredictions({"click": click, "buy": buy}), TaskPredictions({"click": other, "buy": same})
    assert one.difference(two, "click.auc") == click.difference(other, "auc")
    assert one.difference(two, "buy.auc").value == 0
    rows = comparisons({"a": one, "b": two}, "a", ["click.auc"])
    assert [(row["baseline"], row["metric"]) for row in rows] == [("b", "click.auc")]
    assert table({"a": one})[0]["metrics"]["click.auc"]["value"] == click.values()["auc"]


def test_what_cannot_be_compared_is_one_line():
    one = TaskPredictions({"click": predictions(0, CLICK)})
    with pytest.raises(InvalidArgument, match="other: expected predictions of click, got buy"):
        one.difference(TaskPredictions({"buy": predictions(0, CLICK)}), "auc")
    with pytest.raises(InvalidArgument, match=r"metric: expected one of auc, .* \(did you mean 'auc'\?\), got 'acu'"):
        one.difference(one, "acu")
