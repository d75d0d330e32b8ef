"""First-order Markov baseline: what followed the newest item before."""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..data import Examples, Histories
from ..errors import NotUsable
from ..jagged import EventBatch
from .training_events import item_counts, shares, training_events


class Markov:
    """Scores an item by how often it followed the newest event of the history in training.

    The score is `count(newest → item) + share of the training events`: transition counts smoothed towards
    popularity (a prior worth one transition), so that items which never followed, and all items for a history
    without events, are ordered by popularity instead of being tied.

    Args:
        max_pairs: most different transitions to keep, 16 bytes each.
    """

    def __init__(self, *, max_pairs: int = 50_000_000):
        self.max_pairs = max_pairs

    def fit(self, histories: Histories, examples: Examples) -> Self:
        """Count the transitions within the first `ends` events of each training example; return self.

        Raises:
            NotUsable: more transitions than `max_pairs`.
        """
        self.num_items = histories.num_items
        transitions = int((examples.ends - 1).clip(min=0).sum())
        if min(transitions, self.num_items**2) > self.max_pairs:
            raise NotUsable(f"Markov baseline: up to {transitions:,} different transitions, "
                            f"more than the limit of {self.max_pairs:,}")
        pairs = _PairCounts()
        for block in training_events(histories, examples):
            follows = block.row_index()
            item = block.values
            within = follows[1:] == follows[:-1]
            pairs.add((item[:-1] * self.num_items + item[1:])[within].numpy())
        keys, counts = pairs.total()
        before, after = np.divmod(keys, max(self.num_items, 1))
        self._offsets = torch.from_numpy(np.searchsorted(before, np.arange(self.num_items + 1)))
        self._after = torch.from_numpy(after)
        self._counts = torch.from_numpy(counts.astype(np.float32))
        self._popularity = shares(item_counts(histories, examples))
        return self

    def score(self, batch: EventBatch) -> Tensor:
        """Return `(B, num_items)` float32 on the CPU; an empty row gets the popularity prior."""
        items = batch["item"].to("cpu")
        scores = self._popularity.repeat(len(items), 1)
        rows = (items.lengths > 0).nonzero().squeeze(1)
        newest = items.values[items.offsets[1:][rows] - 1]
        lengths = self._offsets.diff()[newest]
        total = int(lengths.sum())
        shift = self._offsets[newest] - lengths.cumsum(0) + lengths
        at = shift.repeat_interleave(lengths, output_size=total) + torch.arange(total)
        row = rows.repeat_interleave(lengths, output_size=total)
        scores[row, self._after[at]] += self._counts[at]  # no cell comes twice
        return scores


class _PairCounts:
    """Counts integer keys that arrive in blocks; memory follows the different keys, not the blocks."""

    def __init__(self):
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, keys: np.ndarray) -> None:
        """Count `keys` `(P,)` int64."""
        self._parts.append(np.unique(keys, return_counts=True))
        # like the digits of a binary counter: merging only parts of like size costs a logarithm, not a square
        while len(self._parts) > 1 and len(self._parts[-2][0]) < 2 * len(self._parts[-1][0]):
            self._parts[-2:] = [_merge(self._parts[-2:])]

    def total(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the different keys, ascending, and how often each came, both int64."""
        return _merge(self._parts)


def _merge(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    keys = np.concatenate([np.empty(0, dtype=np.int64), *(part[0] for part in parts)])
    counts = np.concatenate([np.empty(0, dtype=np.int64), *(part[1] for part in parts)])
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    first = np.flatnonzero(np.diff(keys, prepend=-1))  # no key is negative, so -1 differs
    return keys[first], np.add.reduceat(counts, first) if len(first) else counts
