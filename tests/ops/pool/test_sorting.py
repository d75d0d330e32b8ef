"""The suite of top n and unique ids of rows: every implementation, by hand and against the oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.ops import implementations
from serrate.ops.pool import top_n, unique
from serrate.testing import jagged_tensors
from serrate.testing.graphs import assert_captured

every_implementation = pytest.mark.parametrize("name", [each.name for each in implementations("top_n")])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

OFFSETS = torch.tensor([0, 4, 4, 6])


@every_device
@every_implementation
def test_top_n_by_hand(name, device):
    scores = torch.tensor([1.0, 7.0, 7.0, -2.0, 0.0, 3.0], device=device)
    indices, counts = top_n(scores, OFFSETS.to(device), 3, implementation=name)
    assert indices.tolist() == [[1, 2, 0], [-1, -1, -1], [5, 4, -1]]
    assert counts.tolist() == [3, 0, 2]
    assert top_n(scores, OFFSETS.to(device), 0, implementation=name)[0].shape == (3, 0)


@every_device
@every_implementation
def test_infinite_and_missing_scores_have_their_place(name, device):
    scores = torch.tensor([-math.inf, math.nan, math.inf, -math.inf, 1.0, -math.inf], device=device)
    indices, counts = top_n(scores, OFFSETS.to(device), 5, implementation=name)
    assert indices.tolist() == [[1, 2, 0, 3, -1], [-1] * 5, [4, 5, -1, -1, -1]]
    assert counts.tolist() == [4, 0, 2]


@given(jagged_tensors(dtypes=(torch.float32, torch.float16, torch.int64), inner=((),)), st.integers(0, 8),
       st.booleans())
def test_top_n_as_the_oracle_has_it(x, n, ties):
    scores = x.values.remainder(2) if ties else x.values
    expected = top_n(scores, x.offsets, n, implementation="reference")
    for found, right in zip(top_n(scores, x.offsets, n, implementation="sort"), expected, strict=True):
        assert torch.equal(found, right)
        assert found.dtype == right.dtype == torch.int64


@every_device
@every_implementation
def test_unique_by_hand(name, device):
    ids = torch.tensor([5, 2, 5, 2, 7, 2], device=device, dtype=torch.int32)
    found = unique(ids, OFFSETS.to(device), implementation=name)
    assert found.values.tolist() == [2, 5, 2, 7, 0, 0]
    assert found.offsets.tolist() == [0, 2, 2, 4]
    assert found.inverse.tolist() == [1, 0, 1, 0, 3, 2]
    assert found.counts.tolist() == [2, 2, 1, 1, 0, 0]
    assert (found.values.dtype, found.offsets.dtype) == (torch.int32, torch.int64)
    known = unique(ids, OFFSETS.to(device), num_events=4, implementation=name)
    assert (known.values.tolist(), known.counts.tolist()) == ([2, 5, 2, 7], [2, 2, 1, 1])


@given(jagged_tensors(dtypes=(torch.int64, torch.int32, torch.int8), inner=((),)), st.integers(1, 5))
def test_unique_as_the_oracle_has_it(x, kinds):
    ids = x.values % kinds - 1
    found = unique(ids, x.offsets, implementation="sort")
    for each, right in zip(found, unique(ids, x.offsets, implementation="reference"), strict=True):
        assert torch.equal(each, right)
        assert each.dtype == right.dtype
    assert torch.equal(found.values[found.inverse], ids)
    assert int(found.counts.sum()) == len(ids)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_both_compile_whole_and_once_for_all_lengths(device):
    def both(ids, offsets):
        return *top_n(ids, offsets, 3), *unique(ids, offsets)

    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in ((0, 3, 5), (0, 7, 7, 9), (0, 1, 20, 21, 30)):
            offsets = torch.tensor(rows, device=device)
            ids = torch.arange(rows[-1], device=device) % 4
            for found, eager in zip(compiled(ids, offsets), both(ids, offsets), strict=True):
                assert torch.equal(found, eager)


@pytest.mark.gpu
def test_nothing_waits_and_a_captured_graph_follows_new_rows():
    ids, offsets = torch.arange(9, device="cuda") % 4, torch.tensor([0, 2, 9], device="cuda")

    def both():
        return *top_n(ids, offsets, 3), *unique(ids, offsets)

    def changes():
        ids.copy_(torch.arange(9, device="cuda") // 2)
        offsets.copy_(torch.tensor([0, 5, 9], device="cuda"))
        yield

    assert_captured(both, changes())


IDS = torch.tensor([3, 3, 1])


@pytest.mark.parametrize(("call", "message"), [
    (lambda: top_n(torch.ones(3, 1), torch.tensor([0, 3]), 1), "scores: expected shape (T,), got (3, 1)"),
    (lambda: top_n(IDS, torch.tensor([0, 2]), 1), "offsets: expected a last entry of T = 3, got 2"),
    (lambda: top_n(IDS > 1, torch.tensor([0, 3]), 1), "scores: expected a real dtype, got torch.bool"),
    (lambda: top_n(IDS, torch.tensor([0, 3]), -1), "n: expected at least 0, got -1"),
    (lambda: unique(IDS.float(), torch.tensor([0, 3])), "ids: expected an integer dtype, got torch.float32"),
    (lambda: unique(IDS, torch.tensor([0, 3]), num_events=4), "num_events: expected 0 … T = 3, got 4"),
    (lambda: unique(IDS, torch.tensor([0, 3]), num_events=1),
     "num_events: expected 2, the different ids of all rows, got 1"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert str(caught.value) == message
