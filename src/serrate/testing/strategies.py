"""Hypothesis strategies for jagged tensors; they shrink to few, short rows."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st

from ..jagged import JaggedTensor
from .cases import JaggedCase


def lengths(*, max_rows: int = 6, max_length: int = 6, min_rows: int = 0) -> st.SearchStrategy[list[int]]:
    """Strategy for the lengths of a few rows, zeros and no rows included."""
    return st.lists(st.integers(0, max_length), min_size=min_rows, max_size=max_rows)


@st.composite
def jagged_tensors(draw: st.DrawFn, *, dtypes: Sequence[torch.dtype] = (torch.float32,),
                   inner: Sequence[tuple[int, ...]] = ((), (3,), (2, 3)), max_rows: int = 6,
                   max_length: int = 6, min_rows: int = 0, requires_grad: bool = False) -> JaggedTensor:
    """Strategy for `JaggedTensor`: values `(T, *inner)`, contiguous or not; offsets int32 or int64.

    Args:
        dtypes: the dtypes of values to choose from.
        inner: the shapes of one event to choose from.
        max_rows, max_length, min_rows: bounds of `B` and of the lengths.
        requires_grad: whether values (floating) are a leaf that collects a gradient.
    """
    rows = draw(lengths(max_rows=max_rows, max_length=max_length, min_rows=min_rows))
    offsets_dtype = draw(st.sampled_from((torch.int64, torch.int32)))
    case = JaggedCase("drawn", tuple(rows), offsets_dtype, contiguous=draw(st.booleans()))
    seed = draw(st.integers(0, 2**16))
    made = case.make(draw(st.sampled_from(inner)), draw(st.sampled_from(dtypes)), seed=seed)
    return made.with_values(made.values.requires_grad_()) if requires_grad else made
