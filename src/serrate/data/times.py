"""Times in seconds, whatever unit a log has them in, and when the prediction after each event is asked for."""

import torch
from torch import Tensor

from ..jagged import JaggedTensor

# Integers as they came are told by their size: seconds since 1970 stay below 10¹¹ until the year 5138, and each finer
# unit begins where the one before it ends. Small ones, counted from another start, count as seconds.
_LARGEST = ((10**11, 1), (10**14, 10**3), (10**17, 10**6))
_NANOSECONDS = 10**9
_FARTHEST = 2**61  # seconds; the difference of two such still fits 64 bits


def ticks_per_second(time: int) -> int:
    """Return how many units of integer times make a second, told by the size of a usual one of them."""
    return next((ticks for largest, ticks in _LARGEST if abs(time) < largest), _NANOSECONDS)


def seconds(times: Tensor, ticks: int) -> Tensor:
    """Return `times` (int64, any shape, `ticks` to a second) in whole seconds, int64, rounded down."""
    return torch.div(times, ticks, rounding_mode="floor").clamp_(-_FARTHEST, _FARTHEST)


def asked_times(time: JaggedTensor, newest: Tensor) -> JaggedTensor:
    """Return when the prediction after each event is asked for: at the time of the event after it.

    What is asked after the newest event of a row is asked at `newest`. A model may know when it is asked, for serving
    knows it too; what comes then is what it has to predict.

    Args:
        time: values `(T,)` int64, on the CPU.
        newest: `(B,)` int64; that of a row without events is not read.
    """
    following = time.values.roll(-1)
    filled = time.lengths > 0
    following[time.offsets[1:][filled] - 1] = newest[filled]
    return time.with_values(following)
