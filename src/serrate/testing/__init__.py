"""For tests and benchmarks: odd jagged cases, hypothesis strategies, the numerics promise as an assertion."""

from .budget import assert_within_budget, error_budget, largest_error
from .cases import JaggedCase, jagged_cases
from .rows import assert_moves_events, same_rows
from .strategies import jagged_tensors, lengths

__all__ = ["JaggedCase", "assert_moves_events", "assert_within_budget", "error_budget", "jagged_cases",
           "jagged_tensors", "largest_error", "lengths", "same_rows"]
