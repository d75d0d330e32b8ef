"""The numerics promise: how far from the float64 oracle an implementation may be.

The budget is 2 times (gradients: 5 times) the error of the plain torch computation in the same low precision,
plus one ulp of the output dtype at the largest magnitude of the reference. An error is the largest absolute
difference.
"""

import math

import torch
from torch import Tensor

from ..errors import InvalidArgument

_FACTOR = {False: 2.0, True: 5.0}  # by `gradient`


def largest_error(actual: Tensor, reference: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one shape, in float64; 0.0 for empty ones.

    Equal infinities differ by 0. A NaN on either side gives NaN, so that no comparison with it holds.
    """
    if actual.shape != reference.shape:
        raise InvalidArgument("actual", f"shape {tuple(reference.shape)}, as reference", tuple(actual.shape))
    if actual.numel() == 0:
        return 0.0
    low, high = actual.detach().cpu().double(), reference.detach().cpu().double()
    return float(torch.where(low == high, 0.0, (low - high).abs()).max())  # max hands NaN on


def ulp(dtype: torch.dtype, magnitude: float) -> float:
    """Return the distance of neighbouring numbers of a floating `dtype` at `magnitude`."""
    if not dtype.is_floating_point:
        raise InvalidArgument("dtype", "a floating-point dtype", dtype)
    info = torch.finfo(dtype)
    _, exponent = math.frexp(max(abs(magnitude), info.smallest_normal))
    return math.ldexp(info.eps, exponent - 1)


def error_budget(reference: Tensor, plain: Tensor, dtype: torch.dtype, *, gradient: bool = False) -> float:
    """Return the largest error an implementation may have.

    Args:
        reference: the oracle's result, float64, any shape.
        plain: the result of the plain torch computation in the low precision, same shape.
        dtype: the dtype of the implementation's output.
        gradient: whether the results are gradients.

    Raises:
        InvalidArgument: a reference that is not float64; a plain result that is not finitely far from it.
    """
    if reference.dtype != torch.float64:
        raise InvalidArgument("reference", "float64", reference.dtype)
    error = largest_error(plain, reference)
    if not math.isfinite(error):
        raise InvalidArgument("plain", "a finite error against reference", error)
    finite = reference.detach()[reference.isfinite()]
    magnitude = float(finite.abs().max()) if finite.numel() else 0.0
    return _FACTOR[gradient] * error + ulp(dtype, magnitude)


def assert_within_budget(actual: Tensor, reference: Tensor, plain: Tensor, *, gradient: bool = False,
                         name: str = "output") -> None:
    """Assert that `actual` keeps the numerics promise; `name` begins the message.

    All have one shape: `actual` in the output dtype, `reference` float64, `plain` in the low precision.
    Infinities pass only where the reference has the same one; NaN never passes.

    Raises:
        AssertionError: `actual` is of another shape, has a NaN, or is further off than the budget.
        InvalidArgument: as `error_budget`.
    """
    budget = error_budget(reference, plain, actual.dtype, gradient=gradient)
    if actual.shape != reference.shape:
        raise AssertionError(f"{name}: shape {tuple(actual.shape)}, the reference {tuple(reference.shape)}")
    error = largest_error(actual, reference)
    if not error <= budget:  # written so that NaN fails
        plain_error = largest_error(plain, reference)
        raise AssertionError(f"{name}: error {error:.3e} is over the budget {budget:.3e} "
                             f"({actual.dtype}; error of the plain computation {plain_error:.3e})")
