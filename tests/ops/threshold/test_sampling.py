"""Thresholds from samples: ranks, positions, and how much the number that passes varies."""

import math

import pytest
import torch

from serrate.errors import InvalidArgument
from serrate.ops.threshold import (
    over_provisioned,
    quantise,
    r_for,
    sample_positions,
    sample_threshold,
    scores_of,
    select_above,
)


def test_ranks_by_hand():
    assert r_for(100, 1000, 10_000) == 10
    assert r_for(3, 10, 10_000) == 1  # 0.003, but the largest at least
    assert r_for(70, 40, 40) == 70
    assert over_provisioned(1000, 100) == 1300
    assert over_provisioned(1000, 9) == 2000
    assert over_provisioned(1000, 100, 6.0) == 1600


@pytest.mark.parametrize(("arguments", "message"), [
    ((0, 1, 1), "k: expected 1 or more, got 0"),
    ((1, 0, 1), "sample: expected 1 or more, got 0"),
    ((1, 1, 0), "total: expected 1 or more, got 0"),
])  # fmt: skip
def test_ranks_of_nothing_are_refused(arguments, message):
    with pytest.raises(InvalidArgument) as caught:
        r_for(*arguments)
    assert str(caught.value) == message


def test_positions_are_spread_evenly_and_follow_the_seed():
    found = sample_positions(1000, 999, seed=5)
    assert found.dtype == torch.int64
    assert torch.equal(found, sample_positions(1000, 999, seed=5))
    assert torch.equal(found[:300], sample_positions(1000, 300, seed=5))  # a smaller sample is the beginning
    assert not torch.equal(found.sort().values, sample_positions(1000, 999, seed=6).sort().values)
    assert not torch.equal(found, sample_positions(1000, 999, seed=5 + 2**32))  # both halves of a seed count
    many = sample_positions(2**31 - 1, 2**16, seed=1)
    assert 0 <= int(many.min()) < 2**17
    assert 2**31 - 2**17 < int(many.max()) < 2**31
    buckets = torch.bincount(many >> 27, minlength=16)  # 4,096 each, with a deviation of 62
    assert ((buckets - 4096).abs() < 5 * 62).all()


def test_a_sample_as_large_as_the_whole_is_the_whole():
    assert sample_positions(4, 4).tolist() == sample_positions(4, 9).tolist() == [0, 1, 2, 3]


@pytest.mark.gpu
def test_positions_are_the_same_on_an_accelerator():
    found = sample_positions(10**8, 5000, seed=3, device="cuda")
    assert torch.equal(found.cpu(), sample_positions(10**8, 5000, seed=3))


@pytest.mark.parametrize(("total", "sample", "message"), [
    (0, 3, "total: expected 1 to 2**31 - 1, got 0"),
    (2**31, 3, "total: expected 1 to 2**31 - 1, got 2147483648"),
    (5, 0, "sample: expected 1 or more, got 0"),
])  # fmt: skip
def test_positions_of_nothing_are_refused(total, sample, message):
    with pytest.raises(InvalidArgument) as caught:
        sample_positions(total, sample)
    assert str(caught.value) == message


def rows(count: int, seed: int, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return quantise(torch.randn(count, width, generator=torch.Generator().manual_seed(seed)))


def test_the_threshold_is_a_score_of_the_sample():
    queries, items = rows(3, 0), rows(5000, 1)
    ids = sample_positions(5000, 200, seed=4)
    scores = scores_of(*queries, *items, ids).sort(1, descending=True).values
    found = sample_threshold(*queries, *items, 250, sample=200, seed=4)
    assert torch.equal(found, scores[:, 9])  # 250 · 200 / 5000 = 10
    allowed = torch.arange(5000) % 2 == 0
    open_ = scores_of(*queries, *items, ids[allowed[ids]]).sort(1, descending=True).values
    assert torch.equal(sample_threshold(*queries, *items, 250, sample=200, seed=4, allowed=allowed), open_[:, 9])


def test_the_whole_corpus_gives_the_very_number():
    queries, items = rows(3, 0), rows(700, 1)
    threshold = sample_threshold(*queries, *items, 33, sample=10**6)
    assert select_above(*queries, *items, threshold, capacity=0)[1].tolist() == [33] * 3


def test_where_fewer_are_there_than_should_pass_all_do():
    queries, items = rows(2, 0), rows(50, 1)
    assert sample_threshold(*queries, *items, 51, sample=50).tolist() == [-math.inf] * 2
    none = torch.zeros(50, dtype=torch.bool)
    assert sample_threshold(*queries, *items, 5, sample=50, allowed=none).tolist() == [-math.inf] * 2


@pytest.mark.parametrize(("rank", "seeds"), [(10, 400), (100, 200), (1000, 120)])
def test_the_number_that_passes_varies_as_promised(rank, seeds):
    """Of a million items 64 wide about 10,000 should pass, by a sample that gives this rank: deviation 1 / √r.

    Counts are looked up in the sorted scores of one pass: `select_above` finds the same, which its suite holds. The
    deviation of so many draws is known within 4, 5 and 6.5 %; between queries draws are independent but for the seed.
    """
    total, k, width = 1_000_000, 10_000, 64
    queries, items = rows(3, 2, width), rows(total, 3, width)
    ordered = scores_of(*queries, *items, torch.arange(total)).sort(1).values
    shares = []
    for seed in range(seeds):
        threshold = sample_threshold(*queries, *items, k, sample=rank * total // k, seed=seed)
        shares.append((total - torch.searchsorted(ordered, threshold[:, None])[:, 0]) / k)
    found = torch.stack(shares)
    deviation = float(found.std())
    assert abs(deviation * math.sqrt(rank) - 1) < 0.2, deviation
    assert abs(float(found.mean()) - 1) < 5 / math.sqrt(rank * found.numel()) + 1 / rank
