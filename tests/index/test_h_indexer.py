"""Stage one passes on about as many as it should, and what it passes on is scored."""

import math

import pytest
import torch

from serrate.errors import InvalidArgument
from serrate.index import ExactIndex, HIndexer
from serrate.nn.similarity import DotProduct

from .made import dot, exact, jagged, mixture


@pytest.mark.parametrize("rank", [10, 100])
def test_the_number_that_passes_scatters_by_one_over_the_root_of_the_sample_rank(rank):
    torch.manual_seed(0)
    similarity, keep = DotProduct().eval(), 2_000
    queries, items = dot(torch.randn(100, 16)), dot(torch.randn(50_000, 16))
    ratios = []
    for seed in range(8):
        index = HIndexer.build(similarity, items, config={"keep": keep, "sample_rank": rank, "margin": 0, "seed": seed})
        ratios.append(index.search(queries, 1).candidates / keep)
    ratio = torch.cat(ratios)
    # Shares are drawn without the sample of one being that of another; 8 samples say the spread to about a fifth.
    assert float(ratio.mean()) == pytest.approx(1, abs=0.6 / math.sqrt(rank))
    assert float(ratio.std()) == pytest.approx(1 / math.sqrt(rank), rel=0.3)


def test_the_margin_makes_a_floor_of_what_is_kept():
    torch.manual_seed(0)
    index = HIndexer.build(DotProduct().eval(), dot(torch.randn(50_000, 16)), config={"keep": 1_000})
    candidates = index.search(dot(torch.randn(100, 16)), 1).candidates
    assert float((candidates >= 1_000).float().mean()) > 0.97
    assert float(candidates.float().mean()) < 1_400


def test_int8_keeps_the_true_best_of_dot_products():
    torch.manual_seed(0)
    queries, items = dot(torch.randn(16, 64)), dot(torch.randn(100_000, 64))
    similarity = DotProduct().eval()
    found = HIndexer.build(similarity, items, config={"keep": 1_000}).search(queries, 100)
    expected = ExactIndex.build(similarity, items).search(queries, 100)
    assert found.ids.tolist() == expected.ids.tolist()
    assert not found.certified.any()
    assert bool((found.candidates < 2_000).all())


def test_a_side_of_its_own_is_what_stage_one_reads():
    similarity, queries, items = mixture()
    told = torch.stack([-torch.arange(1.0, 301.0), torch.zeros(300)], 1)
    told[[7, 70, 170]] = torch.tensor([1.0, 0.0])
    index = HIndexer.build(similarity, items | {"stage_one": told}, config={"keep": 3, "margin": 0})
    found = index.search(  # so few items are all in the sample
        queries | {"stage_one": torch.tensor([[1.0, 0.0]]).expand(6, 2)}, 3)
    assert [sorted(row) for row in found.ids.tolist()] == [[7, 70, 170]] * 6


def test_scores_that_tie_beyond_the_place_that_was_made_all_pass():
    found = HIndexer.build(DotProduct().eval(), dot(torch.ones(5_000, 2)), config={"keep": 10}).search(
        dot(torch.ones(1, 2)), 3)
    assert found.candidates.tolist() == [5_000]
    assert found.ids.tolist() == [[0, 1, 2]]


def test_items_that_are_closed_to_all_take_no_place_in_stage_one():
    torch.manual_seed(0)
    items = dot(torch.randn(20_000, 8))
    index = HIndexer.build(DotProduct().eval(), items, config={"keep": 100})
    allow = torch.arange(0, 20_000, 100)
    found = index.search(dot(torch.randn(4, 8)), 5, allow=allow, exclude=jagged([[0], [], [], []]))
    assert bool((found.ids % 100 == 0).all())
    assert bool((found.candidates >= 100).all())


def test_more_than_stage_one_keeps_cannot_be_asked_for():
    similarity, sides = exact("dot")
    with pytest.raises(InvalidArgument, match=r"^k: expected at most 4, which stage one keeps, got 5"):
        HIndexer.build(similarity, sides(2, 9), config={"keep": 4}).search(sides(1, 1), 5)
