"""Sizes of kernels against their definitions."""

from hypothesis import given
from hypothesis import strategies as st

from serrate.ops.sizes import ceil_div, power_of_two


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_the_division_is_rounded_up(number, by):
    assert (ceil_div(number, by) - 1) * by < number <= ceil_div(number, by) * by


@given(st.integers(1, 10**6))
def test_the_power_is_the_least_that_reaches(number):
    found = power_of_two(number)
    assert found.bit_count() == 1
    assert found // 2 < number <= found
