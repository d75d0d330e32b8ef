"""The running best of blocks is the best of all of them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.index import top_k
from serrate.index.best import Best, true_columns


@given(seed=st.integers(0, 10**6), rows=st.integers(0, 3), k=st.integers(0, 6),
       widths=st.lists(st.integers(0, 40), max_size=6), levels=st.sampled_from([2, 30, 10**6]), own=st.booleans())
def test_blocks_in_any_order_give_what_all_at_once_would(seed, rows, k, widths, levels, own):
    draw = torch.Generator().manual_seed(seed)
    total = sum(widths)
    scores = torch.randint(levels, (rows, total), generator=draw).float()
    scores[torch.rand(rows, total, generator=draw) < 0.1] = -torch.inf
    best, columns = Best(rows, k, scores.device), torch.randperm(total, generator=draw)
    for part in columns.split(widths):
        part = part.sort().values
        best.add(scores[:, part], part.expand(rows, len(part)) if own else part)
    values, ids = top_k(scores, k)
    assert best.scores.tolist() == values.tolist()
    assert best.ids.tolist() == ids.tolist()


def test_a_nan_is_told_also_after_the_places_are_filled():
    best = Best(1, 1, torch.device("cpu"))
    best.add(torch.arange(50.0)[None], torch.arange(50))
    late = torch.zeros(1, 50)
    late[0, 40] = torch.nan
    with pytest.raises(InvalidArgument, match="NaN"):
        best.add(late, torch.arange(50))


def test_true_columns_are_told_in_order_unless_they_are_many():
    mask = torch.tensor([[True, False, True, True], [False, False, False, False], [False, True, False, False]])
    columns = true_columns(mask, 3)
    assert columns is not None
    assert columns.tolist() == [[0, 2, 3], [-1, -1, -1], [1, -1, -1]]
    assert true_columns(mask, 2) is None
    assert true_columns(mask[:0], 2).shape == (0, 0)
