"""Small hand-made logs and scorers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from serrate.data import Examples, Histories
from serrate.jagged import EventBatch, offsets_from_lengths


@pytest.fixture
def make_histories():
    """Return a function: rows of dense item ids → `Histories` that lives in memory."""
    def make(rows: list[list[int]], num_items: int) -> Histories:
        items = torch.tensor([item for row in rows for item in row], dtype=torch.int32)
        offsets = offsets_from_lengths(torch.tensor([len(row) for row in rows], dtype=torch.int64))
        return Histories(Path("in-memory"), offsets, {"item": items}, {"num_items": num_items})
    return make


@pytest.fixture
def make_examples():
    """Return a function: (row, end, truth end) of each example → `Examples`."""
    def make(*parts: tuple[int, int, int]) -> Examples:
        columns = np.array(parts, dtype=np.int64).reshape(-1, 3).T
        return Examples(columns[0].copy(), columns[1].copy(), columns[2].copy())
    return make


class TableScorer:
    """Looks up the scores of each user in a table `(users, items)`, and notes the shapes that were asked for."""

    def __init__(self, table: Tensor):
        self.table = table
        self.num_items = table.shape[1]
        self.batches: list[tuple[int, int]] = []  # (rows, events) of each call

    def score(self, batch: EventBatch) -> Tensor:
        self.batches.append((len(batch), batch.num_events))
        return self.table[batch.context["user"]]


@pytest.fixture
def table_scorer():
    """Return the class: a scorer made of a table `(users, items)`."""
    return TableScorer
