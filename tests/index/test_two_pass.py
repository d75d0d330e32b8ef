"""Two passes give what one through everything gives, and say what they kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serrate.index import ExactIndex, TwoPassIndex
from serrate.nn.similarity import MixtureOfLogits, MixtureOptions

from .made import exact, mixture


@pytest.mark.parametrize("threshold", ["kth", "smallest"])
@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.05, 0.5, 1.0]), k=st.integers(1, 60))
def test_equals_brute_force_for_gates_from_flat_to_sharp(threshold, seed, spread, k):
    torch.manual_seed(seed)
    similarity = MixtureOfLogits(8, MixtureOptions(2, 3, 4, 8, 8)).eval()
    for parameter in similarity.parameters():
        torch.nn.init.normal_(parameter, std=spread)
    with torch.no_grad():
        queries, items = similarity.queries(torch.randn(3, 8)), similarity.items(torch.randn(200, 8))
    expected = ExactIndex.build(similarity, items).search(queries, k)
    found = TwoPassIndex.build(similarity, items, config={"threshold": threshold}).search(queries, k)
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-3)
    scored = similarity.score_each(queries, {name: side[found.ids] for name, side in items.items()}).detach()
    torch.testing.assert_close(found.scores, scored, rtol=1e-4, atol=1e-3)
    assert all(len(set(row)) == k for row in found.ids.tolist())


def test_the_kth_best_keeps_less_than_the_published_threshold_and_both_less_than_all():
    similarity, queries, items = mixture(items=2000)
    for parameter in similarity.cross.parameters():  # a gate that looks at the pair keeps the bound from being tight
        torch.nn.init.normal_(parameter, std=0.1)
    kept = {threshold: TwoPassIndex.build(similarity, items, config={"threshold": threshold}).search(queries, 5).share
            for threshold in ("kth", "smallest")}
    assert bool((kept["kth"] <= kept["smallest"]).all())
    assert float(kept["kth"].mean()) < 0.9 * float(kept["smallest"].mean())


def test_one_component_is_a_dot_product_and_keeps_no_more_than_the_answer():
    similarity, _ = exact("dot")
    items = {"vector": torch.arange(100.0)[:, None].expand(100, 5).contiguous()}
    found = TwoPassIndex.build(similarity, items).search({"vector": torch.ones(1, 5)}, 7)
    assert found.ids.tolist() == [list(range(99, 92, -1))]
    assert found.candidates.tolist() == [7]
