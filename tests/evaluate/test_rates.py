"""Rates by hand, the regression against its own optimum, what training has not seen."""

import numpy as np
import pytest
import torch

from serrate.data import Samples
from serrate.evaluate import fit_rates
from serrate.evaluate.rates import _item_rate, _regression


def samples(users, items) -> Samples:
    """One sample a state."""
    count = len(items)
    return Samples(np.array(users), np.zeros(count, dtype=np.int64), np.arange(count + 1), np.array(items),
                   np.zeros(count, dtype=np.int64), {})


def test_the_rates_by_hand():
    train, truth = samples([0, 0, 1, 1], [0, 0, 1, 2]), torch.tensor([1.0, 1, 0, 0])
    rates = fit_rates(train, truth, train, truth)
    assert list(rates) == ["base rate", "item rate", "user + item"]
    asked = samples([0, 5, 5], [0, 1, 7])
    assert rates["base rate"](asked).tolist() == [0.5, 0.5, 0.5]
    # two yeses and two samples at .5 beside them; one no; an item that training has not seen
    assert _item_rate(train, truth, 2.0)(asked).tolist() == pytest.approx([0.75, 1 / 3, 0.5])
    assert rates["item rate"](asked).tolist() == pytest.approx([2.5 / 3, 0.25, 0.5])  # the least prior fits best here
    for rate in rates.values():
        found = rate(asked)
        assert found.dtype == torch.float32
        assert not found.requires_grad


def test_the_regression_is_at_its_optimum():
    rng = np.random.default_rng(0)
    train = samples(rng.integers(0, 5, 200), rng.integers(0, 7, 200))
    truth = torch.from_numpy((rng.random(200) < 0.3).astype(np.float32))
    found = _regression(train, truth, 2.0)
    logits = found(train).double().logit()
    # where the gradient is zero, users' residuals are the ridge times their weight, and all residuals sum to zero
    residuals = truth.double() - logits.sigmoid()
    assert abs(float(residuals.sum())) < 1e-2
    nobody = samples([9], [99])
    base = found(nobody).double().logit()
    for user in range(5):
        weight = found(samples([user], [99])).double().logit() - base
        assert float(residuals[train.users == user].sum()) == pytest.approx(2.0 * float(weight), abs=1e-2)


def test_validation_chooses_how_strongly_rates_are_drawn():
    # in training an item has all of its yeses; in validation none of it holds, so the strongest prior is the best
    train, truth = samples(np.arange(8), [0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    other = 1 - truth
    strong = fit_rates(train, truth, train, other)["item rate"](samples([0], [0]))
    assert float(strong) == pytest.approx((4 + 32) / (4 + 64))
