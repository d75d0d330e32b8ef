"""Metrics against values worked out by hand."""

from math import inf, log2

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.evaluate import EvaluateConfig, Evaluation
from serrate.jagged import JaggedTensor


def evaluation(ranks: list[list[float]], users: list[int] | None = None, **config) -> Evaluation:
    values = torch.tensor([rank for row in ranks for rank in row], dtype=torch.float64)
    jagged = JaggedTensor.from_lengths(values, torch.tensor([len(row) for row in ranks]))
    made = EvaluateConfig(**{"cutoffs": (2, 4), **config})
    return Evaluation(made, torch.tensor(users or range(len(ranks))), jagged, dict.fromkeys(made.cutoffs, 0.5))


def test_three_users_by_hand():
    # user 0: one item, found at 2; user 1: two items, at 2 and 3; user 2: two items, at 9 and unreachable
    found = evaluation([[2.0], [3.0, 2.0], [inf, 9.0]])
    second, third = 1 / log2(3), 1 / log2(4)  # gains of ranks 2 and 3; rank 1 gives 1
    assert found.per_example("hr@2").tolist() == [1, 1, 0]
    assert found.per_example("recall@2").tolist() == [1, 0.5, 0]
    assert found.per_example("recall@4").tolist() == [1, 1, 0]
    assert found.per_example("ndcg@2").tolist() == pytest.approx([second, second / (1 + second), 0])
    assert found.per_example("ndcg@4").tolist() == pytest.approx([second, (second + third) / (1 + second), 0])
    assert found.per_example("mrr").tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 9])
    assert found.values() == pytest.approx({
        "hr@2": 2 / 3, "ndcg@2": (second + second / (1 + second)) / 3, "recall@2": 0.5, "coverage@2": 0.5,
        "hr@4": 2 / 3, "ndcg@4": (second + (second + third) / (1 + second)) / 3, "recall@4": 2 / 3,
        "coverage@4": 0.5, "mrr": (1 / 2 + 1 / 2 + 1 / 9) / 3})


def test_more_items_than_the_cutoff_can_still_be_perfect():
    found = evaluation([[1.0, 2.0, 3.0]])
    assert found.per_example("ndcg@2").tolist() == pytest.approx([1.0])
    assert found.per_example("recall@2").tolist() == pytest.approx([2 / 3])


def test_all_unreachable_is_zero():
    values = evaluation([[inf]]).values()
    assert [values[name] for name in ("hr@2", "ndcg@2", "recall@2", "mrr")] == [0, 0, 0, 0]


def test_metrics_carry_intervals_except_coverage():
    found = evaluation([[1.0], [9.0], [1.0], [9.0]], resamples=200)
    metrics = found.metrics()
    assert list(metrics) == list(found.names)
    assert {name: estimate.value for name, estimate in metrics.items()} == pytest.approx(found.values())
    assert metrics["hr@2"].low < 0.5 < metrics["hr@2"].high
    assert metrics["coverage@2"].low is None


def test_any_cutoff_can_be_asked_for():
    assert evaluation([[7.0]]).per_example("hr@7").tolist() == [1]


@pytest.mark.parametrize("metric", ["hr", "hr@0", "hr@x", "map@10", "coverage@2", "MRR"])
def test_unknown_metrics_are_named(metric):
    with pytest.raises(InvalidArgument, match=r"^metric: expected a mean over examples: hr@2, .*, mrr"):
        evaluation([[1.0]]).per_example(metric)


def test_a_constant_improvement_excludes_zero():
    worse = evaluation([[3.0] if user % 3 else [1.0] for user in range(90)])
    better = evaluation([[2.0] if user % 3 else [1.0] for user in range(90)])
    difference = better.difference(worse, "mrr")
    assert difference.value == pytest.approx((1 / 2 - 1 / 3) * 2 / 3)
    assert 0 < difference.low < difference.value < difference.high
    mirrored = worse.difference(better, "mrr")
    assert (mirrored.value, mirrored.low) == pytest.approx((-difference.value, -difference.high))


def test_the_paired_difference_is_tighter_than_the_two_intervals():
    worse = evaluation([[float(2 + user % 50)] for user in range(200)])
    better = evaluation([[float(1 + user % 50)] for user in range(200)])
    difference, metrics = better.difference(worse, "hr@4"), worse.metrics()
    assert difference.high - difference.low < metrics["hr@4"].high - metrics["hr@4"].low


def test_equal_models_differ_by_nothing():
    same = evaluation([[1.0], [2.0]])
    assert same.difference(same, "hr@2").plain() == {"value": 0, "low": 0, "high": 0}


@pytest.mark.parametrize("other", [evaluation([[1.0]]), evaluation([[1.0], [2.0]], users=[1, 0]),
                                   evaluation([[1.0, 3.0], [2.0]]),
                                   evaluation([[1.0], [2.0]], exclude_seen=False)])
def test_only_the_same_examples_can_be_compared(other):
    with pytest.raises(InvalidArgument, match=r"^other: expected an evaluation of the same examples"):
        evaluation([[1.0], [2.0]]).difference(other, "mrr")


@given(st.lists(st.sets(st.integers(1, 12), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(1, 12))
def test_metrics_stay_within_0_and_1_and_grow_with_k(ranks, k):
    found = evaluation([[float(rank) for rank in row] for row in ranks])
    for kind in ("hr", "recall"):
        assert (found.per_example(f"{kind}@{k}") <= found.per_example(f"{kind}@{k + 1}")).all()
    for name in (f"hr@{k}", f"ndcg@{k}", f"recall@{k}", "mrr"):
        values = found.per_example(name)
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()
    expected = [sum(1 / log2(rank + 1) for rank in row if rank <= k)
                / sum(1 / log2(place + 1) for place in range(1, min(k, len(row)) + 1)) for row in ranks]
    assert found.per_example(f"ndcg@{k}").tolist() == pytest.approx(expected)


def test_repr_is_for_people():
    assert repr(evaluation([[1.0]])).startswith("Evaluation(1 examples: hr@2 1.0000")
