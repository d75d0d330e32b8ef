"""A saved run answers through an index as it does without one."""

import pytest
import torch

from serrate.errors import InvalidData
from serrate.index import KINDS, HIndexer
from serrate.serve import Predictor, build_index, open_index

HISTORIES = [[100, 105], [], [7], [129, 100, 128, 127]]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"faiss"}))
def test_answers_are_those_without_an_index(predictor, kind):
    plain = predictor.recommend(HISTORIES, 6, allow=range(100, 128), deny=[101])
    predictor.index = build_index(predictor.model, kind, {"each": 30} if kind == "component" else {})
    found = predictor.recommend(HISTORIES, 6, allow=range(100, 128), deny=[101])
    for one, other in zip(plain, found, strict=True):
        assert (one.ids, one.unknown) == (other.ids, other.unknown)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)


def test_removed_items_come_back_to_nobody(predictor):
    predictor.index = build_index(predictor.model, "exact")
    predictor.index.remove(torch.tensor([0, 29]))
    for row in predictor.recommend(HISTORIES, 30, exclude_seen=False):
        assert sorted(row.ids) == list(range(101, 129))


def test_opened_with_the_run_and_refused_with_another(run_of, tmp_path):
    run = run_of(list(range(100, 130)))
    model = Predictor.open(run, device="cpu").model
    build_index(model, "h-indexer", {"keep": 50}).save(tmp_path / "index", model=model)
    opened = Predictor.open(run, device="cpu", index=tmp_path / "index")
    assert isinstance(opened.index, HIndexer)
    assert len(opened.recommend([[100]], 5)[0].ids) == 5
    assert len(open_index(tmp_path / "index", model)) == 30
    with torch.no_grad():
        model.items.weight[3, 3] += 1
    with pytest.raises(InvalidData, match="is of another model"):
        open_index(tmp_path / "index", model)
