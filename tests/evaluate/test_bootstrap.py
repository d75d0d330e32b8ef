"""Intervals: cover as promised, shrink with users, treat a user's examples as one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.evaluate import bootstrap, bootstrap_by_user
from serrate.evaluate.bootstrap import Resamples, intervals


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def test_a_value_that_all_share_has_an_interval_of_no_width():
    [estimate] = bootstrap_by_user(column(0.25, 0.25, 0.25), torch.arange(3))
    assert (estimate.value, estimate.low, estimate.high) == (0.25, 0.25, 0.25)


def test_one_user_is_no_sample_to_resample():
    [estimate] = bootstrap_by_user(column(1.0, 0.0), torch.tensor([7, 7]))
    assert (estimate.value, estimate.low, estimate.high) == (0.5, 0.5, 0.5)


def test_matches_the_normal_interval_of_many_users():
    hits = (torch.arange(2000) % 4 == 0).double().unsqueeze(1)  # a share of 1/4: deviation sqrt(3/16)
    [estimate] = bootstrap_by_user(hits, torch.arange(2000), resamples=4000)
    half = 1.96 * math.sqrt(3 / 16 / 2000)
    assert estimate.value == 0.25
    assert estimate.low == pytest.approx(0.25 - half, abs=0.1 * half)
    assert estimate.high == pytest.approx(0.25 + half, abs=0.1 * half)


def test_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    samples = (torch.rand(200, 100, generator=generator) < 0.3).double()  # 200 studies of 100 users each
    estimates = bootstrap_by_user(samples.T.contiguous(), torch.arange(100), confidence=0.9)
    covered = sum(estimate.low <= 0.3 <= estimate.high for estimate in estimates)
    assert 0.82 * 200 <= covered <= 0.97 * 200


def test_shrinks_with_the_root_of_the_users():
    def width(users: int) -> float:
        [estimate] = bootstrap_by_user((torch.arange(users) % 2).double().unsqueeze(1), torch.arange(users))
        return estimate.high - estimate.low
    assert width(100) / width(10_000) == pytest.approx(10, rel=0.2)


def test_examples_of_one_user_do_not_count_as_independent():
    values = (torch.arange(100) % 2).double()
    [single] = bootstrap_by_user(values.unsqueeze(1), torch.arange(100))
    copies = values.repeat_interleave(50).unsqueeze(1)  # every user says the same 50 times
    [repeated] = bootstrap_by_user(copies, torch.arange(100).repeat_interleave(50))
    assert (repeated.low, repeated.high) == pytest.approx((single.low, single.high))


def test_blocks_of_users_give_the_same_width(monkeypatch):
    values = (torch.rand(4000, 1, generator=torch.Generator().manual_seed(2)) < 0.1).double()
    [single] = bootstrap_by_user(values, torch.arange(4000))
    monkeypatch.setattr(bootstrap, "_MOST_BLOCKS", 1000)
    [blocked] = bootstrap_by_user(values, torch.arange(4000))
    assert blocked.value == single.value
    assert blocked.high - blocked.low == pytest.approx(single.high - single.low, rel=0.15)


def test_same_seed_same_interval_whatever_the_chunks(monkeypatch):
    values, users = column(0, 1, 1, 0, 1), torch.tensor([3, 1, 4, 1, 5])
    first = bootstrap_by_user(values, users, seed=5)
    assert bootstrap_by_user(values, users, seed=5) == first
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_A_TIME", 1)
    assert bootstrap_by_user(values, users, seed=5) == first


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), min_size=1, max_size=20))
def test_value_is_the_mean_and_the_interval_stays_within_the_values(parts):
    values = column(*[value for value, _ in parts])
    [estimate] = bootstrap_by_user(values, torch.tensor([user for _, user in parts]), resamples=50)
    assert estimate.value == pytest.approx(float(values.mean()))
    slack = 1e-12
    assert float(values.min()) - slack <= estimate.low <= estimate.high <= float(values.max()) + slack


def test_what_is_not_defined_in_a_resample_does_not_count():
    resampled = torch.tensor([[1.0, float("nan")], [float("nan")] * 2, [3.0, float("nan")]], dtype=torch.float64)
    first, second = intervals(torch.tensor([2.0, 5.0]), resampled, 0.5)
    assert (first.value, first.low, first.high) == (2, 1.5, 2.5)
    assert (second.value, second.low, second.high) == (5, None, None)


def test_draws_are_the_same_each_time_and_count_whole_groups():
    drawn = Resamples(torch.tensor([9, 4, 9, 7]), 5, seed=3)
    assert (drawn.groups, drawn.group.tolist()) == (3, [2, 0, 2, 1])
    first, again = torch.cat(list(drawn)), torch.cat(list(drawn))
    assert torch.equal(first, again)
    assert first.sum(1).tolist() == [3] * 5
    assert drawn.totals(column(1, 2, 4, 8)).squeeze(1).tolist() == [2, 8, 5]


def test_plain_values():
    assert bootstrap.Estimate(0.5).plain() == {"value": 0.5, "low": None, "high": None}
