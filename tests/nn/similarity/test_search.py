"""What a search asks of a similarity: scores of rows, and the best of all, which agree with its scores."""

import math

import pytest
import torch

from serrate.nn.similarity import DotProduct, MixtureOfLogits, MixtureOptions


@pytest.fixture(params=["dot", "mixture"])
def world(request):
    """A similarity, and sides of 3 queries and 20 items."""
    torch.manual_seed(0)
    similarity = DotProduct() if request.param == "dot" else MixtureOfLogits(6, MixtureOptions(2, 3, 4, 8, 8))
    with torch.no_grad():
        similarity.eval()
        return similarity, similarity.queries(torch.randn(3, 6)), similarity.items(torch.randn(20, 6))


def test_scores_of_rows_are_those_of_all_pairs(world):
    similarity, queries, items = world
    rows = torch.tensor([[4, 4, -1], [0, 19, 7], [-1, -1, 2]])
    with torch.no_grad():
        expected = similarity.score(queries, items).gather(1, rows.clamp(min=0)).masked_fill(rows < 0, -math.inf)
    torch.testing.assert_close(similarity.score_rows(queries, items, rows), expected)


def test_the_best_of_one_pass_are_those_of_all_scores(world):
    similarity, queries, items = world
    allowed = torch.arange(20) % 4 != 0
    exclude = torch.tensor([0, 2, 2, 3]), torch.tensor([5, 6, 1])
    found = similarity.top_k(queries, items, 17, exclude=exclude, allowed=allowed)
    if isinstance(similarity, DotProduct):
        assert found is None  # a product and a sort are all that it takes
        return
    with torch.no_grad():
        scores = similarity.score(queries, items).masked_fill(~allowed, -math.inf)
    scores[torch.tensor([0, 0, 2]), exclude[1]] = -math.inf
    values, rows = scores.sort(dim=1, descending=True)
    assert found is not None
    torch.testing.assert_close(found[0], values[:, :17])
    assert found[1].tolist() == rows[:, :17].masked_fill(values[:, :17] == -math.inf, -1).tolist()
