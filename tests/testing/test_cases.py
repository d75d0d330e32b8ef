import pytest
import torch

from serrate.testing import jagged_cases


@pytest.mark.parametrize("case", jagged_cases(), ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool])
def test_make_gives_the_shape_that_the_case_says(case, dtype):
    made = case.make((2, 3), dtype)
    made.check()
    assert made.lengths.tolist() == list(case.lengths)
    assert made.longest == max(case.lengths, default=0)
    assert made.values.shape == (sum(case.lengths), 2, 3)
    assert (made.dtype, made.offsets.dtype) == (dtype, case.offsets_dtype)
    assert made.values.numel() == 0 or made.values.is_contiguous() == case.contiguous


def test_names_are_unique_and_the_seed_decides_the_values():
    cases = jagged_cases()
    assert len({case.name for case in cases}) == len(cases)
    ordinary = next(case for case in cases if case.name == "ordinary")
    assert ordinary.make(seed=1).tolist() == ordinary.make(seed=1).tolist() != ordinary.make(seed=2).tolist()


def test_contiguous_or_not_both_have_one_value_an_event():
    assert all(case.make().values.shape == (sum(case.lengths),) for case in jagged_cases())
