"""Popularity baseline: the same items for everybody."""

from typing import Self

import torch
from torch import Tensor

from ..data import Examples, Histories
from ..jagged import EventBatch
from .training_events import item_counts


class Popularity:
    """Scores every item by its number of training events, whatever the history."""

    def fit(self, histories: Histories, examples: Examples) -> Self:
        """Count the first `ends` events of each training example; return self."""
        self.num_items = histories.num_items
        self._counts = torch.from_numpy(item_counts(histories, examples)).float()
        return self

    def score(self, batch: EventBatch) -> Tensor:
        """Return `(B, num_items)` float32 on the CPU, one row repeated without a copy."""
        return self._counts.expand(len(batch), -1)
