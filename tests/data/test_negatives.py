"""Negatives: never the user's own, drawn by the law they say, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serrate.data import NegativesConfig, negatives
from serrate.data.negatives import draw_negatives
from serrate.errors import InvalidData


def drawn(histories, rows, counts=None, **config):
    counts = np.zeros(histories.num_items, dtype=np.int64) if counts is None else np.array(counts)
    return draw_negatives(histories, np.array(rows), NegativesConfig(**config), counts)


@given(rows=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=6), min_size=1, max_size=4),
       by=st.sampled_from(["uniform", "popularity"]), rounds=st.sampled_from([0, 1, 30]))
def test_none_is_the_users_own(histories_of, rows, by, rounds):
    histories = histories_of([*rows, [8]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "_ROUNDS", rounds)  # whichever way they are drawn
        found = drawn(histories, range(len(rows)), count=5, by=by)
    assert found.shape == (len(rows), 5)
    for items, own in zip(found.tolist(), rows, strict=True):
        assert not set(items) & set(own)
        assert all(0 <= item <= 8 for item in items)


@pytest.mark.parametrize("rounds", [0, 30])
def test_the_law_is_that_of_what_is_left(histories_of, monkeypatch, rounds):
    monkeypatch.setattr(negatives, "_ROUNDS", rounds)
    histories = histories_of([[0], [1, 2, 3]])
    by_popularity = drawn(histories, [0] * 3000, counts=[50, 0, 2, 5], by="popularity", count=1)
    # of items 1, 2 and 3, by one more than their events: 1, 3 and 6 of 10
    assert np.bincount(by_popularity[:, 0]) / 3000 == pytest.approx([0, 0.1, 0.3, 0.6], abs=0.03)
    uniform = drawn(histories, [0] * 3000, counts=[50, 0, 2, 5], count=1)
    assert np.bincount(uniform[:, 0]) / 3000 == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3], abs=0.03)


def test_the_same_seed_draws_the_same(histories_of):
    histories = histories_of([[0], [1], list(range(2, 100))])
    one, two, other = (drawn(histories, [0, 1] * 10, seed=seed).tolist() for seed in (1, 1, 2))
    assert one == two != other


def test_a_user_who_has_all_is_refused(histories_of):
    histories = histories_of([[0, 1, 2, 1], [2]])
    with pytest.raises(InvalidData, match="negatives: 1 users have taken all 3 items"):
        drawn(histories, [0, 1])
    assert set(drawn(histories, [1], count=20).ravel()) == {0, 1}  # the other one may be asked
