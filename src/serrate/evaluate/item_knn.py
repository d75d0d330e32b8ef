"""Item-kNN baseline: items that the same users had."""

from collections.abc import Iterator
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..data import Examples, Histories
from ..errors import InvalidArgument, NotUsable
from ..jagged import EventBatch
from .training_events import item_counts, shares, training_events

_PAIRS_AT_A_TIME = 2**21


class ItemKNN:
    """Scores an item by its similarity to the items of the history, summed over its events.

    The similarity of two items is the cosine of the sets of users who had them,
    `users of both / (sqrt(users of one · users of other) + shrinkage)`; each item keeps its most similar
    `neighbours` (ties: the smaller id). Order and repetition within a training history do not matter.
    Items without any similarity, and all items for a history without events, are ordered by popularity,
    which weighs less than the smallest similarity.

    Args:
        neighbours: how many similar items each item keeps, at least 1.
        shrinkage: 0 or more; takes weight from similarities that few users support.
        max_pairs: most pairs (two items of one user) to count; refused beyond, as time follows it.
    """

    def __init__(self, *, neighbours: int = 50, shrinkage: float = 10.0, max_pairs: int = 500_000_000):
        if neighbours < 1:
            raise InvalidArgument("neighbours", "at least 1", neighbours)
        if not shrinkage >= 0:
            raise InvalidArgument("shrinkage", "0 or more", shrinkage)
        self.neighbours = neighbours
        self.shrinkage = shrinkage
        self.max_pairs = max_pairs

    def fit(self, histories: Histories, examples: Examples) -> Self:
        """Find the neighbours from the first `ends` events of each training example; return self.

        Raises:
            NotUsable: more pairs than `max_pairs`.
        """
        self.num_items = histories.num_items
        most = int((examples.ends.clip(max=self.num_items).astype(np.float64) ** 2).sum())
        if most > self.max_pairs:
            raise NotUsable(f"item-kNN baseline: about {most:,} item pairs within histories, "
                            f"more than the limit of {self.max_pairs:,}")
        sets = _Sets.of(histories, examples)
        norms = np.sqrt(np.bincount(sets.items, minlength=self.num_items))
        rows, columns, similarities = [], [], []
        for row, column, count in sets.pairs():
            similarity = (count / (norms[row] * norms[column] + self.shrinkage)).astype(np.float32)
            best = _best_of_each_row(row, column, similarity, self.neighbours)
            rows.append(row[best])
            columns.append(column[best])
            similarities.append(similarity[best])
        row = np.concatenate([np.empty(0, dtype=np.int64), *rows])
        self._offsets = torch.from_numpy(np.searchsorted(row, np.arange(self.num_items + 1)))
        self._items = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *columns]))
        self._similarities = torch.from_numpy(np.concatenate([np.empty(0, dtype=np.float32), *similarities]))
        smallest = float(self._similarities.min()) if len(row) else 1.0
        self._popularity = smallest * shares(item_counts(histories, examples))
        return self

    def score(self, batch: EventBatch) -> Tensor:
        """Return `(B, num_items)` float32 on the CPU; see the class."""
        items = batch["item"].to("cpu")
        scores = self._popularity.repeat(len(items), 1)
        flat, lengths = scores.view(-1), self._offsets.diff()
        step = max(1, _PAIRS_AT_A_TIME // self.neighbours)
        for row, item in zip(items.row_index().split(step), items.values.split(step), strict=True):
            lengths_here = lengths[item]
            total = int(lengths_here.sum())
            shift = self._offsets[item] - lengths_here.cumsum(0) + lengths_here
            at = shift.repeat_interleave(lengths_here, output_size=total) + torch.arange(total)
            cells = row.repeat_interleave(lengths_here, output_size=total) * self.num_items
            flat.index_add_(0, cells + self._items[at], self._similarities[at])
        return scores


class _Sets:
    """The different items of each user, and for each item the users who had it."""

    def __init__(self, items: np.ndarray, lengths: np.ndarray, num_items: int):
        self.items = items  # (P,) user after user
        self.lengths = lengths  # (users,)
        self.num_items = num_items

    @classmethod
    def of(cls, histories: Histories, examples: Examples) -> "_Sets":
        items, lengths = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for block in training_events(histories, examples):
            keys = (block.row_index() * histories.num_items + block.values).unique().numpy()
            row, item = np.divmod(keys, max(histories.num_items, 1))
            items.append(item)
            lengths.append(np.bincount(row, minlength=len(block)))
        return cls(np.concatenate(items), np.concatenate(lengths), histories.num_items)

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield `(item, other, users who had both)`, every ordered pair with at least one user once.

        Pairs come ordered by item, then other, and all pairs of one item in one block. Memory follows a
        block (or the item with most pairs), not the number of pairs.
        """
        starts = np.cumsum(self.lengths) - self.lengths
        user = np.repeat(np.arange(len(self.lengths)), self.lengths)
        entries = np.argsort(self.items, kind="stable")  # (item, user), item after item
        first_entry = np.searchsorted(self.items[entries], np.arange(self.num_items + 1))
        # pairs before each item
        done = np.concatenate([[0], np.cumsum(self.lengths[user[entries]])])[first_entry]
        low = 0
        while low < self.num_items:
            fitting = int(np.searchsorted(done, done[low] + _PAIRS_AT_A_TIME, side="right")) - 1
            high = max(fitting, low + 1)
            here = entries[first_entry[low] : first_entry[high]]
            length = self.lengths[user[here]]
            total = int(length.sum())
            shift = starts[user[here]] - np.cumsum(length) + length
            other = self.items[np.repeat(shift, length) + np.arange(total)]
            key = np.repeat((self.items[here] - low) * self.num_items, length) + other
            row, column, count = _count(key, high - low, self.num_items)
            different = row + low != column
            yield row[different] + low, column[different], count[different]
            low = high


def _count(key: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the different rows and columns of `key = row * columns + column`, ascending, and counts."""
    if rows * columns <= 8 * len(key):  # sorting costs more than passing over all cells
        cells = np.bincount(key, minlength=rows * columns)
        found = np.flatnonzero(cells)
        count = cells[found]
    else:
        found, count = np.unique(key, return_counts=True)
    return *np.divmod(found, columns), count


def _best_of_each_row(row: np.ndarray, column: np.ndarray, similarity: np.ndarray, most: int) -> np.ndarray:
    """Return where the `most` largest similarities of each row are, row by row; ties: smaller column."""
    order = np.lexsort((column, -similarity, row))
    lengths = np.bincount(row)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return order[place < most]
