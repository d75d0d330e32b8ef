"""What is said of an index's speed and of how right it is."""

import pytest
import torch

from serrate.errors import InvalidArgument
from serrate.index import ComponentIndex, ExactIndex, HIndexer, TwoPassIndex
from serrate.index.measure import measure, recall

from .made import mixture


def test_recall_counts_the_true_ids_that_were_found():
    ids = torch.tensor([[1, 2, 3], [4, -1, -1], [-1, -1, -1], [9, 8, 7]])
    truth = torch.tensor([[3, 1, 9], [4, 5, -1], [-1, -1, -1], [1, 2, 3]])
    assert recall(ids, truth).tolist() == pytest.approx([2 / 3, 1 / 2, 1, 0])


def test_figures_are_those_of_the_searches():
    similarity, queries, items = mixture()
    index = ComponentIndex.build(similarity, items, config={"each": 2})
    truth = ExactIndex.build(similarity, items).search(queries, 20).ids
    found = index.search(queries, 20)
    rows = measure(index, queries, 20, batches=(1, 4, 99), seconds=0.01)
    assert [row.batch for row in rows] == [1, 4, 6]
    for row in rows:
        assert row.recall == pytest.approx(float(recall(found.ids, truth).mean()))
        assert 0 < row.recall < 1
        assert row.share == pytest.approx(float(found.candidates.double().mean()) / 300)
        assert row.milliseconds > 0
    assert [row.recall for row in measure(TwoPassIndex.over(index), queries, 20, batches=(6,), seconds=0.01)] == [1]


def test_an_index_of_another_kind_over_the_same_items():
    similarity, queries, items = mixture()
    exact = ExactIndex.build(similarity, items, torch.arange(300) + 7)
    exact.remove(torch.tensor([7]))
    other = HIndexer.over(exact, {"keep": 400})
    assert torch.equal(other.search(queries, 9).ids, exact.search(queries, 9).ids)
    assert other._corpus.segments[0].sides["gate"].data_ptr() == exact._corpus.segments[0].sides["gate"].data_ptr()


def test_no_query_is_refused():
    similarity, queries, items = mixture()
    with pytest.raises(InvalidArgument, match=r"^queries: expected at least one, got 0"):
        measure(ExactIndex.build(similarity, items), {name: side[:0] for name, side in queries.items()}, 1)
