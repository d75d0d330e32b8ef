"""Stochastic length: the law of the lengths, what of a row stays and how often, the same draws when run again."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.data import Sampler, StochasticLength
from serrate.data.stochastic_length import thinned_length, whole_probability
from serrate.errors import InvalidArgument
from serrate.jagged import EventBatch, from_lists

ROWS = 20_000  # of equal length, where frequencies are compared with probabilities: a standard error is below .0036


def batch_of(*rows: list[int], times: list[list[int]] | None = None) -> EventBatch:
    """Items and targets, which follow from the items, and times if given."""
    item = from_lists(rows, dtype=torch.int64)
    events = {"item": item, "target": item.with_values(item.values + 1000)}
    if times is not None:
        events["time"] = from_lists(times, dtype=torch.int64)
    return EventBatch(events, {"user": torch.arange(len(rows))})


def thinned(lengths, longest: int, alpha: float, sampler: Sampler = "age", seed: int = 0) -> StochasticLength:
    return StochasticLength(np.array(lengths), longest, alpha, seed=seed, sampler=sampler)


# --- lengths ---


def test_the_length_of_the_paper():
    assert thinned_length(4096, 1.6) == 776  # 4096^0.8 = 776.05
    assert [thinned_length(n, 1.6) for n in (1, 1024, 8192)] == [1, 256, 1351]
    assert thinned_length(8192, 2.0) == 8192


def test_the_law_by_hand():
    # N = 100, alpha = 1.5: thinned to 31 events (100^0.75 = 31.6), whole with probability 1000 / n²
    lengths = np.array([0, 1, 31, 32, 40, 100])
    assert whole_probability(lengths, 100, 1.5) == pytest.approx([1, 1, 1, 1000 / 1024, 0.625, 0.1])


@given(n=st.integers(0, 8192), longest=st.sampled_from([64, 1000, 8192]), alpha=st.floats(1.01, 2.0))
def test_attention_costs_less_than_twice_the_bound(n, longest, alpha):
    n = min(n, longest)
    short = thinned_length(longest, alpha)
    whole = float(whole_probability(np.array([n]), longest, alpha)[0])
    assert whole * n**2 + (1 - whole) * short**2 <= 2 * longest**alpha * (1 + 1e-9)
    assert whole == 1 if n <= short else 0 < whole <= 1


@pytest.mark.parametrize(("length", "whole"), [(40, 0.625), (100, 0.1), (31, 1.0)])
def test_histories_are_whole_as_often_as_the_law_says(length, whole):
    drawn = thinned([length] * ROWS, 100, 1.5).lengths(0)
    assert set(drawn.tolist()) <= {31, length}
    assert (drawn == length).mean() == pytest.approx(whole, abs=0.015)


def test_nothing_is_thinned_at_alpha_2():
    lengths = np.arange(101)
    assert thinned(lengths, 100, 2.0).lengths(3).tolist() == lengths.tolist()
    batch = batch_of([1, 2, 3])
    assert thinned([3], 100, 2.0).shorten(batch, 0, np.array([0])) is batch


# --- what stays ---


@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=8), epoch=st.integers(0, 2), data=st.data(),
       sampler=st.sampled_from(["age", "uniform", "newest"]), timed=st.booleans())
def test_what_stays_is_a_subsequence_of_the_drawn_length_with_the_newest(lengths, epoch, data, sampler, timed):
    rows = [[100 * row + event for event in range(length)] for row, length in enumerate(lengths)]
    waits = st.integers(0, 3)
    times = [np.cumsum([data.draw(waits) for _ in row]).astype(int).tolist() for row in rows] if timed else None
    shortening = thinned(lengths, 20, 1.3, sampler)  # to 7 events
    index = np.array(data.draw(st.permutations(range(len(rows)))))
    whole = batch_of(*(rows[row] for row in index), times=None if times is None else [times[row] for row in index])

    short = shortening.shorten(whole, epoch, index)

    assert short.lengths.tolist() == shortening.lengths(epoch)[index].tolist()
    assert short.longest == max(short.lengths.tolist())
    for row, kept in zip(index, short["item"].tolist(), strict=True):
        assert kept == sorted(set(kept) & set(rows[row]))
        assert kept[-1:] == rows[row][-1:]
        if sampler == "newest":
            assert kept == rows[row][len(rows[row]) - len(kept):]
    assert torch.equal(short["target"].values, short["item"].values + 1000)  # each keeps what was asked after it
    if times is not None:
        known = {item: time for row, happened in zip(rows, times, strict=True)
                 for item, time in zip(row, happened, strict=True)}
        assert short["time"].values.tolist() == [known[item] for item in short["item"].values.tolist()]
    assert short.context["user"].tolist() == list(range(len(rows)))
    for name in short:
        short[name].check()


def shares(sampler: Sampler, times: list[int] | None = None, alpha: float = 1.3) -> list[float]:
    """How often each event of a row of 4 stays where it is thinned: 2 events at 1.3 (4^0.65 = 2.46)."""
    shortening = thinned([4] * ROWS, 4, alpha, sampler, seed=5)
    batch = batch_of(*[[0, 1, 2, 3]] * ROWS, times=None if times is None else [times] * ROWS)
    rows = [row for row in shortening.shorten(batch, 0, np.arange(ROWS))["item"].tolist() if len(row) < 4]
    assert len(rows) > ROWS / 3
    return [sum(event in row for row in rows) / len(rows) for event in range(4)]


def test_older_events_stay_less_often():
    # ages 3, 2, 1 of sum 6: weights 3/6, 4/6, 5/6 of sum 2; the newest always stays, so one of the three does
    assert shares("age") == pytest.approx([3 / 12, 4 / 12, 5 / 12, 1], abs=0.02)


def test_age_is_time_where_there_is_time():
    # ages 80, 10, 10 of sum 100: weights .2, .9, .9 of sum 2
    assert shares("age", [0, 70, 70, 80]) == pytest.approx([0.1, 0.45, 0.45, 1], abs=0.02)
    assert shares("age", [7, 7, 7, 7]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1], abs=0.02)
    assert shares("age", [0, 9, 9, 9]) == pytest.approx([0, 0.5, 0.5, 1], abs=0.02)  # the only old one weighs nothing
    far = 2**61  # seconds as far apart as the data floor lets them be
    assert shares("age", [-far, far - 1, far - 1, far]) == pytest.approx([0, 0.5, 0.5, 1], abs=0.02)


def test_two_are_drawn_one_after_the_other():
    # to 3 of 4 events (4^0.8 = 3.03): the one that is left out is drawn neither first nor second.
    # weights .1, .45, .45: the first event is left out with probability .9 · .45 / .55, the others share the rest
    out = 0.9 * 0.45 / 0.55
    expected = [1 - out, 1 - (1 - out) / 2, 1 - (1 - out) / 2, 1]
    assert shares("age", [0, 70, 70, 80], alpha=1.6) == pytest.approx(expected, abs=0.02)


def test_uniform_is_uniform():
    assert shares("uniform", [0, 70, 70, 80]) == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1], abs=0.02)


# --- the same draws again ---


def test_an_example_draws_the_same_wherever_it_stands():
    rows = [[10 * row + event for event in range(9)] for row in range(6)]
    one, two = thinned([9] * 6, 9, 1.2), thinned([9] * 6, 9, 1.2)
    together = one.shorten(batch_of(*rows), 4, np.arange(6))["item"].tolist()
    alone = [two.shorten(batch_of(rows[row]), 4, np.array([row]))["item"].tolist()[0] for row in reversed(range(6))]
    assert together == alone[::-1]
    assert together != one.shorten(batch_of(*rows), 5, np.arange(6))["item"].tolist()
    assert together != thinned([9] * 6, 9, 1.2, seed=1).shorten(batch_of(*rows), 4, np.arange(6))["item"].tolist()
    assert len({tuple(event % 10 for event in row) for row in together}) > 1  # examples draw apart


def test_an_empty_batch():
    shortening = thinned([], 9, 1.2)
    assert shortening.lengths(0).tolist() == []
    empty = EventBatch({"item": from_lists([], dtype=torch.int64)})
    assert len(shortening.shorten(empty, 0, np.empty(0, int))) == 0


@pytest.mark.parametrize(("changed", "line"), [
    ({"alpha": 1.0}, "alpha: expected a number above 1, at most 2, got 1.0"),
    ({"alpha": 2.1}, "alpha: expected a number above 1, at most 2, got 2.1"),
    ({"alpha": float("nan")}, "alpha: expected a number above 1"),
    ({"sampler": "oldest"}, "sampler: expected age or uniform or newest, got 'oldest'"),
    ({"seed": -1}, "seed: expected at least 0, got -1"),
    ({"lengths": np.array([3, 11])}, r"lengths: expected 0 … 10, got 3 … 11"),
])
def test_arguments_out_of_range_are_refused(changed, line):
    arguments = {"lengths": np.array([3]), "longest": 10, "alpha": 1.6, "seed": 0, **changed}
    with pytest.raises(InvalidArgument, match=line):
        StochasticLength(**arguments)
