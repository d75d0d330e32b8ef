"""Transitions against a loop over the log."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serrate.data import history_batch
from serrate.errors import NotUsable
from serrate.evaluate import Markov, training_events


def scores_of(baseline, histories, examples) -> torch.Tensor:
    return baseline.score(history_batch(histories, examples, torch.arange(len(examples)), None))


def test_by_hand(make_histories, make_examples):
    # training: 0 1 0 1 | 1 2; the last events (9 of them) are not looked at
    histories = make_histories([[0, 1, 0, 1, 3], [1, 2, 3], []], 4)
    baseline = Markov().fit(histories, make_examples((0, 4, 4), (1, 2, 2)))
    share = torch.tensor([2, 3, 1, 0]) / 6
    found = scores_of(baseline, histories, make_examples((0, 1, 2), (0, 2, 3), (1, 2, 3), (2, 0, 0)))
    followed = torch.tensor([[0, 2, 0, 0],  # after 0 came 1 twice
                             [1, 0, 1, 0],  # after 1 came 0 once and 2 once
                             [0, 0, 0, 0],  # nothing came after 2
                             [0, 0, 0, 0]])  # no event to follow
    torch.testing.assert_close(found, followed + share)


def test_two_users_are_no_transition(make_histories, make_examples):
    histories = make_histories([[0], [1]], 2)
    baseline = Markov().fit(histories, make_examples((0, 1, 1), (1, 1, 1)))
    assert scores_of(baseline, histories, make_examples((0, 1, 1))).tolist() == [[0.5, 0.5]]


def test_too_many_transitions_are_refused_with_the_reason(make_histories, make_examples):
    histories = make_histories([[0, 1, 2]], 3)
    Markov(max_pairs=2).fit(histories, make_examples((0, 3, 3)))
    with pytest.raises(NotUsable, match=r"^Markov baseline: up to 2 different transitions, more than the limit of 1$"):
        Markov(max_pairs=1).fit(histories, make_examples((0, 3, 3)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(rows=st.lists(st.lists(st.integers(0, 5), max_size=10), min_size=1, max_size=8), block=st.integers(1, 12))
def test_equals_a_loop_whatever_the_blocks(make_histories, make_examples, rows, block):
    histories = make_histories(rows, 6)
    examples = make_examples(*((user, max(len(row) - 1, 0), len(row)) for user, row in enumerate(rows)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_events, "_EVENTS_AT_A_TIME", block)
        baseline = Markov().fit(histories, examples)
    train = [row[:-1] for row in rows]
    pairs = Counter((a, b) for row in train for a, b in pairwise(row))
    counts = Counter(item for row in train for item in row)
    total = max(sum(counts.values()), 1)
    expected = [[(pairs[row[-1], item] if row else 0) + counts[item] / total for item in range(6)] for row in train]
    found = scores_of(baseline, histories, examples)
    np.testing.assert_allclose(found.numpy(), np.array(expected), rtol=1e-6)
    alone = torch.cat([baseline.score(history_batch(histories, examples, torch.tensor([user]), None))
                       for user in range(len(rows))])
    assert torch.equal(found, alone), "batch mates do not matter"
