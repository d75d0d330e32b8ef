import torch
from hypothesis import find, given

from serrate.jagged import JaggedTensor
from serrate.testing import jagged_tensors


@given(jagged_tensors(dtypes=(torch.float16, torch.int32), inner=((), (2,)), max_rows=3, max_length=4,
                      min_rows=1))
def test_drawn_tensors_keep_the_bounds(jagged):
    assert isinstance(jagged, JaggedTensor)
    jagged.check()
    assert 1 <= len(jagged) <= 3
    assert jagged.longest in range(5)
    assert jagged.dtype in (torch.float16, torch.int32)
    assert jagged.values.shape[1:] in ((), (2,))


@given(jagged_tensors(requires_grad=True))
def test_drawn_leaves_collect_a_gradient(jagged):
    jagged.values.sum().backward()
    assert jagged.values.grad is not None


def test_odd_ones_are_drawn():
    find(jagged_tensors(), lambda jagged: len(jagged) == 0)
    find(jagged_tensors(), lambda jagged: len(jagged) > 1 and jagged.num_events == 0)
    find(jagged_tensors(), lambda jagged: jagged.offsets.dtype == torch.int32 and jagged.num_events > 0)
    find(jagged_tensors(), lambda jagged: not jagged.values.is_contiguous())
