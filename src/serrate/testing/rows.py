"""The oracle of whatever moves events about: rows as Python lists, and where each event came from."""

from collections.abc import Callable

import torch

from ..jagged import JaggedTensor


def same_rows(a: JaggedTensor, b: JaggedTensor) -> bool:
    """Whether two jagged tensors have the same values and offsets, bit for bit, and of the same dtypes."""
    return (torch.equal(a.values, b.values) and a.dtype == b.dtype and torch.equal(a.offsets, b.offsets)
            and a.offsets.dtype == b.offsets.dtype)


def assert_moves_events(x: JaggedTensor, operation: Callable[[JaggedTensor], JaggedTensor],
                        oracle: Callable[[list[list]], list[list]]) -> None:
    """Assert that `operation` on `x` gives the rows that `oracle` gives on lists, and the gradient that follows.

    Also that offsets are sound and keep their dtype, and that `longest` is exact on the CPU.

    Args:
        x: `B` rows of any dtype; gradients are compared where it is floating.
        operation: moves, drops or repeats whole events.
        oracle: the same on nested Python lists.

    Raises:
        AssertionError: a difference.
    """
    values = x.values.detach().clone().requires_grad_(x.dtype.is_floating_point)
    out = operation(x.with_values(values))
    out.check()
    expected = oracle(x.tolist())
    if out.tolist() != expected:
        raise AssertionError(f"rows: {out.tolist()}, the oracle gives {expected}")
    if out.longest != max(map(len, expected), default=0):
        raise AssertionError(f"longest: {out.longest}, the rows are {[len(row) for row in expected]} long")
    if out.offsets.dtype != x.offsets.dtype:
        raise AssertionError(f"offsets: {out.offsets.dtype}, given {x.offsets.dtype}")
    if not values.requires_grad:
        return
    weights = torch.randint(-9, 9, out.values.shape).to(out.dtype)  # small integers add up without rounding
    came_from = oracle(x.with_values(torch.arange(x.num_events)).tolist())
    source = torch.tensor([event for row in came_from for event in row], dtype=torch.int64)
    gradient = torch.autograd.grad((out.values * weights).sum(), values, materialize_grads=True)[0]
    if not torch.equal(gradient, torch.zeros_like(values).index_add(0, source, weights)):
        raise AssertionError("the gradient of an event is not the sum over the places it moved to")
