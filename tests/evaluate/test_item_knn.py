"""Neighbours and scores against loops over pairs of sets."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serrate.data import history_batch
from serrate.errors import InvalidArgument, NotUsable
from serrate.evaluate import ItemKNN, item_knn, training_events


def scores_of(baseline, histories, examples) -> torch.Tensor:
    return baseline.score(history_batch(histories, examples, torch.arange(len(examples)), None))


def slow_scores(train: list[list[int]], num_items: int, neighbours: int, shrinkage: float) -> list[list[float]]:
    """Score every history by the definition: loops over items, sets of users."""
    users = [{user for user, row in enumerate(train) if item in row} for item in range(num_items)]
    similar = {}
    for a in range(num_items):
        row = {b: len(users[a] & users[b]) / (math.sqrt(len(users[a]) * len(users[b])) + shrinkage)
               for b in range(num_items) if b != a and users[a] & users[b]}
        best = sorted(row, key=lambda b, row=row: (-np.float32(row[b]), b))[:neighbours]
        similar[a] = {b: row[b] for b in best}
    smallest = min((value for row in similar.values() for value in row.values()), default=1.0)
    events = [item for row in train for item in row]
    share = [events.count(item) / max(len(events), 1) for item in range(num_items)]
    return [[sum(similar[a].get(item, 0) for a in row) + smallest * share[item] for item in range(num_items)]
            for row in train]


def test_by_hand(make_histories, make_examples):
    # training sets: {0, 1}, {0, 1, 2}, {2}: users of 0: 2, of 1: 2, of 2: 2; the event 3 is not looked at
    histories = make_histories([[0, 1, 0, 3], [2, 1, 0], [2]], 4)
    baseline = ItemKNN(shrinkage=0).fit(histories, make_examples((0, 3, 3), (1, 3, 3), (2, 1, 1)))
    found = scores_of(baseline, histories, make_examples((2, 1, 1)))  # the history is 2
    # both were with 2 at one of two users each: cosine 1/2; the rest is popularity at the smallest cosine, 1/2
    share = torch.tensor([3, 2, 2, 0]) / 7
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5, 0, 0]]) + 0.5 * share)


def test_shrinkage_prefers_what_many_users_support(make_histories, make_examples):
    # users of 0, 1, 2: 3, 1, 20. With 0 were 1 once: 1 / sqrt(3) = .58, and 2 twice: 2 / sqrt(60) = .26;
    # shrunk by 10 that is 1 / 11.7 = .085 and 2 / 17.7 = .113
    rows = [[0, 1]] + [[0, 2]] * 2 + [[2]] * 18
    histories = make_histories(rows, 3)
    examples = make_examples(*((user, len(row), len(row)) for user, row in enumerate(rows)))
    for shrinkage, best in ((0.0, 1), (10.0, 2)):
        baseline = ItemKNN(shrinkage=shrinkage).fit(histories, examples)
        scores = scores_of(baseline, histories, make_examples((0, 1, 1)))
        assert int(scores.argmax()) == best


def test_too_many_pairs_are_refused_before_any_work(make_histories, make_examples):
    histories = make_histories([[0, 1, 2], [0, 1]], 3)
    ItemKNN(max_pairs=13).fit(histories, make_examples((0, 3, 3), (1, 2, 2)))
    with pytest.raises(NotUsable, match=r"^item-kNN baseline: about 13 item pairs .* more than the limit of 12$"):
        ItemKNN(max_pairs=12).fit(histories, make_examples((0, 3, 3), (1, 2, 2)))


def test_options_are_checked():
    with pytest.raises(InvalidArgument, match=r"^neighbours: expected at least 1, got 0"):
        ItemKNN(neighbours=0)
    with pytest.raises(InvalidArgument, match=r"^shrinkage: expected 0 or more, got -1"):
        ItemKNN(shrinkage=-1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(rows=st.lists(st.lists(st.integers(0, 5), max_size=8), min_size=1, max_size=8), block=st.integers(1, 30),
       neighbours=st.integers(1, 6), shrinkage=st.sampled_from([0.0, 2.0]), spread=st.sampled_from([1, 50]))
def test_equals_loops_whatever_the_blocks(make_histories, make_examples, rows, block, neighbours, shrinkage, spread):
    rows = [[item * spread for item in row] for row in rows]  # a catalogue with gaps takes the sorting way to count
    num_items = 5 * spread + 1
    histories = make_histories(rows, num_items)
    examples = make_examples(*((user, max(len(row) - 1, 0), len(row)) for user, row in enumerate(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_events, "_EVENTS_AT_A_TIME", block)
        patch.setattr(item_knn, "_PAIRS_AT_A_TIME", block)
        baseline = ItemKNN(neighbours=neighbours, shrinkage=shrinkage).fit(histories, examples)
        found = scores_of(baseline, histories, examples)
    expected = slow_scores([row[:-1] for row in rows], num_items, neighbours, shrinkage)
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-5, atol=1e-7)
    alone = torch.cat([baseline.score(history_batch(histories, examples, torch.tensor([user]), None))
                       for user in range(len(rows))])
    assert torch.equal(found, alone), "batch mates do not matter"
