"""Measures of probabilities against counts of all pairs, and against figures to be redone by hand."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.evaluate import auc, calibration, calibration_curve, grouped_auc, log_losses, normalised_entropy

MEASURES = [auc, log_losses, normalised_entropy, calibration, calibration_curve]
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


def test_the_base_rate_is_that_of_the_evaluation_or_of_training():
    p, truth = of((0.8, 1), (0.5, 0), (0.5, 1), (0.2, 0))
    loss = (-2 * math.log(0.8) + 2 * math.log(2)) / 4
    assert normalised_entropy(p, truth) == pytest.approx(loss / math.log(2))
    entropy = -(0.1 * math.log(0.1) + 0.9 * math.log(0.9))
    assert normalised_entropy(p, truth, training_rate=0.1) == pytest.approx(loss / entropy)
    for rate in (0, 1, -0.5, float("nan")):
        with pytest.raises(InvalidArgument, match="training_rate: expected between 0 and 1, got"):
            normalised_entropy(p, truth, training_rate=rate)


def test_auc_within_groups_by_hand():
    # user 7: one pair, right; user 3: two pairs, one right and one tie; user 5 has no no
    p, truth = of((0.9, 1), (0.1, 0), (0.4, 1), (0.4, 0), (0.3, 0), (0.2, 1))
    users = torch.tensor([7, 7, 3, 3, 3, 5])
    assert grouped_auc(p, truth, users) == pytest.approx((2 * 1 + 3 * 0.75) / 5)
    with pytest.raises(InvalidArgument, match="groups: expected a group with both yes and no, got none"):
        grouped_auc(p[-1:], truth[-1:], users[-1:])
    with pytest.raises(InvalidArgument, match=r"groups: expected shape \(6,\), as probabilities, got \(5,\)"):
        grouped_auc(p, truth, users[1:])


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.integers(-2, 2)), min_size=1, max_size=40))
def test_grouped_auc_is_the_mean_of_that_of_each_group(drawn):
    p = torch.tensor([level / 4 for level, _, _ in drawn])
    truth, users = torch.tensor([yes for _, yes, _ in drawn]), torch.tensor([user for *_, user in drawn])
    both = [mask for user in set(users.tolist()) for mask in [users == user] if len(truth[mask].unique()) == 2]
    if not both:
        return
    expected = sum(auc(p[mask], truth[mask]) * int(mask.sum()) for mask in both) / sum(int(mask.sum()) for mask in both)
    assert grouped_auc(p, truth, users) == pytest.approx(expected)


def test_bins_have_equal_mass():
    p, truth = of((0.1, 0), (0.4, 1), (0.2, 0), (0.3, 1), (0.9, 1), (0.8, 0))
    found = [(part.count, part.predicted, part.observed) for part in calibration_curve(p, truth, 3)]
    assert found == [(2, pytest.approx(0.15), 0), (2, pytest.approx(0.35), 1), (2, pytest.approx(0.85), 0.5)]
    assert [part.count for part in calibration_curve(p, truth, 1)] == [6]
    assert [part.count for part in calibration_curve(p, truth, 100)] == [1] * 6


def test_equal_probabilities_share_a_bin():
    p, truth = of((0.5, 0), (0.5, 1), (0.5, 1), (0.5, 0), (0.9, 1))
    found = [(part.count, part.predicted, part.observed) for part in calibration_curve(p, truth, 5)]
    assert found == [(4, 0.5, 0.5), (1, pytest.approx(0.9), 1)]
    with pytest.raises(InvalidArgument, match="bins: expected at least 1, got 0"):
        calibration_curve(p, truth, 0)


@given(TWO, st.integers(1, 9))
def test_bins_together_are_the_whole(drawn, bins):
    p, truth = torch.tensor([level / 8 for level, _ in drawn]).double(), torch.tensor([yes for _, yes in drawn])
    found = calibration_curve(p, truth, bins)
    assert sum(part.count for part in found) == len(p)
    assert len(found) <= bins
    assert sum(part.count * part.predicted for part in found) == pytest.approx(float(p.sum()))
    assert sum(part.count * part.observed for part in found) == pytest.approx(int(truth.sum()))
    assert [part.predicted for part in found] == sorted(part.predicted for part in found)
