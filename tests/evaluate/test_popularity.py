import torch

from serrate.data import history_batch
from serrate.evaluate import Popularity


def test_counts_training_events_only(make_histories, make_examples):
    histories = make_histories([[0, 1, 2, 2], [1, 1, 2]], 4)
    baseline = Popularity().fit(histories, make_examples((0, 2, 2), (1, 2, 2)))
    scores = baseline.score(history_batch(histories, make_examples((0, 2, 3), (1, 0, 1)), torch.arange(2), None))
    assert scores.tolist() == [[1, 3, 0, 0]] * 2
    assert scores.dtype == torch.float32
    assert baseline.num_items == 4
