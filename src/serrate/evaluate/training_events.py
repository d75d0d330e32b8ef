"""The events that a baseline may learn from, in blocks of bounded memory."""

from collections.abc import Iterator

import numpy as np
import torch

from ..data import Examples, Histories, chunks, seen_items
from ..jagged import JaggedTensor

_EVENTS_AT_A_TIME = 2**22


def training_events(histories: Histories, examples: Examples) -> Iterator[JaggedTensor]:
    """Yield the training events, the first `ends` of each example: some rows of int64 dense ids at a time."""
    for index in chunks(examples.ends, _EVENTS_AT_A_TIME):
        yield seen_items(histories, examples, index)


def item_counts(histories: Histories, examples: Examples) -> np.ndarray:
    """Return `(num_items,)` int64: how many training events each item has."""
    counts = np.zeros(histories.num_items, dtype=np.int64)
    for block in training_events(histories, examples):
        counts += np.bincount(block.values.numpy(), minlength=histories.num_items)
    return counts


def shares(counts: np.ndarray) -> torch.Tensor:
    """Return `counts` `(V,)` as shares of their sum, float32; zeros when there are none."""
    return torch.from_numpy((counts / max(int(counts.sum()), 1)).astype(np.float32))
