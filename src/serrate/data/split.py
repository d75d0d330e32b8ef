"""Which part of each history trains, validates and tests. Histories are stored once; an example points into them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidArgument
from .config import SplitConfig
from .histories import Histories


@dataclass(frozen=True, eq=False)
class Examples:
    """`M` examples: the history is the first `ends` events of row `rows`, the truth events `ends … truth_ends`.

    Attributes:
        rows: `(M,)` int64 rows of the histories.
        ends: `(M,)` int64.
        truth_ends: `(M,)` int64, equal to `ends` where there is nothing to predict (training).
    """

    rows: np.ndarray
    ends: np.ndarray
    truth_ends: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, index: "np.ndarray | Sequence[int]") -> "Examples":
        """Return the examples at `index` (positions or a mask)."""
        return Examples(self.rows[index], self.ends[index], self.truth_ends[index])


@dataclass(frozen=True, eq=False)
class Split:
    """Training, validation and test examples, and sentences on where the split leaks the future."""

    train: Examples
    validation: Examples
    test: Examples
    warnings: tuple[str, ...]


def split(histories: Histories, config: SplitConfig) -> Split:
    """Divide `histories` as `config` says.

    Leave-last-two-out: of a user with n ≥ 3 events the last is for test, the one before for validation and the first
    n - 2 for training; users with fewer train only.
    """
    return _leave_last_two_out(histories)


def _leave_last_two_out(histories: Histories) -> Split:
    lengths = histories.lengths.numpy()
    rows = np.arange(len(lengths))
    ends = np.where(lengths >= 3, lengths - 2, lengths)
    held, last = rows[lengths >= 3], lengths[lengths >= 3]
    return Split(Examples(rows, ends, ends), Examples(held, last - 2, last - 1), Examples(held, last - 1, last), ())
