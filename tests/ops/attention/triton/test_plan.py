"""Where tiles find their rows: a search among few rows and a plan of all give the same; on a GPU, or interpreted."""

import pytest
import torch

pytest.importorskip("triton")

from serrate.jagged import offsets_from_lengths
from serrate.ops.attention import Mask, attention
from serrate.ops.attention.triton import plan
from serrate.ops.direct import INTERPRETED

DEVICE = "cpu" if INTERPRETED else pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.mark.parametrize("device", [DEVICE])
@pytest.mark.parametrize("mask", [Mask(causal=True), Mask(window=(3, 2), context=2, targets=1)], ids=["causal", "all"])
@pytest.mark.parametrize("lengths", [(70,), (3, 0, 0, 40, 1, 0), tuple(i * 7 % 4 for i in range(40))],
                         ids=["one", "some", "many"])
def test_tiles_that_search_for_their_rows_give_the_same_as_planned_ones(device, lengths, mask, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), 1, 16, device=device, dtype=torch.float16).requires_grad_() for _ in range(3))
    offsets = offsets_from_lengths(torch.tensor(lengths, device=device))
    made = []

    class Noted(plan.Plan):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("serrate.ops.attention.triton.passes.Plan", Noted)
    monkeypatch.setattr("serrate.ops.attention.api._known", {})  # of calls that make no plan any more

    def run():
        out = attention(q, k, v, offsets, mask=mask, implementation="triton")
        return [out.detach(), *torch.autograd.grad(out.square().sum(), (q, k, v))]

    searched = run()
    monkeypatch.setattr(plan, "FEW_ROWS", 0)
    planned = run()
    assert [each.searched for each in made] == [True, True, False, False]  # forward and backward
    for one, other in zip(searched, planned, strict=True):
        assert torch.equal(one, other)


def test_many_rows_and_other_queries_are_planned():
    def searched(queries, keys, events):
        problem = plan.Problem(queries, keys, None, None, None, plan.FULL, (0, 0, 1), 1.0, 0.0)
        q = torch.empty(events, 1, 16, device="meta")
        return plan.Plan(problem, q, q, q).searched

    few, many = torch.zeros(plan.FEW_ROWS, device="meta"), torch.zeros(plan.FEW_ROWS + 1, device="meta")
    assert searched(few, few, plan.WORTH_DESCRIBING - 1)
    assert not searched(few, few, plan.WORTH_DESCRIBING)
    assert not searched(many, many, 64)
    assert not searched(few, few.clone(), 64)
    assert not searched(few[:1], few[:1], 64)
