import numpy as np

from serrate.evaluate import training_events as room


def test_only_the_events_of_the_examples_in_blocks(make_histories, make_examples, monkeypatch):
    monkeypatch.setattr(room, "_EVENTS_AT_A_TIME", 3)
    histories = make_histories([[0, 1, 2, 4], [], [3, 3], [1]], 5)
    examples = make_examples((0, 2, 2), (1, 0, 0), (2, 2, 2))
    blocks = list(room.training_events(histories, examples))
    assert [row for block in blocks for row in block.tolist()] == [[0, 1], [], [3, 3]]
    assert len(blocks) == 2
    assert room.item_counts(histories, examples).tolist() == [1, 1, 0, 2, 0]


def test_shares():
    assert room.shares(np.array([1, 3])).tolist() == [0.25, 0.75]
    assert room.shares(np.array([0, 0])).tolist() == [0, 0]
