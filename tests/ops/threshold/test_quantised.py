"""Rows as integers with a scale, and scores of some items."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serrate.errors import InvalidArgument
from serrate.ops.threshold import quantise, scores_of


def test_quantised_by_hand():
    x = torch.tensor([[127.0, -63.5, 1.4, 0.0], [0.0, 0.0, 0.0, 0.0], [-2.0, 1.0, 0.0, 0.5]])
    values, scales = quantise(x)
    assert values.dtype == torch.int8
    # 63.5 lies between two integers: to the even one. 1 / (2 / 127) is 63.5 as well, 0.5 / (2 / 127) 31.75
    assert values.tolist() == [[127, -64, 1, 0], [0, 0, 0, 0], [-127, 64, 0, 32]]
    torch.testing.assert_close(scales, torch.tensor([1.0, 0.0, 2 / 127]))


@given(st.integers(0, 20), st.integers(1, 40), st.floats(1e-44, 1e30), st.sampled_from((torch.float32, torch.float64)))
def test_each_number_is_off_by_half_a_step_at_most(rows, width, size, dtype):
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(rows), dtype=dtype) * size
    values, scales = quantise(x)
    assert values.abs().amax() <= 127 if rows else values.numel() == 0
    error = (values.double() * scales.double()[:, None] - x.double()).abs()
    assert (error <= 0.5001 * scales.double()[:, None] + 2e-43).all()  # of subnormal numbers few bits are left


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_as_it_is(dtype):
    x = torch.randn(5, 16).to(dtype)
    for found, expected in zip(quantise(x), quantise(x.float()), strict=True):
        assert torch.equal(found, expected)


def test_rows_without_numbers():
    values, scales = quantise(torch.zeros(3, 0))
    assert values.shape == (3, 0)
    assert scales.tolist() == [0, 0, 0]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(odd):
    x = torch.ones(4, 3)
    x[2, 1] = odd
    with pytest.raises(InvalidArgument, match="x: expected finite numbers, got another in row 2"):
        quantise(x)


@pytest.mark.gpu
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_on_an_accelerator_it_has_a_scale_of_nan(odd):
    x = torch.ones(4, 3, device="cuda")
    x[2, 1] = odd
    values, scales = quantise(x)
    assert scales.isnan().tolist() == [False, False, True, False]
    assert values.tolist()[3] == [127, 127, 127]


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(3, 2, dtype=torch.int32)])
def test_other_rows_are_refused(x):
    with pytest.raises(InvalidArgument, match=r"x: expected shape \(N, d\), floating point"):
        quantise(x)


def test_scores_by_hand_and_of_many_columns():
    queries, items = torch.tensor([[1, 2], [-3, 0]]).to(torch.int8), torch.tensor([[9, 9], [10, 0]]).to(torch.int8)
    ones, scales = torch.tensor([2.0, 1.0]), torch.tensor([1.0, 0.5])
    assert scores_of(queries, ones, items, scales, torch.tensor([1, 0, 1])).tolist() == [[10, 54, 10], [-15, -27, -15]]
    wide = torch.full((2, 3000), 127, dtype=torch.int8)
    wide[1, 1500] = 126  # float32 cannot hold the sum: 48,386,873 is rounded once, to a multiple of 4
    found = scores_of(wide[:1], torch.ones(1), wide, torch.ones(2), torch.arange(2))
    assert found.tolist() == [[127 * 127 * 3000, 48_386_872]]


@pytest.mark.parametrize("ids", [torch.ones(2), torch.ones(2, 2).long()])
def test_scores_of_other_ids_are_refused(ids):
    rows, ones = torch.ones(3, 2).to(torch.int8), torch.ones(3)
    with pytest.raises(InvalidArgument, match=r"ids: expected \(S,\) int64 on cpu, got"):
        scores_of(rows, ones, rows, ones, ids)
