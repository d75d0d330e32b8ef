import pytest
import torch

from serrate.jagged import JaggedTensor, from_lists, reverse
from serrate.testing import assert_moves_events, same_rows

X = from_lists([[1.0, 2.0], [3.0]])


def test_passes_what_the_oracle_gives():
    assert_moves_events(X, reverse, lambda rows: [row[::-1] for row in rows])


@pytest.mark.parametrize(("operation", "message"), [
    (lambda x: x, r"rows: \[\[1.0, 2.0\], \[3.0\]\], the oracle gives \[\[2.0, 1.0\], \[3.0\]\]"),
    (lambda x: JaggedTensor(reverse(x).values, x.offsets, 7), r"longest: 7, the rows are \[2, 1\] long"),
    (lambda x: JaggedTensor(reverse(x).values, x.offsets.int()), r"offsets: torch.int32, given torch.int64"),
    (lambda x: reverse(x).detach().with_values(reverse(x).values * 3 - 2 * reverse(x).values.detach()), "gradient"),
])
def test_each_difference_is_found(operation, message):
    with pytest.raises(AssertionError, match=message):
        assert_moves_events(X, operation, lambda rows: [row[::-1] for row in rows])


def test_same_rows_looks_at_values_offsets_and_dtypes():
    assert same_rows(X, from_lists([[1.0, 2.0], [3.0]]))
    assert not same_rows(X, from_lists([[1.0], [2.0, 3.0]]))
    assert not same_rows(X, from_lists([[1.0, 2.0], [4.0]]))
    assert not same_rows(X, X.to(dtype=torch.float64))
    assert not same_rows(X, JaggedTensor(X.values, X.offsets.int()))
