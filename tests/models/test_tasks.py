"""Tasks: what a loss makes of outputs and what an output then stands for, by hand."""

import math

import pytest
import torch

from serrate.models.tasks import BinaryTask, RegressionTask, predictions, weighted_losses

CLICK = BinaryTask(name="click", field="click")


def test_a_weighted_yes_still_says_how_often_yes_comes_true():
    rare = BinaryTask(name="click", field="click", yes_weight=9)
    targets = torch.tensor([1.0] * 2 + [0.0] * 18)
    learnt = torch.tensor(math.log(9 * 2 / 18), requires_grad=True)  # where the losses pull as much up as down
    loss = rare.losses(learnt.expand(20), targets).sum()
    assert abs(float(torch.autograd.grad(loss, learnt)[0])) < 1e-6
    assert float(rare.prediction(learnt.detach())) == pytest.approx(2 / 20)


def test_a_weight_of_one_is_the_log_loss():
    outputs, targets = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 0.0])
    expected = [math.log(2), math.log(1 + math.exp(2))]
    assert CLICK.losses(outputs, targets).tolist() == pytest.approx(expected)
    doubled = BinaryTask(name="click", field="click", yes_weight=2).losses(outputs, targets)
    assert doubled.tolist() == pytest.approx([2 * expected[0], expected[1]])


def test_tasks_side_by_side():
    tasks = (BinaryTask(name="click", field="click", weight=3), RegressionTask(name="stars", field="stars", centre=3))
    outputs, targets = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert weighted_losses(tasks, outputs, targets)[:, 0].tolist() == pytest.approx([3 * math.log(2), 0.5])
    assert predictions(tasks, outputs).tolist() == [[0.5, 4.0]]
