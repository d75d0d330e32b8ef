"""What any similarity inherits: scores of all pairs from scores of each, in chunks or not, and no penalty."""

import pytest
import torch

from serrate.nn.similarity import DotProduct, Similarity, base, take


class Distance(Similarity):
    """Less the distance of two places: a similarity of one's own, without a `score`."""

    def queries(self, x, users=None):
        return {"place": x}

    def items(self, table):
        return {"place": table}

    def score_each(self, queries, items):
        return -(queries["place"][:, None] - items["place"]).norm(dim=-1)


@pytest.mark.parametrize("pairs", [1, 7, 2**16])
@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("items", [0, 1, 10])
def test_all_pairs_are_scored_by_what_scores_each(monkeypatch, items, rows, pairs):
    monkeypatch.setattr(base, "_PAIRS", pairs)
    x, table = torch.randn(rows, 4), torch.randn(items, 4)
    distance = Distance()
    with torch.no_grad():
        scores = distance.score(distance.queries(x), distance.items(table))
    assert scores.shape == (rows, items)
    torch.testing.assert_close(scores, -torch.cdist(x, table, compute_mode="donot_use_mm_for_euclid_dist"))


def test_items_of_each_are_told_by_rows_and_none_by_a_negative_one():
    x, table = torch.randn(2, 4), torch.randn(5, 4)
    distance = Distance()
    rows = torch.tensor([[4, 0, -1], [2, -7, 2]])
    expected = distance.score(distance.queries(x), distance.items(table)).gather(1, rows.clamp(min=0))
    expected[rows < 0] = -torch.inf
    torch.testing.assert_close(distance.score_rows(distance.queries(x), distance.items(table), rows), expected)


def test_chunks_are_no_larger_than_told():
    seen = []

    def score(part):
        seen.append(part["vector"].shape[0])
        return part["vector"].T

    side = {"vector": torch.arange(7.0)[:, None]}
    with torch.no_grad():
        assert torch.equal(base.by_chunks(score, side, 3), torch.arange(7.0)[None])
    assert seen == [3, 3, 1]
    base.by_chunks(score, side, 3)
    assert seen[3:] == [7]  # with gradients all at once


def test_sides_are_taken_by_ids_of_any_shape():
    sides = {"vector": torch.arange(12.0).view(4, 3), "length": torch.arange(4)}
    taken = take(sides, torch.tensor([[3, 0], [1, 1]]))
    assert taken["vector"].shape == (2, 2, 3)
    assert taken["length"].tolist() == [[3, 0], [1, 1]]
    assert taken["vector"][0, 0].tolist() == [9, 10, 11]


def test_there_is_no_penalty_unless_a_similarity_has_one():
    for similarity in (Distance(), DotProduct()):
        penalty = similarity.penalty(similarity.queries(torch.randn(3, 2)), similarity.items(torch.randn(3, 2)))
        assert penalty.shape == ()
        assert penalty.item() == 0
