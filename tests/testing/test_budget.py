import math

import pytest
import torch

from serrate.errors import InvalidArgument
from serrate.testing import assert_within_budget, error_budget, largest_error
from serrate.testing.budget import ulp


def double(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "magnitude", "expected"), [
    (torch.float32, 1.0, 2**-23),
    (torch.float32, 1.999, 2**-23),
    (torch.float32, 2.0, 2**-22),
    (torch.float16, 1000.0, 0.5),  # 512 … 1024 in steps of 2**-10 * 512
    (torch.bfloat16, 3.0, 2**-6),
    (torch.float16, 0.0, 2**-24),  # the smallest subnormal
])
def test_ulp_by_hand(dtype, magnitude, expected):
    assert ulp(dtype, magnitude) == ulp(dtype, -magnitude) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("magnitude", [0.75, 1.0, 3.0, 100.0])
def test_ulp_is_the_next_number(dtype, magnitude):
    here = torch.tensor(magnitude, dtype=dtype)
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert float((here.view(bits) + 1).view(dtype)) - magnitude == ulp(dtype, magnitude)


def test_budget_by_hand():
    reference, plain = double(1.0, -4.0), torch.tensor([1.0, -4.25])
    assert error_budget(reference, plain, torch.float32) == 2 * 0.25 + 2**-21
    assert error_budget(reference, plain, torch.float32, gradient=True) == 5 * 0.25 + 2**-21


def test_assertion_passes_up_to_the_budget_and_not_beyond():
    reference, plain = double(1.0, -4.0), torch.tensor([1.0, -4.25])
    assert_within_budget(torch.tensor([1.5, -4.0]), reference, plain)
    with pytest.raises(AssertionError, match=r"query: error 6.250e-01 is over the budget 5.000e-01"):
        assert_within_budget(torch.tensor([1.625, -4.0]), reference, plain, name="query")
    assert_within_budget(torch.tensor([1.625, -4.0]), reference, plain, gradient=True)


def test_an_exact_plain_computation_still_leaves_one_ulp():
    reference = double(1.0)
    assert_within_budget(torch.tensor([1 + 2**-23]), reference, reference.float())
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(torch.tensor([1 + 2**-22]), reference, reference.float())


@pytest.mark.parametrize("reference", [1.0, math.inf, math.nan])
def test_nan_never_passes(reference):
    plain = torch.tensor([0.0 if math.isnan(reference) else reference])
    with pytest.raises((AssertionError, InvalidArgument)):
        assert_within_budget(torch.tensor([math.nan]), double(reference), plain)


def test_nan_among_many_does_not_pass():
    actual = torch.zeros(100)
    actual[37] = math.nan
    with pytest.raises(AssertionError, match="error nan"):
        assert_within_budget(actual, torch.zeros(100, dtype=torch.float64), torch.ones(100))


def test_infinities_pass_only_where_the_reference_has_them():
    reference, plain = double(-math.inf, 1.0), torch.tensor([-math.inf, 1.0])
    assert_within_budget(torch.tensor([-math.inf, 1.0]), reference, plain)
    for wrong in ([math.inf, 1.0], [0.0, 1.0], [-math.inf, math.inf]):
        with pytest.raises(AssertionError, match="error inf"):
            assert_within_budget(torch.tensor(wrong), reference, plain)


def test_a_useless_plain_computation_sets_no_budget():
    with pytest.raises(InvalidArgument, match=r"plain: expected a finite error against reference, got nan"):
        error_budget(double(1.0), torch.tensor([math.nan]), torch.float32)
    with pytest.raises(InvalidArgument, match=r"plain: expected a finite error against reference, got inf"):
        error_budget(double(1e6), torch.tensor([1e6]).half(), torch.float16)


def test_empty_tensors_pass():
    assert_within_budget(torch.zeros(0, 3), torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, 3))


def test_wrong_arguments():
    with pytest.raises(InvalidArgument, match=r"reference: expected float64, got torch.float32"):
        error_budget(torch.zeros(1), torch.zeros(1), torch.float32)
    with pytest.raises(InvalidArgument, match=r"dtype: expected a floating-point dtype, got torch.int64"):
        error_budget(double(1.0), double(1.0), torch.int64)
    with pytest.raises(InvalidArgument, match=r"actual: expected shape \(2,\), as reference, got \(1,\)"):
        largest_error(torch.zeros(1), torch.zeros(2))
    with pytest.raises(AssertionError, match=r"output: shape \(1,\), the reference \(2,\)"):
        assert_within_budget(torch.zeros(1), double(0, 0), torch.zeros(2))
