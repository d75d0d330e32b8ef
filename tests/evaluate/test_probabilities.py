"""Measures of probabilities against counts of all pairs, and against figures to be redone by hand."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.evaluate import auc, calibration, log_losses, normalised_entropy

MEASURES = [auc, log_losses, normalised_entropy, calibration]
TWO = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=30).filter(
    lambda drawn: len({yes for _, yes in drawn}) == 2)


def of(*pairs: tuple[float, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and truth."""
    return torch.tensor([p for p, _ in pairs], dtype=torch.float64), torch.tensor([yes for _, yes in pairs])


def test_by_hand():
    p, truth = of((0.8, 1), (0.5, 0), (0.5, 1), (0.2, 0))
    assert auc(p, truth) == pytest.approx(3.5 / 4)  # of 2 × 2 pairs three stand right and one is a tie
    assert log_losses(p, truth).tolist() == pytest.approx([-math.log(0.8), math.log(2), math.log(2), -math.log(0.8)])
    assert normalised_entropy(p, truth) == pytest.approx((-math.log(0.8) + math.log(2)) / 2 / math.log(2))
    assert calibration(p, truth) == pytest.approx(2.0 / 2)
    assert calibration(p / 2, truth) == pytest.approx(0.5)


@given(TWO)
def test_auc_counts_pairs(drawn):
    p, truth = torch.tensor([level / 8 for level, _ in drawn]), torch.tensor([yes for _, yes in drawn])
    pairs = [(a > b) + 0.5 * (a == b) for a in p[truth] for b in p[~truth]]
    assert auc(p, truth) == pytest.approx(sum(map(float, pairs)) / len(pairs))
    assert auc(1 - p, truth) == pytest.approx(1 - auc(p, truth))
    assert auc(p, truth.float()) == auc(p, truth)


@given(TWO)
def test_the_best_constant_has_an_entropy_of_1_and_no_other_less(drawn):
    truth = torch.tensor([yes for _, yes in drawn])
    rate = truth.double().mean()
    assert normalised_entropy(rate.expand(len(truth)), truth) == pytest.approx(1)
    assert normalised_entropy((rate * 0.9).expand(len(truth)), truth) > 1
    assert auc(rate.expand(len(truth)), truth) == 0.5


def test_certainty_costs_much_and_not_all():
    losses = log_losses(*of((1.0, 0), (0.0, 1), (1.0, 1), (0.0, 0)))
    assert losses.tolist() == pytest.approx([-math.log(1e-7)] * 2 + [1e-7] * 2)


def test_float32_is_measured_in_float64():
    p, truth = torch.full((3,), 0.3), torch.tensor([1, 0, 0])
    assert log_losses(p, truth).dtype == torch.float64


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
@pytest.mark.parametrize(("p", "truth", "message"), [
    ([], [], "probabilities: expected shape (M,), M at least 1, got (0,)"),
    ([[0.5]], [[1]], "probabilities: expected shape (M,), M at least 1, got (1, 1)"),
    ([0.5, 0.5], [1], "truth: expected shape (2,), as probabilities, got (1,)"),
    ([0.5, 1.5], [1, 0], "probabilities: expected numbers from 0 to 1, got others"),
    ([0.5, float("nan")], [1, 0], "probabilities: expected numbers from 0 to 1, got others"),
    ([0.5, 0.5], [1, 2], "truth: expected 0 or 1, got others"),
])
def test_malformed(measure, p, truth, message):
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        measure(torch.tensor(p), torch.tensor(truth))


@pytest.mark.parametrize(("measure", "truth", "message"), [
    (auc, [1, 1], "truth: expected both yes and no, got 2 yes, 0 no"),
    (auc, [0, 0], "truth: expected both yes and no, got 0 yes, 2 no"),
    (normalised_entropy, [1, 1], "truth: expected both yes and no, got 2 times yes"),
    (calibration, [0, 0], "truth: expected a yes, got none"),
])
def test_what_one_kind_of_truth_cannot_tell(measure, truth, message):
    with pytest.raises(InvalidArgument, match=re.escape(message)):
        measure(torch.tensor([0.5, 0.6]), torch.tensor(truth))
