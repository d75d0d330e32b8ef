"""When the events of requests happened and when answers are asked for, read and checked."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.times import read_seconds
from ..errors import InvalidArgument
from ..jagged import JaggedTensor

_TIMES = "the times of each history, as the model reads them"


@dataclass(frozen=True, eq=False)
class Times:
    """Times of `B` requests, int64 in seconds.

    Attributes:
        happened: values `(T,)`: when each event of each history happened.
        asked: `(B,)`: when each answer is asked for.
    """

    happened: JaggedTensor
    asked: Tensor

    @classmethod
    def of(cls, happened: JaggedTensor, asked: Tensor | None, first: int = 0) -> "Times":
        """Return these; with `asked` None each answer is asked for when the newest event of its history happened.

        Raise where one is asked for before that: the answer would know what came later, and no model has trained on
        such. `first` is the number by which the error would call the first row.
        """
        filled = happened.lengths > 0
        newest = torch.zeros(len(happened), dtype=torch.int64)
        newest[filled] = happened.values[happened.offsets[1:][filled] - 1]
        if asked is None:
            return cls(happened, newest)
        early = (newest - asked) * filled
        if bool((early > 0).any()):
            row = int((early > 0).nonzero()[0])
            raise InvalidArgument("asked", "the time of the newest event or later",
                                  f"{int(early[row]):,} s before it in history {first + row}")
        return cls(happened, asked)

    def kept(self, known: Tensor) -> "Times":
        """Return them with only the events that are `known`, `(T,)` bool; answers are asked for when they were."""
        rows = self.happened.row_index()[known]
        lengths = torch.bincount(rows, minlength=len(self.happened))
        return Times(JaggedTensor.from_lengths(self.happened.values[known], lengths), self.asked)


def read_times(times: Any, asked: Any, lengths: np.ndarray) -> Times:
    """Return the times of requests as somebody gives them; see `Predictor.recommend`.

    Args:
        times: `B` lists of times.
        asked: one time, `B` of them, or None.
        lengths: `(B,)` int64, how many events each history has.

    Raises:
        InvalidArgument: times that are missing, no times, too many or too few, or not in order; answers asked for
            before the newest event of their history.
    """
    if times is None or isinstance(times, str | bytes) or not isinstance(times, Iterable):
        raise InvalidArgument("times", _TIMES, repr(times))
    rows = list(times)
    if len(rows) != len(lengths):
        raise InvalidArgument("times", f"{len(lengths)} lists, one a history", len(rows))
    for number, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        if not hasattr(row, "__len__") or len(row) != length:
            got = f"{len(row)} times" if hasattr(row, "__len__") else repr(row)
            raise InvalidArgument("times", f"{length} times in list {number}, as its history has events", got)
    happened = read_seconds("times", [time for row in rows for time in row])
    return checked(happened, lengths, None if asked is None else read_asked(asked, len(lengths)))


def read_asked(asked: Any, rows: int) -> Tensor:
    """Return when answers are asked for, `(B,)` int64 in seconds, of one time for all or a list of `rows` times."""
    one = isinstance(asked, str | bytes) or not hasattr(asked, "__len__")
    found = read_seconds("asked", [asked] if one else asked)
    if len(found) != (1 if one else rows):
        raise InvalidArgument("asked", f"one time, or {rows}, one a history", f"{len(found)} times")
    return found.expand(rows)


def checked(happened: Tensor, lengths: np.ndarray, asked: Tensor | None, first: int = 0) -> Times:
    """Return the times of events `(T,)` in rows of `lengths` `(B,)`; raise where one is before the one before it.

    For `asked` and `first` see `Times.of`.
    """
    time = JaggedTensor.from_lengths(happened, torch.from_numpy(lengths))
    rows = time.row_index()
    wrong = (happened.diff() < 0) & (rows.diff() == 0)
    if bool(wrong.any()):
        row = first + int(rows[1:][wrong][0])
        raise InvalidArgument("times", "the oldest event of a history first", f"a decrease in history {row}")
    return Times.of(time, asked, first)
