"""Predictions: their metrics are those of the plain functions, under any resample those of the repeated samples."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.evaluate import (
    METRICS,
    Predictions,
    auc,
    calibration,
    comparisons,
    grouped_auc,
    log_losses,
    mean_difference,
    normalised_entropy,
    predictions,
    table,
)

DRAWN = st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=4, max_size=20).filter(
    lambda drawn: len({yes for _, yes, _ in drawn}) == 2)


def of(drawn, **config) -> Predictions:
    """Predictions of (level of 6, truth, user)."""
    levels, truth, users = (torch.tensor(list(column)) for column in zip(*drawn, strict=True))
    return Predictions(levels / 6, truth, users, **config)


def plainly(p, truth, users) -> dict[str, float]:
    """Every metric by the plain functions, NaN where they refuse."""
    def value(measure, *arguments, **named):
        try:
            return measure(*arguments, **named)
        except InvalidArgument:
            return math.nan
    return {"auc": value(auc, p, truth), "grouped_auc": value(grouped_auc, p, truth, users),
            "log_loss": float(log_losses(p, truth).mean()), "ne": value(normalised_entropy, p, truth),
            "ne_training": value(normalised_entropy, p, truth, training_rate=0.3),
            "calibration": value(calibration, p, truth)}


def world(seed: int, users: int = 300, each: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, truth that follows them, and whose they are."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(users * each, generator=generator)
    truth = torch.rand(users * each, generator=generator) < logits.sigmoid()
    return logits, truth, torch.arange(users).repeat_interleave(each)


@given(DRAWN)
def test_values_are_those_of_the_plain_functions(drawn):
    found = of(drawn, training_rate=0.3)
    expected = plainly(found.probabilities, found.truth, found.users)
    if math.isnan(expected["ne_training"]):  # the plain function refuses one class for either base rate
        return
    assert found.values() == pytest.approx({name: value for name, value in expected.items() if value == value})
    assert tuple(found.values()) == tuple(name for name in METRICS if name in found.values())


@given(DRAWN, st.integers(0, 5), st.sampled_from([1, 2**19]))
def test_a_resample_counts_a_user_as_often_as_they_are_drawn(drawn, seed, cells):
    found = of(drawn, training_rate=0.3, resamples=3, seed=seed)
    draws = predictions.Resamples(found.users, 3, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictions, "_CELLS", cells)
        resampled = {name: torch.cat([part[name] for part in found._resampled(list(METRICS))]) for name in METRICS}
    for row, times in enumerate(torch.cat(list(draws))):
        again = torch.repeat_interleave(torch.arange(len(found)), times[draws.group])
        # a user who is drawn twice is two users, who have the same AUC and weigh twice: as one user with all samples
        expected = plainly(found.probabilities[again], found.truth[again], found.users[again])
        for name, value in expected.items():
            if value == value:
                assert float(resampled[name][row]) == pytest.approx(value, abs=1e-12)
            elif name != "ne_training":  # one class: the plain function refuses it, its formula does not
                assert math.isnan(float(resampled[name][row]))


def test_intervals_hold_the_value_and_the_better_model_is_seen():
    logits, truth, users = world(1)
    noise = torch.randn(len(logits), generator=torch.Generator().manual_seed(2))
    better = Predictions(logits.sigmoid(), truth, users, 0.5)
    worse = Predictions((logits + noise).sigmoid(), truth, users, 0.5)
    for name, estimate in better.metrics().items():
        assert estimate.low < estimate.value < estimate.high
        assert estimate.value == better.values()[name]
    for name in ("auc", "grouped_auc"):
        assert better.difference(worse, name).low > 0
    for name in ("log_loss", "ne", "ne_training"):
        assert better.difference(worse, name).high < 0
    expected = auc(better.probabilities, truth) - auc(worse.probabilities, truth)
    assert better.difference(worse, "auc").value == pytest.approx(expected)


def test_the_paired_difference_is_tighter_than_the_two_intervals():
    logits, truth, users = world(3)
    one, other = Predictions(logits.sigmoid(), truth, users), Predictions((1.1 * logits + 0.1).sigmoid(), truth, users)
    for name in ("auc", "log_loss", "ne"):
        paired, alone = one.difference(other, name), one.metrics()[name]
        assert paired.high - paired.low < 0.5 * (alone.high - alone.low)
    assert one.difference(other, "auc").plain() == {"value": 0, "low": 0, "high": 0}  # the same order
    assert one.difference(one, "ne").plain() == {"value": 0, "low": 0, "high": 0}


def test_a_mean_difference_over_seeds_draws_the_same_users_for_all():
    logits, truth, users = world(4)
    one, other, third = (Predictions((logits + scale * torch.sin(7 * logits)).sigmoid(), truth, users)
                         for scale in (0.0, 0.5, 1.5))
    for name in ("auc", "grouped_auc", "log_loss", "ne"):
        alone = one.difference(other, name)
        assert mean_difference([(one, other)], name) == alone
        again = mean_difference([(one, other)] * 3, name)  # seeds that agree narrow nothing
        assert again.plain() == pytest.approx(alone.plain())
        both = mean_difference([(one, other), (other, third)], name)  # telescopes
        halves = {part: value / 2 for part, value in one.difference(third, name).plain().items()}
        assert both.plain() == pytest.approx(halves)
    with pytest.raises(InvalidArgument, match="pairs: expected at least one"):
        mean_difference([], "auc")
    with pytest.raises(InvalidArgument, match="predictions of the same samples"):
        mean_difference([(one, other), (one.select(users > 3), other.select(users > 3))], "auc")


def test_an_interval_of_the_auc_covers_as_often_as_it_says():
    # the AUC of logits of a normal law, whose truth follows them, from a sample so large that it is nearly exact
    exact = auc(*(part.double().sigmoid() if part.is_floating_point() else part for part in world(0, 100_000, 4)[:2]))
    covered = 0
    for seed in range(60):
        logits, truth, users = world(seed + 10, users=100, each=4)
        estimate = Predictions(logits.sigmoid(), truth, users, confidence=0.8, resamples=200).metrics()["auc"]
        covered += estimate.low <= exact <= estimate.high
    assert 0.65 * 60 <= covered <= 0.95 * 60


def test_one_class_has_no_auc_and_no_entropy():
    found = of([(3, True, 0), (5, True, 1)], training_rate=0.5)
    assert set(found.values()) == {"log_loss", "ne_training", "calibration"}
    assert set(found.metrics()) == {"log_loss", "ne_training", "calibration"}
    with pytest.raises(InvalidArgument, match="metric: expected one of log_loss, ne_training, calibration, got 'auc'"):
        found.difference(found, "auc")
    assert set(of([(3, False, 0)]).values()) == {"log_loss"}


def test_segments_are_predictions_of_their_own():
    found = of([(1, True, 0), (2, False, 0), (5, True, 1), (6, False, 2)], training_rate=0.3, resamples=7)
    parts = found.segments(torch.tensor([4, 4, 2, 4]))
    assert list(parts) == [2, 4]
    assert (len(parts[2]), len(parts[4]), parts[4].users.tolist()) == (1, 3, [0, 0, 2])
    assert (parts[4].training_rate, parts[4].resamples) == (0.3, 7)
    assert parts[4].values()["auc"] == 0
    with pytest.raises(InvalidArgument, match=r"values: expected shape \(4,\)"):
        found.segments(torch.tensor([1]))


def test_rows_are_those_of_every_evaluation():
    logits, truth, users = world(4, users=30)
    models = {"model": Predictions(logits.sigmoid(), truth, users, resamples=20),
              "base rate": Predictions(torch.full_like(logits, 0.5), truth, users, resamples=20)}
    rows = table(models)
    assert json.loads(json.dumps(rows)) == rows
    assert rows[1]["metrics"]["auc"]["value"] == 0.5
    [difference] = comparisons(models, "model", ["auc"])
    assert difference["value"] == pytest.approx(models["model"].values()["auc"] - 0.5)
    assert difference["low"] > 0
    assert repr(models["model"]).startswith("Predictions(240 samples: auc 0.")
    assert sum(part.count for part in models["model"].calibration_curve(5)) == 240


@pytest.mark.parametrize(("change", "line"), [
    ({"users": torch.tensor([1])}, r"users: expected shape \(2,\), as probabilities, got \(1,\)"),
    ({"probabilities": torch.tensor([0.5, 2])}, "probabilities: expected numbers from 0 to 1"),
    ({"truth": torch.tensor([1, 5])}, "truth: expected 0 or 1"),
    ({"training_rate": 1.0}, "training_rate: expected between 0 and 1, got 1"),
])
def test_malformed(change, line):
    parts = {"probabilities": torch.tensor([0.5, 0.6]), "truth": torch.tensor([0, 1]), "users": torch.tensor([0, 1])}
    with pytest.raises(InvalidArgument, match=line):
        Predictions(**{**parts, **change})


def test_other_samples_are_not_compared():
    one = of([(1, True, 0), (2, False, 0)])
    for other in (of([(1, False, 0), (2, True, 0)]), of([(1, True, 0), (2, False, 1)]), of([(1, True, 0)])):
        with pytest.raises(InvalidArgument, match="other: expected predictions of the same samples"):
            one.difference(other, "log_loss")
