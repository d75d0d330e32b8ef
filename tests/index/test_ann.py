"""FAISS as stage one, where it is there; a clear line where it is not."""

import sys

import pytest
import torch

from serrate.errors import InvalidArgument, InvalidConfig, NotUsable
from serrate.index import ExactIndex, FaissIndex
from serrate.index.measure import recall
from serrate.nn.similarity import DotProduct

from .made import dot


def test_without_faiss_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(NotUsable, match=r"needs faiss-cpu.*install serrate\[ann\]"):
        FaissIndex(DotProduct())


@pytest.fixture
def world():
    pytest.importorskip("faiss")
    torch.manual_seed(0)
    return DotProduct().eval(), dot(torch.randn(20, 16)), dot(torch.randn(5_000, 16))


@pytest.mark.parametrize(("factory", "least"), [("Flat", 1.0), ("IVF16,Flat", 0.6), ("HNSW16", 0.9)])
def test_structures_find_neighbours_and_filters_hold(world, factory, least):
    similarity, queries, items = world
    index = FaissIndex.build(similarity, items, config={"factory": factory, "keep": 60, "probes": 8})
    gone = torch.arange(0, 5_000, 3)
    index.remove(gone)
    found = index.search(queries, 10, deny=torch.arange(1, 5_000, 3))
    assert bool((found.ids % 3 == 2).all())
    truth = ExactIndex.over(index).search(queries, 10, deny=torch.arange(1, 5_000, 3)).ids
    assert least <= float(recall(found.ids, truth).mean()) <= 1
    assert bool((found.candidates <= 60).all())
    assert not found.certified.any()


def test_what_faiss_cannot_make_is_told(world):
    similarity, queries, items = world
    with pytest.raises(InvalidConfig, match=r"^config: factory: 'Tree9' cannot be made of 5,000 items"):
        FaissIndex.build(similarity, items, config={"factory": "Tree9"}).search(queries, 1)
    with pytest.raises(InvalidArgument, match=r"^k: expected at most 5"):
        FaissIndex.build(similarity, items, config={"keep": 5}).search(queries, 6)
