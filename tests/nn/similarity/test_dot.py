"""Dot product and cosine, by hand; both ways to score agree."""

import pytest
import torch

from serrate.nn import DotProduct


def test_by_hand():
    x, table = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    dot, cosine = DotProduct(), DotProduct(normalise=True)
    assert dot.score(dot.queries(x), dot.items(table)).tolist() == [[3, 8, 25], [0, 0, 0]]
    torch.testing.assert_close(cosine.score(cosine.queries(x), cosine.items(table)),
                               torch.tensor([[0.6, 0.8, 1.0], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_each_pair_alone_is_as_all_together(normalise, dtype):
    dot = DotProduct(normalise)
    queries, items = dot.queries(torch.randn(3, 5).to(dtype)), dot.items(torch.randn(4, 5).to(dtype))
    ids = torch.tensor([[0, 3], [1, 1], [2, 0]])
    scores = dot.score(queries, items)
    each = dot.score_each(queries, {"vector": items["vector"][ids]})
    assert scores.dtype == each.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(each, scores.gather(1, ids), **({"rtol": 2e-2, "atol": 2e-2}
                               if dtype == torch.bfloat16 else {"rtol": 1e-5, "atol": 1e-6}))


def test_it_has_no_weights():
    assert not DotProduct(normalise=True).state_dict()
